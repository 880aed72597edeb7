//! Large bodies, and what the way through the gateway costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::net::{TcpListener, TcpStream};
use warren_network::egress::Destination;
use warren_node_api::Place;

use crate::harness::*;

const MIB: usize = 1024 * 1024;
/// Far below the bodies that are sent, and above what other tests need that run in this process meanwhile.
const FLAT: usize = 64 * MIB;

/// That many pieces of 64 KiB, made as they are asked for.
fn large(bytes: usize) -> Sent {
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    let frames =
        (0..bytes / piece.len()).map(move |_| Ok::<_, std::convert::Infallible>(Frame::data(piece.clone())));
    Sent::new(StreamBody::new(futures_util::stream::iter(frames)))
}

/// Of this process, in bytes: the most it has had in memory, counted anew by `reset`.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

fn reset() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_is_not_held_in_memory() {
    let world = World::with_secret(&[Place::Header, Place::Body], Arc::new(|_| text(""))).await;
    let ask =
        |bytes| Request::post("https://api.test/count").header("x", token(1)).body(large(bytes)).unwrap();
    for protocol in [1, 2] {
        let mut first = world.http1("api.test").await;
        let mut second = world.http2("api.test").await;
        for bytes in [MIB, 200 * MIB] {
            let counted = reset();
            let before = peak();
            let answer = if protocol == 1 {
                send1(&mut first, ask(bytes)).await
            } else {
                send2(&mut second, ask(bytes)).await
            };
            assert_eq!(answer.text(), bytes.to_string());
            let grown = peak() - before;
            assert!(!counted || grown < FLAT, "{} MiB more for {} MiB", grown / MIB, bytes / MIB);
        }
    }
}

#[tokio::test]
async fn bodies_that_do_not_end_are_held_up_to_a_limit() {
    let world = World::with_secret(&[Place::Body], Arc::new(|_| text(""))).await;
    let mut client = world.http2("api.test").await;
    let post = |length: usize, body| {
        Request::post("https://api.test/").header("content-length", length).body(body).unwrap()
    };
    let whole = || post(1000, full(vec![b'x'; 1000]));
    let unfinished: Vec<_> = (0..8)
        .map(|_| {
            let (sender, body) = channel();
            (tokio::spawn(client.send_request(post(MIB, body))), sender)
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Nothing more is held, which shows in the length not being known.
    send2(&mut client, whole()).await;
    assert_eq!((world.last().body.len(), world.last().header("content-length")), (1000, ""));
    for (answer, sender) in unfinished {
        sender.send(vec![b'x'; MIB].into()).unwrap();
        drop(sender);
        assert_eq!(reply(answer.await.unwrap().unwrap()).await.status, http::StatusCode::OK);
        assert_eq!(world.last().header("content-length"), MIB.to_string());
    }
    send2(&mut client, whole()).await;
    assert_eq!(world.last().header("content-length"), "1000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_download_is_not_held_in_memory() {
    let world =
        World::with_secret(&[Place::Header], Arc::new(|_| http::Response::new(large(200 * MIB)))).await;
    let mut client = world.http1("api.test").await;
    client.ready().await.unwrap();
    let mut request = get("/");
    request.headers_mut().insert("host", "api.test".parse().unwrap());
    let mut reply = client.send_request(request).await.unwrap();
    let counted = reset();
    let (before, mut count) = (peak(), 0);
    while let Some(frame) = reply.body_mut().frame().await {
        count += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    assert_eq!(count, 200 * MIB);
    assert!(!counted || peak() - before < FLAT);
}

/// Microseconds at these parts of all.
fn quantiles(mut times: Vec<Duration>) -> (u128, u128) {
    times.sort();
    (times[times.len() / 2].as_micros(), times[times.len() * 99 / 100].as_micros())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; run it alone: cargo test --release -p warren-network --test egress latency -- --ignored --nocapture"]
async fn latency_and_throughput_beside_direct_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::with_listener(
        Setting {
            answer: Arc::new(|seen| {
                if seen.uri.path() == "/large" { http::Response::new(large(512 * MIB)) } else { text("fine") }
            }),
            ..Setting::default()
        },
        listener,
    )
    .await;
    world.session.set_grant(grant(VALUE, &["api.test"], &[Place::Header]));
    // Over a socket, as sandboxes come.
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = gate.local_addr().unwrap();
    let (gateway, session, port) = (world.gateway.clone(), world.session.clone(), world.port);
    tokio::spawn(async move {
        while let Ok((stream, _)) = gate.accept().await {
            stream.set_nodelay(true).unwrap();
            let to = Destination::address([127, 0, 0, 1].into(), port);
            tokio::spawn(gateway.clone().handle(stream, to, session.clone()));
        }
    });
    let roots = world.server_roots();
    for protocol in [&b"http/1.1"[..], b"h2"] {
        for (name, through) in [("direct", false), ("through the gateway", true)] {
            let stream =
                TcpStream::connect(if through { at } else { ([127, 0, 0, 1], port).into() }).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let stream = if through {
                world.tls_over(stream, "api.test", &[protocol]).await.unwrap()
            } else {
                client_tls(stream, "api.test", &[protocol], &roots).await.unwrap()
            };
            let (times, rate) = if protocol == b"h2" {
                let mut client = http2_over(stream).await;
                let mut times = Vec::new();
                for _ in 0..3000 {
                    let begin = Instant::now();
                    send2(&mut client, get_with("https://api.test/", "x", &token(1))).await;
                    times.push(begin.elapsed());
                }
                let begin = Instant::now();
                let bytes = drain(client.send_request(get("https://api.test/large")).await.unwrap()).await;
                (times, bytes as f64 / begin.elapsed().as_secs_f64())
            } else {
                let mut client = http1_over(stream).await;
                let mut times = Vec::new();
                for _ in 0..3000 {
                    let begin = Instant::now();
                    send1(&mut client, get_with("https://api.test/", "x", &token(1))).await;
                    times.push(begin.elapsed());
                }
                let mut request = get("/large");
                request.headers_mut().insert("host", "api.test".parse().unwrap());
                client.ready().await.unwrap();
                let begin = Instant::now();
                let bytes = drain(client.send_request(request).await.unwrap()).await;
                (times, bytes as f64 / begin.elapsed().as_secs_f64())
            };
            let (median, high) = quantiles(times);
            println!(
                "{} {name}: p50 {median} us, p99 {high} us, {:.0} MiB/s",
                String::from_utf8_lossy(protocol),
                rate / MIB as f64
            );
        }
    }
}

async fn drain(mut reply: http::Response<hyper::body::Incoming>) -> usize {
    let mut count = 0;
    while let Some(frame) = reply.body_mut().frame().await {
        count += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    count
}
