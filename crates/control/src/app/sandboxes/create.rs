//! Create.
//!
//! ```text
//!   validate ─▶ room? ─▶ ┌ insert row `creating` ┐ ─▶ settle row `running` ─▶ answer
//!                        └ node.ensure_sandbox   ┘
//! ```
//!
//! The row and the sandbox are made side by side; nobody is told of either before both are there. When one of them
//! fails the other is undone here, and after a crash at any point by the reconciler. The id is held in
//! [`crate::app::in_flight`] from before the first effect until after the last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};
use warren_api::sandboxes::{Sandbox, SandboxCreate};
use warren_node_api::{CODE_CHECKPOINT_DAMAGED, NodeInfo, Report, SandboxSpec, SecretGrant};
use warren_types::{Error, ErrorKind, Isolation, SandboxId, SandboxState};

use super::request::Wanted;
use crate::app::App;
use crate::app::access::prepare::Prepared;
use crate::app::audit::{Kind, Note, Refusal, outcome_of};
use crate::app::auth::{Caller, hash_key};
use crate::app::idempotency;
use crate::app::in_flight::Flight;
use crate::app::previews::generate_token;
use crate::store::StoreError;
use crate::store::idempotency::IdempotencyKey;
use crate::store::sandboxes::SandboxRow;
use crate::store::sandboxes::change::{Inserted, NewSandbox};

/// How long a node may take. Far more than a create needs: this is for nodes that hang.
const NODE_DEADLINE: Duration = Duration::from_secs(60);
/// The same where a checkpoint has to be read first and its patches run.
const FORK_DEADLINE: Duration = Duration::from_secs(30 * 60);
/// How nodes name the templates that they make of images.
const IMPORTED: &str = "oci-";
/// Random ids tried before giving up; a second try is a matter of one in some ten thousand creates.
const ID_TRIES: usize = 8;

/// A sandbox that was made, or was there already for the same idempotency key.
#[derive(Debug)]
pub(crate) struct Created {
    pub sandbox: Sandbox,
    /// Absent for a repeated create: nothing was made.
    pub timing: Option<Timing>,
}

/// Where the time went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub node: Duration,
    pub store: Duration,
}

#[derive(Debug)]
pub(crate) enum CreateError {
    /// The organisation has as many sandboxes running as it may.
    LimitReached {
        active: u32,
        limit: u32,
    },
    Other(Error),
}

impl From<Error> for CreateError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Refusal for CreateError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::LimitReached { .. } => ErrorKind::LimitReached,
            Self::Other(error) => error.kind,
        }
    }
}

impl From<StoreError> for CreateError {
    fn from(error: StoreError) -> Self {
        Self::Other(error.into())
    }
}

impl App {
    pub(crate) async fn create_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        body: SandboxCreate,
        idempotency_key: Option<String>,
        base: String,
    ) -> Result<Created, CreateError> {
        let key = idempotency_key.map(|key| identify(key, &body)).transpose()?;
        let wanted = Wanted::try_from(body)?;
        if !self.is_node_template(&wanted.spec.template).await? {
            return Err(template_not_found(&wanted.spec.template).into());
        }
        self.create_wanted(caller, wanted, key, base).await
    }

    /// Makes what was asked for, by whichever route.
    pub(in crate::app) async fn create_wanted(
        self: &Arc<Self>,
        caller: &Caller,
        mut wanted: Wanted,
        key: Option<IdempotencyKey>,
        base: String,
    ) -> Result<Created, CreateError> {
        let (app, caller) = (Arc::clone(self), caller.clone());
        if self.preview_auth_required && wanted.preview_token.is_none() {
            wanted.preview_token = Some(generate_token());
        }
        self.to_the_end(async move {
            let preview_token = wanted.preview_token.clone();
            let (row, timing) = app.create_once(&caller, wanted, key).await?;
            // A repeated create made nothing: its token was shown when it was made, and is not known any more.
            let shown = preview_token.filter(|_| timing.is_some()).map(|token| token.expose().clone());
            Ok(Created {
                sandbox: Sandbox { preview_auth_token: shown, ..app.view_with_token(row, &base) },
                timing,
            })
        })
        .await
    }

    async fn create_once(
        self: &Arc<Self>,
        caller: &Caller,
        wanted: Wanted,
        key: Option<IdempotencyKey>,
    ) -> Result<(SandboxRow, Option<Timing>), CreateError> {
        let Some(key) = key else {
            return self.create_now(caller, wanted, None).await;
        };
        let _turn = self.key_turns.turn(&(caller.org().clone(), key.key.clone())).await;
        if let Some(row) = self.find_repeated(caller, &key).await? {
            return Ok((row, None));
        }
        self.create_now(caller, wanted, Some(key)).await
    }

    /// The sandbox that was made before under an idempotency key.
    pub(in crate::app) async fn find_repeated(
        &self,
        caller: &Caller,
        key: &IdempotencyKey,
    ) -> Result<Option<SandboxRow>, CreateError> {
        let Some(earlier) = self.store.find_keyed_create(caller.org(), &key.key).await? else {
            return Ok(None);
        };
        if earlier.body_hash != key.body_hash {
            return Err(Error::conflict(
                "this Idempotency-Key was used for a different request; use a new one",
            )
            .with_code("idempotency_key_conflict")
            .into());
        }
        let id = earlier.sandbox_id.parse::<SandboxId>().map_err(|error| {
            Error::internal(format!("a stored idempotency key names no sandbox: {error}"))
        })?;
        match self.store.find_sandbox(caller.org(), &id).await? {
            Some(row) if row.observed != SandboxState::Creating => Ok(Some(row)),
            // Of another process, or of one that died and whose reconciler has not come by yet.
            _ => Err(key_in_use().into()),
        }
    }

    /// The answer to a repeated create: nothing was made.
    pub(in crate::app) fn repeated(&self, row: SandboxRow, base: &str) -> Created {
        Created { sandbox: self.view_with_token(row, base), timing: None }
    }

    async fn create_now(
        self: &Arc<Self>,
        caller: &Caller,
        wanted: Wanted,
        idempotency: Option<IdempotencyKey>,
    ) -> Result<(SandboxRow, Option<Timing>), CreateError> {
        let node = self.node_with_template(&wanted.spec.template).await?;
        let mut wanted = wanted;
        wanted.spec.isolation = offered(&node, wanted.isolation)?;
        let Prepared { record, tokens, grant, read_at } =
            self.prepare_access(caller.org(), wanted.access, &mut wanted.spec).await?;
        let started = Instant::now();
        let flight = match self.find_free_id(caller).await {
            Ok(flight) => flight,
            Err(error) => {
                let (outcome, facts) = outcome_of(&error);
                let note = caller.note(Kind::SandboxCreate).with("template", wanted.spec.template.as_str());
                self.audit.tell(note.with("outcome", outcome).with_all(facts)).await;
                return Err(error);
            }
        };
        let id = flight.id().clone();
        let room = started.elapsed();

        let new = NewSandbox {
            id: id.clone(),
            org: caller.org().clone(),
            node_id: node.id.clone(),
            template: wanted.shown_template.unwrap_or_else(|| wanted.spec.template.clone()),
            alias: wanted.alias,
            isolation: wanted.spec.isolation.to_string(),
            size: wanted.spec.size,
            timeout_seconds: wanted.spec.timeout_seconds,
            metadata: wanted.metadata,
            tags: wanted.tags,
            limit: self.max_running_per_org,
            idempotency,
            from_checkpoint: wanted.spec.from_checkpoint.clone(),
            access: record,
            tokens,
            preview_hash: wanted.preview_token.map(|token| hash_key(token.expose())),
        };
        let made = Making { new, spec: wanted.spec, grant, read_at, flight, room };
        let note = note_of(caller, &made);
        self.audit.around(note, self.make(caller, made)).await
    }

    async fn make(
        self: &Arc<Self>,
        caller: &Caller,
        making: Making,
    ) -> Result<(SandboxRow, Option<Timing>), CreateError> {
        let Making { new, spec, grant, read_at, flight, room } = making;
        let id = new.id.clone();
        let make = async {
            // Secrets first: what runs has them from its first moment.
            if let Some(grant) = &grant {
                let taken = self.node.ensure_secrets(&id, grant).await;
                taken.map_err(|error| {
                    Error::unavailable(format!("the node did not take the secrets: {error}"))
                })?;
            }
            self.node.ensure_sandbox(&id, &spec).await
        };
        let deadline = if new.from_checkpoint.is_some() { FORK_DEADLINE } else { NODE_DEADLINE };
        let (inserted, made) = tokio::join!(
            timed(self.store.insert_sandbox(&new)),
            timed(tokio::time::timeout(deadline, make)),
        );
        let ((inserted, insert), (made, node)) = (inserted, made);
        let made =
            made.unwrap_or_else(|_| Err(Error::unavailable("the node took too long to make the sandbox")));

        if let Err(error) = self.check_inserted(inserted, &id).await {
            if error.undo_on_node {
                self.undo_create(flight);
            }
            return Err(error.answer);
        }
        let report = match made.and_then(running) {
            Ok(report) => report,
            Err(error) => {
                let answer = node_failure(error, &new);
                let removed = self.store.remove_creating(&id).await?;
                self.undo_create(flight);
                if !removed {
                    return Err(deleted_meanwhile(&id).into());
                }
                tracing::warn!(sandbox = %id, reason = %answer, "a sandbox could not be made");
                return Err(answer.into());
            }
        };
        let settling = Instant::now();
        let settled = match self.store.settle_created(&report).await {
            Ok(settled) => settled,
            Err(error) => {
                // The row stays `creating`, which nobody was told of: the reconciler removes it.
                self.undo_create(flight);
                return Err(error.into());
            }
        };
        let Some(row) = settled else {
            self.undo_create(flight);
            return Err(deleted_meanwhile(&id).into());
        };
        if let Some(newer) = flight.land().filter(|newer| newer.generation > report.generation) {
            self.store.apply_report(&newer).await?;
        }
        self.push_if_changed(caller.org(), &id, read_at).await;
        Ok((row, Some(Timing { node, store: room + insert + settling.elapsed() })))
    }

    /// Whether anybody may name that template. Images that were imported belong to those who did, and have no name here.
    pub(crate) async fn is_node_template(&self, template: &str) -> Result<bool, Error> {
        if template.starts_with(IMPORTED) {
            return Ok(false);
        }
        match self.node_with_template(template).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The node, once it is known to have that template.
    async fn node_with_template(&self, template: &str) -> Result<Arc<NodeInfo>, Error> {
        let has = |node: &NodeInfo| node.templates.iter().any(|name| name == template);
        let known = self.node_info();
        if has(&known) {
            return Ok(known);
        }
        let fresh = self.refresh_node_info().await?;
        if has(&fresh) { Ok(fresh) } else { Err(template_not_found(template)) }
    }

    /// An id nobody has, held from here on. Checked before the node hears of it: asked to ensure an id that is in
    /// use, a node would answer with somebody else's sandbox.
    async fn find_free_id(&self, caller: &Caller) -> Result<Flight, CreateError> {
        for _ in 0..ID_TRIES {
            let id = SandboxId::generate();
            let Some(flight) = self.in_flight.begin(&id) else { continue };
            let (active, taken) = self.store.find_room(caller.org(), &id).await?;
            if active >= self.max_running_per_org {
                return Err(CreateError::LimitReached { active, limit: self.max_running_per_org });
            }
            if !taken {
                return Ok(flight);
            }
        }
        Err(Error::unavailable("no free sandbox id was found; try again").into())
    }

    async fn check_inserted(
        &self,
        inserted: Result<Inserted, StoreError>,
        id: &SandboxId,
    ) -> Result<(), InsertFailure> {
        let undo = |answer| InsertFailure { answer, undo_on_node: true };
        match inserted {
            Ok(Inserted::Yes) => Ok(()),
            Ok(Inserted::LimitReached { active }) => {
                Err(undo(CreateError::LimitReached { active, limit: self.max_running_per_org }))
            }
            // Another control plane was quicker, with the idempotency key or with the id itself. In the second case
            // the sandbox on the node is theirs.
            Ok(Inserted::Taken) => {
                let theirs =
                    self.store.find_standing(id).await.map_err(|error| undo(error.into()))?.is_some();
                Err(InsertFailure { answer: key_in_use().into(), undo_on_node: !theirs })
            }
            Ok(Inserted::SecretsGone) => Err(undo(
                Error::unavailable(
                    "the secret store was changed while the sandbox was being made; try again",
                )
                .into(),
            )),
            Err(error) => Err(undo(error.into())),
        }
    }

    /// Removes from the node what a failed create may have left there, while its id is still held. If the node does
    /// not answer, the reconciler finds a sandbox without a row later.
    fn undo_create(self: &Arc<Self>, flight: Flight) {
        let app = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Err(error) = app.ensure_absent(flight.id()).await {
                tracing::warn!(sandbox = %flight.id(), %error, "a failed create is not undone yet");
            }
        });
    }
}

/// A sandbox that is about to be made.
struct Making {
    new: NewSandbox,
    spec: SandboxSpec,
    grant: Option<SecretGrant>,
    read_at: Option<u64>,
    flight: Flight,
    room: Duration,
}

/// What is recorded of a create: from what, how large, and what it may reach; secrets by their names.
fn note_of(caller: &Caller, making: &Making) -> Note {
    let (new, spec) = (&making.new, &making.spec);
    let note = caller.note(Kind::SandboxCreate).of(&new.id).with("template", new.template.as_str());
    let note = note.with("isolation", new.isolation.as_str()).with("cpuCount", spec.size.cpu_count);
    let note = note.with("memoryMB", spec.size.memory_mb).with("diskMB", spec.size.disk_mb);
    let note = note.with("timeout", spec.timeout_seconds).with("egress", json!(spec.egress.mode));
    let note = note.with("previewToken", new.preview_hash.is_some());
    let names: Vec<&str> = new.tokens.iter().map(|token| token.name.as_str()).collect();
    let note = if names.is_empty() { note } else { note.with("secretNames", json!(names)) };
    match &new.from_checkpoint {
        Some(checkpoint) => note.with("fromCheckpoint", checkpoint.as_str()),
        None => note,
    }
}

struct InsertFailure {
    answer: CreateError,
    undo_on_node: bool,
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    (work.await, started.elapsed())
}

/// What a key and a body are together. The hash is over the request as it was understood, so that the order of
/// fields and blanks do not matter.
pub(in crate::app) fn identify(key: String, body: &SandboxCreate) -> Result<IdempotencyKey, Error> {
    idempotency::check(&key)?;
    let body = serde_json::to_vec(body)
        .map_err(|error| Error::internal(format!("a request has no JSON form: {error}")))?;
    Ok(IdempotencyKey { key, body_hash: warren_types::hex(&Sha256::digest(&body)) })
}

fn key_in_use() -> Error {
    Error::conflict("another create with this Idempotency-Key is under way; try again in a moment")
        .with_code("idempotency_key_in_use")
}

fn deleted_meanwhile(id: &SandboxId) -> Error {
    Error::new(ErrorKind::Gone, format!("sandbox {id} was deleted while it was being made"))
}

fn running(report: Report) -> Result<Report, Error> {
    if report.state == SandboxState::Running {
        return Ok(report);
    }
    let reason = report.reason.unwrap_or_else(|| format!("it is {} instead of running", report.state));
    Err(Error::new(ErrorKind::SandboxFailed, format!("the sandbox could not be made: {reason}")))
}

fn template_not_found(template: &str) -> Error {
    Error::not_found(format!("template not found: {template}"))
}

/// A node's refusal in the words of a create.
fn node_failure(error: Error, new: &NewSandbox) -> Error {
    let kind = match (error.kind, &new.from_checkpoint) {
        (ErrorKind::NotFound, None) => return template_not_found(&new.template),
        (ErrorKind::NotFound, Some(_)) => {
            return Error::conflict("the checkpoint is no longer on its node; use another one")
                .with_code(CODE_CHECKPOINT_DAMAGED);
        }
        // It is damaged; the sentence says what else there is.
        (ErrorKind::Conflict, Some(_)) => ErrorKind::Conflict,
        (ErrorKind::Unavailable | ErrorKind::LimitReached, _) => ErrorKind::Unavailable,
        (ErrorKind::Unsupported, _) => ErrorKind::Unsupported,
        (
            ErrorKind::Invalid
            | ErrorKind::Unauthenticated
            | ErrorKind::Forbidden
            | ErrorKind::Gone
            | ErrorKind::Conflict
            | ErrorKind::TooLarge
            | ErrorKind::SandboxFailed
            | ErrorKind::Internal,
            _,
        ) => ErrorKind::SandboxFailed,
    };
    Error { kind, ..error }
}

/// The isolation that was asked for, or the node's own; refused by name where the node has none of it.
pub(in crate::app) fn offered(node: &NodeInfo, wanted: Option<Isolation>) -> Result<Isolation, Error> {
    let isolation = wanted.unwrap_or(node.isolation);
    if isolation == node.isolation || node.isolations.contains(&isolation) {
        return Ok(isolation);
    }
    let offers: Vec<&str> = node.isolations.iter().map(|offered| offered.as_str()).collect();
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("this server has no isolation {isolation}; it offers {}", offers.join(" and ")),
    ))
}
