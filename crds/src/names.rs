//! Labels and annotations of the group, each with its one meaning.

/// Name of the `Service` object a child belongs to.
pub const SERVICE_LABEL: &str = "peristyle.dev/service";
/// Name of the `Database` object a child belongs to.
pub const DATABASE_LABEL: &str = "peristyle.dev/database";
/// Name of the `DatabaseClass` object a child belongs to.
pub const DATABASE_CLASS_LABEL: &str = "peristyle.dev/database-class";
/// Name of the `AuthClass` object a child belongs to.
pub const AUTH_CLASS_LABEL: &str = "peristyle.dev/auth-class";
/// Name of the `EdgeClass` that may load a route. Only the operator may set it
/// (a ValidatingAdmissionPolicy in the chart), and the edge loads nothing
/// without it: Traefik's object names collide across namespaces.
pub const EDGE_LABEL: &str = "peristyle.dev/edge";

/// Value of `app.kubernetes.io/managed-by` on every child.
pub const MANAGED_BY: &str = "peristyle";
/// Label that every child carries and every child watch selects.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// `"true"` on a Service, or on one of its children that protect nothing, makes
/// the operator leave it alone.
pub const IGNORE_LABEL: &str = "peristyle.dev/ignore";
/// On a pod template: hash of what the pods read at their start.
pub const CONFIG_HASH_ANNOTATION: &str = "peristyle.dev/config-hash";
/// On a Deployment: versions of the objects that the hash was taken of, so that
/// they are read again only when one of them changed.
pub const CONFIG_VERSIONS_ANNOTATION: &str = "peristyle.dev/config-versions";

/// Name of the hook a Job runs.
pub const HOOK_LABEL: &str = "peristyle.dev/hook";
/// Name of the expose entry a route belongs to.
pub const EXPOSE_LABEL: &str = "peristyle.dev/expose";
/// Hash of the compiled policy that a route enforces; absent on public routes.
pub const POLICY_HASH_ANNOTATION: &str = "peristyle.dev/policy-hash";
/// On a Database: a value that was not acted on yet changes all its passwords now.
/// On its Secrets: the value that led to the password.
pub const ROTATE_ANNOTATION: &str = "peristyle.dev/rotate";
/// On a Secret of a Database: since when it holds these credentials, in RFC 3339.
pub const ROTATED_AT_ANNOTATION: &str = "peristyle.dev/rotated-at";
