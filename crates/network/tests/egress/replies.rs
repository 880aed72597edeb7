//! Tokens in place of values, in what hosts answer.

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use warren_node_api::{Place, SecretGrant};

use crate::harness::*;

/// A world whose server answers what the test says next.
async fn answering() -> (World, Arc<Mutex<Option<Response<Sent>>>>) {
    let next = Arc::new(Mutex::new(None));
    let answers = next.clone();
    let world = World::with_secret(
        &[Place::Header],
        Arc::new(move |_| answers.lock().unwrap().take().expect("an answer")),
    )
    .await;
    (world, next)
}

async fn answered(body: impl Into<Bytes>, encoding: Option<&str>) -> Reply {
    let (world, next) = answering().await;
    let mut response = text(body);
    if let Some(encoding) = encoding {
        response.headers_mut().insert("content-encoding", encoding.parse().unwrap());
    }
    *next.lock().unwrap() = Some(response);
    world.ask(get("https://api.test/")).await
}

fn echoed() -> String {
    format!("{{\"key\": \"{VALUE}\", \"again\": \"{VALUE}\"}}")
}

fn sealed() -> String {
    echoed().replace(VALUE, &token(1))
}

#[tokio::test]
async fn a_value_in_headers_and_body_is_sealed_again_over_both_protocols() {
    let (world, next) = answering().await;
    let answer = || {
        let response = Response::builder()
            .header("x-echo", format!("a {VALUE} b"))
            .header("location", format!("/?k={VALUE}"));
        Some(response.body(full(echoed())).unwrap())
    };
    *next.lock().unwrap() = answer();
    let first = world.ask(get("https://api.test/")).await;
    *next.lock().unwrap() = answer();
    let second = send2(&mut world.http2("api.test").await, get("https://api.test/")).await;
    for reply in [first, second] {
        assert_eq!(reply.headers["x-echo"], format!("a {} b", token(1)));
        assert_eq!(reply.headers["location"], format!("/?k={}", token(1)));
        assert_eq!(reply.text(), sealed());
    }
}

#[tokio::test]
async fn a_value_over_the_ends_of_pieces_is_sealed() {
    let (world, next) = answering().await;
    for size in 1..VALUE.len() + 2 {
        let cut = echoed().into_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
        *next.lock().unwrap() = Some(Response::new(pieces(cut)));
        assert_eq!(world.ask(get("https://api.test/")).await.text(), sealed());
    }
}

#[tokio::test]
async fn compressed_replies_are_opened() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(echoed().as_bytes()).unwrap();
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
    zlib.write_all(echoed().as_bytes()).unwrap();
    for (body, encoding) in [(gzip.finish().unwrap(), "gzip"), (zlib.finish().unwrap(), "Deflate")] {
        let reply = answered(body, Some(encoding)).await;
        assert_eq!(reply.text(), sealed());
        assert!(!reply.headers.contains_key("content-encoding"));
    }
    assert_eq!(answered(echoed(), Some("identity")).await.text(), sealed());
}

#[tokio::test]
async fn an_encoding_that_is_said_to_the_next_hop_only_is_one() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(echoed().as_bytes()).unwrap();
    let gzip = Bytes::from(gzip.finish().unwrap());
    for headers in [
        [("content-encoding", "gzip"), ("connection", "close, Content-Encoding")],
        [("transfer-encoding", "gzip, chunked"), ("x-other", "1")],
        [("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")],
    ] {
        let (world, next) = answering().await;
        let mut response = Response::new(pieces(vec![gzip.clone()]));
        for (name, value) in headers {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        *next.lock().unwrap() = Some(response);
        let reply = world.ask(get("https://api.test/")).await;
        assert_eq!(reply.text(), sealed(), "{headers:?}");
        assert!(!reply.headers.contains_key("content-encoding"));
    }
}

#[tokio::test]
async fn an_encoding_that_cannot_be_read_is_not_passed_on() {
    for encoding in ["br", "zstd", "gzip, gzip"] {
        let reply = answered(echoed(), Some(encoding)).await;
        assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
        assert!(reply.refusal().0.contains("encoding") && !reply.text().contains(VALUE));
    }
}

#[tokio::test]
async fn other_ways_to_write_the_value_are_found() {
    for before in ["", "a", "ab"] {
        let plain = format!("{before}:{VALUE}:after");
        for written in [STANDARD.encode(&plain), URL_SAFE_NO_PAD.encode(&plain)] {
            let reply = answered(format!("<{written}>"), None).await;
            assert!(reply.text().contains(&token(1)), "{}", reply.text());
            // What is left of it does not say the value.
            let core = STANDARD.encode(VALUE);
            assert!(!reply.text().contains(&core[4..core.len() - 4]));
        }
    }
    for (columns, end) in [(60, "\\n"), (64, "\n"), (76, "\r\n")] {
        let digits = STANDARD.encode(format!("{}{VALUE}{}", "x".repeat(columns / 4 * 3 - 8), "y".repeat(50)));
        let lines: Vec<_> =
            digits.as_bytes().chunks(columns).map(|line| str::from_utf8(line).unwrap()).collect();
        let reply = answered(lines.join(end), None).await;
        assert!(reply.text().contains(&token(1)), "{}", reply.text());
        let before = reply.text().split_once(&token(1)).unwrap().0;
        assert!(before.len() < columns && !before.contains(&STANDARD.encode("xx:sk-live")[4..10]));
    }
    for written in ["sk-live%2B%2Freal-value%3D1", "sk-live%2b%2freal-value%3d1", "sk-live+\\/real-value=1"] {
        assert_eq!(answered(format!("<{written}>"), None).await.text(), format!("<{}>", token(1)));
    }
}

#[tokio::test]
async fn what_basic_authentication_carried_is_found_when_it_is_echoed() {
    let echo = |seen: &Seen| text(seen.header("authorization").to_owned());
    let world = World::with_secret(&[Place::Header], Arc::new(echo)).await;
    let basic = format!("Basic {}", STANDARD.encode(format!("me:{}", token(1))));
    let reply = world.ask(get_with("https://api.test/", "authorization", &basic)).await;
    assert!(world.last().header("authorization").contains(&STANDARD.encode(format!("me:{VALUE}"))));
    assert!(reply.text().contains(&token(1)) && !reply.text().contains(&STANDARD.encode(VALUE)[8..20]));
}

#[tokio::test]
async fn trailers_are_sealed() {
    let (world, next) = answering().await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-echo", VALUE.parse().unwrap());
    let frames = [Ok(Frame::data(Bytes::from("body"))), Ok(Frame::trailers(trailers))];
    *next.lock().unwrap() =
        Some(Response::new(Sent::new(StreamBody::new(futures_util::stream::iter(frames)))));
    let request = get_with("https://api.test/", "te", "trailers");
    let reply = send2(&mut world.http2("api.test").await, request).await;
    assert_eq!(
        (reply.text(), reply.trailers.as_ref().unwrap()["x-echo"].as_bytes()),
        ("body", token(1).as_bytes())
    );
}

#[tokio::test]
async fn a_field_that_is_named_after_a_value_is_left_out() {
    let (world, next) = answering().await;
    world.session.set_grant(grant("Value-Of-A-Key", &["api.test"], &[Place::Header]));
    let response = Response::builder().header("x-value-of-a-key-y", "1").header("x-kept", "1");
    *next.lock().unwrap() = Some(response.body(full("")).unwrap());
    let reply = world.ask(get("https://api.test/")).await;
    assert!(reply.headers.contains_key("x-kept") && !reply.headers.contains_key("x-value-of-a-key-y"));
}

#[tokio::test]
async fn replies_without_a_body_keep_their_length() {
    let (world, next) = answering().await;
    let response = Response::builder().header("content-length", "1234").header("content-encoding", "br");
    *next.lock().unwrap() = Some(response.body(full("")).unwrap());
    let request = Request::head("https://api.test/").body(full("")).unwrap();
    let reply = world.ask(request).await;
    assert_eq!((reply.status, reply.headers["content-length"].as_bytes()), (StatusCode::OK, &b"1234"[..]));
}

#[tokio::test]
async fn pieces_of_a_stream_do_not_wait_for_each_other() {
    let (world, next) = answering().await;
    let (sender, body) = channel();
    *next.lock().unwrap() = Some(Response::new(body));
    let mut client = world.http1("api.test").await;
    let mut request = get("/");
    request.headers_mut().insert("host", "api.test".parse().unwrap());
    let mut reply = client.send_request(request).await.unwrap();
    for number in 0..3 {
        let event = format!("data: {number} {VALUE}\n\n");
        sender.send(Bytes::from(event.clone())).unwrap();
        let frame = reply.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, event.replace(VALUE, &token(1)));
    }
}

#[tokio::test]
async fn a_stream_that_is_open_is_read_for_the_values_of_the_moment() {
    let (world, next) = answering().await;
    let second = "the-second-value-2";
    for (first_grant, last_grant, said) in [
        (
            grant(VALUE, &["api.test"], &[Place::Header]),
            grant(second, &["api.test"], &[Place::Header]),
            second,
        ),
        // What was replaced and what is gone is still taken out.
        (
            grant(VALUE, &["api.test"], &[Place::Header]),
            grant(second, &["api.test"], &[Place::Header]),
            VALUE,
        ),
        (grant(VALUE, &["api.test"], &[Place::Header]), SecretGrant::default(), VALUE),
    ] {
        world.session.set_grant(first_grant);
        for http_2 in [false, true] {
            let (sender, body) = channel();
            *next.lock().unwrap() = Some(Response::new(body));
            let mut reply = if http_2 {
                world.http2("api.test").await.send_request(get("https://api.test/")).await.unwrap()
            } else {
                let request = get_with("/", "host", "api.test");
                world.http1("api.test").await.send_request(request).await.unwrap()
            };
            sender.send("begun\n".into()).unwrap();
            assert_eq!(reply.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "begun\n");
            world.session.set_grant(last_grant.clone());
            sender.send(format!("<{said}>\n").into()).unwrap();
            let frame = reply.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(frame, format!("<{}>\n", token(1)));
        }
    }
}

#[tokio::test]
async fn an_unread_stream_ends_when_its_host_gets_a_secret() {
    let (world, next) = answering().await;
    world.session.set_policy(allowlist(&format!(r#"{{"host":"*.test","ports":[{}]}}"#, world.port)));
    let (sender, body) = channel();
    *next.lock().unwrap() = Some(Response::new(body));
    let mut client = world.http1("other.test").await;
    let mut reply = client.send_request(get_with("/", "host", "other.test")).await.unwrap();
    sender.send("begun".into()).unwrap();
    assert!(reply.body_mut().frame().await.unwrap().is_ok());
    world.session.set_grant(grant(VALUE, &[], &[Place::Header]));
    sender.send(VALUE.into()).unwrap();
    assert!(reply.body_mut().frame().await.unwrap().is_err());
}
