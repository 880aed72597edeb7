//! HTTP without TLS, and the proxy that programs are told of.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use warren_network::Limits;
use warren_node_api::Place;

use crate::harness::*;

async fn plain(rules: impl FnOnce(u16) -> String) -> World {
    let world = World::new(Setting { sealed: false, tls: false, ..Setting::default() }).await;
    world.session.set_policy(allowlist(&rules(world.port)));
    world
}

async fn proxy(world: &World) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(world.gateway.clone().serve_proxy(
        listener,
        world.session.clone(),
        CancellationToken::new(),
    ));
    address
}

/// The head of what is answered to a `CONNECT`, and the connection.
async fn connect(proxy: SocketAddr, to: &str) -> (String, TcpStream) {
    connect_as(proxy, to, "somebody").await
}

async fn connect_as(proxy: SocketAddr, to: &str, program: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: {program}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap(), stream)
}

#[tokio::test]
async fn plain_requests_are_judged_and_get_no_secrets() {
    let world = plain(|port| format!(r#"{{"host":"api.test","ports":[{port}]}}"#)).await;
    world.session.set_grant(grant(VALUE, &[], &[Place::Header]));
    let mut client = http1_over(world.connect()).await;
    let request = get_with(&format!("http://api.test:{}/", world.port), "x", &token(1));
    assert_eq!(send1(&mut client, request).await.status, StatusCode::OK);
    assert_eq!(world.last().header("x"), token(1));
    let request = get(&format!("http://other.test:{}/", world.port));
    let answer = send1(&mut client, request).await;
    assert_eq!((answer.status, answer.refusal().1.as_str()), (StatusCode::FORBIDDEN, "other.test"));
    let answer = send1(&mut client, get("http://api.test:81/")).await;
    assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn an_open_sandbox_has_its_plain_connections_unread() {
    let world = World::new(Setting { tls: false, ..Setting::default() }).await;
    let mut client = http1_over(world.connect()).await;
    let request = get_with("http://whatever.test/", "x", &token(1));
    assert_eq!(send1(&mut client, request).await.status, StatusCode::OK);
    assert_eq!(world.last().header("x"), token(1));
}

#[tokio::test]
async fn tunnels_are_handled_like_connections() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text("fine"))).await;
    let proxy = proxy(&world).await;
    let (head, stream) = connect(proxy, &format!("api.test:{}", world.port)).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let stream = world.tls_over(stream, "api.test", &[b"h2"]).await.unwrap();
    let answer = send2(&mut http2_over(stream).await, get_with("https://api.test/", "x", &token(1))).await;
    assert_eq!((answer.text(), world.last().header("x")), ("fine", VALUE));
    // A name inside that is not the tunnel's gets nothing.
    let (_, stream) = connect(proxy, &format!("other.test:{}", world.port)).await;
    let stream = world.tls_over(stream, "api.test", &[b"h2"]).await.unwrap();
    let mut client = http2_over(stream).await;
    for _ in 0..2 {
        let answer = send2(&mut client, get_with("https://api.test/", "x", &token(1))).await;
        assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST);
    }
    assert_eq!(world.arrived(), 1);
}

#[tokio::test]
async fn tunnels_that_are_not_allowed_are_refused_in_the_first_line() {
    let world = plain(|port| {
        format!(r#"{{"host":"api.test","ports":[{port}]}},{{"host":"private.test"}},{{"host":"10.0.0.1"}}"#)
    })
    .await;
    let proxy = proxy(&world).await;
    for (to, expected) in [
        ("evil.test:443", "HTTP/1.1 403 host not in allowlist\r\n"),
        ("192.0.2.1:443", "HTTP/1.1 403 host not in allowlist\r\n"),
        ("private.test:443", "HTTP/1.1 403 private IP blocked\r\n"),
        ("api.test:22", "HTTP/1.1 403 host not in allowlist\r\n"),
        ("10.0.0.1:443", "HTTP/1.1 403 private IP blocked\r\n"),
        ("[::1]:443", "HTTP/1.1 400"),
        ("0x7f.1:443", "HTTP/1.1 400"),
    ] {
        let (head, _) = connect(proxy, to).await;
        assert!(head.starts_with(expected), "{to} gave {head}");
        assert!(head.contains("x-warren-egress: refused"));
        // Where nothing could be told inside, whoever asks.
        if to.starts_with(|first: char| first != 'e' && first != 'p') {
            let (head, _) = connect_as(proxy, to, "curl/8.14.1").await;
            assert!(head.starts_with(expected), "{to} gave {head}");
        }
    }
    let reasons = blocked(&world);
    assert!(reasons.contains(&("api.test".into(), 22, "host not in allowlist".into(), 2)), "{reasons:?}");
    assert!(reasons.contains(&("10.0.0.1".into(), 443, "private IP blocked".into(), 2)), "{reasons:?}");
}

fn blocked(world: &World) -> Vec<(String, u16, String, u64)> {
    let kinds = world.session.report().blocked.into_iter();
    kinds.map(|kind| (kind.host, kind.port, kind.reason, kind.count)).collect()
}

#[tokio::test]
async fn tunnels_of_programs_that_hide_such_answers_are_refused_in_what_they_speak() {
    let world = plain(|_| r#"{"host":"private.test"},{"host":"nowhere.test"}"#.to_owned()).await;
    let proxy = proxy(&world).await;
    for (host, status, rule) in [
        ("evil.test", StatusCode::FORBIDDEN, "allowlist"),
        ("private.test", StatusCode::FORBIDDEN, "reach"),
        ("nowhere.test", StatusCode::BAD_GATEWAY, "upstream"),
    ] {
        let inside = async |protocol: &[u8]| {
            let (head, stream) = connect_as(proxy, &format!("{host}:443"), "git/2.47.3").await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            world.tls_over(stream, host, &[protocol]).await.unwrap()
        };
        let request = || get(&format!("https://{host}/"));
        let mut client = http1_over(inside(b"http/1.1").await).await;
        let answers = [
            send1(&mut client, request()).await,
            send2(&mut http2_over(inside(b"h2").await).await, request()).await,
        ];
        for answer in answers {
            assert_eq!(answer.status, status);
            let (error, named, by) = answer.refusal();
            assert_eq!((named.as_str(), by.as_str()), (host, rule));
            assert!(error.contains(host), "{error}");
        }
        // What comes next is another connection, which is judged anew.
        assert!(client.ready().await.is_err());
    }
    // Without TLS inside, and of a client that waits for its server.
    for first in ["GET / HTTP/1.1\r\nHost: api.test\r\n\r\n", ""] {
        let (_, mut stream) = connect_as(proxy, "evil.test:8080", "curl/8.14.1").await;
        stream.write_all(first.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\nx-warren-egress: refused\r\n"), "{answer}");
        assert!(answer.ends_with(r#""host":"evil.test","rule":"allowlist"}"#), "{answer}");
    }
    assert!(blocked(&world).contains(&("evil.test".into(), 443, "host not in allowlist".into(), 2)));
    assert_eq!(world.connections.load(std::sync::atomic::Ordering::Relaxed), 0, "nobody was dialled");
}

#[tokio::test]
async fn requests_with_a_whole_address_are_carried_each_to_its_host() {
    let world = plain(|port| {
        format!(r#"{{"host":"api.test","ports":[{port}]}},{{"host":"other.test","ports":[{port}]}}"#)
    })
    .await;
    let mut client = http1_over(TcpStream::connect(proxy(&world).await).await.unwrap()).await;
    for host in ["api.test", "other.test", "api.test"] {
        let mut request = get(&format!("http://{host}:{}/path?q", world.port));
        request.headers_mut().insert("host", format!("{host}:{}", world.port).parse().unwrap());
        client.ready().await.unwrap();
        assert_eq!(reply(client.send_request(request).await.unwrap()).await.status, StatusCode::OK);
        let seen = world.last();
        assert_eq!(
            (seen.uri.to_string(), seen.header("host")),
            ("/path?q".into(), format!("{host}:{}", world.port).as_str())
        );
    }
    let mut request = get("http://evil.test/");
    request.headers_mut().insert("host", "evil.test".parse().unwrap());
    client.ready().await.unwrap();
    assert_eq!(reply(client.send_request(request).await.unwrap()).await.status, StatusCode::FORBIDDEN);
    let mut request = get("/path");
    request.headers_mut().insert("host", "api.test".parse().unwrap());
    client.ready().await.unwrap();
    assert_eq!(reply(client.send_request(request).await.unwrap()).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_sandbox_has_so_many_connections_however_they_come() {
    let limits = Limits { connections: 3, ..Limits::default() };
    let world = World::new(Setting { limits, ..Setting::default() }).await;
    let proxy = proxy(&world).await;
    let to = format!("api.test:{}", world.port);
    let (first, second, third) = (connect(proxy, &to).await, connect(proxy, &to).await, world.connect());
    assert!(first.0.starts_with("HTTP/1.1 200") && second.0.starts_with("HTTP/1.1 200"));
    // Both kinds are closed without a word.
    assert_eq!(TcpStream::connect(proxy).await.unwrap().read(&mut [0; 10]).await.unwrap_or(0), 0);
    assert_eq!(world.connect().read(&mut [0; 10]).await.unwrap(), 0);
    assert_eq!(world.session.report().blocked[0].reason, "too many connections");
    drop((first, third));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(connect(proxy, &to).await.0.starts_with("HTTP/1.1 200"));
}

/// Whether what is read next is the end, or an error.
async fn breaks_off(mut body: hyper::body::Incoming) -> bool {
    let frames = async { while let Some(Ok(_)) = body.frame().await {} };
    tokio::time::timeout(Duration::from_secs(5), frames).await.is_ok()
}

#[tokio::test]
async fn a_narrower_policy_ends_requests_that_are_under_way() {
    let next = Arc::new(Mutex::new(None));
    let answers = next.clone();
    let answer = Arc::new(move |_: &Seen| answers.lock().unwrap().take().expect("an answer"));
    let world = World::new(Setting { sealed: false, tls: false, answer, ..Setting::default() }).await;
    let rules = |more: &str| allowlist(&format!(r#"{{"host":"api.test","ports":[{}]{more}}}"#, world.port));
    let proxy = proxy(&world).await;
    for proxied in [false, true] {
        world.session.set_policy(rules(""));
        let connect = async || {
            if proxied {
                return http1_over(TcpStream::connect(proxy).await.unwrap()).await;
            }
            http1_over(world.connect()).await
        };
        let whole = format!("http://api.test:{}", world.port);
        let uri = |path: &str| if proxied { format!("{whole}{path}") } else { path.to_owned() };
        let host = format!("api.test:{}", world.port);
        // A reply that goes on and on.
        let (sender, body) = channel();
        *next.lock().unwrap() = Some(http::Response::new(body));
        let reply = connect().await.send_request(get_with(&uri("/"), "host", &host)).await.unwrap();
        // And an upload.
        let (upload, body) = channel();
        let request = http::Request::post(uri("/count")).header("host", &host).body(body).unwrap();
        let answer = tokio::spawn(connect().await.send_request(request));
        upload.send("piece".into()).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.session.set_policy(rules(r#","methods":["GET"],"paths":["/else"]"#));
        let _ = sender.send("too late".into());
        assert!(breaks_off(reply.into_body()).await);
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.unwrap().unwrap();
        assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == StatusCode::FORBIDDEN));
    }
}
