use std::collections::HashMap;

use platform::Env;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// A server on the loopback interface that answers each path as told.
async fn serve(answers: impl FnOnce(u16) -> HashMap<&'static str, String>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers = answers(port);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let head = String::from_utf8(head).unwrap();
            let Some(path) = head.split(' ').nth(1) else {
                continue;
            };
            if let Some(answer) = answers.get(path) {
                let _ = stream.write_all(answer.as_bytes()).await;
            } else {
                // No answer until the client gives up.
                let _ = stream.read_u8().await;
            }
        }
    });
    port
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

async fn fetch(external: &str, internal: &str, url: &str) -> Result<Fetched, FetchError> {
    let env =
        Env::from_iter([("CALLER_ALLOWED_HOSTS", external), ("CALLER_ALLOWED_INTERNAL_HOSTS", internal)]);
    let fetcher = Fetcher::new(AllowList::from_env(&env).unwrap()).unwrap();
    fetcher.fetch(&Url::parse(url).unwrap()).await
}

#[tokio::test]
async fn a_host_named_as_internal_is_fetched_and_measured() {
    let port = serve(|_| HashMap::from([("/a", ok("hello"))])).await;
    let allowed = format!("localhost:{port}");
    let fetched = fetch("", &allowed, &format!("http://localhost:{port}/a")).await.unwrap();
    assert_eq!(fetched, Fetched { status: 200, body_length: 5 });
}

#[tokio::test]
async fn an_allowed_name_that_leads_inside_is_refused() {
    let port = serve(|_| HashMap::from([("/a", ok("secret"))])).await;
    let allowed = format!("localhost:{port}");
    let error = fetch(&allowed, "", &format!("http://localhost:{port}/a")).await.unwrap_err();
    assert!(matches!(error, FetchError::Refused(Refusal::Address)), "{error:?}");
}

#[tokio::test]
async fn a_redirect_is_checked_like_the_first_url() {
    let port = serve(|port| {
        HashMap::from([
            ("/local", redirect("/end")),
            ("/end", ok("")),
            ("/loop", redirect("/loop")),
            ("/address", redirect(&format!("http://127.0.0.1:{port}/end"))),
            ("/metadata", redirect("http://169.254.169.254/latest/meta-data")),
            ("/file", redirect("file:///etc/passwd")),
        ])
    })
    .await;
    let allowed = format!("localhost:{port}");
    let get = |path: &'static str| {
        let (allowed, url) = (allowed.clone(), format!("http://localhost:{port}{path}"));
        async move { fetch("", &allowed, &url).await }
    };
    assert_eq!(get("/local").await.unwrap().status, 200);
    for (path, refusal) in
        [("/loop", Refusal::Redirects), ("/address", Refusal::Host), ("/metadata", Refusal::Host)]
    {
        let result = get(path).await;
        assert!(matches!(result, Err(FetchError::Refused(found)) if found == refusal), "{path}: {result:?}");
    }
    // A redirect to another scheme is no HTTP redirect: it is the answer.
    assert_eq!(get("/file").await.unwrap(), Fetched { status: 302, body_length: 0 });
}

#[tokio::test]
async fn a_body_over_the_limit_is_not_read_to_its_end() {
    let body = "x".repeat(usize::try_from(MAX_BODY).unwrap() + 1);
    let port = serve(|_| HashMap::from([("/big", ok(&body))])).await;
    let allowed = format!("localhost:{port}");
    let error = fetch("", &allowed, &format!("http://localhost:{port}/big")).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge), "{error:?}");
}

#[tokio::test]
async fn a_silent_host_is_given_up_after_two_seconds() {
    let port = serve(|_| HashMap::new()).await;
    let allowed = format!("localhost:{port}");
    let error = fetch("", &allowed, &format!("http://localhost:{port}/silent")).await.unwrap_err();
    assert!(matches!(error, FetchError::Timeout), "{error:?}");
}
