//! `warren agent run`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::begin::{Beginning, abandon, new_token};
use super::{server_of, tasks};
use crate::agent::kinds::{Kind, Task};
use crate::agent::launch::ModelKey;
use crate::agent::outside::{Outside, ready};
use crate::agent::program::Program;
use crate::agent::run::finish::{self, Wanted};
use crate::agent::run::headless::Signals;
use crate::agent::run::prepare::delete_checkpoint;
use crate::agent::run::record::Run;
use crate::agent::run::turn::{Became, Turn, Word};
use crate::agent::run::{Ended, TIMED_OUT, keys, session};
use crate::agent::tree::cache;
use crate::client::Client;
use crate::context::Context;
use crate::failure::{DETACHED, LOST, usage};
use crate::output::{Output, printable};
use crate::words::{Pair, parse_duration};

const AFTER: &str = "\
The folder goes into a sandbox without what .gitignore names; the agent works on that copy, and what it changed comes back as a
patch. Nothing here is written without --apply, and then only over what went in: what was changed here meanwhile is merged, or said.

The exit code is the agent's; 124 when its time was up, 130 when it was stopped, 4 for conflicts and for files that could not come back.

Examples:
  warren agent run \"fix the failing test\" --agent claude-code --apply
  warren agent run --command \"aider --yes\" --image python:3.13
  warren agent run --agent codex --tasks tasks.toml --parallel 4 --budget 1h";

#[derive(Args)]
#[command(after_help = AFTER)]
pub(crate) struct RunArgs {
    /// What to do. Without one, on a terminal, the agent asks
    prompt: Option<String>,
    /// The agent: claude-code, codex or opencode
    #[arg(long, value_name = "KIND", required_unless_present = "command", conflicts_with = "command")]
    agent: Option<Kind>,
    /// It runs in the sandbox, which is the default
    #[arg(long, requires = "agent", conflicts_with = "outside")]
    inside: bool,
    /// It runs on this machine, with its own tools off and those of the sandbox instead
    #[arg(long, requires = "agent", conflicts_with_all = ["tasks", "key", "secret_store"])]
    outside: bool,
    /// Model, as the agent calls it
    #[arg(long, requires = "agent")]
    model: Option<String>,
    /// Any other: a command for /bin/sh, the prompt becomes its last word
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    /// Folder to work on [default: this one]
    #[arg(long, value_name = "PATH", default_value = ".", hide_default_value = true)]
    dir: PathBuf,
    #[command(flatten)]
    pub(super) machine: MachineArgs,
    #[command(flatten)]
    pub(super) own: OwnArgs,
    /// Write what changed here
    #[arg(long, conflicts_with = "tasks")]
    apply: bool,
    /// Show what changed as a diff; the default, and with --apply or --patch-file besides
    #[arg(long, conflicts_with = "tasks")]
    diff: bool,
    /// Write what changed to a file that `git apply` takes
    #[arg(long, value_name = "FILE", conflicts_with = "tasks")]
    patch_file: Option<PathBuf>,
    /// Bring back ignored files too
    #[arg(long)]
    pub(super) include_ignored: bool,
    /// Keep the sandbox, asleep
    #[arg(long)]
    pub(super) keep: bool,
    /// How long the agent may work, like 30m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) timeout: Option<u32>,
    #[command(flatten)]
    pub(super) tasks: tasks::TasksArgs,
    /// More arguments for the agent
    #[arg(last = true, requires = "agent", value_name = "ARGS")]
    arguments: Vec<String>,
}

/// What the tree and its machine are.
#[derive(Args)]
pub(crate) struct MachineArgs {
    /// Image to start from: one of a registry, or a manifest (.json)
    #[arg(long, value_name = "IMAGE")]
    pub(super) image: Option<String>,
    /// Snapshot to start from
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    pub(super) snapshot: Option<String>,
    /// vCPUs: 1, 2 or 4
    #[arg(long, value_name = "N")]
    pub(super) cpu: Option<u32>,
    /// Memory in MiB: 1024, 4096, 8192 or 16384
    #[arg(long, value_name = "MIB")]
    pub(super) memory: Option<u32>,
    /// Disk in MiB
    #[arg(long, value_name = "MIB")]
    pub(super) disk: Option<u32>,
    /// What keeps it apart from the host: container or vm
    #[arg(long, value_name = "KIND")]
    pub(super) isolation: Option<String>,
    /// Leave the repository's history here
    #[arg(long)]
    pub(super) no_git: bool,
    /// Largest file that goes in, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(super) max_file_mb: u64,
    /// Send the whole tree, and look the image up again
    #[arg(long)]
    pub(super) fresh: bool,
}

#[derive(Args)]
pub(crate) struct OwnArgs {
    /// Environment variable; repeatable. Others in the sandbox can read it: for keys there is --key
    #[arg(long, short, value_name = "KEY=VALUE")]
    pub(super) env: Vec<Pair>,
    /// A secret store of yours, with the keys the agent needs
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    pub(super) secret_store: Option<String>,
    /// A variable here that holds a key. It stays outside and is put into requests to these hosts; repeatable
    #[arg(long, value_name = "ENV[=HOST,HOST]", value_parser = keys::parse)]
    pub(super) key: Vec<ModelKey>,
    /// A host it may reach, and none but those that are allowed; repeatable
    #[arg(long, value_name = "HOST")]
    pub(super) allow_host: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: RunArgs) -> anyhow::Result<ExitCode> {
    let output = context.output;
    let client = context.client()?;
    let server = server_of(context)?;
    let program = match (&args.agent, &args.command) {
        (Some(kind), _) if args.outside => Program::Outside(*kind),
        (Some(kind), _) => {
            Program::Kind { kind: *kind, model: args.model.clone(), arguments: args.arguments.clone() }
        }
        (None, Some(command)) => Program::Command(command.clone()),
        (None, None) => return Err(usage("say which agent: --agent or --command")),
    };
    let root = args.dir.canonicalize().with_context(|| format!("could not read {}", args.dir.display()))?;
    if args.tasks.file.is_some() {
        return tasks::run(context, &args, &client, (&server, &root), &program).await;
    }
    let wanted = Wanted {
        apply: args.apply,
        show: args.diff || !args.apply && args.patch_file.is_none(),
        patch_file: args.patch_file.clone(),
    };
    wanted.check()?;
    let has_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let launch =
        program.launch(args.prompt.as_deref(), args.prompt.is_none() && has_terminal && !output.json)?;
    let mut signals = Signals::catch()?;
    let beginning =
        Beginning { client: &client, output, args: &args, server: &server, root: &root, program: &program };
    let token = new_token()?;
    let begun = tokio::select! {
        begun = beginning.begin(&launch, &token) => begun?,
        code = signals.any() => {
            output.note("\nnothing was begun; ending what was made for it");
            tokio::select! {
                () = abandon(&client, &token) => {}
                _ = signals.any() => {}
            }
            return Ok(ExitCode::from(code));
        }
    };
    if let Program::Outside(kind) = program {
        let task =
            Task { prompt: args.prompt.as_deref(), model: args.model.as_deref(), arguments: &args.arguments };
        let (sandbox, folder) = (begun.sandbox()?, begun.record.folder.clone());
        let timeout = args.timeout.map(|seconds| Duration::from_secs(seconds.into()));
        let outside = Outside { kind, sandbox: &sandbox, folder: &folder, task, timeout };
        let ready = match ready(context, &outside).await {
            Ok(ready) => ready,
            Err(error) => {
                let _ = finish::kill(&client, &begun.sandbox()?).await;
                begun.forget();
                return Err(error);
            }
        };
        let ended = match ready.work(output).await {
            Ok(ended) if ended.code == TIMED_OUT => Ended::TimedOut,
            Ok(ended) => Ended::Exit(ended.code.into()),
            Err(error) => {
                let mut begun = begun;
                keep_for_later(&client, output, &mut begun).await?;
                return Err(error);
            }
        };
        // Those of its time are dealt with.
        let turn = Turn::of(&begun)?;
        return bring_home(&client, output, begun, &turn, ended, &wanted, &mut Signals::catch()?).await;
    }
    follow(&client, output, begun, launch.prompt_on_stdin.as_deref(), &wanted, &mut signals).await
}

/// Follows a run to its end, and brings home what changed.
pub(super) async fn follow(
    client: &Client,
    output: Output,
    run: Run,
    prompt: Option<&str>,
    wanted: &Wanted,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let turn = Turn::of(&run)?;
    let followed = session::follow(client, output, &run, &turn, prompt, signals).await;
    let ended = match (turn.became(&run), followed) {
        (Became::Gone(word), followed) => {
            output.note(&said_of_gone(&word));
            let code = word.code.or_else(|| followed.ok().map(Ended::code)).unwrap_or(LOST);
            return Ok(ExitCode::from(code));
        }
        (Became::Paused, _) => {
            let id = &run.record.sandbox;
            output.note(&format!("\nit was paused: `warren agent resume {id}` wakes it, `warren agent attach {id}` goes on with it, `warren agent patch {id}` shows what it did so far"));
            return Ok(ExitCode::from(DETACHED));
        }
        // Its sandbox may be gone with our connection.
        (Became::Ended(code), Ok(Ended::Left(LOST)) | Err(_)) => Ended::Exit(code.into()),
        (_, followed) => followed?,
    };
    bring_home(client, output, run, &turn, ended, wanted, signals).await
}

fn said_of_gone(word: &Word) -> String {
    if word.text.is_empty() {
        "its record was removed meanwhile".to_owned()
    } else {
        printable(&word.text).into_owned()
    }
}

async fn bring_home(
    client: &Client,
    output: Output,
    mut run: Run,
    turn: &Turn,
    ended: Ended,
    wanted: &Wanted,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    if let Ended::Left(code) = ended {
        finish::say_left(output, &run);
        return Ok(ExitCode::from(code));
    }
    match ended {
        Ended::TimedOut => output.note("its time was up; what it did so far is kept"),
        Ended::Exit(code) if code != 0 => output.note(&format!("it ended with {code}")),
        _ => {}
    }
    let waits = || output.note("another command brings its work home; waiting for that");
    tokio::select! {
        () = turn.take(waits) => {}
        code = signals.any() => {
            finish::say_left(output, &run);
            return Ok(ExitCode::from(code));
        }
    }
    match turn.became(&run) {
        Became::Gone(word) => {
            output.note(&said_of_gone(&word));
            return Ok(ExitCode::from(ended.code()));
        }
        Became::Goes | Became::Paused | Became::Ended(_) => {}
    }
    run.record.ended = Some(ended.code());
    run.save()?;
    let bringing = async {
        if output.json {
            let event = json!({"type": "ended", "sandbox": run.record.sandbox, "exitCode": ended.code(), "timedOut": ended == Ended::TimedOut});
            output.line(&event.to_string())?;
        }
        let changes = finish::brought(client, &run).await?;
        finish::deliver(client, output, &run, changes, wanted).await
    };
    let brought = tokio::select! {
        brought = bringing => brought,
        code = signals.any() => {
            finish::end_keys(client, &mut run).await;
            run.save()?;
            let id = &run.record.sandbox;
            output.note(&format!("\nthe work is kept in {id}: `warren agent patch {id}` shows it, `warren agent rm {id}` ends it"));
            return Ok(ExitCode::from(if code == DETACHED { DETACHED } else { code }));
        }
    };
    let finished = match brought {
        Ok(finished) => finished,
        Err(error) => {
            if let Became::Gone(word) = turn.became(&run) {
                output.note(&said_of_gone(&word));
                return Ok(ExitCode::from(ended.code()));
            }
            keep_for_later(client, output, &mut run).await?;
            return Err(error);
        }
    };
    finish::clean_up(client, output, &mut run, turn, &finished).await?;
    sweep(client, output, &run.record.server).await;
    Ok(ExitCode::from(match ended.code() {
        0 => finished.code(),
        code => code,
    }))
}

/// The program has ended and its work could not be brought home.
async fn keep_for_later(client: &Client, output: Output, run: &mut Run) -> anyhow::Result<()> {
    finish::end_keys(client, run).await;
    run.save()?;
    // Its next use wakes it.
    let _ = client.hibernate_sandbox(&run.sandbox()?).await;
    let id = &run.record.sandbox;
    output.note(&format!(
        "the work is kept in {id}: `warren agent patch {id}` brings it, `warren agent rm {id}` ends it"
    ));
    Ok(())
}

/// Takes away what earlier runs left. It is no part of this run: what fails here is tried by the next.
pub(super) async fn sweep(client: &Client, output: Output, server: &str) {
    let quietly = Output::new(output.json, true);
    if let Err(error) = keys::sweep(client).await {
        quietly.note(&format!("{error:#}"));
    }
    for tree in cache::forget_unused(server) {
        delete_checkpoint(client, &tree).await;
    }
    for run in Run::all(server).into_iter().filter(Run::is_old) {
        let Ok(sandbox) = run.sandbox() else { continue };
        if client.get_sandbox(&sandbox).await.is_ok_and(|sandbox| sandbox.value.status == "stopped") {
            run.forget();
        }
    }
}
