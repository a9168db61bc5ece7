use auth::v1::{LoginRequest, RegisterRequest, auth_service_client::AuthServiceClient};
use platform::{
    jwt::{Policy, key_id},
    testing::{issuer::Issuer, logs, postgres::Postgres},
};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use suite::Name;
use tonic::Code;

use crate::fixture::{Running, Vars, database, serve, vars};

const PASSWORD: &str = "Correct-horse-1";

async fn auth_env(postgres: &Postgres) -> Vars {
    let (_, mut env) = database(postgres, Name::Auth).await;
    env.extend(auth_settings());
    env
}

fn auth_settings() -> Vars {
    vars([
        ("JWT_ISSUER", "http://auth.test"),
        ("JWT_AUDIENCE", "demo,other"),
        ("BCRYPT_COST", "10"),
        ("DB_ACQUIRE_TIMEOUT", "500ms"),
    ])
}

async fn post(app: &Running, path: &str, body: Value) -> (StatusCode, Value) {
    let url = format!("{}{path}", app.http.as_deref().unwrap());
    let response = Client::new().post(url).json(&body).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

async fn token(app: &Running, name: &str) -> String {
    let (status, body) = post(app, "/auth/login", json!({"username": name, "password": PASSWORD})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["access_token"].as_str().unwrap().to_owned()
}

async fn verify(app: &Running, token: &str) -> (StatusCode, Option<String>) {
    let url = format!("{}/verify", app.http.as_deref().unwrap());
    let response = Client::new().get(url).bearer_auth(token).send().await.unwrap();
    let user = response.headers().get("x-user-id").map(|value| value.to_str().unwrap().to_owned());
    (response.status(), user)
}

#[tokio::test]
async fn an_account_is_registered_once_and_logs_in() {
    let postgres = Postgres::shared().await;
    let app = serve(&[Name::Auth], &auth_env(postgres).await).await;

    let new = json!({"username": "Alice", "password": PASSWORD});
    let (status, body) = post(&app, "/auth/register", new.clone()).await;
    assert_eq!((status, &body["username"]), (StatusCode::CREATED, &json!("alice")));
    assert_eq!(post(&app, "/auth/register", new).await.0, StatusCode::CONFLICT);
    for body in [json!({"username": "bob", "password": "short"}), json!({"username": "bob"}), json!([])] {
        assert_eq!(post(&app, "/auth/register", body).await.0, StatusCode::BAD_REQUEST);
    }

    let mut refusals = Vec::new();
    for (name, password) in [("alice", "Wrong-horse-1"), ("nobody", PASSWORD), ("not a name", PASSWORD)] {
        let refusal = post(&app, "/auth/login", json!({"username": name, "password": password})).await;
        assert_eq!(refusal.0, StatusCode::UNAUTHORIZED);
        refusals.push(refusal.1);
    }
    assert!(refusals.windows(2).all(|pair| pair[0] == pair[1]), "one text: {refusals:?}");

    let token = token(&app, "ALICE").await;
    let jwks = format!("{}/.well-known/jwks.json", app.http.as_deref().unwrap());
    let jwks: Value = reqwest::get(jwks).await.unwrap().json().await.unwrap();
    let key = serde_json::from_value(jwks["keys"][0].clone()).unwrap();
    let policy = Policy { issuer: "http://auth.test".into(), audiences: vec!["other".into()] };
    assert_eq!(policy.verify(&token, &key).as_deref(), Ok("alice"));
    assert_eq!(verify(&app, &token).await, (StatusCode::OK, Some("alice".into())));
    assert_eq!(verify(&app, "nonsense").await, (StatusCode::UNAUTHORIZED, None));

    let log = logs::text();
    assert!(log.contains("POST /auth/login"), "requests are logged");
    assert!(!log.contains(PASSWORD) && !log.contains(&token), "without secrets");
}

#[tokio::test]
async fn the_same_is_done_over_grpc() {
    let postgres = Postgres::shared().await;
    let app = serve(&[Name::Auth], &auth_env(postgres).await).await;
    let mut client = AuthServiceClient::new(app.channel().await);
    let new = || RegisterRequest { username: "bob".into(), password: PASSWORD.into() };
    assert_eq!(client.register(new()).await.unwrap().into_inner().username, "bob");
    assert_eq!(client.register(new()).await.unwrap_err().code(), Code::AlreadyExists);
    let weak = RegisterRequest { username: "eve".into(), password: "weak".into() };
    assert_eq!(client.register(weak).await.unwrap_err().code(), Code::InvalidArgument);
    let wrong = LoginRequest { username: "bob".into(), password: "Wrong-horse-1".into() };
    assert_eq!(client.login(wrong).await.unwrap_err().code(), Code::Unauthenticated);
    let login = LoginRequest { username: "bob".into(), password: PASSWORD.into() };
    let login = client.login(login).await.unwrap().into_inner();
    assert_eq!((login.token_type.as_str(), login.expires_in), ("Bearer", 900));
    assert_eq!(verify(&app, &login.access_token).await.1.as_deref(), Some("bob"));
}

#[tokio::test]
async fn replicas_that_start_together_agree_on_the_key() {
    let postgres = Postgres::shared().await;
    let env = auth_env(postgres).await;
    let (one, two) = tokio::join!(serve(&[Name::Auth], &env), serve(&[Name::Auth], &env));
    let register = json!({"username": "carol", "password": PASSWORD});
    assert_eq!(post(&one, "/auth/register", register).await.0, StatusCode::CREATED);
    let (first, second) = tokio::join!(token(&one, "carol"), token(&two, "carol"));
    assert_eq!(verify(&two, &first).await.0, StatusCode::OK);
    assert_eq!(verify(&one, &second).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_new_key_is_published_before_it_signs() {
    let postgres = Postgres::shared().await;
    let (own, mut env) = database(postgres, Name::Auth).await;
    env.extend(auth_settings());
    let (other, mut others) = database(postgres, Name::Auth).await;
    others.extend(auth_settings());
    let before = serve(&[Name::Auth], &env).await;
    let register = json!({"username": "frank", "password": PASSWORD});
    assert_eq!(post(&before, "/auth/register", register).await.0, StatusCode::CREATED);
    token(&before, "frank").await;
    let elsewhere = serve(&[Name::Auth], &others).await;
    let jwks = |app: &Running| format!("{}/.well-known/jwks.json", app.http.as_deref().unwrap());
    reqwest::get(jwks(&elsewhere)).await.unwrap();

    let mut source = PgConnection::connect(&other.admin).await.unwrap();
    let query = "select kid, private_pem from app.signing_keys";
    let (kid, key): (String, String) = sqlx::query_as(query).fetch_one(&mut source).await.unwrap();
    let mut db = PgConnection::connect(&own.admin).await.unwrap();
    let insert = "insert into app.signing_keys (kid, algorithm, private_pem) values ($1, 'RS256', $2)";
    sqlx::query(insert).bind(&kid).bind(key).execute(&mut db).await.unwrap();
    let after = serve(&[Name::Auth], &env).await;
    let set: Value = reqwest::get(jwks(&after)).await.unwrap().json().await.unwrap();
    assert_eq!(set["keys"].as_array().unwrap().len(), 2, "{set}");
    // The replica that started earlier does not know the new key yet.
    let early = token(&after, "frank").await;
    assert_eq!(verify(&before, &early).await.0, StatusCode::OK);

    let age = "update app.signing_keys set created_at = created_at - interval '3 minutes'";
    sqlx::query(age).execute(&mut db).await.unwrap();
    let later = serve(&[Name::Auth], &env).await;
    let late = token(&later, "frank").await;
    assert_eq!(key_id(&late).unwrap(), kid);
    assert_eq!(verify(&after, &late).await.0, StatusCode::OK);
}

#[tokio::test]
async fn without_the_database_there_is_no_token() {
    let mut postgres = Postgres::start().await;
    let app = serve(&[Name::Auth], &auth_env(&postgres).await).await;
    let account = json!({"username": "dave", "password": PASSWORD});
    assert_eq!(post(&app, "/auth/register", account.clone()).await.0, StatusCode::CREATED);
    let before = token(&app, "dave").await;
    postgres.stop();
    for path in ["/auth/login", "/auth/register"] {
        let (status, body) = post(&app, path, account.clone()).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.get("access_token").is_none());
    }
    assert_eq!(verify(&app, &before).await.0, StatusCode::OK, "known keys go on verifying");
    postgres.resume().await;
    app.ready().await;
    token(&app, "dave").await;
}

#[tokio::test]
async fn behind_a_gate_only_what_is_public_answers_without_its_token() {
    let postgres = Postgres::shared().await;
    let mut env = auth_env(postgres).await;
    let gate = Issuer::new();
    let (addr, _) = gate.serve().await;
    env.extend(vars([
        ("ID_TOKEN_JWKS_URL", &format!("http://{addr}/jwks")),
        ("ID_TOKEN_ISSUER", "http://gate.test"),
        ("ID_TOKEN_AUDIENCE", "auth.demo"),
    ]));
    let app = serve(&[Name::Auth], &env).await;
    let new = json!({"username": "erin", "password": PASSWORD});
    assert_eq!(post(&app, "/auth/register", new).await.0, StatusCode::CREATED);
    let own = token(&app, "erin").await;
    assert_eq!(
        verify(&app, &own).await,
        (StatusCode::OK, Some("erin".into())),
        "of the service, not of the gate"
    );

    let claims =
        json!({"iss": "http://gate.test", "aud": ["auth.demo"], "sub": "erin", "exp": 4_000_000_000_u64});
    let gates = gate.sign(&claims);
    for (tokens, status) in
        [(vec![], 401), (vec![&own], 401), (vec![&gates, &gates], 401), (vec![&gates], 404)]
    {
        let url = format!("{}/auth/register/", app.http.as_deref().unwrap());
        let request = tokens.iter().fold(Client::new().get(url), RequestBuilder::bearer_auth);
        assert_eq!(request.send().await.unwrap().status(), status, "{} tokens", tokens.len());
    }
}
