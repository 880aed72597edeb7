//! `warren completions SHELL`.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::args::Cli;
use crate::context::Context;

#[derive(Args)]
#[command(
    after_help = "Example: warren completions bash > ~/.local/share/bash-completion/completions/warren"
)]
pub(crate) struct CompletionsArgs {
    shell: Shell,
}

pub(crate) fn run(context: &Context, args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "warren", &mut script);
    context.output.write(&script)?;
    Ok(ExitCode::SUCCESS)
}
