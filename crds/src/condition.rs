//! Condition types and reasons: every word that `status.conditions` may hold.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Condition types. `Ready`, `Reconciling` and `Stalled` follow kstatus.
pub mod types {
    /// The object does what its spec says.
    pub const READY: &str = "Ready";
    /// Work is in progress; absent otherwise.
    pub const RECONCILING: &str = "Reconciling";
    /// Nothing will change until a person changes something; absent otherwise.
    pub const STALLED: &str = "Stalled";
    /// Service: the Deployment runs what the spec says.
    pub const WORKLOAD_AVAILABLE: &str = "WorkloadAvailable";
    /// Service: every referenced Database has credentials and, when it was asked last, a server
    /// that answers.
    pub const DATABASES_READY: &str = "DatabasesReady";
    /// Service: what it calls may be called from here.
    pub const ACCESS_VALID: &str = "AccessValid";
    /// Service: something that the operator wants to be known; absent otherwise.
    pub const ADVISORY: &str = "Advisory";
    /// Service: every exposed route is served, and protected where it must be.
    pub const ROUTES_PROGRAMMED: &str = "RoutesProgrammed";
    /// Database, DatabaseClass: the server answers and is the one that is meant.
    pub const SERVER_REACHABLE: &str = "ServerReachable";
    /// Database: database, roles and privileges exist on the server.
    pub const PROVISIONED: &str = "Provisioned";
    /// Database: each Secret holds credentials that can log in.
    pub const CREDENTIALS_READY: &str = "CredentialsReady";
    /// Database: somebody changed something on the server, and it was put right; gone after
    /// a look that finds no difference.
    pub const DRIFT_DETECTED: &str = "DriftDetected";
    /// Database: deletion waits for a person.
    pub const DELETION_BLOCKED: &str = "DeletionBlocked";
    /// AuthPolicy: the policy compiles.
    pub const ACCEPTED: &str = "Accepted";
    /// AuthPolicy: the compiled rules are loaded by every ready Oathkeeper pod.
    pub const PROGRAMMED: &str = "Programmed";
    /// AuthPolicy: a call without credentials through the edge was refused, on
    /// every host whose EdgeClass has `spec.probe`.
    pub const ENFORCED: &str = "Enforced";
    /// AuthClass: the rules of all accepted policies are published.
    pub const PUBLISHED: &str = "Published";
}

/// Declares [`Reason`] with the word and the documentation of each variant; one
/// without documentation does not compile.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident,)+) => {
        /// Why a condition has its status. The variant's name is the word that
        /// stands in `reason`.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Reason { $($(#[doc = $doc])+ $variant,)+ }

        impl Reason {
            /// The word as it stands in `status.conditions[].reason`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }

            /// The reason of this word; `None` for one that another version of the operator wrote.
            #[must_use]
            pub fn named(word: &str) -> Option<Self> {
                match word {
                    $(stringify!($variant) => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    /// All is as the spec says.
    Succeeded,
    /// Work goes on; nothing has failed.
    Progressing,
    /// The spec contradicts itself or another object; a person must change it.
    Invalid,
    /// The named class, or any default class, does not exist.
    ClassNotFound,
    /// Several classes claim to be the default.
    ClassAmbiguous,
    /// A child's name is taken by an object that is not ours.
    NameConflict,
    /// The host and path belong to another Service.
    HostConflict,
    /// The host is not one that the EdgeClass allows here.
    HostNotAllowed,
    /// The API server refused for lack of permission.
    Forbidden,
    /// A broken invariant of the operator.
    InternalError,
    /// The API server or another system did not answer as it should; retried.
    Unavailable,
    /// A referenced Database is absent or not ready.
    DatabaseNotReady,
    /// A referenced Secret or ConfigMap, or a key of it, is absent.
    ReferenceMissing,
    /// A Service named in `dependsOn` does not exist.
    DependencyMissing,
    /// `spec.suspend` is set: `Ready` is as it was before.
    Suspended,
    /// The label `peristyle.dev/ignore` is set: the object, or the children that the message names, are left alone.
    Ignored,
    /// Another manager changes back, again and again, what the operator owns.
    ForeignManager,
    /// Pods are being replaced or started.
    RolloutInProgress,
    /// The rollout did not finish within its deadline.
    ProgressDeadlineExceeded,
    /// Pods run and none passes its readiness check, although all did before.
    PodsNotReady,
    /// A container ends again and again; the message has its exit code and the restarts.
    CrashLoopBackOff,
    /// A container used more memory than its limit.
    OOMKilled,
    /// A container ended or cannot be started.
    ContainerFailed,
    /// The image cannot be pulled.
    ImagePullBackOff,
    /// A container refers to a Secret, a ConfigMap or a key that does not exist.
    CreateContainerConfigError,
    /// No node takes the pod; the message is the scheduler's.
    Unschedulable,
    /// A ResourceQuota admits no further pod.
    QuotaExceeded,
    /// The API server refuses the pods, for example by Pod Security.
    PodsRefused,
    /// A hook is running; the Deployment waits.
    HookRunning,
    /// A hook failed; the Deployment is held back.
    HookFailed,
    /// An exposed route waits for an AuthPolicy that targets it.
    NoAuthPolicy,
    /// An AuthPolicy targets the route, but its rules are not live yet.
    PolicyNotProgrammed,
    /// Nothing is exposed.
    NotExposed,
    /// A policy targets a Service or an exposed route that does not exist.
    TargetNotFound,
    /// Two rules, or two policies, match the same request.
    OverlappingRules,
    /// An older policy already governs this target.
    Conflicted,
    /// The issuer is not one that the AuthClass trusts.
    IssuerNotAllowed,
    /// Rules are published and not yet confirmed by every ready Oathkeeper pod.
    PropagatingRules,
    /// A call without credentials through the edge has not been refused as it must be.
    ProbeFailed,
    /// Something else answers for the host: a call without credentials was let in.
    Overridden,
    /// The edge has not loaded the routes or the addresses of the pods yet.
    PropagatingRoutes,
    /// Together with all older policies it would be more than its AuthClass can hold.
    LimitExceeded,
    /// Keto did not answer or refused.
    KetoUnavailable,
    /// No ready Oathkeeper pod.
    OathkeeperUnavailable,
    /// The server refuses connections or does not answer.
    ServerUnreachable,
    /// The administrator lacks a right that provisioning needs.
    InsufficientPrivileges,
    /// The name exists on the server and is not marked as ours.
    DatabaseConflict,
    /// What somebody changed on the server was put right.
    DriftRepaired,
    /// What somebody changed on the server cannot be put right; the message says why.
    DriftNotRepaired,
    /// The database is not on the server any more; no empty one is made in its place.
    DatabaseGone,
    /// `deletionProtection` is enabled while `reclaimPolicy` would delete.
    DeletionProtected,
}
