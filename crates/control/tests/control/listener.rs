//! How long the listener waits for clients that do not go on.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::Response;
use axum::routing::{any, get};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::{CancellationToken, DropGuard};
use warren_control::listen::{Listener, Patience};

const HEAD: Duration = Duration::from_millis(600);
/// More than is waited for a head.
const LONGER: Duration = Duration::from_millis(900);
const GENEROUS: Duration = Duration::from_secs(10);
/// What the protocol begins with, and settings without anything in them.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

async fn start(patience: Patience) -> (String, DropGuard) {
    let router = Router::new()
        .route("/", get(async || "here"))
        .route("/slow", get(slow))
        .route("/pieces", get(pieces))
        .route("/length", any(length))
        .route("/socket", any(socket));
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (tcp.local_addr().unwrap().to_string(), CancellationToken::new());
    let listener = Listener::new(tcp, None, stop.clone()).unwrap().with_patience(patience);
    tokio::spawn(listener.serve(router));
    (address, stop.drop_guard())
}

fn patience() -> Patience {
    Patience { head: HEAD, ..Patience::default() }
}

async fn slow() -> &'static str {
    tokio::time::sleep(LONGER).await;
    "at last"
}

async fn pieces() -> Body {
    let pieces = futures_util::stream::unfold(0, async |count| {
        if count > 0 {
            tokio::time::sleep(LONGER).await;
        }
        (count < 2).then(|| (Ok::<_, io::Error>("piece"), count + 1))
    });
    Body::from_stream(pieces)
}

async fn length(request: Request) -> String {
    axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap().len().to_string()
}

async fn socket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            let _ = socket.send(message).await;
        }
    })
}

/// What comes until the server closes, which it has to.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(GENEROUS, stream.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(read.is_ok() || read.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    String::from_utf8_lossy(&answer).into_owned()
}

/// Until that text has come.
async fn answer(stream: &mut TcpStream, end: &str) -> String {
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).ends_with(end) {
        let read = tokio::time::timeout(GENEROUS, stream.read_buf(&mut answer)).await.expect("it comes");
        assert!(read.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn half_of_a_head_is_answered_and_ends() {
    let (address, _server) = start(patience()).await;
    for half in ["G", "GET / HTTP/1.1\r\nhost: x\r\n", "PRI * HTTP"] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        let said = rest(&mut stream).await;
        if half.starts_with('P') {
            assert_eq!(said, "", "no HTTP/1.1 to who does not speak it");
            continue;
        }
        assert!(said.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{said}");
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())) && head.contains("connection: close")
        );
        assert!(body.starts_with("{\"error\":\""), "{body}");
    }
}

#[tokio::test]
async fn a_head_that_comes_in_drops_is_late_all_the_same() {
    let (address, _server) = start(patience()).await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let (mut from, mut to) = stream.split();
    let drops = async {
        while to.write_all(b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaa").await.is_ok() {
            tokio::time::sleep(HEAD / 8).await;
        }
    };
    let mut heard = Vec::new();
    tokio::select! {
        ended = tokio::time::timeout(GENEROUS, from.read_to_end(&mut heard)) => { let _ = ended.expect("it ends"); }
        () = drops => {}
    }
}

#[tokio::test]
async fn who_says_nothing_at_all_is_let_go_of() {
    let (address, _server) = start(patience()).await;
    for said in [&b""[..], HTTP_2] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(said).await.unwrap();
        assert!(!rest(&mut stream).await.contains("408"));
    }
}

#[tokio::test]
async fn half_of_a_second_head_is_late_too_and_what_is_between_them_may_be_longer() {
    let (address, _server) = start(patience()).await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n\r\n").await.unwrap();
        answer(&mut stream, "here").await;
        tokio::time::sleep(LONGER).await;
    }
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 408 "));
}

#[tokio::test]
async fn who_asks_for_nothing_more_is_told_nothing() {
    let (address, _server) = start(Patience { idle: HEAD, ..Patience::default() }).await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    answer(&mut stream, "here").await;
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn what_is_under_way_takes_as_long_as_it_takes() {
    let (address, _server) = start(patience()).await;
    let mut polls = TcpStream::connect(&address).await.unwrap();
    polls.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut reads = TcpStream::connect(&address).await.unwrap();
    reads.write_all(b"GET /pieces HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut sends = TcpStream::connect(&address).await.unwrap();
    sends.write_all(b"PUT /length HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n12").await.unwrap();
    let (mut socket, _) = connect_async(format!("ws://{address}/socket")).await.unwrap();
    tokio::time::sleep(LONGER).await;
    sends.write_all(b"34").await.unwrap();
    assert!(answer(&mut sends, "\r\n\r\n4").await.starts_with("HTTP/1.1 200"));
    assert!(answer(&mut polls, "at last").await.starts_with("HTTP/1.1 200"));
    answer(&mut reads, "\r\n0\r\n\r\n").await;
    let hello = Message::Text("hello".into());
    socket.send(hello.clone()).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), hello);
}

#[tokio::test]
async fn who_fills_the_room_pushes_out_its_own() {
    let patience = Patience { quiet: 8, head: GENEROUS * 6, ..Patience::default() };
    let (address, _server) = start(patience).await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET / HT").await.unwrap();
        silent.push(stream);
    }
    let begun = Instant::now();
    let mut honest = TcpStream::connect(&address).await.unwrap();
    honest.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    answer(&mut honest, "here").await;
    assert!(begun.elapsed() < GENEROUS);
    assert!(rest(&mut silent[0]).await.starts_with("HTTP/1.1 408 "));
}
