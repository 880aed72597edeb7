//! `warren checkpoint create|ls|rm|restore|publish|unpublish|patch`.

mod patch;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use warren_api::checkpoints::{Checkpoint, CheckpointCreate, RetentionPolicy};
use warren_types::{CheckpointId, SandboxId};

use crate::client::{Answer, Client};
use crate::context::Context;
use crate::failure;
use crate::output::{Table, human_age, human_bytes, printable};

/// Between two looks at a checkpoint that is being made.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Subcommand)]
pub(crate) enum CheckpointCommand {
    /// Take a checkpoint of a sandbox and print its id
    Create(CreateArgs),
    /// List the checkpoints of a sandbox, newest first
    Ls(OfSandbox),
    /// Delete checkpoints; what was made from them stays
    Rm(RmArgs),
    /// Put a sandbox back to one of its checkpoints
    Restore(OneArgs),
    /// Let every organisation fork a checkpoint
    Publish(PublicArgs),
    /// Take that back
    Unpublish(PublicArgs),
    /// Scripts that run in every sandbox made from a checkpoint
    #[command(subcommand)]
    Patch(patch::PatchCommand),
}

#[derive(Args)]
pub(crate) struct CreateArgs {
    id: SandboxId,
    /// Unique among the sandbox's checkpoints [default: the idempotency key, or the time]
    name: Option<String>,
    #[arg(long, value_enum, default_value_t = Kind::Full)]
    kind: Kind,
    /// Delete the oldest of this kind once the new one is ready, so that this many are left
    #[arg(long, value_name = "N")]
    keep: Option<u32>,
    /// Do not wait until it is ready; it is captured all the same
    #[arg(long)]
    no_wait: bool,
    /// Makes the command repeatable: the same key gives the same checkpoint
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// All that the sandbox's isolation can hold; `ls` says what that is
    Full,
    /// The disk alone
    DiskOnly,
}

#[derive(Args)]
pub(crate) struct OfSandbox {
    id: SandboxId,
}

#[derive(Args)]
pub(crate) struct RmArgs {
    id: SandboxId,
    #[arg(required = true, value_name = "CHECKPOINT")]
    checkpoints: Vec<CheckpointId>,
}

#[derive(Args)]
pub(crate) struct OneArgs {
    id: SandboxId,
    checkpoint: CheckpointId,
}

#[derive(Args)]
pub(crate) struct PublicArgs {
    checkpoint: CheckpointId,
}

pub(crate) async fn run(context: &Context, command: CheckpointCommand) -> anyhow::Result<ExitCode> {
    match command {
        CheckpointCommand::Create(args) => create(context, args).await?,
        CheckpointCommand::Ls(args) => list(context, &args.id).await?,
        CheckpointCommand::Rm(args) => return remove(context, args).await,
        CheckpointCommand::Restore(args) => restore(context, args).await?,
        CheckpointCommand::Publish(args) => publish(context, &args.checkpoint, true).await?,
        CheckpointCommand::Unpublish(args) => publish(context, &args.checkpoint, false).await?,
        CheckpointCommand::Patch(command) => patch::run(context, command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    // Not the time when there is a key: the command would be another one each time.
    let name = args.name.or_else(|| args.idempotency_key.clone());
    let now = || jiff::Timestamp::now().strftime("%Y-%m-%d-%H%M%S%.3f").to_string();
    let body = CheckpointCreate {
        name: Some(name.unwrap_or_else(now)),
        kind: match args.kind {
            Kind::Full => None,
            Kind::DiskOnly => Some("disk_only".to_owned()),
        },
        promote_to_full: None,
        retention_policy: args.keep.map(|count| RetentionPolicy {
            mode: Some("delete_oldest".to_owned()),
            max_count: Some(i64::from(count)),
        }),
    };
    let begun = Instant::now();
    let mut answer = client.create_checkpoint(&args.id, &body, args.idempotency_key.as_deref()).await?;
    let captured = begun.elapsed();
    if !args.no_wait {
        answer = wait_until_made(&client, &args.id, answer).await?;
    }
    context.output.made("checkpoint", &answer.value.id, &answer.value.id, &answer.json)?;
    let made = &answer.value;
    let size =
        if made.size_bytes > 0 { format!(", {}", human_bytes(made.size_bytes)) } else { String::new() };
    let pause = made.pause_ms.map(|pause| format!(", the sandbox stood still for {pause:.1} ms"));
    context.output.note(&printable(&format!(
        "{}: captured in {} ms{}, {} in {} ms, holds the {}{size}",
        made.name,
        captured.as_millis(),
        pause.unwrap_or_default(),
        made.status,
        begun.elapsed().as_millis(),
        made.holds,
    )));
    if made.consistency.as_deref() == Some("crash") {
        context.output.warn(
            "the sandbox did not come to rest in time: what was being written at that moment may be there in part",
        );
    }
    Ok(())
}

async fn wait_until_made(
    client: &Client,
    sandbox: &SandboxId,
    made: Answer<Checkpoint>,
) -> anyhow::Result<Answer<Checkpoint>> {
    let id = made.value.id.clone();
    let mut seen = made;
    while seen.value.status == "processing" {
        tokio::time::sleep(LOOK).await;
        let list = client.list_checkpoints(sandbox).await?;
        let place = list.value.iter().position(|one| one.id == id).context("the checkpoint was deleted")?;
        seen.json = list.json.get(place).cloned().unwrap_or_default();
        seen.value = list.value[place].clone();
    }
    if seen.value.status == "failed" {
        let why = seen.value.error_msg.as_deref().unwrap_or("the server gave no reason");
        anyhow::bail!("checkpoint {} failed: {}", printable(&id), printable(why));
    }
    Ok(seen)
}

async fn list(context: &Context, id: &SandboxId) -> anyhow::Result<()> {
    let answer = context.client()?.list_checkpoints(id).await?;
    let output = context.output;
    if output.json {
        return output.json(&answer.json);
    }
    if output.quiet {
        let ids: String = answer.value.iter().map(|one| format!("{}\n", printable(&one.id))).collect();
        return output.write(ids.as_bytes());
    }
    if answer.value.is_empty() {
        output.note("no checkpoints");
        return Ok(());
    }
    let mut table = Table::new(&["ID", "NAME", "STATUS", "HOLDS", "SIZE", "PUBLIC", "AGE"]);
    for one in &answer.value {
        table.row([
            one.id.clone(),
            one.name.clone(),
            one.status.clone(),
            one.holds.clone(),
            human_bytes(one.size_bytes),
            if one.is_public { "yes" } else { "-" }.to_owned(),
            human_age(one.created_at),
        ]);
    }
    output.table(&table)?;
    for one in answer.value.iter().filter(|one| one.status == "failed") {
        let why = one.error_msg.as_deref().unwrap_or("the server gave no reason");
        output.note(&printable(&format!("{} failed: {why}", one.name)));
    }
    Ok(())
}

async fn remove(context: &Context, args: RmArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let delete = async |checkpoint: &CheckpointId| client.delete_checkpoint(&args.id, checkpoint).await;
    failure::each(context.output, ("delete", "deleted"), &args.checkpoints, delete).await
}

/// Returns when the sandbox runs again, and not before: a script goes on with it right away.
async fn restore(context: &Context, args: OneArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let begun = Instant::now();
    let answer = client.restore_checkpoint(&args.id, &args.checkpoint).await?;
    // The next call to the sandbox waits for the end of the restore; a wake is one that changes nothing.
    let awake = client.wake_sandbox(&args.id, None).await;
    awake.context("it is being restored, but does not run again")?;
    if context.output.json {
        context.output.json(&answer.json)?;
    }
    context.output.note(&format!(
        "{} is back at {}, in {} ms",
        args.id,
        args.checkpoint,
        begun.elapsed().as_millis()
    ));
    Ok(())
}

async fn publish(context: &Context, id: &CheckpointId, public: bool) -> anyhow::Result<()> {
    let answer = context.client()?.publish_checkpoint(id, public).await?;
    if context.output.json {
        context.output.json(&answer.json)?;
    }
    context.output.note(&match answer.value.is_public {
        true => format!("{id} can be forked by every organisation that knows its id"),
        false => format!("{id} can be forked by its owner alone"),
    });
    Ok(())
}
