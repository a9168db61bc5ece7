//! The operator has the rights that it uses, and no other.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::server::{Account, Server};
use anyhow::{Result, ensure};
use e2e::audit::Request;
use e2e::operated::{NAMESPACE, Operated};
use e2e::replica::{self, Replica};
use e2e::{stack::SYSTEM_NAMESPACE, unasked_edge, wait};
use k8s_openapi::api::rbac::v1::PolicyRule;
use peristyle::commands::render::{input::Input, render};
use serde::Deserialize;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(90);

/// Granted for what this run does not ask for: group, resources, verb and the reason.
const NOT_ASKED_FOR: [(&str, &[&str], &str, &str); 3] = [
    (
        "peristyle.dev",
        &[
            "services/finalizers",
            "databases/finalizers",
            "authclasses/finalizers",
            "databaseclasses/finalizers",
        ],
        "update",
        "checked by the admission plugin OwnerReferencesPermissionEnforcement, as on OpenShift",
    ),
    ("batch", &["jobs"], "delete", "the fourth finished hook of a Service, which takes a node to run"),
    (
        "peristyle.dev",
        &["services", "databases", "authpolicies", "edgeclasses", "authclasses", "databaseclasses"],
        "get",
        "the status of an object that cannot be read is kept",
    ),
];

fn is_excepted((_, group, resource, verb): &Right) -> bool {
    NOT_ASKED_FOR.iter().any(|(excepted, resources, for_, _)| {
        group == excepted && verb == for_ && resources.contains(&resource.as_str())
    })
}

/// Where a right holds, or was used.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Place {
    /// Everywhere, granted by a ClusterRole; used for all namespaces at once, for
    /// what has none, or in a namespace that is not the operator's.
    Everywhere,
    /// The operator's own namespace.
    System,
}

/// Place, group, resource and verb.
type Right = (Place, String, String, String);

#[derive(Deserialize)]
struct Role {
    kind: String,
    #[serde(default)]
    rules: Vec<PolicyRule>,
}

async fn roles() -> Result<Vec<(Place, Vec<PolicyRule>)>> {
    let text = replica::chart(&["templates/rbac.yaml"]).await?;
    let mut roles = Vec::new();
    for document in text.split("\n---\n").filter(|document| document.contains("kind: ")) {
        let role: Role = serde_saphyr::from_str(document)?;
        let place = match role.kind.as_str() {
            "ClusterRole" => Place::Everywhere,
            "Role" => Place::System,
            _ => continue,
        };
        ensure!(!role.rules.is_empty(), "a role without rules");
        roles.push((place, role.rules));
    }
    Ok(roles)
}

fn granted(roles: &[(Place, Vec<PolicyRule>)]) -> BTreeSet<Right> {
    let mut granted = BTreeSet::new();
    for (place, rule) in roles.iter().flat_map(|(place, rules)| rules.iter().map(move |rule| (*place, rule)))
    {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                let right = |verb: &String| (place, group.clone(), resource.clone(), verb.clone());
                granted.extend(rule.verbs.iter().map(right));
            }
        }
    }
    granted
}

/// The rights that a request needs: an apply that creates needs two.
fn needed(request: &Request) -> Vec<Right> {
    let place = if request.namespace == SYSTEM_NAMESPACE { Place::System } else { Place::Everywhere };
    let right = |verb: &str| (place, request.group.clone(), request.resource.clone(), verb.to_owned());
    let mut needed = vec![right(&request.verb)];
    if request.verb == "patch" && request.code == 201 {
        needed.push(right("create"));
    }
    needed
}

#[tokio::test]
async fn no_right_is_a_wildcard_or_leads_to_more_rights() {
    let roles = roles().await.unwrap();
    for rule in roles.iter().flat_map(|(_, rules)| rules) {
        let words = [&rule.verbs].into_iter().chain(&rule.api_groups).chain(&rule.resources).flatten();
        for word in words {
            assert!(!word.contains('*'), "{rule:?}");
            assert!(
                !["escalate", "bind", "impersonate", "deletecollection"].contains(&word.as_str()),
                "{rule:?}"
            );
            assert!(!["pods/exec", "pods/attach", "pods/portforward"].contains(&word.as_str()), "{rule:?}");
            assert!(
                !["roles", "rolebindings", "clusterroles", "serviceaccounts/token"].contains(&word.as_str())
            );
        }
        assert!(rule.non_resource_urls.as_ref().is_none_or(Vec::is_empty), "{rule:?}");
    }
}

/// Everything that an operator may be asked to do.
struct Bench {
    operated: Operated,
    server: Server,
    operator: Replica,
}

impl Bench {
    async fn start() -> Result<Self> {
        let server = Server::start().await;
        let operated = Operated::prepare().await?;
        replica::grant(&operated.plane).await?;
        let operator = Replica::start(&operated.plane, "operator").await?;
        operator.wait_until_leading().await?;
        Ok(Self { operated, server, operator })
    }

    async fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.operated.plane.kubectl_with_input(&arguments, &list).await?;
        Ok(())
    }

    async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let arguments = ["delete", kind, name, "-n", NAMESPACE, "--wait=false"];
        self.operated.plane.kubectl(&arguments).await?;
        Ok(())
    }

    /// Waits until the operator has used a right, or until it has been refused one.
    async fn used(&self, group: &str, resource: &str, verb: &str) -> Result<()> {
        let is_it = |right: &Right| right.1 == group && right.2 == resource && right.3 == verb;
        wait::until(&format!("the operator uses {verb} on {resource}.{group}"), PATIENCE, async || {
            ensure!(self.all_used()?.iter().any(is_it), "not yet; {}", self.states().await?);
            Ok(())
        })
        .await
    }

    /// Waits until `Ready` of a Service has this reason.
    async fn reason(&self, service: &str, reason: &str) -> Result<()> {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}";
        wait::until(&format!("Service {service} is {reason}"), PATIENCE, async || {
            let arguments = ["get", "psvc", service, "-n", NAMESPACE, "-o", path];
            let found = self.operated.plane.kubectl(&arguments).await?;
            ensure!(found == reason, "it is {found:?}");
            Ok(())
        })
        .await
    }

    fn requests(&self) -> Result<Vec<Request>> {
        self.operator.all_requests(&self.operated.plane, 0)
    }

    fn all_used(&self) -> Result<BTreeSet<Right>> {
        Ok(self.requests()?.iter().filter(|r| r.code < 300 || r.code == 404).flat_map(needed).collect())
    }

    async fn states(&self) -> Result<String> {
        self.operated.plane.kubectl(&["get", "peristyle,dbclass,authclasses", "-A"]).await
    }

    /// Whoever has the name of a child is looked at.
    async fn names_are_taken(&self) -> Result<()> {
        let (children, services) = taken();
        self.apply(&children).await?;
        self.apply(&services).await?;
        for (group, resource) in [
            ("apps", "deployments"),
            ("apps", "statefulsets"),
            ("batch", "jobs"),
            ("", "serviceaccounts"),
            ("", "services"),
            ("networking.k8s.io", "networkpolicies"),
            ("policy", "poddisruptionbudgets"),
            ("discovery.k8s.io", "endpointslices"),
            ("traefik.io", "ingressroutes"),
            ("traefik.io", "middlewares"),
            ("traefik.io", "serverstransports"),
        ] {
            self.used(group, resource, "get").await?;
        }
        Ok(())
    }

    /// The classes, and what stands for components that no node runs here.
    async fn classes(&self) -> Result<()> {
        let default = json!({"peristyle.dev/is-default-class": "true"});
        let class = |kind: &str, name: &str, spec: Value| {
            json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": kind, "spec": spec,
                   "metadata": {"name": name, "annotations": default}})
        };
        unasked_edge::create(&self.operated.client).await?;
        let Account { user, password } = self.server.creator();
        let embedded = json!({"engine": "PostgreSQL", "provider": "Embedded",
            "embedded": {"image": "p:15", "binDir": "/usr/lib/postgresql/15/bin", "user": 999}});
        let labels = json!({"app": "legacy"});
        self.apply(&[
            // Somebody else has the name of the server of the class `taken`.
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
                   "metadata": {"name": "taken-postgres", "namespace": SYSTEM_NAMESPACE},
                   "spec": {"serviceName": "x", "selector": {"matchLabels": labels}, "template": {
                       "metadata": {"labels": labels}, "spec": {"containers": [{"name": "x", "image": "x"}]}}}}),
            json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "DatabaseClass",
                   "metadata": {"name": "taken"}, "spec": embedded}),
            json!({"apiVersion": "v1", "kind": "Secret",
                   "metadata": {"name": "pg-admin", "namespace": SYSTEM_NAMESPACE},
                   "stringData": {"username": user, "password": password}}),
            class("AuthClass", "standard", json!({
                "oathkeeper": {"namespace": SYSTEM_NAMESPACE, "service": "oathkeeper-api", "rulesConfigMap": "rules"},
                "keto": {"readURL": "http://127.0.0.1:1", "writeURL": "http://127.0.0.1:1", "oplURL": "http://127.0.0.1:1",
                         "namespacesConfigMap": {"namespace": SYSTEM_NAMESPACE, "name": "namespaces", "key": "n.ts"}},
                "issuers": [{"issuer": "https://i.example.com", "jwksURL": "https://i.example.com/keys"}]})),
            class("DatabaseClass", "pg", json!({"engine": "PostgreSQL", "provider": "External", "external": {
                "endpoints": {"write": self.server.endpoint("127.0.0.1").to_string()},
                "adminSecret": {"name": "pg-admin"},
                "tls": {"mode": "Disabled", "allowInsecure": "Enabled"}}})),
            json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "DatabaseClass",
                   "metadata": {"name": "embedded"}, "spec": embedded}),
        ])
        .await
    }
}

/// The children of Services whose names somebody else takes first, one child of
/// each kind, with the Services.
fn taken() -> (Vec<Value>, Vec<Value>) {
    let plain = json!({"image": "x:1", "expose": [{"name": "public", "auth": {"mode": "Public"}}]});
    let mut hooked = plain.clone();
    hooked["hooks"] = json!({"preRollout": [{"name": "m", "command": ["a"]}]});
    let (mut children, mut services, mut kinds) = (Vec::new(), Vec::new(), BTreeSet::new());
    for spec in [plain, hooked] {
        for number in 0..rendered("x", &spec).len() {
            let name = format!("taken-{}", services.len());
            let mut child = rendered(&name, &spec).swap_remove(number);
            if kinds.insert(child["kind"].to_string()) {
                child["metadata"]["labels"] = json!({"app": "legacy"});
                children.push(child);
                services.push(object("Service", &name, spec.clone()));
            }
        }
    }
    (children, services)
}

/// The children of a Service, as the operator would write them.
fn rendered(name: &str, spec: &Value) -> Vec<Value> {
    let mut input = Input::default();
    input.add(&object("Service", name, spec.clone()).to_string(), NAMESPACE).unwrap();
    render(&input, &input.services[0], 2).unwrap().objects
}

#[allow(clippy::needless_pass_by_value, reason = "json! at the call")]
fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": kind, "spec": spec,
           "metadata": {"name": name, "namespace": NAMESPACE}})
}

#[tokio::test]
async fn the_chart_grants_what_a_run_uses_and_nothing_else() {
    let bench = Bench::start().await.unwrap();
    bench.classes().await.unwrap();
    let database = json!({"reclaimPolicy": "Delete", "deletionProtection": "Disabled"});
    let orders = |image: &str, expose: Value| {
        object(
            "Service",
            "orders",
            json!({"image": image, "expose": expose, "databases": [{"name": "main", "database": "orders"}],
            "envFrom": [{"configMapRef": {"name": "settings"}}],
            "hooks": {"preRollout": [{"name": "migrate", "command": ["migrate"]}]}}),
        )
    };
    let expose = json!([{"name": "public", "auth": {"mode": "Public"}}, {"name": "private", "hosts": ["p.shop.example.com"]}]);
    bench
        .apply(&[
            json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"A": "b"},
                   "metadata": {"name": "settings", "namespace": NAMESPACE}}),
            object("Database", "orders", database.clone()),
            orders("x:1", expose.clone()),
            object("Service", "plain", json!({"image": "x:1", "expose": expose})),
            object(
                "AuthPolicy",
                "orders",
                json!({"targets": [{"service": "orders", "expose": "private"}],
                "rules": [{"name": "r", "match": {"grpc": [{"service": "a.v1.A"}]}, "public": {}}]}),
            ),
        ])
        .await
        .unwrap();
    for (group, resource, verb) in [
        ("", "secrets", "create"),
        ("apps", "statefulsets", "create"),
        ("apps", "deployments", "create"),
        ("batch", "jobs", "create"),
        ("traefik.io", "ingressroutes", "create"),
        ("discovery.k8s.io", "endpointslices", "create"),
        ("", "configmaps", "create"),
    ] {
        bench.used(group, resource, verb).await.unwrap();
    }
    // The same transition twice is one event that is counted.
    for _ in 0..2 {
        let invalid = json!({"image": "x:1", "env": [{"name": "PORT", "value": "1"}]});
        bench.apply(&[object("Service", "plain", invalid)]).await.unwrap();
        bench.reason("plain", "Invalid").await.unwrap();
        bench.apply(&[object("Service", "plain", json!({"image": "x:1"}))]).await.unwrap();
        bench.reason("plain", "RolloutInProgress").await.unwrap();
    }
    bench.used("events.k8s.io", "events", "patch").await.unwrap();
    // A Secret that is edited is restored, one that nobody asks for any more goes.
    let edit = ["patch", "secret", "orders-db", "-n", NAMESPACE, "-p", "{\"stringData\":{\"host\":\"x\"}}"];
    bench.operated.plane.kubectl(&edit).await.unwrap();
    bench.used("", "secrets", "patch").await.unwrap();
    let reads =
        json!({"image": "x:1", "databases": [{"name": "main", "database": "orders", "role": "Reader"}]});
    bench.apply(&[object("Service", "reports", reads)]).await.unwrap();
    bench.reason("reports", "RolloutInProgress").await.unwrap();
    bench.delete("psvc", "reports").await.unwrap();
    bench.used("", "secrets", "delete").await.unwrap();
    let open = json!({"image": "x:2", "replicas": 1, "access": {"mode": "Open"}});
    bench.apply(&[object("Service", "plain", open)]).await.unwrap();
    for (group, resource) in [
        ("traefik.io", "ingressroutes"),
        ("traefik.io", "middlewares"),
        ("traefik.io", "serverstransports"),
        ("discovery.k8s.io", "endpointslices"),
        ("", "services"),
        ("networking.k8s.io", "networkpolicies"),
        ("policy", "poddisruptionbudgets"),
    ] {
        bench.used(group, resource, "delete").await.unwrap();
    }
    bench.names_are_taken().await.unwrap();
    bench.delete("psvc", "orders").await.unwrap();
    bench.delete("psdb", "orders").await.unwrap();
    wait::until("the database is gone", PATIENCE, async || {
        let left = bench.operated.plane.kubectl(&["get", "psdb", "-A", "-o", "name"]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await
    .unwrap();

    let refused: Vec<String> =
        bench.requests().unwrap().iter().filter(|r| r.code == 403).map(ToString::to_string).collect();
    assert!(refused.is_empty(), "used and not granted: {refused:#?}");
    let used = bench.all_used().unwrap();
    let granted = granted(&roles().await.unwrap());
    let everywhere = |right: &Right| (Place::Everywhere, right.1.clone(), right.2.clone(), right.3.clone());
    let twice: Vec<&Right> = granted
        .iter()
        .filter(|right| right.0 == Place::System && granted.contains(&everywhere(right)))
        .collect();
    assert!(twice.is_empty(), "granted in the operator's namespace and everywhere: {twice:#?}");
    // What is used in the operator's namespace alone must not be granted everywhere.
    let mut unused = granted;
    unused.retain(|right| !used.contains(right) && !is_excepted(right));
    assert!(unused.is_empty(), "granted and not used: {unused:#?}");
}
