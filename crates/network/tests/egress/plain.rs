//! HTTP without TLS, and the proxy that programs are told of.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
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
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await.unwrap();
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
        ("api.test:22", "HTTP/1.1 403 host not in allowlist\r\n"),
        ("private.test:443", "HTTP/1.1 403 private IP blocked\r\n"),
        ("10.0.0.1:443", "HTTP/1.1 403 private IP blocked\r\n"),
        ("[::1]:443", "HTTP/1.1 400"),
        ("0x7f.1:443", "HTTP/1.1 400"),
    ] {
        let (head, _) = connect(proxy, to).await;
        assert!(head.starts_with(expected), "{to} gave {head}");
        assert!(head.contains("x-warren-egress: refused"));
    }
    let reasons: Vec<_> =
        world.session.report().blocked.into_iter().map(|kind| (kind.host, kind.port, kind.reason)).collect();
    assert!(reasons.contains(&("evil.test".into(), 443, "host not in allowlist".into())), "{reasons:?}");
    assert!(reasons.contains(&("10.0.0.1".into(), 443, "private IP blocked".into())), "{reasons:?}");
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
