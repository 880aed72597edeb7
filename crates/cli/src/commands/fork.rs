//! `warren fork CHECKPOINT`.

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use warren_api::checkpoints::Fork;
use warren_types::CheckpointId;

use crate::context::Context;
use crate::output::{human_bytes, printable};
use crate::words::{Pair, map_of};

#[derive(Args)]
pub(crate) struct ForkArgs {
    /// As `checkpoint create` and `checkpoint ls` print it
    checkpoint: CheckpointId,
    /// Memory in MiB; at least what the checkpoint had
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Seconds without use after which it hibernates; 0 = never [default: 0]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Environment variable over those of the checkpoint; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    env: Vec<Pair>,
    /// Metadata over that of the checkpoint; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    metadata: Vec<Pair>,
    /// Name of a secret store: its secrets become variables with sealed tokens, its list narrows what may be reached
    #[arg(long, value_name = "NAME")]
    secret_store: Option<String>,
    /// A host it may reach, like example.com or *.example.com, and none but those that are allowed; repeatable
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,
    /// Makes the command repeatable: the same key gives the same sandbox
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

pub(crate) async fn run(context: &Context, args: ForkArgs) -> anyhow::Result<ExitCode> {
    let body = Fork {
        timeout: args.timeout.map(i64::from),
        envs: map_of(args.env),
        metadata: map_of(args.metadata),
        memory_mb: args.memory.map(i64::from),
        secret_store: args.secret_store,
        egress_allowlist: (!args.allow_host.is_empty()).then_some(args.allow_host),
        ..Fork::default()
    };
    let begun = Instant::now();
    let client = context.client()?;
    let answer = client.fork_checkpoint(&args.checkpoint, &body, args.idempotency_key.as_deref()).await?;
    let sandbox = &answer.value;
    context.output.made("sandbox", &sandbox.sandbox_id, &sandbox.sandbox_id, &answer.json)?;
    context.output.note(&printable(&format!(
        "{} in {} ms: {} vCPU, {}",
        sandbox.status,
        begun.elapsed().as_millis(),
        sandbox.cpu_count,
        human_bytes(u64::from(sandbox.memory_mb) << 20),
    )));
    if let Some(token) = &sandbox.preview_auth_token {
        context.output.note(&printable(&format!("preview token, shown this once: {token}")));
    }
    if let Some(error) = &sandbox.patch_error {
        context.output.warn(&printable(error));
    }
    Ok(ExitCode::SUCCESS)
}
