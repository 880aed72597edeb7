//! How long the listener waits for clients that do not go on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{any, get};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
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
    let (address, server, _) = start_telling(patience).await;
    (address, server)
}

/// With what is told when something without an end is dropped.
async fn start_telling(patience: Patience) -> (String, DropGuard, Arc<Notify>) {
    let gone = Arc::new(Notify::new());
    let router = Router::new()
        .route("/", get(async || "here"))
        .route("/slow", get(slow))
        .route("/pieces", get(pieces))
        .route("/never", get(never))
        .route("/endless", get(endless))
        .route("/endless-socket", any(endless_socket))
        .route("/length", any(length))
        .route("/socket", any(socket))
        .with_state(Arc::clone(&gone));
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (tcp.local_addr().unwrap().to_string(), CancellationToken::new());
    let listener = Listener::new(tcp, None, stop.clone()).unwrap().with_patience(patience);
    tokio::spawn(listener.serve(router));
    (address, stop.drop_guard(), gone)
}

fn patience() -> Patience {
    Patience { head: HEAD, ..Patience::default() }
}

async fn never(State(gone): State<Arc<Notify>>) -> &'static str {
    let _tell = Tell(gone);
    std::future::pending().await
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

/// Tells that it is dropped.
struct Tell(Arc<Notify>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

async fn endless(State(gone): State<Arc<Notify>>) -> Body {
    let tell = Tell(gone);
    Body::from_stream(futures_util::stream::repeat_with(move || {
        let _ = &tell;
        Ok::<_, io::Error>([b'x'; 65_536].to_vec())
    }))
}

async fn endless_socket(State(gone): State<Arc<Notify>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| {
        let _tell = Tell(gone);
        while socket.send(axum::extract::ws::Message::Binary(vec![b'x'; 65_536].into())).await.is_ok() {}
    })
}

/// Until something without an end has ended.
async fn ended(gone: &Notify) {
    tokio::time::timeout(GENEROUS, gone.notified()).await.expect("it ends");
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

#[tokio::test]
async fn who_says_no_more_after_its_request_is_answered() {
    let (address, _server) = start(Patience::default()).await;
    for (request, answer) in [
        ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", "here"),
        ("GET / HTTP/1.0\r\n\r\n", "here"),
        ("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n", "at last"),
        ("PUT /length HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n1234", "4"),
        ("PUT /length HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\n1234\r\n0\r\n\r\n", "4"),
        ("GET / HTTP/1.1\r\nhost: x\r\n\r\nGET /slow HTTP/1.1\r\nhost: x\r\n\r\n", "at last"),
    ] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let said = rest(&mut stream).await;
        assert!(said.ends_with(&format!("\r\n\r\n{answer}")), "{request}: {said}");
        assert_eq!(
            said.contains(" 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n"),
            answer == "at last",
            "{said}"
        );
    }
    // What has not come whole is no request.
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(b"PUT /length HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n12").await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(!rest(&mut stream).await.contains("200 OK"));
}

#[tokio::test]
async fn what_somebody_asked_for_who_is_gone_ends() {
    let (address, _server, gone) = start_telling(Patience::default()).await;
    for version in ["1.1\r\nhost: x", "1.0"] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(format!("GET /never HTTP/{version}\r\n\r\n").as_bytes()).await.unwrap();
        tokio::time::sleep(HEAD / 4).await;
        drop(stream);
        ended(&gone).await;
    }
}

#[tokio::test]
async fn what_nobody_takes_ends() {
    let (address, _server, gone) =
        start_telling(Patience { taken: HEAD, head: HEAD, ..Patience::default() }).await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    // Settings, and the headers of a request for the same over HTTP/2.
    let http_2 = [HTTP_2, b"\x00\x00\x0f\x01\x05\x00\x00\x00\x01\x82\x86\x04\x08/endless\x01\x01x"].concat();
    for request in [
        b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        format!("GET /endless-socket HTTP/1.1\r\nhost: x\r\n{upgrade}\r\n").into_bytes(),
        http_2,
    ] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(&request).await.unwrap();
        ended(&gone).await;
        drop(stream);
    }
}

#[tokio::test]
async fn who_takes_little_at_a_time_is_waited_for() {
    let (address, _server) = start(Patience { taken: HEAD, head: HEAD, ..Patience::default() }).await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut some = vec![0; 4 << 20];
    for _ in 0..6 {
        tokio::time::sleep(HEAD / 2).await;
        stream.read_exact(&mut some).await.unwrap();
    }
}
