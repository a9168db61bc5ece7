//! One tenant's credentials open nothing of another's, and stand nowhere but
//! in their Secret.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use e2e::example::{Example, GREETER, NAMESPACE, PROPAGATION, new_user};
use e2e::stack::{self, SYSTEM_NAMESPACE};
use e2e::state::State;
use e2e::wait;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;

async fn example() -> Example {
    Example::start(&State::current().unwrap()).await.expect("charts installed by `cargo sandbox test`")
}

async fn secrets(example: &Example, namespace: &str) -> Result<Vec<Secret>> {
    let api: Api<Secret> = Api::namespaced(example.cluster.client().await?, namespace);
    Ok(api.list(&ListParams::default()).await?.items)
}

fn text(secret: &Secret) -> BTreeMap<String, String> {
    let data = secret.data.iter().flatten();
    data.map(|(key, value)| (key.clone(), String::from_utf8_lossy(&value.0).into_owned())).collect()
}

/// Logs in with the credentials of a Secret, from the server's pod.
async fn log_in(
    example: &Example,
    credentials: &BTreeMap<String, String>,
    database: &str,
    sql: &str,
) -> Result<String> {
    let of = |key: &str| credentials.get(key).with_context(|| format!("the Secret has no {key}"));
    let uri = format!("postgresql://{}@{}:{}/{database}", of("username")?, of("host")?, of("port")?);
    let script =
        "read -r PGPASSWORD; export PGPASSWORD; exec psql -XAtq -v ON_ERROR_STOP=1 -d \"$0\" -c \"$1\"";
    let arguments = [
        "exec",
        "-i",
        "-n",
        SYSTEM_NAMESPACE,
        "postgres-0",
        "-c",
        "postgres",
        "--",
        "sh",
        "-c",
        script,
        &uri,
        sql,
    ];
    example.cluster.kubectl_with_input(&arguments, &format!("{}\n", of("password")?)).await
}

#[tokio::test]
async fn a_role_reaches_its_own_database_and_no_other() {
    let example = example().await;
    let all = secrets(&example, NAMESPACE).await.unwrap();
    let writer = all.iter().find(|s| s.name_any() == "greeter-db").expect("the greeter has credentials");
    let credentials = text(writer);
    let database = credentials["database"].clone();
    let rows =
        log_in(&example, &credentials, &database, "select count(*) >= 0 from app.greetings").await.unwrap();
    assert_eq!(rows.trim(), "t", "the control: its own database");

    for other in ["demo_caller", "demo_auth"] {
        let error =
            log_in(&example, &credentials, other, "select 1").await.expect_err("a foreign database opened");
        assert!(format!("{error:#}").contains("permission denied for database"), "{error:#}");
    }
    let error = log_in(&example, &credentials, &database, "create table app.mine (a int)").await;
    assert!(
        format!("{:#}", error.expect_err("a writer changed the schema"))
            .contains("permission denied for schema")
    );
}

#[tokio::test]
async fn no_password_stands_in_a_log_an_event_a_status_or_the_statement_log() {
    let example = example().await;
    let log_statements = async |sql: &str| {
        stack::query(&example.cluster, "postgres", sql).await.unwrap();
        stack::query(&example.cluster, "postgres", "select pg_reload_conf()").await.unwrap();
    };
    log_statements("alter system set log_statement = 'all'").await;
    let database = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Database", "metadata": {"name": "logged"},
        "spec": {"reclaimPolicy": "Delete", "deletionProtection": "Disabled"}});
    stack::apply(&example.cluster, NAMESPACE, &database.to_string()).await.unwrap();
    example.wait_until_ready(NAMESPACE).await.unwrap();

    let mut passwords = Vec::new();
    for namespace in [NAMESPACE, SYSTEM_NAMESPACE] {
        for secret in secrets(&example, namespace).await.unwrap() {
            passwords.extend(
                text(&secret).remove("password").filter(|p| p.len() > 8).map(|p| (secret.name_any(), p)),
            );
        }
    }
    assert!(passwords.len() >= 9, "four writers, four owners and the administrator: {}", passwords.len());

    let cluster = &example.cluster;
    let mut places = vec![(
        "objects and events".to_owned(),
        cluster
            .kubectl(&[
                "get",
                "-A",
                "-o",
                "yaml",
                "peristyle,events,configmaps,deployments,statefulsets,jobs,pods,services",
            ])
            .await
            .unwrap(),
    )];
    for namespace in [NAMESPACE, SYSTEM_NAMESPACE] {
        let pods = cluster.kubectl(&["get", "pods", "-n", namespace, "-o", "name"]).await.unwrap();
        for pod in pods.lines() {
            let log = cluster.kubectl(&["logs", "-n", namespace, pod, "--all-containers", "--tail=-1"]).await;
            places.push((pod.to_owned(), log.unwrap()));
        }
    }
    let statements = places.iter().find(|(place, _)| place == "pod/postgres-0").map(|(_, text)| text);
    let is_logged = statements.is_some_and(|text| text.contains("CREATE ROLE \"demo_logged_writer_a\""));
    assert!(is_logged, "the statements that made the database are not among what was read");
    // With it goes the database: the statements that drop it are not looked at.
    example.cluster.kubectl(&["delete", "psdb", "logged", "-n", NAMESPACE]).await.unwrap();
    log_statements("alter system reset log_statement").await;
    let left = stack::query(
        &example.cluster,
        "postgres",
        "select count(*) from pg_database where datname = 'demo_logged'",
    );
    assert_eq!(left.await.unwrap(), "0", "reclaimPolicy Delete left the database");

    for (secret, password) in &passwords {
        let encoded = STANDARD.encode(password);
        for (place, text) in &places {
            assert!(!text.contains(password.as_str()), "the password of {secret} stands in {place}");
            assert!(!text.contains(&encoded), "the password of {secret} stands encoded in {place}");
        }
    }
}

#[tokio::test]
async fn a_rotation_replaces_the_pods_and_refuses_no_call() {
    let example = example().await;
    let user = new_user("carol").unwrap();
    let token = example.token(&user).await.unwrap();
    example.allow(&[&user]).await.unwrap();
    wait::until("the user may greet", PROPAGATION, async || {
        Ok(example.edge.greet(GREETER, Some(&token), "Carol").await?)
    })
    .await
    .unwrap();
    let login = async || -> Result<String> {
        let secrets: Api<Secret> = Api::namespaced(example.cluster.client().await?, NAMESPACE);
        text(&secrets.get("greeter-db").await?).remove("username").context("the Secret has no username")
    };
    // Short, so that the next run of this test need not wait for this one's.
    let overlap = json!({"spec": {"rotation": {"overlap": "5s"}}}).to_string();
    let patch = ["patch", "psdb/greeter", "-n", NAMESPACE, "--type=merge", "-p", &overlap];
    example.cluster.kubectl(&patch).await.unwrap();
    let before = login().await.unwrap();

    let ended = Arc::new(AtomicBool::new(false));
    let calls = {
        let (edge, token, ended) = (example.edge.clone(), token.clone(), ended.clone());
        tokio::spawn(async move {
            let (mut answered, mut failed) = (0, Vec::new());
            while !ended.load(Ordering::Relaxed) {
                match edge.greet(GREETER, Some(&token), "Carol").await {
                    Ok(_) => answered += 1,
                    Err(status) => failed.push(status),
                }
            }
            (answered, failed)
        })
    };
    let nonce = format!("peristyle.dev/rotate={user}");
    example
        .cluster
        .kubectl(&["annotate", "psdb/greeter", "-n", NAMESPACE, "--overwrite", &nonce])
        .await
        .unwrap();
    let sessions = async |login: &str| {
        let sql = format!("select count(*) from pg_stat_activity where usename = '{login}'");
        stack::query(&example.cluster, "postgres", &sql).await
    };
    wait::until("only pods with the new password run", PROPAGATION * 2, async || {
        let now = login().await?;
        ensure!(now != before, "the Secret still names {now}");
        let (old, new) = (sessions(&before).await?, sessions(&now).await?);
        ensure!(old == "0" && new != "0", "{old} sessions of {before}, {new} of {now}");
        Ok(())
    })
    .await
    .unwrap();
    ended.store(true, Ordering::Relaxed);
    let (answered, failed) = calls.await.unwrap();
    assert!(failed.is_empty(), "{} of {} calls failed: {failed:#?}", failed.len(), answered + failed.len());
    assert!(answered > 0, "nobody called");
}
