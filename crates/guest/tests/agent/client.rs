//! A node in small: starts an agent, speaks HTTP/2 with it, reads frames.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame as BodyFrame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use warren_guest_api::exec::{Exec, Exit};
use warren_guest_api::frame::{Decoder, Frame};
use warren_guest_api::handshake;
use warren_guest_api::input::Credit;

/// Longest wait for anything; reached only by a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Agent {
    process: Child,
    pub(crate) folder: tempfile::TempDir,
    cgroup: Option<PathBuf>,
    connection: SendRequest<Sent>,
}

/// A request's body: all at once, or as it is sent.
pub(crate) enum Sent {
    Whole(Option<Bytes>),
    Live(mpsc::Receiver<Result<Bytes, Broken>>),
}

/// Breaks a body off.
#[derive(Debug)]
pub(crate) struct Broken;

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A stream of frames as it arrives.
pub(crate) struct Frames {
    body: Incoming,
    decoder: Decoder,
}

/// A stream of lines as it arrives.
pub(crate) struct Pieces {
    body: Incoming,
    text: Vec<u8>,
}

/// Everything a command has written, and how it ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Option<Exit>,
}

impl Agent {
    /// Starts an agent; `None`, with the reason printed, where that cannot be tried.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_as(&json!({})).await
    }

    /// Starts it with further settings of its sandbox.
    pub(crate) async fn start_as(settings: &Value) -> Option<Self> {
        let script = r#"exec "$0" serve --cgroup "$1" --output "$2" --journal "$4" --var-log "$5" 3<&0 4<"$3" 0</dev/null"#;
        Self::launch(script, settings).await
    }

    /// Starts it as PID 1 of a namespace of its own.
    pub(crate) async fn start_as_init() -> Option<Self> {
        // The places it uses then are the machine's own, so they are covered.
        let covered = "mount -t tmpfs none /var/lib && mount -t tmpfs none /var/log";
        let init = r#"exec unshare --pid --fork --mount --mount-proc "$0" init"#;
        let script =
            format!(r#"exec unshare --mount sh -c '{covered} && {init}' "$0" 3<&0 4<"$3" 0</dev/null"#);
        Self::launch(&script, &json!({})).await
    }

    async fn launch(script: &str, settings: &Value) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: starting commands as another user needs root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let envs = BTreeMap::from([("MARK", Path::new("from-boot")), ("HOME", folder.path())]);
        let mut boot = json!({"sandbox_id": "sb-00000001", "envs": envs});
        boot.as_object_mut().unwrap().extend(settings.as_object().cloned().unwrap_or_default());
        std::fs::write(folder.path().join("boot"), boot.to_string()).unwrap();
        std::fs::create_dir(folder.path().join("log")).unwrap();
        std::fs::write(folder.path().join("log/template.log"), "from the template\n").unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let cgroup = make_cgroup(folder.path());
        let process = Command::new("/bin/sh")
            .args(["-c", script])
            .arg(env!("CARGO_BIN_EXE_warren-agent"))
            .arg(cgroup.as_deref().unwrap_or(Path::new("/nowhere")))
            .arg(folder.path().join("output"))
            .arg(folder.path().join("boot"))
            .arg(folder.path().join("journal"))
            .arg(folder.path().join("log"))
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .spawn()
            .unwrap();
        let connection = connect(folder.path()).await;
        Some(Self { process, folder, cgroup, connection })
    }

    /// Waits until the program that was started has ended; its exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "it does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn has_cgroups(&self) -> bool {
        self.cgroup.is_some()
    }

    /// The groups the agent has below its own now.
    pub(crate) fn cgroups(&self) -> Vec<String> {
        let Some(cgroup) = &self.cgroup else { return Vec::new() };
        let entries = std::fs::read_dir(cgroup).unwrap().map(|entry| entry.unwrap());
        let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        folders.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the kernel calls the files that the agent has open.
    pub(crate) fn open_files(&self) -> Vec<String> {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().flatten();
        open.filter_map(|each| Some(std::fs::read_link(each.path()).ok()?.to_string_lossy().into_owned()))
            .collect()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Gives up the connection and makes a new one, as a node does that was restarted.
    pub(crate) async fn reconnect(&mut self) {
        self.connection = connect(self.folder.path()).await;
    }

    pub(crate) async fn open(&self, method: Method, path: &str, body: Sent) -> Response<Incoming> {
        self.open_with(method, path, &[], body).await
    }

    pub(crate) async fn open_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Sent,
    ) -> Response<Incoming> {
        self.try_open(method, path, headers, body).await.unwrap()
    }

    pub(crate) async fn try_open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Sent,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("http://guest{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sending = self.connection.clone().send_request(request.body(body).unwrap());
        patiently(sending).await
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
        Answer::of(self.open(method, path, Sent::Whole(Some(body.into()))).await).await
    }

    /// An answer whose body is read as it comes.
    pub(crate) async fn stream(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        self.open(method, path, Sent::Whole(Some(body.into()))).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.open(Method::GET, path, Sent::Whole(None)).await).await
    }

    /// Starts a command in the test's folder, with further fields from `more`.
    pub(crate) async fn exec(&self, cmd: &str, args: &[&str], more: Value) -> Exec {
        let answer = self.call(Method::POST, "/v1/exec", self.request(cmd, args, more)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
    pub(crate) fn request(&self, cmd: &str, args: &[&str], more: Value) -> String {
        let mut request = json!({"cmd": cmd, "args": args, "cwd": self.folder.path()});
        request.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        request.to_string()
    }

    pub(crate) async fn run(&self, cmd: &str, more: Value) -> Outcome {
        let mut frames = self.run_frames(cmd, more).await;
        assert!(matches!(frames.next().await, Some(Frame::Started { offset: 0, .. })));
        frames.rest().await
    }

    pub(crate) async fn run_frames(&self, cmd: &str, more: Value) -> Frames {
        let body = Sent::Whole(Some(self.request(cmd, &[], more).into()));
        let answer = self.open(Method::POST, "/v1/exec/run", body).await;
        assert_eq!(answer.status(), 200);
        Frames::of(answer)
    }

    pub(crate) async fn status(&self, exec: &Exec) -> Exec {
        self.get(&format!("/v1/exec/{}", exec.id)).await.json()
    }

    /// Waits until the command has ended.
    pub(crate) async fn wait(&self, exec: &Exec) -> Exit {
        let exec: Exec = self.get(&format!("/v1/exec/{}/wait?ms=60000", exec.id)).await.json();
        exec.exit.expect("it ends in time")
    }

    /// An answer that is made of frames.
    pub(crate) async fn frames(&self, path: &str) -> Frames {
        let answer = self.open(Method::GET, path, Sent::Whole(None)).await;
        assert_eq!(answer.status(), 200);
        Frames::of(answer)
    }

    /// Attaches, and opens the input beside it; what is sent into the channel goes there as there is credit for it.
    pub(crate) async fn attach(&self, path: &str) -> (mpsc::Sender<Result<Bytes, Broken>>, Frames) {
        let answer = self.open(Method::POST, path, Sent::Whole(None)).await;
        assert_eq!(answer.status(), 200);
        let (path, _query) = path.split_once("/attach").unwrap();
        let (body, mut grants) = self.input(&format!("{path}/input")).await;
        let (input, mut pieces) = mpsc::channel::<Result<Bytes, Broken>>(16);
        tokio::spawn(async move {
            let mut credit = Credit::default();
            while let Some(Ok(mut piece)) = pieces.recv().await {
                while !piece.is_empty() {
                    while credit.left() == 0 {
                        let Some(Frame::InputTaken(bytes)) = grants.next().await else { return };
                        credit.grant(bytes).unwrap();
                    }
                    let part = piece.split_to(credit.spend(piece.len()));
                    if body.send(Ok(part)).await.is_err() {
                        return;
                    }
                }
            }
            // What was sent has arrived once the answer ends.
            drop(body);
            while let Ok(Some(_)) = grants.try_next().await {}
        });
        (input, Frames::of(answer))
    }

    /// Opens the input of a command or terminal; what is sent into the channel becomes the request's body.
    pub(crate) async fn input(&self, path: &str) -> (mpsc::Sender<Result<Bytes, Broken>>, Frames) {
        let (input, body) = mpsc::channel(16);
        let answer = self.open(Method::POST, path, Sent::Live(body)).await;
        assert_eq!(answer.status(), 200);
        (input, Frames::of(answer))
    }

    pub(crate) async fn kill(&self, exec: &Exec, signal: i32) -> Answer {
        self.call(Method::POST, &format!("/v1/exec/{}/kill", exec.id), json!({"signal": signal}).to_string())
            .await
    }

    pub(crate) async fn put(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.call(Method::PUT, &format!("/v1/files?path={path}"), body).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            for group in self.cgroups() {
                let _ = std::fs::write(cgroup.join(group).join("cgroup.kill"), "1");
            }
        }
        // The innermost first: what is in a namespace ends with its PID 1.
        for pid in descendants(self.process.id()).into_iter().rev().filter_map(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(cgroup) = &self.cgroup {
            let end = Instant::now() + Duration::from_secs(5);
            while std::fs::remove_dir(cgroup).is_err() && Instant::now() < end {
                for group in self.cgroups() {
                    let _ = std::fs::remove_dir(cgroup.join(group));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// A cgroup for this test, on machines with version 2.
fn make_cgroup(folder: &Path) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| target.to_owned())
    })?;
    let name = folder.file_name()?.to_string_lossy().into_owned();
    let path = Path::new(&mount).join(format!("warren-guest-test-{}", name.trim_start_matches('.')));
    match std::fs::create_dir(&path) {
        Ok(()) => Some(path),
        Err(error) => {
            eprintln!("without cgroups: {error}");
            None
        }
    }
}

async fn connect(folder: &Path) -> SendRequest<Sent> {
    let mut stream = UnixStream::connect(folder.join("socket")).await.unwrap();
    patiently(handshake::connect(&mut stream, 7)).await.unwrap();
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 30)
        .max_frame_size(1 << 20)
        .max_send_buf_size(1 << 20)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this takes too long")
}

/// Asks again and again until the answer is yes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !ask().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Broken>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(BodyFrame::data(bytes)))),
            Self::Live(receiver) => {
                receiver.poll_recv(context).map(|next| next.map(|next| next.map(BodyFrame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken off")
    }
}

impl std::error::Error for Broken {}

impl Answer {
    async fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = patiently(body.collect()).await.unwrap().to_bytes();
        Self { status: head.status, headers: head.headers, body }
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        assert!(self.status.is_success(), "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Checks that it is an error of this kind; its message.
    pub(crate) fn error(&self, status: u16) -> warren_types::Error {
        assert_eq!(self.status, status, "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.status, String::from_utf8_lossy(&self.body))
    }
}

impl Pieces {
    pub(crate) fn of(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), text: Vec::new() }
    }

    /// The next line, without its end.
    pub(crate) async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let rest = self.text.split_off(end + 1);
                let line = std::mem::replace(&mut self.text, rest);
                return String::from_utf8(line).unwrap().trim_end_matches('\n').to_owned();
            }
            let next = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            let next = patiently(next).await.expect("the stream goes on");
            self.text.extend_from_slice(next.unwrap().data_ref().unwrap());
        }
    }
}

impl Frames {
    pub(crate) fn of(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), decoder: Decoder::default() }
    }

    /// The next frame; `None` at the proper end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        self.try_next().await.expect("the stream is not broken off")
    }

    /// The same of a stream that may be broken off.
    pub(crate) async fn try_next(&mut self) -> hyper::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Ok(Some(frame));
            }
            match poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await {
                Some(next) => self.decoder.push(next?.data_ref().unwrap()),
                None => return Ok(None),
            }
        }
    }

    /// Takes output until `enough`, frame by frame.
    pub(crate) async fn until(&mut self, mut enough: impl FnMut(&Outcome) -> bool) -> Outcome {
        let mut outcome = Outcome::default();
        while !enough(&outcome) {
            let next = tokio::time::timeout(PATIENCE, self.next()).await;
            let Ok(next) = next else { panic!("no more comes after {:?}", outcome.tail()) };
            match next.expect("the stream goes on") {
                Frame::Stdout(bytes) => outcome.stdout.extend_from_slice(&bytes),
                Frame::Stderr(bytes) => outcome.stderr.extend_from_slice(&bytes),
                other => panic!("unexpected {other:?} after {outcome:?}"),
            }
        }
        outcome
    }

    /// Takes everything up to the end, which must be one `Exit`.
    pub(crate) async fn rest(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            match self.next().await {
                Some(Frame::Stdout(bytes)) => outcome.stdout.extend_from_slice(&bytes),
                Some(Frame::Stderr(bytes)) => outcome.stderr.extend_from_slice(&bytes),
                Some(Frame::Exit(exit)) => {
                    assert!(self.next().await.is_none(), "nothing follows the exit");
                    outcome.exit = Some(exit);
                    return outcome;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Takes the start of an attachment up to `ReplayEnd`; its offset and what was replayed.
    pub(crate) async fn replay(&mut self) -> (u64, Outcome) {
        let Some(Frame::Started { offset, .. }) = self.next().await else { panic!("not started") };
        let mut outcome = Outcome::default();
        loop {
            match self.next().await {
                Some(Frame::Stdout(bytes)) => outcome.stdout.extend_from_slice(&bytes),
                Some(Frame::Stderr(bytes)) => outcome.stderr.extend_from_slice(&bytes),
                Some(Frame::ReplayEnd) => return (offset, outcome),
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

impl Outcome {
    /// The last of what came, for messages.
    fn tail(&self) -> String {
        String::from_utf8_lossy(&self.stdout[self.stdout.len().saturating_sub(1000)..]).into_owned()
    }

    pub(crate) fn code(&self) -> i32 {
        self.exit.expect("it has ended").code
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// A frame as a piece of a request's body.
pub(crate) fn sent(frame: &Frame) -> Result<Bytes, Broken> {
    Ok(frame.to_bytes())
}

pub(crate) fn stdin(text: &str) -> Result<Bytes, Broken> {
    sent(&Frame::Stdin(Bytes::copy_from_slice(text.as_bytes())))
}

/// Children of a process, and theirs.
pub(crate) fn descendants(pid: u32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut all = Vec::new();
    for child in children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()) {
        all.push(i32::try_from(child).unwrap());
        all.extend(descendants(child));
    }
    all
}

pub(crate) fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}
