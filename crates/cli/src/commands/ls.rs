//! `warren ls`.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;
use warren_api::sandboxes::Sandbox;
use warren_types::SandboxState;

use crate::client::ListFilter;
use crate::context::Context;
use crate::output::{Table, human_age, human_bytes, pairs, printable};
use crate::words::Pair;

#[derive(Args)]
pub(crate) struct LsArgs {
    /// Only those in this state; repeatable
    #[arg(long, short, value_name = "STATUS", value_delimiter = ',', value_parser = parse_status)]
    status: Vec<SandboxState>,
    /// Only those with this tag; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    tag: Vec<Pair>,
    /// Only those with this metadata; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    metadata: Vec<Pair>,
    /// At most this many from the server at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: Option<u32>,
    /// All of them, however many there are
    #[arg(long, short)]
    all: bool,
}

fn parse_status(text: &str) -> Result<SandboxState, String> {
    text.parse().map_err(|_| "expected running, hibernated, stopped, error or creating".to_owned())
}

pub(crate) async fn run(context: &Context, args: LsArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let status: Vec<&str> = args.status.iter().map(|status| status.as_str()).collect();
    let tuple = |pair: Pair| (pair.key, pair.value);
    let filter = ListFilter {
        status: (!status.is_empty()).then(|| status.join(",")),
        tags: args.tag.into_iter().map(tuple).collect(),
        metadata: args.metadata.into_iter().map(tuple).collect(),
        limit: args.limit,
    };
    let mut page = client.list_sandboxes(&filter, None).await?;
    let (mut sandboxes, mut json) = (page.sandboxes, page.json);
    let mut next = page.next;
    while args.all
        && let Some(cursor) = next.take()
    {
        page = client.list_sandboxes(&filter, Some(&cursor)).await?;
        anyhow::ensure!(
            page.next.as_ref() != Some(&cursor),
            "the server's list does not end: it repeats a page"
        );
        sandboxes.extend(page.sandboxes);
        json.extend(page.json);
        next = page.next;
    }
    print(context, &sandboxes, json)?;
    if next.is_some() {
        context.output.note("there are more; --all lists them all");
    }
    Ok(ExitCode::SUCCESS)
}

fn print(context: &Context, sandboxes: &[Sandbox], json: Vec<Value>) -> anyhow::Result<()> {
    if context.output.json {
        return context.output.json(&Value::Array(json));
    }
    if context.output.quiet {
        let ids: String =
            sandboxes.iter().map(|sandbox| format!("{}\n", printable(&sandbox.sandbox_id))).collect();
        return context.output.write(ids.as_bytes());
    }
    if sandboxes.is_empty() {
        context.output.note("no sandboxes");
        return Ok(());
    }
    let mut table = Table::new(&["ID", "STATUS", "TEMPLATE", "CPU", "MEMORY", "ISOLATION", "AGE", "TAGS"]);
    for sandbox in sandboxes {
        table.row([
            sandbox.sandbox_id.clone(),
            sandbox.status.clone(),
            sandbox.template_id.clone(),
            sandbox.cpu_count.to_string(),
            human_bytes(u64::from(sandbox.memory_mb) << 20),
            sandbox.isolation.clone(),
            human_age(sandbox.started_at),
            pairs(&sandbox.tags),
        ]);
    }
    context.output.table(&table)
}
