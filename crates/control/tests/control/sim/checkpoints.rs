//! Checkpoints of the simulated node: a copy of a sandbox's files, with the states and reports of a real one. A test decides
//! when a checkpoint becomes ready.

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use warren_node_api::{
    CODE_CHECKPOINT_DAMAGED, CODE_DISK_DAMAGED, CODE_OOM_FLOOR, Change, CheckpointCreate, CheckpointOrigin,
    CheckpointReport, CheckpointState, Consistency, Holds, Patch, PatchRun, Reboot, Report, Restore, Usage,
};
use warren_types::{CheckpointId, Error, SandboxId, SandboxState, Size};

use super::{Answer, Sandbox, SimNode, unknown};

pub(crate) struct Checkpoint {
    pub(crate) report: CheckpointReport,
    pub(crate) origin: CheckpointOrigin,
    pub(crate) files: std::collections::BTreeMap<String, bytes::Bytes>,
    pub(crate) patches: Vec<Patch>,
    pub(crate) damaged: bool,
    pub(crate) disk_only: bool,
}

impl Checkpoint {
    /// As a node does when somebody wants to use it.
    fn check(&mut self) -> Result<(), Error> {
        if !self.damaged {
            return Ok(());
        }
        let report = &mut self.report;
        (report.state, report.generation) = (CheckpointState::Failed, 4);
        report.error = Some("it is damaged".to_owned());
        Err(Error::conflict("the checkpoint is damaged").with_code(CODE_CHECKPOINT_DAMAGED))
    }
}

impl SimNode {
    /// Takes a checkpoint to its end, well or not.
    pub(crate) fn finish(&self, id: &str, error: Option<&str>) {
        let report = {
            let mut node = self.state();
            let checkpoint = node.checkpoints.get_mut(&id.parse().unwrap()).expect("the node has it");
            let report = &mut checkpoint.report;
            report.state = if error.is_some() { CheckpointState::Failed } else { CheckpointState::Ready };
            report.generation = if error.is_some() { 4 } else { 3 };
            report.size_bytes = 4096;
            report.error = error.map(str::to_owned);
            report.clone()
        };
        self.send_change(Change::Checkpoint(Box::new(report)));
    }

    pub(crate) fn has_checkpoint(&self, id: &str) -> bool {
        self.state().checkpoints.contains_key(&id.parse().unwrap())
    }

    /// What a fork starts with.
    pub(super) fn forked(&self, id: &CheckpointId, sandbox: &mut Sandbox) -> Result<(), Error> {
        let mut node = self.state();
        let checkpoint =
            node.checkpoints.get_mut(id).ok_or_else(|| Error::not_found("no such checkpoint"))?;
        checkpoint.check()?;
        sandbox.files.clone_from(&checkpoint.files);
        sandbox.report.patches.applied = checkpoint.patches.last().map_or(0, |patch| patch.sequence);
        Ok(())
    }
}

pub(super) async fn list(State(node): State<SimNode>) -> Answer<Json<Vec<CheckpointReport>>> {
    let state = node.state();
    if state.unreachable {
        return Err(Error::unavailable("the node is away").into());
    }
    Ok(Json(state.checkpoints.values().map(|checkpoint| checkpoint.report.clone()).collect()))
}

pub(super) async fn show(
    State(node): State<SimNode>,
    Path(id): Path<CheckpointId>,
) -> Answer<Json<CheckpointReport>> {
    let state = node.state();
    let found = state.checkpoints.get(&id).ok_or_else(unknown)?;
    Ok(Json(CheckpointReport { origin: Some(found.origin.clone()), ..found.report.clone() }))
}

pub(super) async fn ensure(
    State(node): State<SimNode>,
    Path(id): Path<CheckpointId>,
    Json(create): Json<CheckpointCreate>,
) -> Answer<Json<CheckpointReport>> {
    let (report, ready) = {
        let mut state = node.state();
        if let Some(error) = state.checkpoint_error.take() {
            return Err(error.into());
        }
        let sandbox = state.sandboxes.get(&create.sandbox_id).ok_or_else(unknown)?;
        let origin = CheckpointOrigin { sandbox_id: create.sandbox_id.clone(), spec: sandbox.spec.clone() };
        let report = CheckpointReport {
            checkpoint_id: id.clone(),
            state: CheckpointState::Processing,
            generation: 2,
            origin: None,
            captured: true,
            consistency: Some(Consistency::Quiesced),
            pause_us: Some(1500),
            holds: Holds::Disk,
            size_bytes: 0,
            patches: Vec::new(),
            error: None,
        };
        let files = sandbox.files.clone();
        let made = state.checkpoints.entry(id.clone()).or_insert(Checkpoint {
            report,
            origin,
            files,
            patches: Vec::new(),
            damaged: false,
            disk_only: create.disk_only,
        });
        let report = CheckpointReport { origin: Some(made.origin.clone()), ..made.report.clone() };
        (report, !state.hold_checkpoints)
    };
    if ready {
        node.finish(id.as_str(), None);
    }
    Ok(Json(report))
}

pub(super) async fn absent(State(node): State<SimNode>, Path(id): Path<CheckpointId>) -> Answer<StatusCode> {
    let mut state = node.state();
    if state.unreachable {
        return Err(Error::unavailable("the node is away").into());
    }
    state.checkpoints.remove(&id);
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn set_patches(
    State(node): State<SimNode>,
    Path(id): Path<CheckpointId>,
    Json(patches): Json<Vec<Patch>>,
) -> Answer<StatusCode> {
    let takes = std::mem::take(&mut node.state().next_patches_take);
    tokio::time::sleep(takes).await;
    let mut state = node.state();
    if state.unreachable {
        return Err(Error::unavailable("the node is away").into());
    }
    let checkpoint = state.checkpoints.get_mut(&id).ok_or_else(unknown)?;
    checkpoint.report.patches = patches.iter().map(|patch| patch.sequence).collect();
    checkpoint.patches = patches;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn restore(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
    Json(restore): Json<Restore>,
) -> Answer<Json<Report>> {
    let mut state = node.state();
    let checkpoint = state.checkpoints.get_mut(&restore.checkpoint_id).ok_or_else(unknown)?;
    checkpoint.check()?;
    let files = checkpoint.files.clone();
    let sandbox = state.sandboxes.get_mut(&id).ok_or_else(unknown)?;
    sandbox.files = files;
    sandbox.execs.clear();
    Ok(Json(sandbox.become_(SandboxState::Running, None)))
}

pub(super) async fn reboot(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
    Json(_): Json<Reboot>,
) -> Answer<Json<Report>> {
    let mut state = node.state();
    let sandbox = state.sandboxes.get_mut(&id).ok_or_else(unknown)?;
    sandbox.execs.clear();
    Ok(Json(sandbox.become_(SandboxState::Running, None)))
}

pub(super) async fn resize(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
    Json(size): Json<Size>,
) -> Answer<Json<Report>> {
    let mut state = node.state();
    let used = state.usage.get(&id).copied().unwrap_or(0);
    let sandbox = state.sandboxes.get_mut(&id).ok_or_else(unknown)?;
    let limit = u64::from(size.memory_mb) << 20;
    if used > limit {
        let error = Error::conflict("more is in use").with_code(CODE_OOM_FLOOR);
        return Err(error.with_details([("usedBytes", used), ("limitBytes", limit)]).into());
    }
    sandbox.spec.size = Size { disk_mb: sandbox.spec.size.disk_mb, ..size };
    sandbox.report.size = Some(sandbox.spec.size);
    sandbox.report.generation += 1;
    Ok(Json(sandbox.report.clone()))
}

pub(super) async fn patch_runs(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
) -> Answer<Json<Vec<PatchRun>>> {
    let state = node.state();
    let applied = state.sandboxes.get(&id).ok_or_else(unknown)?.report.patches.applied;
    let run = |sequence| PatchRun {
        sequence,
        exit_code: Some(0),
        stdout: "done\n".into(),
        stderr: String::new(),
        started_at_ms: 1_786_000_000_000,
        error: None,
    };
    Ok(Json((1..=applied).map(run).collect()))
}

pub(super) async fn usage(State(node): State<SimNode>) -> Json<Vec<Usage>> {
    let state = node.state();
    Json(
        state
            .usage
            .iter()
            .map(|(id, bytes)| Usage { id: id.clone(), memory_bytes: *bytes, with_caches: false })
            .collect(),
    )
}

pub(super) fn disk_damaged() -> Error {
    Error::conflict("the sandbox was not started: its disk is damaged").with_code(CODE_DISK_DAMAGED)
}
