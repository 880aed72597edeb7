//! The sandbox as a whole: previews of its ports, checkpoints, forks. These need the key of an organisation.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use warren_api::checkpoints::{Checkpoint, CheckpointCreate, Fork};
use warren_api::previews::{PreviewCreate, PreviewShareCreate};
use warren_types::{CheckpointId, Error, ErrorKind};

use super::{Call, Output, input, sandboxes, text};
use crate::app::auth::Caller;

/// How long a checkpoint that was just taken may need until it can be used.
const READY_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
struct Expose {
    port: i64,
    share_seconds: Option<i64>,
}

pub(super) async fn expose_port(call: Call, input: Value) -> Result<Output, Error> {
    let Expose { port, share_seconds } = input::decode(input)?;
    let (caller, id) = (call.caller()?, call.id()?);
    let body = PreviewCreate { port: Some(port), ..PreviewCreate::default() };
    let (preview, _) = call.app.create_preview(&caller, id, body, &call.base).await?;
    let mut said = format!("port {port} can be opened at {}", preview.url);
    let mut structured = json!({"port": port, "url": preview.url});
    if share_seconds.is_some() {
        let body = PreviewShareCreate { expires_in: share_seconds };
        match call.app.share_preview(&caller, id, &port.to_string(), &body, &call.base).await {
            Ok(link) => {
                said.push_str(&format!("\nuntil {} anybody can open it with {}", link.expires_at, link.url));
                structured["share_url"] = json!(link.url);
            }
            Err(error) if error.kind == ErrorKind::Conflict => {
                said.push_str("\nanybody can open it, no link is needed");
            }
            Err(error) => return Err(error),
        }
    }
    said.push_str(
        "\nIt answers once a program in the sandbox listens on that port, on 0.0.0.0 or 127.0.0.1.",
    );
    Ok(Output::new(said, structured))
}

#[derive(Deserialize)]
struct Take {
    name: Option<String>,
}

pub(super) async fn checkpoint(call: Call, input: Value) -> Result<Output, Error> {
    let Take { name } = input::decode(input)?;
    let caller = call.caller()?;
    let made = take(&call, &caller, name.unwrap_or_else(|| generated_name("checkpoint"))).await?;
    let said = format!(
        "checkpoint {} ({}) holds the {}. sandbox_restore goes back to it, sandbox_fork makes another sandbox of it.",
        made.id,
        text::name(&made.name),
        if made.holds == "memory" {
            "disk, the memory and every process as they were"
        } else {
            "disk as it was, and no processes"
        },
    );
    Ok(Output::new(said, json!({"checkpoint_id": made.id, "name": made.name, "holds": made.holds})))
}

#[derive(Deserialize)]
struct Restore {
    checkpoint: String,
}

pub(super) async fn restore(call: Call, input: Value) -> Result<Output, Error> {
    let Restore { checkpoint } = input::decode(input)?;
    let (caller, id) = (call.caller()?, call.id()?);
    let found = ready(&call, &caller, &checkpoint).await?;
    let checkpoint_id = parse(&found.id)?;
    call.app.restore_checkpoint(&caller, id, &checkpoint_id).await?;
    let said = format!(
        "the sandbox is as it was at checkpoint {} ({}). {}",
        found.id,
        text::name(&found.name),
        if found.holds == "memory" { "Its processes go on from there." } else { "Its processes have ended." },
    );
    Ok(Output::new(said, json!({"sandbox_id": id.as_str(), "checkpoint_id": found.id})))
}

#[derive(Deserialize)]
struct ForkInput {
    checkpoint: Option<String>,
}

pub(super) async fn fork(call: Call, input: Value) -> Result<Output, Error> {
    let ForkInput { checkpoint } = input::decode(input)?;
    let (caller, id) = (call.caller()?, call.id()?);
    let (from, temporary) = match checkpoint {
        Some(checkpoint) => (ready(&call, &caller, &checkpoint).await?, false),
        None => (take(&call, &caller, generated_name("fork")).await?, true),
    };
    let checkpoint_id = parse(&from.id)?;
    let made =
        call.app.fork_checkpoint(&caller, &checkpoint_id, Fork::default(), None, call.base.clone()).await;
    if temporary && let Err(error) = call.app.delete_checkpoint(&caller, id, &checkpoint_id).await {
        tracing::warn!(sandbox = %id, %error, "the checkpoint that a fork was made of is still there");
    }
    let sandbox = made.map_err(sandboxes::create_failed)?.sandbox;
    let said = format!(
        "made sandbox {}, which starts as {} {}. Both go on independently.",
        sandbox.sandbox_id,
        id,
        if temporary { "is now".to_owned() } else { format!("was at checkpoint {}", from.id) },
    );
    Ok(Output::new(said, json!({"sandbox_id": sandbox.sandbox_id, "from": id.as_str()})))
}

async fn take(call: &Call, caller: &Caller, name: String) -> Result<Checkpoint, Error> {
    let body = CheckpointCreate { name: Some(name), ..CheckpointCreate::default() };
    call.app.create_checkpoint(caller, call.id()?, body, None).await
}

/// The checkpoint of that id or name, once it can be used.
async fn ready(call: &Call, caller: &Caller, wanted: &str) -> Result<Checkpoint, Error> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let all = call.app.list_checkpoints(caller, call.id()?).await?;
        let found = all.iter().find(|each| each.id == wanted || each.name == wanted);
        match found {
            Some(found) if found.status != "processing" || Instant::now() > deadline => {
                return Ok(found.clone());
            }
            Some(_) => tokio::time::sleep(LOOK_EVERY).await,
            None => {
                let names: Vec<String> = all
                    .iter()
                    .take(20)
                    .map(|each| format!("{} ({})", text::name(&each.name), each.id))
                    .collect();
                let there_are = match names.len() {
                    0 => "it has none; sandbox_checkpoint takes one".to_owned(),
                    _ => format!("it has {}", names.join(", ")),
                };
                return Err(Error::not_found(format!("the sandbox has no such checkpoint; {there_are}")));
            }
        }
    }
}

fn parse(id: &str) -> Result<CheckpointId, Error> {
    id.parse().map_err(|_| Error::internal("a checkpoint has an id that is none"))
}

/// Names of checkpoints are unique in a sandbox.
fn generated_name(kind: &str) -> String {
    format!("{kind}-{}-{:04x}", Timestamp::now().as_second(), rand::random::<u16>())
}
