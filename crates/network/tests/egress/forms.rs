//! Requests that say two things at once, and connections that are not what they seem.

use std::net::Ipv4Addr;
use std::sync::Arc;

use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use warren_network::egress::Destination;
use warren_node_api::Place;

use crate::harness::*;

/// What is answered to these bytes inside TLS to `api.test`.
async fn raw(world: &World, bytes: &str) -> String {
    let mut stream = world.tls("api.test", &[b"http/1.1"]).await;
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&answer).contains("\r\n\r\n") {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => answer.extend_from_slice(&buffer[..length]),
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), read).await.expect("an answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn requests_with_two_meanings_are_refused() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    for bad in [
        "POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\nContent-Length : 3\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: gzip\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: +3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nHost: api.test\r\nHost: api.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.test\r\nHost: evil.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.test@evil.test\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET https://evil.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n",
        "GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.test\r\nX : y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.test\r\nX: y\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.test\0.evil\r\n\r\n",
    ] {
        let answer = raw(&world, bad).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{bad:?} gave {answer:?}");
    }
    assert_eq!(world.arrived(), 0);
}

#[tokio::test]
async fn a_second_request_with_two_lengths_is_refused_too() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    let mut stream = world.tls("api.test", &[b"http/1.1"]).await;
    let mut buffer = [0; 4096];
    stream.write_all(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\n\r\nabc").await.unwrap();
    let length = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..length].starts_with(b"HTTP/1.1 200"));
    let bad = "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n";
    stream.write_all(bad.as_bytes()).await.unwrap();
    let length = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..length].starts_with(b"HTTP/1.1 400"));
    assert_eq!(world.arrived(), 1);
}

#[tokio::test]
async fn a_host_that_is_not_the_one_of_the_connection_is_misdirected() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    let mut client = world.http1("api.test").await;
    for host in ["other.test", "other.test:443", "api.test.evil.test", "api.test:444"] {
        let mut request = get_with("/", "x", &token(1));
        request.headers_mut().insert("host", host.parse().unwrap());
        let answer = send1(&mut client, request).await;
        assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST, "{host}");
        assert_eq!(answer.refusal().2, "form");
    }
    let mut client = world.http2("api.test").await;
    let answer = send2(&mut client, get_with("https://other.test/", "x", &token(1))).await;
    assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST);
    let answer = send2(&mut client, get_with("https://api.test/", "host", "other.test")).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(world.arrived(), 0);
    assert!(world.uses().is_empty());
    // The connection is not spoilt, and spelling does not matter.
    let mut request = get("/");
    request.headers_mut().insert("host", format!("API.Test.:{}", world.port).parse().unwrap());
    assert_eq!(send1(&mut world.http1("api.test").await, request).await.status, StatusCode::OK);
}

#[tokio::test]
async fn connect_is_not_carried_inside() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    let answer = raw(&world, "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    let request = Request::connect("evil.test:443").body(full("")).unwrap();
    let answer = send2(&mut world.http2("api.test").await, request).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_hello_in_many_small_records_is_read() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    // The first flight is cut into records of 20 bytes, each written alone.
    let (near, far) = tokio::io::duplex(64 * 1024);
    let gate = world.connect();
    tokio::spawn(async move {
        let (mut from_client, mut to_client) = tokio::io::split(far);
        let (mut from_gate, mut to_gate) = tokio::io::split(gate);
        let back = tokio::spawn(async move { tokio::io::copy(&mut from_gate, &mut to_client).await });
        let mut header = [0; 5];
        from_client.read_exact(&mut header).await.unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        from_client.read_exact(&mut message).await.unwrap();
        for piece in message.chunks(20) {
            let record = [&[22, 3, 1, 0, u8::try_from(piece.len()).unwrap()], piece].concat();
            to_gate.write_all(&record).await.unwrap();
            to_gate.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        let _ = tokio::io::copy(&mut from_client, &mut to_gate).await;
        let _ = back.await;
    });
    let stream = world.tls_over(near, "api.test", &[b"http/1.1"]).await.unwrap();
    let answer = send1(&mut http1_over(stream).await, get_with("https://api.test/", "x", &token(1))).await;
    assert_eq!((answer.status, world.last().header("x")), (StatusCode::OK, VALUE));
}

#[tokio::test]
async fn a_server_whose_certificate_is_another_hosts_is_not_spoken_to() {
    let setting = Setting { names: vec!["other.test".into()], ..Setting::default() };
    let world = World::new(setting).await;
    world.session.set_grant(grant(VALUE, &[], &[Place::Header]));
    let answer = world.ask(get_with("https://api.test/", "x", &token(1))).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert!(answer.refusal().0.contains("certificate"), "{}", answer.text());
    assert_eq!(world.arrived(), 0);
}

#[tokio::test]
async fn hosts_that_are_not_there_are_answered_in_words() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    world.session.set_grant(grant(VALUE, &[], &[Place::Header]));
    let answer = world.ask(get("https://nowhere.test/")).await;
    assert_eq!((answer.status, answer.refusal().2.as_str()), (StatusCode::BAD_GATEWAY, "upstream"));
    let answer = world.ask(get("https://private.test/")).await;
    assert_eq!((answer.status, answer.refusal().2.as_str()), (StatusCode::FORBIDDEN, "reach"));
    assert_eq!(world.session.report().blocked[0].reason, "private IP blocked");
    // Nobody listens there.
    let closed = Destination::address(Ipv4Addr::LOCALHOST, 1);
    let stream = world.tls_over(world.connect_to(closed), "api.test", &[b"http/1.1"]).await.unwrap();
    let answer = send1(&mut http1_over(stream).await, get("https://api.test/")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert!(answer.refusal().0.contains("could not connect"));
}
