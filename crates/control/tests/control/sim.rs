//! A simulated node with simulated guests, in memory.
//!
//! Real: the wire of `warren-node-api` and `warren-guest-api`, generations, the stream of changes, logs of output with
//! offsets, replay. Simulated: nothing is run. A command is a little script of steps (see `exec`), a terminal echoes,
//! files are a map. The node outlives the control plane, as a real one does.

mod checkpoints;
mod egress;
mod exec;
mod files;
pub(crate) mod logs;
mod ports;
mod pty;
mod questions;
pub(crate) mod templates;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, broadcast};
use warren_guest_api::status_of;
use warren_node_api::{
    Answer as Answered, Change, NodeClient, NodeInfo, Question, Report, SandboxSpec, Timeout, Wake,
};
use warren_types::{CheckpointId, EgressPolicy, Error, ErrorKind, SandboxId, SandboxState};

pub(crate) use checkpoints::Checkpoint;
pub(crate) use exec::Exec;

#[derive(Clone)]
pub(crate) struct SimNode(Arc<Inner>);

struct Inner {
    state: Mutex<Node>,
    changes: broadcast::Sender<Change>,
    questions: broadcast::Sender<Question>,
    /// Creates, and copies of checkpoints, read it; tests that hold them up write it.
    gate: Arc<RwLock<()>>,
}

#[derive(Default)]
pub(crate) struct Node {
    pub(crate) sandboxes: HashMap<SandboxId, Sandbox>,
    /// What the next creates fail with, after leaving the sandbox behind half-made.
    pub(crate) create_errors: Vec<Error>,
    /// Creates asked for so far.
    pub(crate) creates: usize,
    pub(crate) absents: Vec<SandboxId>,
    pub(crate) unreachable: bool,
    /// Questions so far, and the answers that nobody has looked at.
    pub(crate) asked: u64,
    pub(crate) answers: BTreeMap<u64, Answered>,
    /// What every guest answers with instead of doing anything.
    pub(crate) guest_answer: Option<(u16, String)>,
    pub(crate) checkpoints: BTreeMap<CheckpointId, checkpoints::Checkpoint>,
    /// Checkpoints stay `processing` until a test finishes them.
    pub(crate) hold_checkpoints: bool,
    /// How many copies of checkpoints were asked for, and made.
    pub(crate) copies_asked: usize,
    pub(crate) copies: usize,
    /// What the next checkpoint fails with.
    pub(crate) checkpoint_error: Option<Error>,
    /// Memory in use, in bytes.
    pub(crate) usage: BTreeMap<SandboxId, u64>,
    /// Sandboxes that cannot be woken with their own disk.
    pub(crate) damaged: Vec<SandboxId>,
    pub(crate) egress: egress::Gateway,
    /// What listens on a port of a sandbox.
    pub(crate) listeners: HashMap<(SandboxId, u16), std::net::SocketAddr>,
    pub(crate) templates: templates::Templates,
    /// Besides containers, virtual machines are offered.
    pub(crate) offers_machines: bool,
    /// Every command that was run, in the order in which they were.
    pub(crate) ran: Vec<Ran>,
    /// How long the next list of patches takes to be written down; those after it take no time.
    pub(crate) next_patches_take: std::time::Duration,
    /// How often sandboxes were woken.
    pub(crate) wakes: usize,
    /// How long a wake takes.
    pub(crate) wake_takes: std::time::Duration,
}

/// A command that was run in some sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    pub(crate) start: warren_guest_api::exec::ExecStart,
}

pub(crate) struct Sandbox {
    pub(crate) spec: SandboxSpec,
    pub(crate) report: Report,
    pub(crate) execs: BTreeMap<String, Arc<Exec>>,
    pub(crate) ptys: BTreeMap<String, Arc<pty::Pty>>,
    pub(crate) files: BTreeMap<String, Bytes>,
    pub(crate) modes: BTreeMap<String, u32>,
    pub(crate) log: Arc<logs::Log>,
}

pub(crate) struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::from_u16(status_of(self.0.kind)).unwrap(), Json(self.0)).into_response()
    }
}

type Answer<T> = Result<T, Failure>;

impl SimNode {
    pub(crate) fn new() -> Self {
        let inner = Inner {
            state: Mutex::default(),
            changes: broadcast::channel(1024).0,
            questions: broadcast::channel(16).0,
            gate: Arc::default(),
        };
        Self(Arc::new(inner))
    }

    pub(crate) fn client(&self) -> NodeClient {
        let router = Router::new()
            .route("/v1/node", get(node))
            .route("/v1/sandboxes", get(list))
            .route("/v1/sandboxes/{id}", get(show).put(ensure).delete(absent))
            .route("/v1/sandboxes/{id}/timeout", put(timeout))
            .route("/v1/sandboxes/{id}/wake", post(wake))
            .route("/v1/sandboxes/{id}/hibernate", post(hibernate))
            .route("/v1/sandboxes/{id}/logs", post(logs::read))
            .route("/v1/sandboxes/{id}/guest/{*path}", any(guest))
            .route("/v1/sandboxes/{id}/reboot", post(checkpoints::reboot))
            .route("/v1/sandboxes/{id}/size", put(checkpoints::resize))
            .route("/v1/sandboxes/{id}/restore", put(checkpoints::restore))
            .route("/v1/sandboxes/{id}/patches", get(checkpoints::patch_runs))
            .route("/v1/sandboxes/{id}/egress", put(egress::set_policy).get(egress::report))
            .route("/v1/sandboxes/{id}/secrets", put(egress::set_secrets))
            .route("/v1/secret-uses", post(egress::uses))
            .route("/v1/network-events", post(egress::events))
            .route("/v1/questions", get(questions::watch))
            .route("/v1/questions/{number}", put(questions::answer))
            .route("/v1/usage", get(checkpoints::usage))
            .route("/v1/checkpoints", get(checkpoints::list))
            .route(
                "/v1/checkpoints/{id}",
                get(checkpoints::show).put(checkpoints::ensure).delete(checkpoints::absent),
            )
            .route("/v1/checkpoints/{id}/patches", put(checkpoints::set_patches))
            .route("/v1/checkpoints/{id}/copy", put(templates::copy))
            .route("/v1/templates", get(templates::list).post(templates::import))
            .route("/v1/templates/resolve", post(templates::resolve))
            .route("/v1/templates/archive", post(templates::archive))
            .route("/v1/templates/{name}", axum::routing::delete(templates::absent))
            .route("/v1/space", get(templates::space))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .route("/v1/changes", get(changes))
            .with_state(self.clone());
        NodeClient::new(router)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, Node> {
        self.0.state.lock().unwrap()
    }

    /// Keeps creates from ending until the guard is dropped.
    pub(crate) fn hold_creates(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.0.gate).try_write_owned().expect("no create is under way yet")
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.state().sandboxes.contains_key(&id.parse::<SandboxId>().unwrap())
    }

    /// A sandbox that no control plane asked for.
    pub(crate) fn plant(&self, id: &str) {
        let id: SandboxId = id.parse().unwrap();
        let size = warren_types::Size::resolve(None, None, None).unwrap();
        let envs = BTreeMap::new();
        let spec = SandboxSpec {
            template: "base".into(),
            isolation: warren_types::Isolation::Container,
            size,
            envs,
            timeout_seconds: 0,
            egress: EgressPolicy::default(),
            sealed: false,
            start_commands: Vec::new(),
            from_checkpoint: None,
            image: warren_node_api::ImageSettings::default(),
        };
        self.state().sandboxes.insert(id.clone(), Sandbox::new(id, spec));
    }

    /// Changes a sandbox by the node's own doing, and reports it.
    pub(crate) fn change(&self, id: &str, state: SandboxState, reason: Option<&str>) -> Report {
        let id: SandboxId = id.parse().unwrap();
        let mut node = self.state();
        let sandbox = node.sandboxes.get_mut(&id).expect("the node has it");
        let report = sandbox.become_(state, reason);
        drop(node);
        self.send(report.clone());
        report
    }

    pub(crate) fn send(&self, report: Report) {
        self.send_change(Change::Sandbox(report));
    }

    fn send_change(&self, change: Change) {
        let _ = self.0.changes.send(change);
    }

    fn transition(&self, id: &SandboxId, state: SandboxState) -> Answer<Json<Report>> {
        let mut node = self.state();
        let sandbox = node.sandboxes.get_mut(id).ok_or_else(unknown)?;
        let report =
            if sandbox.report.state == state { sandbox.report.clone() } else { sandbox.become_(state, None) };
        drop(node);
        self.send(report.clone());
        Ok(Json(report))
    }
}

impl Sandbox {
    fn new(id: SandboxId, spec: SandboxSpec) -> Self {
        let mut report = Report::new(id, SandboxState::Running, 1);
        report.size = Some(spec.size);
        Self {
            spec,
            report,
            execs: BTreeMap::new(),
            ptys: BTreeMap::new(),
            files: BTreeMap::new(),
            modes: BTreeMap::new(),
            log: Arc::default(),
        }
    }

    fn become_(&mut self, state: SandboxState, reason: Option<&str>) -> Report {
        self.report.state = state;
        self.report.generation += 1;
        self.report.reason = reason.map(str::to_owned);
        self.report.clone()
    }
}

fn unknown() -> Error {
    Error::not_found("the node has no such sandbox")
}

async fn node(State(node): State<SimNode>) -> Answer<Json<NodeInfo>> {
    let templates = node.template_names();
    let state = node.state();
    if state.unreachable {
        return Err(Error::unavailable("the node is away").into());
    }
    Ok(Json(NodeInfo {
        id: "sim-node".into(),
        version: "0".into(),
        isolation: warren_types::Isolation::Container,
        isolations: if state.offers_machines {
            vec![warren_types::Isolation::Container, warren_types::Isolation::Vm]
        } else {
            vec![warren_types::Isolation::Container]
        },
        templates,
        cpus: 2,
        memory_mb: 4096,
        disk_free_mb: 1,
        sandboxes_running: u32::try_from(state.sandboxes.len()).unwrap(),
    }))
}

async fn show(State(node): State<SimNode>, Path(id): Path<SandboxId>) -> Answer<Json<Report>> {
    let state = node.state();
    let sandbox = state.sandboxes.get(&id).ok_or_else(unknown)?;
    let mut report = sandbox.report.clone();
    // Streams of commands break off where a sandbox has failed, which is known to the node first.
    if sandbox.execs.values().any(|exec| exec.is_lost()) {
        report.state = SandboxState::Error;
    }
    Ok(Json(report))
}

async fn list(State(node): State<SimNode>) -> Answer<Json<Vec<Report>>> {
    let state = node.state();
    if state.unreachable {
        return Err(Error::unavailable("the node is away").into());
    }
    Ok(Json(state.sandboxes.values().map(|sandbox| sandbox.report.clone()).collect()))
}

async fn ensure(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
    Json(spec): Json<SandboxSpec>,
) -> Answer<Json<Report>> {
    let failure = {
        let mut state = node.state();
        state.creates += 1;
        let failure = state.create_errors.pop();
        drop(state);
        let mut sandbox = Sandbox::new(id.clone(), spec.clone());
        if let Some(checkpoint) = &spec.from_checkpoint {
            node.forked(checkpoint, &mut sandbox)?;
        }
        node.state().sandboxes.entry(id.clone()).or_insert(sandbox);
        failure
    };
    drop(node.0.gate.read().await);
    if let Some(error) = failure {
        return Err(error.into());
    }
    let report = node.state().sandboxes.get(&id).ok_or_else(unknown)?.report.clone();
    node.send(report.clone());
    Ok(Json(report))
}

async fn absent(State(node): State<SimNode>, Path(id): Path<SandboxId>) -> Answer<StatusCode> {
    let mut state = node.state();
    if state.unreachable {
        return Err(Error::unavailable("the node is away").into());
    }
    state.sandboxes.remove(&id);
    state.egress.grants.remove(&id);
    state.absents.push(id);
    Ok(StatusCode::NO_CONTENT)
}

async fn timeout(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
    Json(timeout): Json<Timeout>,
) -> Answer<Json<Report>> {
    let mut state = node.state();
    let sandbox = state.sandboxes.get_mut(&id).ok_or_else(unknown)?;
    sandbox.spec.timeout_seconds = timeout.timeout_seconds;
    Ok(Json(sandbox.report.clone()))
}

async fn wake(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
    Json(wake): Json<Wake>,
) -> Answer<Json<Report>> {
    let takes = node.state().wake_takes;
    tokio::time::sleep(takes).await;
    node.state().wakes += 1;
    if node.state().damaged.contains(&id) && !wake.previous_disk {
        return Err(checkpoints::disk_damaged().into());
    }
    node.transition(&id, SandboxState::Running)
}

async fn hibernate(State(node): State<SimNode>, Path(id): Path<SandboxId>) -> Answer<Json<Report>> {
    node.transition(&id, SandboxState::Hibernated)
}

async fn changes(State(node): State<SimNode>) -> Body {
    let receiver = node.0.changes.subscribe();
    let first: Vec<Change> = {
        let node = node.state();
        let sandboxes = node.sandboxes.values().map(|sandbox| Change::Sandbox(sandbox.report.clone()));
        let checkpoints =
            node.checkpoints.values().map(|one| Change::Checkpoint(Box::new(one.report.clone())));
        sandboxes.chain(checkpoints).collect()
    };
    let line = |report: &Change| Bytes::from(serde_json::to_string(report).unwrap() + "\n");
    let first: Vec<_> = first.iter().map(|report| Ok::<_, std::io::Error>(line(report))).collect();
    let live = stream::unfold(receiver, move |mut receiver| async move {
        let report = receiver.recv().await.ok()?;
        Some((Ok(line(&report)), receiver))
    });
    Body::from_stream(futures_util::StreamExt::chain(stream::iter(first), live))
}

/// One call to a guest. Wakes it, as a node does.
async fn guest(
    State(node): State<SimNode>,
    Path((id, path)): Path<(SandboxId, String)>,
    request: Request,
) -> Answer<Response> {
    if let Some((status, body)) = node.state().guest_answer.clone() {
        return Ok((StatusCode::from_u16(status).unwrap(), body).into_response());
    }
    let _ = node.transition(&id, SandboxState::Running)?;
    let parts: Vec<&str> = path.split('/').collect();
    match parts[0] {
        "exec" => exec::call(&node, &id, &parts[1..], request).await,
        "pty" => pty::call(&node, &id, &parts[1..], request).await,
        "files" => files::call(&node, &id, &parts[1..], request).await,
        "ports" => ports::call(&node, &id, parts[1], request).await,
        _ => Err(Error::new(ErrorKind::NotFound, "no such route in a guest").into()),
    }
}

/// A parameter of a guest call's query.
fn parameter(request: &Request, name: &str) -> Option<String> {
    let query = axum::extract::Query::<HashMap<String, String>>::try_from_uri(request.uri()).unwrap();
    query.0.get(name).cloned()
}

async fn json<T: serde::de::DeserializeOwned>(request: Request) -> T {
    let bytes = axum::body::to_bytes(request.into_body(), 8 << 20).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}
