//! Names of writes that are the same in every run.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use regex::Regex;
use serde_json::Value;

use super::http::Seen;
use super::journal::Effect;
use crate::images;

/// What a request to the API server writes; none for Leases, which are kept all
/// the time, nor for Events, which tell people how it went this time.
#[must_use]
pub fn api_write(seen: &Seen) -> Option<String> {
    let target = Target::of(seen)?;
    (!seen.is_lease() && !target.kind.starts_with("events")).then(|| format!("{} {target}", seen.method))
}

/// The kind that a request lists; none when it does anything else.
#[must_use]
pub fn api_list(seen: &Seen) -> Option<String> {
    let target = Target::of(seen)?;
    let is_list = seen.method == Method::GET
        && !seen.is_watch()
        && (target.name.is_empty() || target.name.ends_with('/'));
    is_list.then_some(target.kind)
}

/// What a successful write to the API server created or deleted, and the
/// passwords in it. Events are told to people and counted by nobody.
#[must_use]
pub fn api_effects(seen: &Seen, status: StatusCode) -> Vec<Effect> {
    let Some(target) = Target::of(seen) else { return Vec::new() };
    if seen.is_lease() || target.kind.starts_with("events") {
        return Vec::new();
    }
    let what = match (&seen.method, status) {
        (&Method::DELETE, _) => Some(format!("delete {target}")),
        (_, StatusCode::CREATED) => Some(format!("create {target}")),
        _ => None,
    };
    let mut effects: Vec<Effect> = what.map(|what| Effect { what, value: None }).into_iter().collect();
    if target.kind == "secrets" {
        effects.extend(passwords(&target, &seen.body));
    }
    effects
}

/// The passwords in a Secret, each told apart by a hash: under their own key,
/// or with the login that they belong to in a record of logins.
fn passwords(target: &Target, body: &[u8]) -> Vec<Effect> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let password = |(key, value): (&String, &Value)| {
        let value = STANDARD.decode(value.as_str()?).ok()?;
        let record: Value = serde_json::from_slice(&value).unwrap_or_default();
        let recorded = record["password"].as_str().map(|password| password.as_bytes().to_vec());
        let password = recorded.or_else(|| (key == "password").then_some(value))?;
        Some(Effect {
            what: format!("new password in {target} {key}"),
            value: Some(images::digest(&password)),
        })
    };
    body["data"].as_object().into_iter().flatten().filter_map(password).collect()
}

/// What a request to Keto writes.
#[must_use]
pub fn keto_write(seen: &Seen) -> Option<String> {
    let deltas: Vec<Value> = serde_json::from_slice(&seen.body).unwrap_or_default();
    let mut deltas: Vec<String> = deltas
        .iter()
        .map(|delta| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let tuple = &delta["relation_tuple"];
            format!(
                "{} {}:{}#{}@{}",
                text(&delta["action"]),
                text(&tuple["namespace"]),
                text(&tuple["object"]),
                text(&tuple["relation"]),
                text(&tuple["subject_id"])
            )
        })
        .collect();
    deltas.sort();
    Some(format!("Keto {} {}", seen.method, deltas.join(", ")))
}

/// Keto's tuples are compared as they are stored in the end.
#[must_use]
pub fn no_effects(_: &Seen, _: StatusCode) -> Vec<Effect> {
    Vec::new()
}

/// The object of a request to the API server.
struct Target {
    /// Resource, group and subresource.
    kind: String,
    /// Namespace and name.
    name: String,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, name } = self;
        if name.is_empty() { write!(f, "{kind}") } else { write!(f, "{kind} {name}") }
    }
}

impl Target {
    fn of(seen: &Seen) -> Option<Self> {
        let path = seen.path.split('?').next().unwrap_or_default();
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let group = match *parts.first()? {
            "api" => {
                parts.drain(..2.min(parts.len()));
                String::new()
            }
            "apis" => {
                let group = format!(".{}", parts.get(1)?);
                parts.drain(..3.min(parts.len()));
                group
            }
            _ => return None,
        };
        let namespace = if parts.first() == Some(&"namespaces") && parts.len() > 2 {
            let namespace = parts[1].to_owned();
            parts.drain(..2);
            namespace
        } else {
            String::new()
        };
        let resource = *parts.first()?;
        let sub = parts.get(2).map(|sub| format!("/{sub}")).unwrap_or_default();
        let name = parts.get(1).map_or_else(|| posted_name(seen), |name| (*name).to_owned());
        let name = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
        Some(Self { kind: format!("{resource}{group}{sub}"), name: stable(&name) })
    }
}

fn posted_name(seen: &Seen) -> String {
    let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    body["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

static UUID: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new("[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}").ok());
static TIME: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d(:\d\d)?)?").ok());
static VERIFIER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("SCRAM-SHA-256[^']*").ok());

/// `text` without what every run gives anew: UIDs, times, passwords' verifiers.
#[must_use]
pub fn stable(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, name) in [(&UUID, "<uid>"), (&TIME, "<time>"), (&VERIFIER, "<verifier>")] {
        if let Some(pattern) = pattern.as_ref() {
            text = pattern.replace_all(&text, name).into_owned();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(method: Method, path: &str) -> Seen {
        Seen { method, path: path.to_owned(), body: bytes::Bytes::new() }
    }

    #[test]
    fn a_write_is_named_by_its_object_and_not_by_what_is_random() {
        let name = |path: &str| api_write(&seen(Method::PATCH, path));
        let found = name("/apis/apps/v1/namespaces/shop/deployments/greeter?fieldManager=peristyle");
        assert_eq!(found.as_deref(), Some("PATCH deployments.apps shop/greeter"));
        let found = name("/apis/peristyle.dev/v1alpha1/authclasses/default/status");
        assert_eq!(found.as_deref(), Some("PATCH authclasses.peristyle.dev/status default"));
        let found = name("/apis/events.k8s.io/v1/namespaces/shop/events/greeter.18a7");
        assert_eq!(found, None);
        assert_eq!(name("/api/v1/namespaces/shop/secrets/a-db").as_deref(), Some("PATCH secrets shop/a-db"));
        assert_eq!(name("/apis/coordination.k8s.io/v1/namespaces/x/leases/y"), None);
    }

    #[test]
    fn a_list_is_neither_a_watch_nor_a_look_at_one_object() {
        let kind = |path: &str| api_list(&seen(Method::GET, path));
        assert_eq!(kind("/api/v1/namespaces?limit=500").as_deref(), Some("namespaces"));
        assert_eq!(kind("/apis/apps/v1/namespaces/shop/deployments").as_deref(), Some("deployments.apps"));
        assert_eq!(kind("/apis/apps/v1/deployments?watch=true"), None);
        assert_eq!(kind("/api/v1/namespaces/shop"), None);
        assert_eq!(kind("/apis/traefik.io/v1alpha1"), None);
    }

    #[test]
    fn only_what_was_created_or_deleted_counts() {
        let path = "/api/v1/namespaces/shop/secrets/a-db";
        let effects = |method, status| {
            let effects = api_effects(&seen(method, path), status);
            effects.into_iter().map(|effect| effect.what).collect::<Vec<_>>()
        };
        assert_eq!(effects(Method::PATCH, StatusCode::OK), [""; 0]);
        assert_eq!(effects(Method::PATCH, StatusCode::CREATED), ["create secrets shop/a-db"]);
        assert_eq!(effects(Method::DELETE, StatusCode::OK), ["delete secrets shop/a-db"]);
    }

    #[test]
    fn a_password_is_known_again_wherever_it_is_written_and_never_shown() {
        let written = |data: Value| {
            let path = "/api/v1/namespaces/shop/secrets/a-db".to_owned();
            let body = serde_json::json!({ "data": data }).to_string().into();
            api_effects(&Seen { method: Method::PATCH, path, body }, StatusCode::OK)
        };
        let encoded = |text: &str| STANDARD.encode(text);
        let record =
            |asked: &str| encoded(&format!(r#"{{"slot":"A","password":"hunter2","asked":"{asked}"}}"#));
        let plain = written(serde_json::json!({"password": encoded("hunter2"), "username": encoded("a")}));
        let [plain] = plain.try_into().unwrap();
        assert_eq!(plain.what, "new password in secrets shop/a-db password");
        assert!(!format!("{plain:?}").contains("hunter2"));
        let [first] = written(serde_json::json!({"owner": record("1")})).try_into().unwrap();
        let [second] = written(serde_json::json!({"owner": record("2")})).try_into().unwrap();
        assert_eq!(first, second);
        assert_eq!(first.value, plain.value);
    }

    #[test]
    fn what_every_run_gives_anew_is_left_out() {
        let text =
            "a 0190c2a4-1b2c-4d3e-8f90-a1b2c3d4e5f6 at 2026-01-02T03:04:05.6Z 'SCRAM-SHA-256$4096:x$y'";
        assert_eq!(stable(text), "a <uid> at <time> '<verifier>'");
    }
}
