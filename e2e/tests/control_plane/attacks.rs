//! What a client may try at the real Traefik and the real Oathkeeper: to get
//! past a rule, or to bring an identity or an origin of its own.

use e2e::gate::frames::{self, PREFACE};
use e2e::gate::shop::{CALLS_HOST, ECHO_HOST, MY_CALL, OPEN_CALL, USER, leaks};
use e2e::gate::{Gate, SMUGGLED, shop};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A workload that is open to everyone; its policy is the connection's alone.
const PUBLIC: &str = "wide";
const PUBLIC_HOST: &str = "wide.shop.example.com";

/// Whether an attempt may reach the workload.
#[derive(Clone, Copy, PartialEq)]
enum May {
    /// It must not.
    Not,
    /// It must, or the edge would break honest calls.
    Must,
    /// As the edge likes: what counts is what the workload then sees.
    Either,
}

struct Attempt {
    request: Vec<u8>,
    may: May,
}

/// Parts of forged values; none of them may be in any header that a workload sees.
const MARKS: [&str; 4] = ["root", "203.0.113.7", "spoofed", "4711"];

/// Headers by which a client could pretend to be somebody, or somewhere, else.
const SPOOFS: [&[&str]; 49] = [
    &["X-User: root"],
    &["X-User: root", "X-User: spoofed"],
    &["X_User: root"],
    &["x-USER: root"],
    &["X-Forwarded-User: root"],
    &["X_Forwarded_User: root"],
    &["X-Auth-Request-User: root"],
    &["Remote-User: root"],
    &["Remote_User: root"],
    &["X-Remote-User: root"],
    &["Forwarded: for=203.0.113.7;host=spoofed.test;proto=https"],
    &["X-Forwarded-For: 203.0.113.7"],
    &["X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 203.0.113.7"],
    &["X_Forwarded_For: 203.0.113.7"],
    &["X-Forwarded_For: 203.0.113.7"],
    &["X-Real-Ip: 203.0.113.7"],
    &["X_Real_Ip: 203.0.113.7"],
    &["X-Forwarded-Host: spoofed.test"],
    &["X_Forwarded_Host: spoofed.test"],
    &["X-Forwarded-Proto: spoofed"],
    &["X_Forwarded_Proto: spoofed"],
    &["X-Forwarded-Port: 4711"],
    &["X_Forwarded_Port: 4711"],
    &["X-Forwarded-Server: spoofed"],
    &["X_Forwarded_Server: spoofed"],
    &["X-Forwarded-Prefix: /open/spoofed"],
    &["X_Forwarded_Prefix: /open/spoofed"],
    &["X-Forwarded-Uri: /open/spoofed"],
    &["X_Forwarded_Uri: /open/spoofed"],
    &["X-Forwarded-Method: SPOOFED"],
    &["X_Forwarded_Method: SPOOFED"],
    &["X-Original-Uri: /open/spoofed"],
    &["X_Original_Uri: /open/spoofed"],
    &["X_Original-URI: /open/spoofed"],
    &["X-Original-Url: /open/spoofed"],
    &["X-Original-Host: spoofed.test"],
    &["X-Original-Method: SPOOFED"],
    &["X-Rewrite-Url: /open/spoofed"],
    &["X-Http-Method-Override: SPOOFED"],
    &["X-Http-Method: SPOOFED"],
    &["X_HTTP_Method: SPOOFED"],
    &["X-Method-Override: SPOOFED"],
    &["X-Forwarded-For: 203.0.113.7", "X-Forwarded-Host: spoofed.test", "X-Forwarded-Proto: spoofed"],
    &["X-User: root", "X_User: root", "X-Forwarded-User: root"],
    &["X-User:"],
    &["X-User: root", "X-User:"],
    &["Trailer: X-User"],
    &["Content-Type: application/grpc-web", "X-User: root"],
    &["Content-Type: application/json", "X-User: root"],
];

/// The same where a connection has headers of its own.
const CONNECTION_SPOOFS: [&[&str]; 7] = [
    &["Connection: X-User", "X-User: root"],
    &["Connection: close, X-User"],
    &["Connection: Authorization"],
    &["Connection: X-Forwarded-For", "X-Forwarded-For: 203.0.113.7"],
    &["Proxy-Authorization: Basic cm9vdDpyb290"],
    &["Upgrade: websocket", "Connection: Upgrade"],
    &["Keep-Alive: timeout=5, max=4711"],
];

/// Ways to write `/mine/secret` so that it might be taken for something below `/open`.
const PATHS: [&[u8]; 40] = [
    b"/mine/secret",
    b"//mine/secret",
    b"///mine/secret",
    b"/mine//secret",
    b"/./mine/secret",
    b"/open/../mine/secret",
    b"/open/x/../../mine/secret",
    b"/open/%2e%2e/mine/secret",
    b"/open/.%2e/mine/secret",
    b"/open/%2E%2E/mine/secret",
    b"/open/..%2fmine/secret",
    b"/open/..%2Fmine%2Fsecret",
    b"/open/..%5cmine/secret",
    b"/open/..\\mine\\secret",
    b"/open/..;/mine/secret",
    b"/open;/../mine/secret",
    b"/open/;x/../../mine/secret",
    b"/open/%252e%252e/mine/secret",
    b"/open/..%252fmine/secret",
    b"/open%2f..%2fmine/secret",
    b"/%6dine/secret",
    b"/m%69ne/secret",
    b"/mine%2fsecret",
    b"/mine/secret/",
    b"/mine/secret%00",
    b"/mine/secret%0a",
    b"/mine/secret%20",
    b"/mine/secret?x=/open",
    b"/mine/secret#/open",
    b"/mine/secret;/open",
    b"/open/%c0%ae%c0%ae/mine/secret",
    b"/open/..%c0%afmine/secret",
    b"/open/%ef%bc%8f../mine/secret",
    b"/open\x00/../mine/secret",
    b"/MINE/secret",
    b"/mine",
    b"/mine/",
    b"mine/secret",
    b"?/mine/secret",
    b"*",
];

/// Ways to name the host of the echo, or one that might be taken for it.
const HOSTS: [&[&str]; 18] = [
    &["ECHO.SHOP.EXAMPLE.COM"],
    &["eChO.shop.example.com"],
    &["echo.shop.example.com."],
    &["echo.shop.example.com:80"],
    &["echo.shop.example.com:1"],
    &["echo.shop.example.com.:80"],
    &["echo.shop.example.com:"],
    &["echo.shop.example.com:x"],
    &["echo.shop.example.com", "other.test"],
    &["other.test", "echo.shop.example.com"],
    &["echo.shop.example.com", "echo.shop.example.com"],
    &["echo.shop.example.com, other.test"],
    &["root@echo.shop.example.com"],
    &["calls.shop.example.com"],
    &["other.test"],
    &["127.0.0.1"],
    &[""],
    &[],
];

fn http(method: &str, target: &[u8], hosts: &[&str], headers: &[&str]) -> Vec<u8> {
    let mut request = format!("{method} ").into_bytes();
    request.extend_from_slice(target);
    request.extend_from_slice(b" HTTP/1.1\r\n");
    let hosts = hosts.iter().map(|host| format!("Host: {host}"));
    let headers = headers.iter().map(|header| (*header).to_owned());
    for header in hosts.chain(headers).chain(["Connection: close".to_owned()]) {
        request.extend_from_slice(format!("{header}\r\n").as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request
}

/// What asks for another protocol on the connection.
const UPGRADES: [&[&str]; 12] = [
    &["Upgrade: h2c"],
    &["upgrade: H2C"],
    &["UPGRADE:\th2c "],
    &["Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"],
    &["Upgrade: h2c, websocket"],
    &["Upgrade: websocket, h2c"],
    &["Upgrade: websocket,h2c"],
    &["Upgrade: h2c", "Upgrade: websocket"],
    &["Upgrade: h2"],
    &["Upgrade: HTTP/2.0"],
    &["Upgrade: TLS/1.2"],
    &["Upgrade: foo"],
];

/// A change of protocol by the client's wish, and right behind it, for whoever
/// agreed, a request for `behind`.
fn upgrade(host: &str, target: &str, behind: &str, connection: &str, headers: &[&str]) -> Vec<u8> {
    let connection = format!("Connection: {connection}");
    let headers = [&[connection.as_str()], headers].concat();
    let mut request = http("GET", target.as_bytes(), &[host], &headers);
    let end = request.len() - b"Connection: close\r\n\r\n".len();
    request.truncate(end);
    request.extend_from_slice(b"\r\n");
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", host), (":path", behind)];
    request.extend(frames::request(&bytes(&head), b""));
    request
}

fn bytes(headers: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

const BAD_TOKENS: [&str; 8] = [
    "Authorization: Bearer",
    "Authorization: Bearer x",
    "Authorization: Bearer a.b.c",
    "Authorization: Basic YTpi",
    "Authorization: bearer null",
    "Authorization: Bearer eyJhbGciOiJub25lIn0.e30.",
    "authorization_: Bearer x",
    "Cookie: session=x",
];

/// One header twice, with the token once or twice in it.
fn two_tokens(token: &str) -> [[String; 2]; 4] {
    let (good, bad) = (format!("Authorization: {token}"), "Authorization: Bearer x".to_owned());
    let basic = "Authorization: Basic YTpi".to_owned();
    [[good.clone(), bad.clone()], [bad, good.clone()], [good.clone(), good.clone()], [good, basic]]
}

fn over_http(token: &str) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut add = |may, request| attempts.push(Attempt { request, may });
    let host: &[&str] = &[ECHO_HOST];
    let with = format!("Authorization: {token}");
    for path in PATHS {
        add(May::Not, http("GET", path, host, &[]));
        add(May::Not, http("POST", path, host, &["Content-Length: 0"]));
        // A token opens no other path than its own.
        add(May::Either, http("GET", path, host, &[&with]));
    }
    for spoof in SPOOFS.iter().chain(&CONNECTION_SPOOFS) {
        let drops_token = spoof.contains(&"Connection: Authorization");
        add(May::Not, http("GET", b"/mine/secret", host, spoof));
        add(May::Not, http("GET", b"/nowhere", host, spoof));
        add(May::Must, http("GET", b"/open/x", host, spoof));
        let headers = [&[with.as_str()], *spoof].concat();
        add(if drops_token { May::Either } else { May::Must }, http("GET", b"/mine/secret", host, &headers));
    }
    for hosts in HOSTS {
        add(May::Not, http("GET", b"/mine/secret", hosts, &[]));
        add(May::Either, http("GET", b"/mine/secret", hosts, &[&with]));
        for form in ["http://echo.shop.example.com/mine/secret", "http://other.test/mine/secret"] {
            add(May::Not, http("GET", form.as_bytes(), hosts, &[]));
        }
    }
    for form in ["https://echo.shop.example.com/mine", "http://a@echo.shop.example.com/mine", "http:/mine"] {
        add(May::Not, http("GET", form.as_bytes(), host, &[]));
    }
    for method in ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "FOO"]
    {
        add(May::Not, http(method, b"/mine/secret", host, &[]));
        // Oathkeeper takes a method in any case.
        add(if method == "get" { May::Must } else { May::Not }, http(method, b"/open/x", host, &[]));
    }
    for bad in BAD_TOKENS {
        add(May::Not, http("GET", b"/mine/secret", host, &[bad]));
        add(May::Not, http("GET", b"/mine/secret", host, &[bad, "X-User: root"]));
    }
    for [one, two] in two_tokens(token) {
        add(May::Either, http("GET", b"/mine/secret", host, &[&one, &two]));
    }
    for wish in UPGRADES {
        for connection in ["Upgrade, HTTP2-Settings", "upgrade", "HTTP2-Settings, Upgrade, X-User"] {
            for headers in [&[][..], &["X-User: root"], &[&with], &["Content-Type: application/grpc"]] {
                let has_token = headers.contains(&with.as_str());
                let headers = [wish, headers].concat();
                // The wish is ignored, and the request decided as if there was none.
                for (path, is_allowed) in
                    [("/mine/secret", has_token), ("/nowhere", false), ("/open/x", true)]
                {
                    let request = upgrade(ECHO_HOST, path, "/mine/secret", connection, &headers);
                    add(if is_allowed { May::Must } else { May::Not }, request);
                }
                add(May::Must, upgrade(PUBLIC_HOST, "/open/x", "/open/behind", connection, &headers));
            }
        }
    }
    attempts
}

/// A call with these pseudo-headers in place of its own, and more headers.
fn call(own: &[(&[u8], &[u8])], headers: &[&str]) -> Vec<u8> {
    let usual: [(&[u8], &[u8]); 4] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", CALLS_HOST.as_bytes()),
        (b":path", MY_CALL.as_bytes()),
    ];
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (name, value) in usual {
        let own: Vec<_> = own.iter().filter(|(own, _)| *own == name).collect();
        if own.is_empty() {
            all.push((name.to_vec(), value.to_vec()));
        }
        all.extend(own.into_iter().filter(|(_, v)| !v.is_empty()).map(|(n, v)| (n.to_vec(), v.to_vec())));
    }
    let has_type = headers.iter().any(|header| header.to_lowercase().starts_with("content-type:"));
    let usual = ["content-type: application/grpc", "te: trailers"];
    for header in usual[usize::from(has_type)..].iter().chain(headers) {
        let (name, value) = header.split_once(':').unwrap();
        all.push((name.to_lowercase().into_bytes(), value.trim().as_bytes().to_vec()));
    }
    frames::request(&all, &[0; 5])
}

fn call_paths() -> Vec<Vec<u8>> {
    const OTHER: &str = "/greeter.v1.GreeterService";
    let mut paths: Vec<String> = [
        MY_CALL.to_owned(),
        format!("/{MY_CALL}"),
        format!("//{MY_CALL}"),
        format!("{OTHER}//Greet"),
        format!("{OTHER}/./Greet"),
        format!("{OTHER}%2fGreet"),
        format!("{OTHER}%2FGreet"),
        format!("{OTHER}%5cGreet"),
        format!("{OTHER}\\Greet"),
        format!("{MY_CALL}/"),
        format!("{MY_CALL}%00"),
        format!("{MY_CALL}%0a"),
        format!("{MY_CALL}%20"),
        format!("{MY_CALL};x"),
        format!("{MY_CALL}?x={OPEN_CALL}"),
        format!("{MY_CALL}#{OPEN_CALL}"),
        format!("{MY_CALL}/..{OPEN_CALL}/../../..{MY_CALL}"),
        "/greeter.v1.GreeterService/%47reet".to_owned(),
        "/%67reeter.v1.GreeterService/Greet".to_owned(),
        "/greeter%2ev1%2eGreeterService/Greet".to_owned(),
        "/greeter%252ev1.GreeterService/Greet".to_owned(),
        "/GREETER.V1.GREETERSERVICE/GREET".to_owned(),
        "/greeter.v1.GreeterService/greet".to_owned(),
        "greeter.v1.GreeterService/Greet".to_owned(),
        format!("http://{CALLS_HOST}{MY_CALL}"),
        format!("http://other.test{MY_CALL}"),
        "*".to_owned(),
        "/".to_owned(),
    ]
    .into();
    for way in ["..", "%2e%2e", ".%2e", "%2E%2E", "%252e%252e", "..;", "..%00", "%c0%ae%c0%ae"] {
        paths.push(format!("/grpc.health.v1.Health/{way}{MY_CALL}"));
        paths.push(format!("{OPEN_CALL}/{way}/{way}{MY_CALL}"));
    }
    for slash in ["%2f", "%5c", "%252f", "%c0%af", "%ef%bc%8f"] {
        paths.push(format!("/grpc.health.v1.Health/..{slash}greeter.v1.GreeterService{slash}Greet"));
    }
    paths
        .into_iter()
        .map(String::into_bytes)
        .chain([b"/greeter.v1.GreeterService\x00/Greet".to_vec()])
        .collect()
}

fn over_grpc(token: &str) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut add = |may, request| attempts.push(Attempt { request, may });
    let with = format!("Authorization: {token}");
    for path in call_paths() {
        add(May::Not, call(&[(b":path", &path)], &[]));
        add(May::Either, call(&[(b":path", &path)], &[&with]));
    }
    for spoof in SPOOFS {
        add(May::Not, call(&[], spoof));
        add(May::Not, call(&[(b":path", b"/greeter.v2.GreeterService/Greet")], spoof));
        add(May::Must, call(&[(b":path", OPEN_CALL.as_bytes())], spoof));
        add(May::Must, call(&[], &[&[with.as_str()], spoof].concat()));
    }
    for spoof in CONNECTION_SPOOFS {
        // What belongs to a connection has no place in HTTP/2.
        add(May::Not, call(&[], spoof));
        add(May::Either, call(&[(b":path", OPEN_CALL.as_bytes())], spoof));
        add(May::Either, call(&[], &[&[with.as_str()], spoof].concat()));
    }
    for authority in [
        "CALLS.SHOP.EXAMPLE.COM",
        "calls.shop.example.com.",
        "calls.shop.example.com:80",
        "calls.shop.example.com:x",
        "root@calls.shop.example.com",
        "echo.shop.example.com",
        "other.test",
        "",
    ] {
        for headers in [&[][..], &["Host: calls.shop.example.com"], &["Host: other.test"]] {
            add(May::Not, call(&[(b":authority", authority.as_bytes())], headers));
            let headers = [&[with.as_str()], headers].concat();
            add(May::Either, call(&[(b":authority", authority.as_bytes())], &headers));
        }
    }
    let two = [(&b":authority"[..], CALLS_HOST.as_bytes()), (b":authority", b"other.test")];
    add(May::Not, call(&two, &[]));
    add(May::Not, call(&[(b":path", MY_CALL.as_bytes()), (b":path", OPEN_CALL.as_bytes())], &[]));
    add(May::Not, call(&[(b":path", OPEN_CALL.as_bytes()), (b":path", MY_CALL.as_bytes())], &[]));
    for method in
        ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PRI", "post", "P OST"]
    {
        add(May::Not, call(&[(b":method", method.as_bytes())], &[]));
    }
    for scheme in ["https", "file", "x"] {
        add(May::Not, call(&[(b":scheme", scheme.as_bytes())], &[]));
    }
    for bad in BAD_TOKENS {
        add(May::Not, call(&[], &[bad]));
        add(May::Not, call(&[], &[bad, "X-User: root"]));
    }
    for [one, two] in two_tokens(token) {
        add(May::Either, call(&[], &[&one, &two]));
    }
    attempts
}

/// What is wrong about a request that a workload got.
fn wrong(head: &str) -> Option<String> {
    let values = |wanted: &str| -> Vec<&str> {
        let headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        headers.filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim()).collect()
    };
    if head.starts_with(SMUGGLED) {
        return Some(format!("handed the connection over: {head}"));
    }
    if !leaks(&[head.to_owned()]).is_empty() {
        return Some("came without a token".to_owned());
    }
    for line in head.lines().skip(1) {
        let small = line.to_lowercase();
        if MARKS.iter().any(|mark| small.contains(mark)) || small.split(':').next()?.contains('_') {
            return Some(format!("brought {line:?}"));
        }
    }
    let (tokens, users) = (values("authorization"), values("x-user"));
    let path = head.split(['?', ' ']).nth(1).unwrap_or_default();
    let is_open = path.starts_with("/open") || path.ends_with(OPEN_CALL);
    match (is_open, tokens.len(), users.as_slice()) {
        (true, _, [] | [""]) | (false, 1, [USER]) => None,
        (_, tokens, users) => Some(format!("brought {tokens} tokens and the users {users:?}")),
    }
}

/// Sends every attempt; what is wrong with the outcome, attempt by attempt.
async fn run(gate: &Gate, what: &str, attempts: &[Attempt], over_http: bool) -> Vec<String> {
    let mut all = Vec::new();
    for Attempt { request, may } in attempts {
        let answer = if !over_http {
            frames::exchange(gate.edge.address(), request).await.map(|()| String::new())
        } else if request.windows(PREFACE.len()).any(|window| window == PREFACE) {
            // The connection stays open.
            gate.send_head(request).await
        } else {
            gate.send(request).await
        };
        let heads = gate.reached.take();
        let shown = String::from_utf8_lossy(request).escape_debug().to_string();
        let answer = answer.unwrap_or_else(|error| format!("{error:#}"));
        let mut add = |problem: &str| {
            all.push(format!("{what}: {problem}: {shown} → {}", answer.lines().next().unwrap_or_default()));
        };
        if answer.starts_with("HTTP/1.1 101") {
            add("got the connection to the workload");
        }
        match may {
            May::Not if !heads.is_empty() => add("reached the workload"),
            May::Must if heads.is_empty() => add("was refused"),
            _ => {}
        }
        for problem in heads.iter().filter_map(|head| wrong(head)) {
            add(&problem);
        }
    }
    println!("{what}: {} requests, {} wrong", attempts.len(), all.len());
    all
}

/// The gate with both workloads and one that is open to everyone, and a token.
async fn with_all() -> (Gate, String) {
    let (gate, token) = shop::with_both().await.unwrap();
    let mut public = shop::echo();
    public["expose"][0]["auth"] = json!({"mode": "Public"});
    gate.apply("Service", PUBLIC, &public).await.unwrap();
    gate.serve(PUBLIC, "http").await.unwrap();
    gate.becomes("Service", PUBLIC, "RoutesProgrammed", "True", "Succeeded").await.unwrap();
    (gate, format!("Bearer {token}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_of_the_matrix_gets_past_its_rule_or_brings_an_identity_of_its_own() {
    let (gate, bearer) = with_all().await;
    let mut wrong = run(&gate, "HTTP", &over_http(&bearer), true).await;
    wrong.extend(run(&gate, "gRPC", &over_grpc(&bearer), false).await);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // The one protocol that a workload gets, and no other behind it.
    drop(gate.reached.take());
    for (host, protocol) in [(ECHO_HOST, "websocket"), (PUBLIC_HOST, "WebSocket")] {
        let (token, upgrade) = (format!("Authorization: {bearer}"), format!("Upgrade: {protocol}"));
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        let headers = [token.as_str(), "Connection: Upgrade", &upgrade, "Upgrade: h2c", key];
        let mut stream = TcpStream::connect(gate.edge.address()).await.unwrap();
        stream.write_all(&http("GET", b"/mine/secret", &[host], &headers)).await.unwrap();
        let mut answer = [0; 4096];
        let count = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 101"), "{host}: {answer}");
        stream.write_all(b"ping").await.unwrap();
        let mut echoed = [0; 4];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"ping", "{host}");
        let heads = gate.reached.take();
        assert!(heads.len() == 1 && !heads[0].contains("h2c"), "{heads:?}");
    }
}
