//! `warren templates ls`.

use std::process::ExitCode;

use clap::Subcommand;

use crate::context::Context;
use crate::output::{Table, printable};

#[derive(Subcommand)]
pub(crate) enum TemplatesCommand {
    /// List what `create --template` takes: base, and the snapshots
    Ls,
}

pub(crate) async fn run(context: &Context, command: TemplatesCommand) -> anyhow::Result<ExitCode> {
    let TemplatesCommand::Ls = command;
    let answer = context.client()?.list_templates().await?;
    let output = context.output;
    if output.json {
        output.json(&answer.json)?;
    } else if output.quiet {
        let ids: String =
            answer.value.iter().map(|one| format!("{}\n", printable(&one.template_id))).collect();
        output.write(ids.as_bytes())?;
    } else {
        let mut table = Table::new(&["TEMPLATE", "NEWEST", "STATUS"]);
        for one in &answer.value {
            table.row([one.template_id.clone(), one.tag.clone(), one.status.clone()]);
        }
        output.table(&table)?;
    }
    Ok(ExitCode::SUCCESS)
}
