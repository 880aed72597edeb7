//! `warren execs ls|attach|kill`: commands that were started before.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use warren_types::{ExecId, SandboxId};

use crate::commands::exec::{PassedOn, follow};
use crate::context::Context;
use crate::exec_stream::ExecStream;
use crate::output::{Table, human_age, printable};
use crate::words::parse_signal;

#[derive(Subcommand)]
pub(crate) enum ExecsCommand {
    /// List the commands of a sandbox, finished ones for some minutes
    Ls { id: SandboxId },
    /// Follow a command to its end, from its recent output on
    Attach(AttachArgs),
    /// Send a signal to a command
    Kill {
        id: SandboxId,
        /// As `execs ls` shows it
        #[arg(value_name = "SID")]
        exec: ExecId,
        /// Name or number; KILL also ends what the command started
        #[arg(long, short, default_value = "KILL", value_parser = parse_signal)]
        signal: i32,
    },
}

#[derive(Args)]
pub(crate) struct AttachArgs {
    id: SandboxId,
    /// As `execs ls` shows it
    #[arg(value_name = "SID")]
    exec: ExecId,
    /// Start at this byte of the output [default: the newest 1 MiB]
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
    /// Send our stdin to the command; where it ends, the command's ends
    #[arg(long, short = 'i')]
    stdin: bool,
}

pub(crate) async fn run(context: &Context, command: ExecsCommand) -> anyhow::Result<ExitCode> {
    match command {
        ExecsCommand::Ls { id } => list(context, &id).await,
        ExecsCommand::Attach(args) => attach(context, args).await,
        ExecsCommand::Kill { id, exec, signal } => {
            context.client()?.kill_exec(&id, &exec, signal).await?;
            context.output.note(&format!("sent signal {signal} to {exec}"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn attach(context: &Context, args: AttachArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let input = if args.stdin { Some(crate::stdin::read_stdin()?) } else { None };
    let names = (&args.id, &args.exec);
    let stream = ExecStream::new(&client, context.output, names, args.offset, input);
    follow(&client, context.output, names, stream, PassedOn::interrupt()?).await
}

async fn list(context: &Context, id: &SandboxId) -> anyhow::Result<ExitCode> {
    let answer = context.client()?.list_execs(id).await?;
    if context.output.json {
        context.output.json(&answer.json)?;
    } else if context.output.quiet {
        let ids: String =
            answer.value.iter().map(|exec| format!("{}\n", printable(&exec.session_id))).collect();
        context.output.write(ids.as_bytes())?;
    } else if answer.value.is_empty() {
        context.output.note("no commands");
    } else {
        let mut table = Table::new(&["SID", "STATUS", "AGE", "CLIENTS", "COMMAND"]);
        for exec in answer.value {
            let status = match exec.exit_code {
                _ if exec.running => "running".to_owned(),
                Some(code) => format!("exit {code}"),
                None => "ended".to_owned(),
            };
            let words: Vec<&str> =
                std::iter::once(&exec.command).chain(&exec.args).map(String::as_str).collect();
            table.row([
                exec.session_id,
                status,
                human_age(exec.started_at),
                exec.attached_clients.to_string(),
                words.join(" "),
            ]);
        }
        context.output.table(&table)?;
    }
    Ok(ExitCode::SUCCESS)
}
