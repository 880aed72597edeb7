//! Simulated commands. `cmd` is a list of steps separated by `;`:
//!
//! | step | effect |
//! | --- | --- |
//! | `out TEXT`, `err TEXT` | output |
//! | `raw HEX` | those bytes on stdout |
//! | `big N` | N times `x` on stdout |
//! | `cat` | input comes back on stdout, until it ends |
//! | `hold` | goes on for ever; as the whole script, it takes no input |
//! | `sleep MS` | waits |
//! | `timeout` | ends as if its time limit had struck |
//! | `drop N` | claims not to keep the first N bytes of its output |
//! | `lose` | every stream of it breaks off, because its sandbox has failed |
//! | `unheard` | at its beginning: the answer of its run breaks off before it says anything |
//! | `vanish` | alone: the same, and it has never begun |
//! | `exit N` | ends with that code; the end of the script is `exit 0` |

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::{mpsc, watch};
use warren_guest_api::exec::{self, ExecStart, Exit, ExitReason, Kill, REPLAY_BYTES};
use warren_guest_api::frame::{Decoder, Frame, STDERR, STDOUT};
use warren_guest_api::input::WINDOW;
use warren_types::{Error, ErrorKind, ExecId, SandboxId};

use super::{Answer, Ran, SimNode, json, parameter};

pub(crate) struct Exec {
    pub(crate) id: ExecId,
    pub(crate) start: ExecStart,
    pub(crate) log: Mutex<Log>,
    changed: watch::Sender<u64>,
    input: Mutex<Option<mpsc::UnboundedSender<Option<Bytes>>>>,
    started_at_ms: u64,
}

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) pieces: Vec<(u8, Bytes)>,
    pub(crate) exit: Option<Exit>,
    pub(crate) lost: bool,
    pub(crate) attached: u32,
    pub(crate) signal: Option<i32>,
    /// Bytes at the beginning that it says it does not keep.
    pub(crate) dropped: u64,
}

impl Log {
    fn len(&self) -> u64 {
        self.pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }
}

pub(crate) async fn call(
    node: &SimNode,
    id: &SandboxId,
    path: &[&str],
    request: Request,
) -> Answer<Response> {
    match (request.method().clone(), path) {
        (Method::POST, []) => {
            let exec = begin(node, id, json(request).await)?;
            Ok((StatusCode::CREATED, Json(exec.describe())).into_response())
        }
        (Method::POST, ["run"]) => {
            let start: ExecStart = json(request).await;
            let broke_off = || Error::new(ErrorKind::SandboxFailed, "the sandbox's agent broke off");
            if start.cmd == "vanish" {
                return Err(broke_off().into());
            }
            let exec = begin(node, id, start)?;
            if exec.start.cmd.starts_with("unheard") {
                return Err(broke_off().into());
            }
            Ok(exec.frames(0, false).into_response())
        }
        (Method::GET, []) => {
            let state = node.state();
            let execs: Vec<_> = state.sandboxes[id].execs.values().map(|exec| exec.describe()).collect();
            Ok(Json(execs).into_response())
        }
        (_, [exec, rest @ ..]) => {
            let found = node.state().sandboxes[id].execs.get(*exec).cloned();
            let exec = found.ok_or_else(|| Error::not_found("no such command"))?;
            one(&exec, rest, request).await
        }
        _ => Err(Error::not_found("no such route").into()),
    }
}

async fn one(exec: &Arc<Exec>, path: &[&str], request: Request) -> Answer<Response> {
    match path {
        [] => Ok(Json(exec.describe()).into_response()),
        ["wait"] => {
            let ms: u64 = parameter(&request, "ms").unwrap().parse().unwrap();
            let mut changed = exec.changed.subscribe();
            let ended =
                async { while exec.log.lock().unwrap().exit.is_none() && changed.changed().await.is_ok() {} };
            let _ = tokio::time::timeout(Duration::from_millis(ms), ended).await;
            Ok(Json(exec.describe()).into_response())
        }
        ["output"] => {
            let wanted = if parameter(&request, "stream").unwrap() == "stdout" { STDOUT } else { STDERR };
            let log = exec.log.lock().unwrap();
            let pieces = log.pieces.iter().filter(|(kind, _)| *kind == wanted);
            let pieces: Vec<_> = pieces.map(|(_, bytes)| Ok::<_, std::io::Error>(bytes.clone())).collect();
            Ok(Body::from_stream(stream::iter(pieces)).into_response())
        }
        ["kill"] => {
            let kill: Kill = json(request).await;
            exec.change(|log| {
                log.signal = Some(kill.signal);
                log.exit.get_or_insert(Exit { code: 128 + kill.signal, reason: ExitReason::Signalled });
            });
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        ["replay"] => {
            let offset = exec.log.lock().unwrap().len().saturating_sub(REPLAY_BYTES);
            let id = exec.id.as_str().as_bytes().try_into().unwrap();
            let frames = [Frame::Started { id, offset }].into_iter().chain(exec.since(offset).0);
            let frames = frames.chain([Frame::ReplayEnd]).map(|frame| frame.to_bytes());
            Ok(frames.collect::<Vec<_>>().concat().into_response())
        }
        ["attach"] => {
            let end = exec.log.lock().unwrap().len();
            let offset = match parameter(&request, "offset") {
                Some(offset) => offset.parse().unwrap(),
                None => end.saturating_sub(REPLAY_BYTES),
            };
            Ok(exec.frames(offset, true).into_response())
        }
        ["input"] => {
            let input = exec.input.lock().unwrap().clone();
            let takes = exec.start.cmd != "hold";
            let take = move |frame| {
                let _ = input.as_ref().map(|input| {
                    input.send(match frame {
                        Frame::Stdin(bytes) => Some(bytes),
                        _ => None,
                    })
                });
            };
            Ok(take_input(request.into_body(), takes, take).into_response())
        }
        _ => Err(Error::not_found("no such route").into()),
    }
}

fn begin(node: &SimNode, id: &SandboxId, start: ExecStart) -> Answer<Arc<Exec>> {
    if start.cmd.starts_with("/no/such") {
        return Err(Error::invalid(format!("{}: No such file or directory", start.cmd)).into());
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let exec = Arc::new(Exec {
        id: start.id.clone().unwrap_or_else(ExecId::generate),
        log: Mutex::default(),
        changed: watch::channel(0).0,
        input: Mutex::new(Some(sender)),
        started_at_ms: u64::try_from(now.as_millis()).unwrap(),
        start,
    });
    let mut state = node.state();
    state.ran.push(Ran { start: exec.start.clone() });
    let execs: &mut BTreeMap<_, _> = &mut state.sandboxes.get_mut(id).unwrap().execs;
    execs.insert(exec.id.to_string(), Arc::clone(&exec));
    tokio::spawn(play(Arc::clone(&exec), receiver));
    Ok(exec)
}

/// What a command does. A shell does what it is told; the programs that steps run say that they were.
fn script(start: &ExecStart) -> String {
    match (start.cmd.rsplit('/').next(), &start.args[..]) {
        (Some("bash" | "sh"), [option, script]) if option == "-c" => script.clone(),
        // The wrapper of agents: its lines come back.
        (Some("claude-agent-wrapper"), _) => "cat".to_owned(),
        (Some("apt-get"), args) if args.iter().any(|package| package == "nonsense") => {
            "err E: Unable to locate package nonsense\n;exit 100".to_owned()
        }
        (Some(program @ ("apt-get" | "python3")), args) => {
            format!("out {program} {}", args.join(" ").replace([';', '&'], " "))
        }
        _ => start.cmd.clone(),
    }
}

async fn play(exec: Arc<Exec>, mut input: mpsc::UnboundedReceiver<Option<Bytes>>) {
    let say = |kind: u8, bytes: Bytes| exec.change(|log| log.pieces.push((kind, bytes)));
    for step in script(&exec.start).split([';', '&']).filter(|step| !step.trim().is_empty()) {
        let (verb, value) = step.trim().split_once(' ').unwrap_or((step.trim(), ""));
        match verb {
            "out" => say(STDOUT, Bytes::copy_from_slice(value.as_bytes())),
            "err" => say(STDERR, Bytes::copy_from_slice(value.as_bytes())),
            "raw" => {
                let byte = |at| u8::from_str_radix(&value[at..at + 2], 16).unwrap();
                say(STDOUT, (0..value.len()).step_by(2).map(byte).collect());
            }
            "big" => {
                let mut left: usize = value.parse().unwrap();
                while left > 0 {
                    say(STDOUT, Bytes::from(vec![b'x'; left.min(100_000)]));
                    left -= left.min(100_000);
                }
            }
            "cat" => {
                while let Some(Some(bytes)) = input.recv().await {
                    say(STDOUT, bytes);
                }
            }
            "unheard" => {}
            "hold" => std::future::pending().await,
            "sleep" => tokio::time::sleep(Duration::from_millis(value.parse().unwrap())).await,
            "timeout" => return exec.end(-1, ExitReason::TimedOut),
            "drop" => exec.change(|log| log.dropped = value.parse().unwrap()),
            "lose" => return exec.change(|log| log.lost = true),
            "exit" => return exec.end(value.parse().unwrap(), ExitReason::Exited),
            _ => panic!("unknown step {step:?}"),
        }
    }
    exec.end(0, ExitReason::Exited);
}

/// Takes input off the wire as an agent does, and grants what was taken if that is wanted; the answer.
pub(super) fn take_input(mut body: Body, grants: bool, take: impl Fn(Frame) + Send + 'static) -> Body {
    let (sender, receiver) = mpsc::unbounded_channel::<Bytes>();
    tokio::spawn(async move {
        let (mut decoder, mut ahead) = (Decoder::default(), 0);
        while let Some(Ok(piece)) = body.frame().await {
            let piece = piece.into_data().unwrap();
            ahead += piece.len();
            assert!(ahead <= WINDOW, "more is sent than there is credit for");
            decoder.push(&piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                take(frame);
            }
            if grants {
                let _ = sender.send(Frame::InputTaken(ahead.try_into().unwrap()).to_bytes());
                ahead = 0;
            }
        }
    });
    Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
        Some((Ok::<_, std::io::Error>(receiver.recv().await?), receiver))
    }))
}

impl Exec {
    fn change(&self, change: impl FnOnce(&mut Log)) {
        change(&mut self.log.lock().unwrap());
        self.changed.send_modify(|version| *version += 1);
    }

    fn end(&self, code: i32, reason: ExitReason) {
        self.change(|log| log.exit = Some(Exit { code, reason }));
    }

    pub(super) fn is_lost(&self) -> bool {
        self.log.lock().unwrap().lost
    }

    fn describe(&self) -> exec::Exec {
        let log = self.log.lock().unwrap();
        exec::Exec {
            id: self.id.clone(),
            cmd: self.start.cmd.clone(),
            args: self.start.args.clone(),
            running: log.exit.is_none(),
            exit: log.exit,
            started_at_ms: self.started_at_ms,
            ended_at_ms: log.exit.map(|_| self.started_at_ms + 5),
            attached_clients: log.attached,
            log_start: log.dropped,
            log_end: log.len(),
        }
    }

    /// The stream of a reader that starts at `offset`.
    fn frames(self: &Arc<Self>, offset: u64, replay: bool) -> Body {
        let exec = Arc::clone(self);
        let (sender, receiver) = mpsc::channel::<Bytes>(1);
        tokio::spawn(async move {
            exec.change(|log| log.attached += 1);
            let _gone = async {
                let id = exec.id.as_str().as_bytes().try_into().unwrap();
                sender.send(Frame::Started { id, offset }.to_bytes()).await.ok()?;
                let mut at = offset;
                let mut replaying = replay;
                let mut changed = exec.changed.subscribe();
                loop {
                    changed.mark_unchanged();
                    let (frames, exit, lost) = exec.since(at);
                    for frame in frames {
                        at += u64::try_from(frame.to_bytes().len() - 5).unwrap();
                        sender.send(frame.to_bytes()).await.ok()?;
                    }
                    if std::mem::take(&mut replaying) {
                        sender.send(Frame::ReplayEnd.to_bytes()).await.ok()?;
                    }
                    if lost {
                        return None;
                    }
                    if let Some(exit) = exit {
                        return sender.send(Frame::Exit(exit).to_bytes()).await.ok();
                    }
                    tokio::select! {
                        changed = changed.changed() => changed.ok()?,
                        () = sender.closed() => return None,
                    }
                }
            }
            .await;
            exec.change(|log| log.attached -= 1);
        });
        Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
            Some((Ok::<_, std::io::Error>(receiver.recv().await?), receiver))
        }))
    }

    fn since(&self, offset: u64) -> (Vec<Frame>, Option<Exit>, bool) {
        let log = self.log.lock().unwrap();
        let mut at = 0;
        let mut frames = Vec::new();
        for (kind, bytes) in &log.pieces {
            let end = at + bytes.len() as u64;
            if end > offset {
                let skip = usize::try_from(offset.saturating_sub(at)).unwrap();
                let bytes = bytes.slice(skip..);
                frames.push(if *kind == STDOUT { Frame::Stdout(bytes) } else { Frame::Stderr(bytes) });
            }
            at = end;
        }
        (frames, log.exit, log.lost)
    }
}
