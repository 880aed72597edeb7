//! A SIMULATION of a Warren server: answers that a test has written down beforehand, an in-memory folder of files, and
//! WebSockets that follow a script. It checks nothing a real server checks. It records everything it is asked.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::{Value, json};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// What a WebSocket does, step by step.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Sends a binary message.
    Send(Vec<u8>),
    /// Receives until this message has come; earlier ones are recorded and passed over.
    Await(Vec<u8>),
    /// Sends every byte of input back as standard output, until the input ends.
    EchoInput,
    /// Waits until a request of this line has been made.
    AwaitRequest(String),
    /// Closes the way a server does that is done.
    Close,
    /// Goes away without a word, once the client has taken what was sent.
    Drop,
    /// Goes away at once.
    Vanish,
    /// Holds the connection until the client leaves.
    Hold,
}

/// What one connection attempt meets.
#[derive(Debug, Clone)]
pub(crate) enum Connection {
    /// Upgraded, with this in `X-Warren-Exec-Offset` when given.
    Open(Option<u64>, Vec<Step>),
    Refuse(u16, Value),
}

const OCTETS: [(&str, &str); 1] = [("content-type", "application/octet-stream")];

/// Status, headers and body of an answer.
type Prepared = (u16, Vec<(String, String)>, Vec<u8>);

#[derive(Default)]
struct World {
    asked: Vec<Asked>,
    answers: BTreeMap<String, VecDeque<Prepared>>,
    connections: VecDeque<Connection>,
    received: Vec<Vec<u8>>,
    /// Path to contents and mode; a folder has no contents.
    files: BTreeMap<String, (Option<Vec<u8>>, u32)>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    world: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct Shared {
    world: Mutex<World>,
    changed: tokio::sync::Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let world = Arc::new(Shared::default());
        let router = Router::new()
            .route("/api/sandboxes/{id}/files", get(read_file).put(write_file).delete(answer))
            .route("/api/sandboxes/{id}/files/stat", get(stat))
            .route("/api/sandboxes/{id}/files/archive", get(read_archive).put(write_archive))
            .route("/api/sandboxes/{id}/exec/{exec}", get(socket).fallback(answer))
            .route("/api/sandboxes/{id}/pty/{pty}", get(socket).delete(answer))
            .fallback(answer)
            .layer(axum::extract::DefaultBodyLimit::disable())
            .layer(axum::middleware::from_fn_with_state(world.clone(), record))
            .with_state(world.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address, world, _runtime: runtime }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers the next request of this line (`GET /api/…`, with its query); the last answer is kept for those after it.
    pub(crate) fn answer(&self, line: &str, status: u16, body: &Value) {
        self.answer_with(line, status, &[], body);
    }

    pub(crate) fn answer_with(&self, line: &str, status: u16, headers: &[(&str, &str)], body: &Value) {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.world.lock().answers.entry(line.to_owned()).or_default().push_back((status, headers, body));
    }

    /// The same with a body that is no JSON.
    pub(crate) fn answer_text(&self, line: &str, status: u16, body: &str) {
        self.answer_kind(line, status, "application/json", body);
    }

    /// What a stream of events says, all at once.
    pub(crate) fn answer_events(&self, line: &str, body: &str) {
        self.answer_kind(line, 200, "text/event-stream", body);
    }

    fn answer_kind(&self, line: &str, status: u16, kind: &str, body: &str) {
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        let prepared = (status, headers, body.as_bytes().to_vec());
        self.world.lock().answers.entry(line.to_owned()).or_default().push_back(prepared);
    }

    /// Has no more answers for requests of this line.
    pub(crate) fn forget(&self, line: &str) {
        self.world.lock().answers.remove(line);
    }

    /// What the next WebSocket meets.
    pub(crate) fn connection(&self, connection: Connection) {
        self.world.lock().connections.push_back(connection);
    }

    pub(crate) fn put_file(&self, path: &str, contents: Option<&[u8]>, mode: u32) {
        self.world.lock().files.insert(path.to_owned(), (contents.map(<[u8]>::to_vec), mode));
    }

    pub(crate) fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.world.lock().files.get(path)?.0.clone()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.world.lock().asked.clone()
    }

    /// The lines of all requests, in order.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    /// The body of the only request of this line.
    pub(crate) fn body_of(&self, line: &str) -> Value {
        let asked: Vec<Asked> = self.asked().into_iter().filter(|asked| asked.line == line).collect();
        assert_eq!(asked.len(), 1, "{line}: {:?}", self.lines());
        serde_json::from_slice(&asked[0].body).unwrap()
    }

    /// Messages that WebSockets received, in order.
    pub(crate) fn received(&self) -> Vec<Vec<u8>> {
        self.world.lock().received.clone()
    }
}

async fn record(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: axum::middleware::Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let line = format!("{} {}", parts.method, parts.uri);
    let text = |value: &axum::http::HeaderValue| value.to_str().unwrap().to_owned();
    let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    // A body that breaks off is no request.
    let Ok(body) = axum::body::to_bytes(body, 64 << 20).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    shared.lock().asked.push(Asked { line, headers, body: body.to_vec() });
    shared.changed.notify_waiters();
    next.run(Request::from_parts(parts, Body::from(body))).await
}

async fn answer(State(shared): State<Arc<Shared>>, method: Method, uri: axum::http::Uri) -> Response {
    let line = format!("{method} {uri}");
    let mut world = shared.lock();
    let Some(answers) = world.answers.get_mut(&line) else {
        let error = json!({ "error": format!("the test has no answer for {line}") });
        return (StatusCode::NOT_IMPLEMENTED, error.to_string()).into_response();
    };
    let answer = if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() };
    let mut response = Response::builder().status(answer.0);
    if !answer.1.iter().any(|(name, _)| name == "content-type") {
        response = response.header("content-type", "application/json");
    }
    for (name, value) in &answer.1 {
        response = response.header(name, value);
    }
    response.body(Body::from(answer.2)).unwrap()
}

// Files.

type PathQuery = Query<BTreeMap<String, String>>;

fn missing(path: &str) -> Response {
    (StatusCode::NOT_FOUND, json!({ "error": format!("{path}: no such file or directory") }).to_string())
        .into_response()
}

async fn stat(State(shared): State<Arc<Shared>>, query: PathQuery) -> Response {
    let path = &query["path"];
    let world = shared.lock();
    let Some((contents, mode)) = world.files.get(path.trim_end_matches('/')) else { return missing(path) };
    let kind = if contents.is_some() { "file" } else { "directory" };
    let size = contents.as_ref().map_or(0, Vec::len);
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap();
    json!({ "name": name, "path": path, "type": kind, "size": size, "mode": format!("{mode:04o}"), "uid": 1000,
            "gid": 1000, "modifiedAt": "2026-01-01T00:00:00Z" })
    .to_string()
    .into_response()
}

async fn read_file(State(shared): State<Arc<Shared>>, query: PathQuery) -> Response {
    let path = &query["path"];
    match shared.lock().files.get(path) {
        // Announces more than it sends: the connection breaks in the middle.
        Some((Some(contents), _)) if path.ends_with("broken") => {
            let contents = Bytes::from(contents.clone());
            let pieces = [Ok(contents), Err(std::io::Error::other("broken on purpose"))];
            (OCTETS, Body::from_stream(futures_util::stream::iter(pieces))).into_response()
        }
        // A page of something before it, that does not let anybody through.
        Some((Some(contents), _)) if path.ends_with("page") => {
            ([("content-type", "text/html")], contents.clone()).into_response()
        }
        Some((Some(contents), _)) => (OCTETS, contents.clone()).into_response(),
        _ => missing(path),
    }
}

async fn write_file(State(shared): State<Arc<Shared>>, query: PathQuery, body: Bytes) -> StatusCode {
    let mode = query.get("mode").map_or(0o644, |mode| u32::from_str_radix(mode, 8).unwrap());
    shared.lock().files.insert(query["path"].clone(), (Some(body.to_vec()), mode));
    StatusCode::NO_CONTENT
}

async fn read_archive(State(shared): State<Arc<Shared>>, query: PathQuery) -> Response {
    let root = query["path"].trim_end_matches("/.").to_owned();
    let mut archive = tar::Builder::new(Vec::new());
    for (path, (contents, mode)) in &shared.lock().files {
        let Some(name) = path.strip_prefix(&format!("{root}/")) else { continue };
        let mut header = tar::Header::new_gnu();
        if name == "shortened" {
            // As the agent says it of a file that became shorter.
            header.set_entry_type(tar::EntryType::XGlobalHeader);
            let comment = "27 comment=some \x1b[1m zeros\n";
            header.set_size(comment.len() as u64);
            archive.append_data(&mut header, "pax_global_header", comment.as_bytes()).unwrap();
            header = tar::Header::new_gnu();
        }
        header.set_mode(*mode);
        header.set_size(contents.as_ref().map_or(0, Vec::len) as u64);
        header.set_entry_type(if contents.is_some() {
            tar::EntryType::Regular
        } else {
            tar::EntryType::Directory
        });
        archive.append_data(&mut header, name, contents.as_deref().unwrap_or_default()).unwrap();
    }
    ([("content-type", "application/x-tar")], archive.into_inner().unwrap()).into_response()
}

async fn write_archive(State(shared): State<Arc<Shared>>, query: PathQuery, body: Bytes) -> StatusCode {
    let mut archive = tar::Archive::new(&body[..]);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = format!("{}/{}", query["path"], entry.path().unwrap().display());
        let folder = entry.header().entry_type().is_dir();
        let mode = entry.header().mode().unwrap();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        shared
            .lock()
            .files
            .insert(path.trim_end_matches('/').to_owned(), ((!folder).then_some(contents), mode));
    }
    StatusCode::NO_CONTENT
}

// WebSockets.

async fn socket(State(shared): State<Arc<Shared>>, upgrade: WebSocketUpgrade) -> Response {
    let connection = shared.lock().connections.pop_front();
    match connection {
        Some(Connection::Open(start, steps)) => {
            let mut response = upgrade.on_upgrade(move |socket| follow(shared, socket, steps));
            if let Some(start) = start {
                response.headers_mut().insert("x-warren-exec-offset", start.into());
            }
            response
        }
        Some(Connection::Refuse(status, body)) => {
            (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response()
        }
        None => (StatusCode::NOT_IMPLEMENTED, "the test has no connection left").into_response(),
    }
}

async fn follow(shared: Arc<Shared>, mut socket: WebSocket, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Send(message) => socket.send(Message::Binary(message.into())).await.unwrap(),
            Step::Await(wanted) => while receive(&shared, &mut socket).await.expect("a message") != wanted {},
            Step::EchoInput => loop {
                let mut message = receive(&shared, &mut socket).await.expect("the end of input");
                if message == [5] {
                    break;
                }
                message[0] = 1;
                socket.send(Message::Binary(message.into())).await.unwrap();
            },
            Step::AwaitRequest(line) => loop {
                let changed = shared.changed.notified();
                if shared.lock().asked.iter().any(|asked| asked.line == line) {
                    break;
                }
                changed.await;
            },
            Step::Close => {
                let frame = CloseFrame { code: 1000, reason: "".into() };
                let _ = socket.send(Message::Close(Some(frame))).await;
                // Leaving with messages unread would reset the connection, and with it take back what was sent.
                while receive(&shared, &mut socket).await.is_some() {}
            }
            Step::Drop => {
                // The client answers a ping when it has come to it.
                socket.send(Message::Ping(Bytes::from_static(b"sync"))).await.unwrap();
                while let Some(Ok(message)) = socket.recv().await {
                    if matches!(message, Message::Pong(_)) {
                        return;
                    }
                }
                return;
            }
            Step::Vanish => return,
            Step::Hold => while receive(&shared, &mut socket).await.is_some() {},
        }
    }
}

async fn receive(shared: &Shared, socket: &mut WebSocket) -> Option<Vec<u8>> {
    loop {
        if let Message::Binary(message) = socket.recv().await?.ok()? {
            let message = message.to_vec();
            shared.lock().received.push(message.clone());
            return Some(message);
        }
    }
}
