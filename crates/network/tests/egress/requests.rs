//! Values in place of tokens, and what else becomes of requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use warren_node_api::{Place, SecretGrant};

use crate::harness::*;

#[tokio::test]
async fn a_token_in_a_header_becomes_the_value_over_both_protocols() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text("fine"))).await;
    let bearer = format!("Bearer {}", token(1));
    let answer = world.ask(get_with("https://api.test/v1", "authorization", &bearer)).await;
    assert_eq!((answer.status, answer.text()), (StatusCode::OK, "fine"));
    let seen = world.last();
    assert_eq!(seen.header("authorization"), format!("Bearer {VALUE}"));
    assert_eq!((seen.version, seen.method.as_str()), (http::Version::HTTP_11, "GET"));
    assert_eq!(seen.header("accept-encoding"), "identity");

    let mut client = world.http2("api.test").await;
    send2(&mut client, get_with("https://api.test/v1?q=1", "x-key", &format!("{0},{0}", token(1)))).await;
    let seen = world.last();
    assert_eq!(seen.header("x-key"), format!("{VALUE},{VALUE}"));
    assert_eq!(
        (seen.version, seen.uri.path(), seen.uri.query()),
        (http::Version::HTTP_2, "/v1", Some("q=1"))
    );

    let uses = world.uses();
    assert_eq!(
        (uses.len(), uses[0].name.as_str(), uses[0].host.as_str(), uses[0].count),
        (1, "KEY1", "api.test", 2)
    );
}

#[tokio::test]
async fn several_tokens_and_unknown_ones() {
    let world = World::with_secret(&[], Arc::new(|_| text(""))).await;
    let secrets = vec![
        granted(1, "value-one", &[], &[Place::Header]),
        granted(2, "value-two", &["else.test"], &[Place::Header]),
    ];
    world.session.set_grant(SecretGrant { secrets, former: Vec::new() });
    let value = format!("{} {} {} osb_sealed_12", token(1), token(2), token(3));
    world.ask(get_with("https://api.test/", "x", &value)).await;
    assert_eq!(world.last().header("x"), format!("value-one {} {} osb_sealed_12", token(2), token(3)));
}

#[tokio::test]
async fn basic_authentication_is_opened_and_closed_again() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    let basic = |password: &str| format!("Basic {}", STANDARD.encode(format!("me:{password}")));
    world.ask(get_with("https://api.test/", "authorization", &basic(&token(1)))).await;
    assert_eq!(world.last().header("authorization"), basic(VALUE));
    world.ask(get_with("https://api.test/", "authorization", &basic("own"))).await;
    assert_eq!(world.last().header("authorization"), basic("own"));
}

#[tokio::test]
async fn query_and_body_are_for_secrets_that_ask_for_it() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    let ask = || {
        Request::post(format!("https://api.test/{0}?k={0}&l", token(1)))
            .body(full(format!("a={}&b", token(1))))
            .unwrap()
    };
    world.ask(ask()).await;
    let seen = world.last();
    assert_eq!(seen.uri.query(), Some(format!("k={}&l", token(1)).as_str()));
    assert_eq!(seen.body, format!("a={}&b", token(1)));

    world.session.set_grant(grant(VALUE, &["api.test"], &[Place::Query, Place::Body]));
    world.ask(ask()).await;
    let seen = world.last();
    assert_eq!(seen.uri.path(), format!("/{}", token(1)));
    assert_eq!(seen.uri.query(), Some("k=sk-live%2B%2Freal-value%3D1&l"));
    assert_eq!(seen.body, format!("a={VALUE}&b"));
    assert_eq!(seen.header("content-length"), seen.body.len().to_string());
    assert_eq!(world.uses()[0].count, 1);
}

#[tokio::test]
async fn a_body_of_unknown_length_is_changed_as_it_comes() {
    let world = World::with_secret(&[Place::Body], Arc::new(|_| text(""))).await;
    let whole = format!("{}-{}-{}", "x".repeat(5000), token(1), "y".repeat(5000));
    for size in [1, 7, 5010] {
        let sent = whole.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
        world.ask(Request::post("https://api.test/").body(pieces(sent)).unwrap()).await;
        assert_eq!(world.last().body, whole.replace(&token(1), VALUE));
        let mut client = world.http2("api.test").await;
        let sent = whole.as_bytes().chunks(size.max(100)).map(Bytes::copy_from_slice).collect();
        send2(&mut client, Request::post("https://api.test/").body(pieces(sent)).unwrap()).await;
        assert_eq!(world.last().body, whole.replace(&token(1), VALUE));
    }
}

#[tokio::test]
async fn a_host_that_no_secret_is_for_is_passed_through_unread() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    // The server's own certificate is what such a client sees: the gateway's authority does not help it.
    assert!(world.tls_over(world.connect(), "other.test", &[b"http/1.1"]).await.is_err());
    assert!(world.tls_over(world.connect(), "api.test", &[b"http/1.1"]).await.is_ok());
}

#[tokio::test]
async fn a_secret_of_another_host_stays_sealed_where_requests_are_read() {
    let policy = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    policy.session.set_policy(allowlist(&format!(r#"{{"host":"*.test","ports":[{}]}}"#, policy.port)));
    let answer = policy.ask(get_with("https://other.test/", "authorization", &token(1))).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(policy.last().header("authorization"), token(1));
    assert!(policy.uses().is_empty());
}

#[tokio::test]
async fn nothing_goes_out_before_the_values_are_known() {
    let world = World::new(Setting::default()).await;
    let basic = format!("Basic {}", STANDARD.encode(format!("me:{}", token(1))));
    // The last has no token: but the host may answer with a value, which could not be told yet.
    let requests = [
        get_with("https://api.test/", "x", &token(1)),
        get_with("https://api.test/", "authorization", &basic),
        get(&format!("https://api.test/?k={}", token(1))),
        get("https://api.test/"),
    ];
    let mut client = world.http1("api.test").await;
    for answer in futures_util::future::join_all(requests.map(|request| world.ask(request))).await {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.refusal().2, "secrets");
    }
    assert_eq!(world.arrived(), 0);
    // One that waits goes on once they are.
    let waiting = send1(&mut client, get_with("https://api.test/", "x", &token(1)));
    let granted = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        world.session.set_grant(grant(VALUE, &[], &[Place::Header]));
    };
    let (answer, ()) = tokio::join!(waiting, granted);
    assert_eq!((answer.status, world.last().header("x")), (StatusCode::OK, VALUE));
}

#[tokio::test]
async fn a_new_grant_counts_for_the_next_request_of_an_open_connection() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    let mut first = world.http1("api.test").await;
    let mut second = world.http2("api.test").await;
    let ask = || get_with("https://api.test/", "x", &token(1));
    for (grant, expected) in [
        (grant("rotated-value", &["api.test"], &[Place::Header]), "rotated-value".to_owned()),
        (grant("rotated-value", &["elsewhere.test"], &[Place::Header]), token(1)),
        (grant("third-value", &[], &[Place::Header]), "third-value".to_owned()),
        (SecretGrant::default(), token(1)),
    ] {
        world.session.set_grant(grant);
        send1(&mut first, ask()).await;
        assert_eq!(world.last().header("x"), expected);
        send2(&mut second, ask()).await;
        assert_eq!(world.last().header("x"), expected);
    }
    assert_eq!(world.connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_secret_that_is_removed_is_not_put_into_a_body_that_has_begun() {
    let world = World::with_secret(&[Place::Body], Arc::new(|_| text("got it"))).await;
    for length in [None, Some(3 + token(1).len())] {
        world.session.set_grant(grant(VALUE, &["api.test"], &[Place::Body]));
        let (sender, body) = channel();
        let mut request = Request::post("/").header("host", "api.test").body(body).unwrap();
        if let Some(length) = length {
            request.headers_mut().insert("content-length", length.into());
        }
        let mut client = world.http1("api.test").await;
        let answer = tokio::spawn(client.send_request(request));
        sender.send("one".into()).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.session.set_grant(SecretGrant::default());
        sender.send(token(1).into()).unwrap();
        drop(sender);
        assert_eq!(reply(answer.await.unwrap().unwrap()).await.text(), "got it");
        assert_eq!(world.last().body, format!("one{}", token(1)));
    }
}

#[tokio::test]
async fn a_value_that_no_header_can_have_is_refused_in_words() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text(""))).await;
    for value in ["line one\r\nx-evil: yes", "ends\n", "nul\0"] {
        world.session.set_grant(grant(value, &[], &[Place::Header]));
        let answer = world.ask(get_with("https://api.test/", "x", &token(1))).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.refusal().0.contains("end of line") && !answer.text().contains(value));
    }
    assert_eq!(world.arrived(), 0);
}

#[tokio::test]
async fn a_client_that_waits_for_a_go_on_gets_it_and_trailers_pass() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text("got it"))).await;
    let mut stream = world.tls("api.test", &[b"http/1.1"]).await;
    let head = "POST / HTTP/1.1\r\nHost: api.test\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = [0; 1000];
    let length = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n").await.unwrap();
    let length = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..length].starts_with(b"HTTP/1.1 200"));
    let seen = world.last();
    assert_eq!((seen.body.as_ref(), seen.header("expect")), (&b"hello"[..], ""));
    assert_eq!(seen.trailers.unwrap()["x-sum"], "7");
}

#[tokio::test]
async fn a_host_that_closes_its_connection_is_connected_to_again() {
    let answer = |_: &Seen| {
        let mut answer = text("bye");
        answer.headers_mut().insert("connection", "close".parse().unwrap());
        answer
    };
    let setting =
        Setting { protocols: vec![b"http/1.1".to_vec()], answer: Arc::new(answer), ..Setting::default() };
    let world = World::new(setting).await;
    world.session.set_grant(grant(VALUE, &[], &[Place::Header]));
    let mut client = world.http1("api.test").await;
    for _ in 0..3 {
        assert_eq!(send1(&mut client, get_with("https://api.test/", "x", &token(1))).await.text(), "bye");
    }
    assert_eq!(world.connections.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn many_requests_at_once_over_one_http_2_connection() {
    let world = World::with_secret(&[Place::Header], Arc::new(|seen| text(seen.uri.path().to_owned()))).await;
    let client = world.http2("api.test").await;
    let all = (0..50).map(|number| {
        let mut client = client.clone();
        async move {
            send2(&mut client, get_with(&format!("https://api.test/{number}"), "x", &token(1))).await.body
        }
    });
    for (number, body) in futures_util::future::join_all(all).await.into_iter().enumerate() {
        assert_eq!(body, format!("/{number}"));
    }
    assert_eq!(world.connections.load(Ordering::Relaxed), 1);
    assert_eq!(world.uses()[0].count, 50);
}
