//! Models and tuples in the real Keto, on PostgreSQL, with the chart's configuration.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "a test ends by panicking, and shares its support with other tests"
)]

#[path = "support/objects.rs"]
mod objects;
#[path = "support/program.rs"]
mod program;
#[path = "postgres/server.rs"]
mod server;

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use objects::Objects;
use peristyle::{
    auth::{model, relations::Refusals},
    external::{http, keto::Keto},
};
use peristyle_crds::v1alpha1::auth_policy::Tuple;
use program::{binary, own_address};
use server::Server;
use tempfile::TempDir;

const SHOP: &str = include_str!("fixtures/auth/shop.yaml");
const CONFIG: &str = include_str!("../../charts/peristyle-stack/files/keto.yaml");
const DEADLINE: Duration = Duration::from_secs(30);

struct Running {
    process: Child,
    directory: TempDir,
    _server: Server,
    read: String,
    write: String,
    opl: String,
    client: reqwest::Client,
    keto: Keto,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing to do about a process that is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Running {
    /// Starts Keto with the file that the agent writes first.
    async fn start() -> Self {
        let server = Server::start().await;
        let account = server.creator().clone();
        server.superuser("postgres").await.batch_execute("CREATE DATABASE keto OWNER creator").await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let namespaces = directory.path().join("namespaces.keto.ts");
        fs::write(&namespaces, model::file([]).0.text).unwrap();
        let mut config = CONFIG.replace("/etc/keto/namespaces.keto.ts", &namespaces.display().to_string());
        let address = own_address();
        let addresses = [4466, 4467, 4468, 4469].map(|usual| {
            let from = format!("host: 0.0.0.0, port: {usual}");
            assert!(config.contains(&from), "the chart's configuration has no {from:?} any more");
            config = config.replace(&from, &format!("host: {address}, port: {usual}"));
            format!("http://{address}:{usual}")
        });
        let [read, write, _, opl] = addresses;
        fs::write(directory.path().join("config.yaml"), config).unwrap();
        let endpoint = server.endpoint("127.0.0.1");
        let dsn = format!(
            "postgres://{}:{}@{}:{}/keto?sslmode=disable",
            account.user, account.password, endpoint.host, endpoint.port
        );
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let command = |arguments: &[&str]| {
            let mut command = Command::new(binary("keto"));
            command
                .args(arguments)
                .arg("--config")
                .arg(directory.path().join("config.yaml"))
                .env("DSN", &dsn)
                // As the chart sets it; this release must not mind.
                .env("SECRETS_PAGINATION", "0123456789abcdef0123456789abcdef")
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log.try_clone().unwrap());
            command
        };
        assert!(command(&["migrate", "up", "--yes"]).status().unwrap().success());
        let process = command(&["serve", "--sqa-opt-out"]).spawn().unwrap();
        let client = http::client().unwrap();
        let keto = Keto::new(client.clone());
        let running = Self { process, directory, _server: server, read, write, opl, client, keto };
        running.shows(&["PeristyleNone"]).await;
        running
    }

    /// Replaces the namespaces in one step.
    fn load(&self, text: &str) {
        let temporary = self.directory.path().join("new");
        fs::write(&temporary, text).unwrap();
        fs::rename(&temporary, self.directory.path().join("namespaces.keto.ts")).unwrap();
    }

    /// Waits until Keto has exactly these namespaces.
    async fn shows(&self, namespaces: &[&str]) {
        let wanted: BTreeSet<String> = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let end = Instant::now() + DEADLINE;
        loop {
            let found = self.keto.namespaces(&self.read).await;
            if found.as_ref().is_ok_and(|found| *found == wanted) {
                return;
            }
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "{found:?} instead of {wanted:?}:\n{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn tuple(object: &str, subject: &str) -> Tuple {
    Tuple {
        namespace: "Orders".to_owned(),
        object: object.to_owned(),
        relation: "readers".to_owned(),
        subject: Some(subject.to_owned()),
        subject_set: None,
    }
}

#[tokio::test]
async fn tuples_are_listed_as_written_page_by_page_and_deleted_one_by_one() {
    let running = Running::start().await;
    let plan = Objects::read(SHOP).plan(&Refusals::new());
    assert_eq!(running.keto.check_syntax(&running.opl, &plan.namespaces_file().text).await.unwrap(), []);
    running.load(&plan.namespaces_file().text);
    running.shows(&["PeristyleNone", "Person", "Team", "Orders"]).await;

    let none = BTreeSet::new();
    let mut wanted = plan.all_tuples();
    wanted.extend((0..1100).map(|n| tuple("many", &format!("s{n}"))));
    running.keto.patch(&running.write, &wanted, &none).await.unwrap();
    let stored =
        async |known: &BTreeSet<Tuple>| running.keto.stored(&running.read, "Orders", known).await.unwrap();
    assert_eq!(stored(&wanted).await, wanted);
    let few: BTreeSet<Tuple> = [tuple("many", "s1099"), tuple("many", "nobody")].into();
    assert_eq!(stored(&few).await, [tuple("many", "s1099")].into(), "only what is asked for");
    let gone: BTreeSet<Tuple> = [tuple("many", "s7")].into();
    let new: BTreeSet<Tuple> = [tuple("many", "after")].into();
    running.keto.patch(&running.write, &new, &gone).await.unwrap();
    let left: BTreeSet<Tuple> = wanted.difference(&gone).chain(&new).cloned().collect();
    assert_eq!(stored(&wanted.union(&new).cloned().collect()).await, left);

    let stranger = Tuple { namespace: "Nowhere".to_owned(), ..tuple("a", "b") };
    let error = running.keto.patch(&running.write, &[stranger].into(), &none).await.unwrap_err();
    assert!(error.to_string().contains("answered 404"), "{error}");
}

#[tokio::test]
async fn an_error_in_a_model_is_told_with_the_line_of_its_policy() {
    let running = Running::start().await;
    let second = r#"---
kind: AuthPolicy
metadata: {name: second, namespace: shop, creationTimestamp: "2026-03-01T00:00:00Z"}
spec:
  targets: [{service: nobody}]
  rules: [{name: all, match: {http: [{path: {prefix: /}}]}, public: {}}]
  relations:
    model: |
      class Second implements Namespace {
        related: { a: Nobody[] }
      }
"#;
    let plan = Objects::read(&format!("{SHOP}{second}")).plan(&Refusals::new());
    let errors = running.keto.check_syntax(&running.opl, &plan.namespaces_file().text).await.unwrap();
    let (key, line) = plan.author(errors[0].start.line).unwrap();
    assert_eq!((key.name.as_str(), line), ("second", 2), "{errors:?}");
    assert!(errors[0].message.contains("Nobody"), "{errors:?}");
}

#[tokio::test]
async fn keto_would_take_a_class_in_an_unfinished_permission_for_one_at_the_top() {
    // The reason why our own reading of a model is stricter than Keto's.
    let running = Running::start().await;
    let model =
        "class A implements Namespace { permits = { a: (ctx) => } class Stolen implements Namespace {} }";
    assert_eq!(running.keto.check_syntax(&running.opl, model).await.unwrap(), []);
    running.load(model);
    running.shows(&["A", "Stolen"]).await;
    assert!(model::parse(model).is_err());
}

/// Whatever means something in the short form `namespace:object#relation@subject`,
/// in JSON, in SQL, in a URL or in a template.
const HOSTILE: [&str; 20] = [
    ":",
    "#",
    "@",
    "(",
    ")",
    "a:b",
    "a#readers",
    "alice@b",
    "(alice)",
    "Orders:orders#readers@alice",
    "Team:support#members",
    "a,b",
    " a ",
    "*",
    "%23%3A",
    "\"},{\"a\":\"",
    "\\",
    "'; drop table keto_relation_tuples; --",
    "{{ .Subject }}",
    "\u{e9}\u{202e}\n",
];

impl Running {
    async fn is_allowed(&self, object: &str, subject: &str) -> bool {
        let question = serde_json::json!({
            "namespace": "Orders", "object": object, "relation": "readers", "subject_id": subject
        });
        let url = format!("{}/relation-tuples/check", self.read);
        let answer = self.client.post(url).json(&question).send().await.unwrap();
        assert!([200, 403].contains(&answer.status().as_u16()), "{object:?} {subject:?}: {answer:?}");
        answer.status().as_u16() == 200
    }
}

#[tokio::test]
async fn hostile_text_in_a_tuple_stands_for_itself_and_for_nothing_else() {
    let running = Running::start().await;
    let plan = Objects::read(SHOP).plan(&Refusals::new());
    running.load(&plan.namespaces_file().text);
    running.shows(&["PeristyleNone", "Person", "Team", "Orders"]).await;
    let none = BTreeSet::new();
    let own: BTreeSet<Tuple> = HOSTILE.iter().map(|text| tuple(text, text)).collect();
    assert_eq!(own.len(), HOSTILE.len());
    // Alice is in the team, which is not the subject that is called like it.
    let team =
        Tuple { namespace: "Team".to_owned(), relation: "members".to_owned(), ..tuple("support", "alice") };
    let all: BTreeSet<Tuple> = own.iter().cloned().chain([team]).collect();
    running.keto.patch(&running.write, &all, &none).await.unwrap();
    let stored = async || running.keto.stored(&running.read, "Orders", &own).await.unwrap();
    assert_eq!(stored().await, own);
    for object in HOSTILE {
        for subject in HOSTILE {
            let expected = object == subject;
            assert_eq!(running.is_allowed(object, subject).await, expected, "{object:?} {subject:?}");
        }
        assert!(!running.is_allowed(object, "alice").await, "{object:?}");
    }
    let (gone, kept): (BTreeSet<Tuple>, BTreeSet<Tuple>) =
        own.iter().cloned().partition(|tuple| tuple.object.contains(['#', ':', '@', '\'', '"']));
    running.keto.patch(&running.write, &none, &gone).await.unwrap();
    assert_eq!(stored().await, kept);
}
