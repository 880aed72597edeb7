//! The `warren` program: the server and the commands that talk to one. A library, with `main.rs` a call to it: the compiler
//! then looks at it while it still generates the code of what it stands on.
//!
//! [`main`] is synchronous on purpose. The launcher must start before any thread exists, so it is looked for before
//! anything else; then the one TLS provider is installed, and only then is there a runtime.

mod agent;
mod archive;
mod args;
mod build_source;
mod build_view;
mod client;
mod commands;
mod config;
mod context;
mod endings;
mod exec_stream;
mod failure;
mod output;
mod progress;
mod registry_login;
mod retry;
mod search_path;
mod serve;
mod shell_stream;
mod stdin;
mod terminal;
mod words;
mod ws;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;

/// How long threads get to end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(1);

/// Runs the program with the arguments of this process; its exit code.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == "launcher") {
        let container = warren_runtime_container::Container::new();
        return warren_runtime::launcher::main(&[&container, &warren_runtime_vm::Vm]);
    }

    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are printed to stdout; a reader that has gone is no error.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    if cli.command.is_server_side() {
        search_path::complete();
    }
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            failure::report(&error);
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn run(cli: args::Cli) -> anyhow::Result<ExitCode> {
    // It fails only when a provider is installed already, and this is the first thing that would.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // A client does one thing at a time; threads would only make it start slower.
    let mut builder = if cli.command.is_server_side() {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.enable_all().build().context("could not start the async runtime")?;
    let result = runtime.block_on(args::run(cli));
    // Long enough for a thread to remove what it has not finished; a read of stdin may take for ever.
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    result
}
