//! One mistake per manifest: each is refused when it is applied, or its status
//! names the field, the value and what to do.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::operated::{NAMESPACE, Operated};
use e2e::{unasked_edge, wait};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

enum Answer {
    /// The API server does not take it.
    Refused,
    /// The condition of that type, with its reason, says so.
    Reported(&'static str, &'static str),
}
use Answer::{Refused, Reported};

/// Manifest, where the mistake is told, and what must be in it: field, value, remedy.
const MISTAKES: [(&str, Answer, &[&str]); 22] = [
    ("no-image", Refused, &["spec.image", "Required value"]),
    ("misspelt-field", Refused, &[".spec.replica", "field not declared in schema"]),
    ("negative-replicas", Refused, &["spec.replicas", "-1", "greater than or equal to 0"]),
    ("port-out-of-range", Refused, &["spec.ports[0].port", "70000", "less than or equal to 65535"]),
    ("port-name-twice", Refused, &["spec.ports", "duplicate entries for key [name=\"grpc\"]"]),
    ("expose-of-no-port", Refused, &["spec.expose[].port", "must be the name of one of spec.ports"]),
    ("value-and-source", Refused, &["spec.env[0]", "set value or valueFrom, not both"]),
    ("host-that-is-no-name", Refused, &["spec.expose[0].hosts[0]", "orders`example.com", "should match"]),
    ("timeout-in-words", Refused, &["spec.hooks.preRollout[0].timeout", "5 minutes", "should match"]),
    ("symmetric-algorithm", Refused, &["algorithms[0]", "HS256", "supported values", "RS256"]),
    ("unknown-authentication", Refused, &["spec", "must name entries of spec.authentication"]),
    ("host-without-namespace", Refused, &["spec.hosts", "must contain {service} and {namespace}"]),
    ("password-in-clear", Refused, &["spec.external.tls", "set allowInsecure: Enabled"]),
    (
        "own-variable-of-the-platform",
        Reported("Ready", "Invalid"),
        &["spec.env[0].name", "PORT", "choose another name"],
    ),
    (
        "host-of-somebody-else",
        Reported("RoutesProgrammed", "HostNotAllowed"),
        &["spec.expose[0]", "www.bank.example.org", "use a host under"],
    ),
    (
        "edge-that-does-not-exist",
        Reported("RoutesProgrammed", "ClassNotFound"),
        &["className", "partners", "create it or name another"],
    ),
    (
        "secret-that-does-not-exist",
        Reported("WorkloadAvailable", "ReferenceMissing"),
        &["spec.envFrom", "payment-keys", "create it"],
    ),
    (
        "database-that-does-not-exist",
        Reported("DatabasesReady", "DatabaseNotReady"),
        &["spec.databases", "ledger", "create it"],
    ),
    (
        "target-that-does-not-exist",
        Reported("Accepted", "TargetNotFound"),
        &["spec.targets", "invoices", "not found in this namespace"],
    ),
    (
        "issuer-that-nobody-trusts",
        Reported("Accepted", "IssuerNotAllowed"),
        &["spec.authentication[idp].jwt.issuer", "https://id.example.org", "have it added there"],
    ),
    (
        "two-rules-for-one-call",
        Reported("Accepted", "OverlappingRules"),
        &["spec.rules[read]", "spec.rules[also]", "Get", "remove it from one of them"],
    ),
    (
        "class-that-does-not-exist",
        Reported("Ready", "ClassNotFound"),
        &["spec.className", "oracle", "create it or name another"],
    ),
];

fn folder() -> PathBuf {
    e2e::workspace().join("e2e/tests/control_plane/misuse")
}

/// What is right: a class, and Services that policies aim at.
fn surroundings() -> Value {
    let object = |kind: &str, name: &str, spec: Value| {
        json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": kind, "spec": spec, "metadata": {
            "name": name, "annotations": {"peristyle.dev/is-default-class": "true"}}})
    };
    let configured = json!({"namespace": "peristyle-system", "name": "namespaces", "key": "namespaces.ts"});
    let keto = json!({"readURL": "http://127.0.0.1:1", "writeURL": "http://127.0.0.1:1",
        "oplURL": "http://127.0.0.1:1", "namespacesConfigMap": configured});
    let exposed = json!({"image": "registry.example.com/orders:1", "expose": [{"name": "public"}]});
    let items = [
        object(
            "AuthClass",
            "standard",
            json!({"keto": keto,
            "oathkeeper": {"namespace": "peristyle-system", "service": "oathkeeper-api", "rulesConfigMap": "rules"},
            "issuers": [{"issuer": "https://id.example.com", "jwksURL": "https://id.example.com/keys"}]}),
        ),
        object("Service", "orders", exposed.clone()),
        object("Service", "carts", exposed),
    ];
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

async fn condition(operated: &Operated, file: &str, type_: &str) -> Result<Value> {
    let arguments = ["get", "-f", file, "-n", NAMESPACE, "-o", "json"];
    let object: Value = serde_json::from_str(&operated.plane.kubectl(&arguments).await?)?;
    let conditions = object["status"]["conditions"].as_array().context("no conditions yet")?;
    Ok(conditions.iter().find(|c| c["type"] == type_).with_context(|| format!("{conditions:?}"))?.clone())
}

async fn told(operated: &Operated, name: &str, answer: &Answer, parts: &[&str]) -> Result<()> {
    let file = folder().join(format!("{name}.yaml")).display().to_string();
    let apply = ["apply", "--server-side", "-n", NAMESPACE, "-f", &file];
    let applied = operated.plane.kubectl(&apply).await;
    let text = match (answer, applied) {
        (Refused, Ok(_)) => anyhow::bail!("it was accepted"),
        (Refused, Err(error)) => format!("{error:#}"),
        (Reported(type_, reason), applied) => {
            applied?;
            wait::until("the mistake is reported", PATIENCE, async || {
                let condition = condition(operated, &file, type_).await?;
                ensure!(condition["reason"] == *reason, "{condition}");
                ensure!(condition["status"] != "True", "{condition}");
                Ok(condition["message"].as_str().unwrap_or_default().to_owned())
            })
            .await?
        }
    };
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn every_mistake_is_refused_or_reported_with_field_value_and_remedy() {
    let mut operated = Operated::prepare().await.unwrap();
    operated.operate("operator").await.unwrap();
    unasked_edge::create(&operated.client).await.unwrap();
    let apply = ["apply", "--server-side", "-n", NAMESPACE, "-f", "-"];
    operated.plane.kubectl_with_input(&apply, &surroundings().to_string()).await.unwrap();
    let mut problems = Vec::new();
    for (name, answer, parts) in &MISTAKES {
        if let Err(error) = told(&operated, name, answer, parts).await {
            problems.push(format!("{name}: {error:#}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

#[test]
fn every_manifest_has_its_line_in_the_table() {
    let files = std::fs::read_dir(folder()).unwrap().flatten();
    let files: BTreeSet<String> =
        files.map(|file| file.file_name().to_string_lossy().trim_end_matches(".yaml").to_owned()).collect();
    let table: BTreeSet<String> = MISTAKES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(files, table);
    assert_eq!(table.len(), MISTAKES.len());
}
