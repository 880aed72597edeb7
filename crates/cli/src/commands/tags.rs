//! `warren tags ID`: shows tags, or changes some and leaves the others.
//!
//! The API replaces all tags at once, so a change is a read and a write; two changes at the same moment may undo each other.

use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use crate::context::Context;
use crate::output::Table;
use crate::words::Pair;

#[derive(Args)]
pub(crate) struct TagsArgs {
    id: SandboxId,
    /// Tags to set
    #[arg(value_name = "KEY=VALUE")]
    set: Vec<Pair>,
    /// A tag to remove; repeatable
    #[arg(long, short, value_name = "KEY")]
    remove: Vec<String>,
    /// Remove all tags first
    #[arg(long, conflicts_with = "remove")]
    clear: bool,
}

pub(crate) async fn run(context: &Context, args: TagsArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let mut answer = client.get_tags(&args.id).await?;
    if args.clear || !args.set.is_empty() || !args.remove.is_empty() {
        let mut tags = answer.value.tags;
        if args.clear {
            tags.clear();
        }
        tags.retain(|key, _| !args.remove.contains(key));
        tags.extend(args.set.into_iter().map(|pair| (pair.key, pair.value)));
        answer = client.set_tags(&args.id, &tags).await?;
    }
    if context.output.json {
        context.output.json(&answer.json)?;
    } else if answer.value.tags.is_empty() {
        context.output.note("no tags");
    } else {
        let mut table = Table::new(&["KEY", "VALUE"]);
        for (key, value) in answer.value.tags {
            table.row([key, value]);
        }
        context.output.table(&table)?;
    }
    Ok(ExitCode::SUCCESS)
}
