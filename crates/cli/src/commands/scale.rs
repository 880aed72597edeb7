//! `warren scale ID …`.

use std::process::ExitCode;

use clap::Args;
use warren_api::scaling::AutoscaleChange;
use warren_types::SandboxId;

use crate::context::Context;
use crate::output::human_bytes;

#[derive(Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct ScaleArgs {
    id: SandboxId,
    /// Memory in MiB: 1024, 4096, 8192 or 16384; the vCPUs follow. Ends --auto
    #[arg(value_name = "MIB", conflicts_with_all = ["auto", "no_auto", "lock", "unlock"])]
    memory: Option<u32>,
    /// Let it scale by itself, between --min and --max
    #[arg(long, conflicts_with_all = ["no_auto", "lock", "unlock"])]
    auto: bool,
    /// Smallest memory in MiB it may scale to
    #[arg(long, value_name = "MIB", requires = "auto")]
    min: Option<u32>,
    /// Largest memory in MiB it may scale to
    #[arg(long, value_name = "MIB", requires = "auto")]
    max: Option<u32>,
    /// No longer let it scale by itself
    #[arg(long, conflicts_with_all = ["lock", "unlock"])]
    no_auto: bool,
    /// Forbid scaling, by hand and by itself
    #[arg(long, conflicts_with = "unlock")]
    lock: bool,
    /// Allow it again
    #[arg(long)]
    unlock: bool,
}

pub(crate) async fn run(context: &Context, args: ScaleArgs) -> anyhow::Result<ExitCode> {
    let (client, id) = (context.client()?, &args.id);
    let (json, said) = if let Some(memory) = args.memory {
        let answer = client.scale(id, memory).await?;
        let (memory, percent) = (answer.value.memory_mb, answer.value.cpu_percent);
        let mut said =
            format!("{id} has {} and {} vCPU", human_bytes(u64::from(memory) << 20), percent / 100);
        if answer.value.autoscale_disabled {
            said.push_str("; it no longer scales by itself");
        }
        (answer.json, said)
    } else if args.lock || args.unlock {
        let answer = client.set_scaling_lock(id, args.lock).await?;
        let said = if answer.value.locked { "is locked to its size" } else { "may be scaled" };
        (answer.json, format!("{id} {said}"))
    } else {
        let answer = if args.auto || args.no_auto {
            let body = AutoscaleChange {
                enabled: Some(args.auto),
                min_memory_mb: args.min.map(i64::from),
                max_memory_mb: args.max.map(i64::from),
            };
            client.set_autoscale(id, &body).await?
        } else {
            client.get_autoscale(id).await?
        };
        let bytes = |memory: u32| human_bytes(u64::from(memory) << 20);
        let said = match answer.value.enabled {
            true => format!(
                "{id} scales by itself, from {} to {}",
                bytes(answer.value.min_memory_mb),
                bytes(answer.value.max_memory_mb)
            ),
            false => format!("{id} does not scale by itself"),
        };
        (answer.json, said)
    };
    if context.output.json {
        context.output.json(&json)?;
    }
    context.output.note(&said);
    Ok(ExitCode::SUCCESS)
}
