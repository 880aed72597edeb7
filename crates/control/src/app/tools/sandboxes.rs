//! Sandboxes themselves: made, listed and deleted by who has the key of an organisation.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use warren_api::sandboxes::{Sandbox, SandboxCreate};
use warren_types::{Error, ErrorKind};

use super::{Call, Output, input, text};
use crate::app::images::create::{Begun, is_from_image};
use crate::app::sandboxes::create::{CreateError, Created};
use crate::app::sandboxes::list::ListRequest;

#[derive(Deserialize)]
struct Create {
    template: Option<String>,
    image: Option<String>,
    snapshot: Option<String>,
    cpu_count: Option<i64>,
    memory_mb: Option<i64>,
    disk_mb: Option<i64>,
    idle_timeout_seconds: Option<i64>,
    env: Option<BTreeMap<String, String>>,
    metadata: Option<BTreeMap<String, String>>,
    isolation: Option<String>,
    secret_store: Option<String>,
    egress_allowlist: Option<Vec<String>>,
}

impl From<Create> for SandboxCreate {
    fn from(input: Create) -> Self {
        Self {
            template_id: input.template,
            image: input.image.map(Value::String),
            snapshot: input.snapshot,
            cpu_count: input.cpu_count,
            memory_mb: input.memory_mb,
            disk_mb: input.disk_mb,
            timeout: input.idle_timeout_seconds,
            envs: input.env,
            metadata: input.metadata,
            isolation: input.isolation,
            secret_store: input.secret_store,
            egress_allowlist: input.egress_allowlist,
            ..Self::default()
        }
    }
}

pub(super) async fn create(call: Call, input: Value) -> Result<Output, Error> {
    let body: SandboxCreate = input::decode::<Create>(input)?.into();
    let sandbox = make(&call, body).await.map_err(create_failed)?.sandbox;
    let said = format!(
        "made sandbox {}: {}, {} vCPU, {} MiB of memory. Give this id as sandbox_id to the other tools.",
        sandbox.sandbox_id, sandbox.template_id, sandbox.cpu_count, sandbox.memory_mb
    );
    Ok(Output::new(said, row(&sandbox)))
}

/// As the route does it: from an image, a snapshot, or a template, which may be the name of a snapshot.
async fn make(call: &Call, mut body: SandboxCreate) -> Result<Created, CreateError> {
    let (app, caller, base) = (&call.app, call.caller()?, call.base.clone());
    if !is_from_image(&body) && app.names_snapshot(&caller, &body).await? {
        body.snapshot = body.template_id.take();
    }
    if !is_from_image(&body) {
        return app.create_sandbox(&caller, body, None, base).await;
    }
    match app.begin_from_image(&caller, body, None, base).await? {
        Begun::Repeated(made) => Ok(*made),
        Begun::Pending(pending) => {
            if let Some(reader) = pending.reader() {
                reader.ended().await?;
            }
            app.make_from_image(*pending).await
        }
    }
}

/// Why there is no new sandbox.
pub(super) fn create_failed(error: CreateError) -> Error {
    match error {
        CreateError::LimitReached { active, limit } => Error::new(
            ErrorKind::LimitReached,
            format!(
                "{active} sandboxes are running and the organisation may have {limit}; delete one with sandbox_delete and try again"
            ),
        ),
        CreateError::Other(error) => error,
    }
}

#[derive(Deserialize)]
struct List {
    status: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

pub(super) async fn list(call: Call, input: Value) -> Result<Output, Error> {
    let List { status, limit, cursor } = input::decode(input)?;
    let caller = call.caller()?;
    let query = [("status", status), ("limit", limit.map(|limit| limit.to_string())), ("cursor", cursor)];
    let query = query.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let page = call.app.list_sandboxes(&caller, &ListRequest::parse(query)?).await?;
    let mut said: String = page
        .sandboxes
        .iter()
        .map(|sandbox| {
            let alias =
                sandbox.alias.as_deref().map(|alias| format!("  {}", text::name(alias))).unwrap_or_default();
            format!(
                "{}  {}  {}{alias}\n",
                sandbox.sandbox_id,
                sandbox.status,
                text::name(&sandbox.template_id)
            )
        })
        .collect();
    if page.sandboxes.is_empty() {
        said.push_str("there are no sandboxes");
    }
    if let Some(next) = &page.next {
        text::push_note(&mut said, &format!("there are more; cursor {next} goes on"));
    }
    let rows: Vec<Value> = page.sandboxes.iter().map(row).collect();
    Ok(Output::new(said, json!({"sandboxes": rows, "next_cursor": page.next})))
}

pub(super) async fn delete(call: Call, _: Value) -> Result<Output, Error> {
    let (caller, id) = (call.caller()?, call.id()?);
    call.app.delete_sandbox(&caller, id).await?;
    Ok(Output::new(format!("sandbox {id} and its disk are deleted"), json!({"sandbox_id": id.as_str()})))
}

fn row(sandbox: &Sandbox) -> Value {
    json!({
        "sandbox_id": sandbox.sandbox_id, "status": sandbox.status, "template": sandbox.template_id,
        "cpu_count": sandbox.cpu_count, "memory_mb": sandbox.memory_mb, "isolation": sandbox.isolation,
        "started_at": sandbox.started_at.to_string(),
    })
}
