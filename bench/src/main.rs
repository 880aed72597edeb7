//! `warren-bench`: Warren's figures beside other systems' in one run, as one table.
//!
//! Measures a server that runs already; `bench/run` starts one for it. Starts its own Docker and makes its own folders
//! below `--work`, and ends and removes all of it, also when interrupted. Never judges by exit code whether a figure is
//! good: it fails only when Warren could not be measured.

mod docker;
mod frames;
mod http;
mod machine;
mod process;
mod qemu;
mod report;
mod rows;
mod runc;
mod samples;
mod template;
mod trace;
mod warren;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Parser, ValueEnum as _};
use tokio::signal::unix::{SignalKind, signal};

use docker::Docker;
use docker::daemon::Daemon;
use machine::Machine;
use qemu::Qemu;
use report::{Report, Style};
use rows::{Bench, Home, Peer, Row, Sizes};
use runc::Runc;
use template::Mounted;
use trace::Trace;
use warren::Warren;

#[derive(Parser)]
#[command(about = "Measures Warren and other systems in one run on this machine and prints one table")]
struct Args {
    /// The server's address
    #[arg(long, value_name = "HOST:PORT")]
    server: SocketAddr,
    /// The API key
    #[arg(long, value_name = "KEY", env = "OPENCOMPUTER_API_KEY", hide_env_values = true)]
    api_key: String,
    /// The server's process id; without it its memory cannot be measured
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// The server's data directory; helpers that name it are counted with the server
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The root file system for the others, an image [default: the newest in Warren's template cache]
    #[arg(long, value_name = "IMAGE")]
    template: Option<PathBuf>,
    /// Where the others keep their files while they are measured; a short path on the disk Warren uses
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work: PathBuf,
    /// Only these rows
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROW,…")]
    only: Vec<Row>,
    /// Smaller numbers, less time
    #[arg(long)]
    quick: bool,
    /// Measure Warren alone
    #[arg(long)]
    no_peers: bool,
    /// Print the table as Markdown
    #[arg(long)]
    markdown: bool,
    /// Also write everything, each value included, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also print where the time of a create goes
    #[arg(long)]
    trace: bool,
}

/// The other systems while they are measured.
struct Others {
    docker: Peer<Docker>,
    daemon: Option<Daemon>,
    runc: Peer<Runc>,
    qemu: Peer<Qemu>,
    // After the programs that use it.
    _template: Option<Mounted>,
}

// One thread, so that an answer wakes nobody but who waits for it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let work = tempfile::Builder::new().prefix("wb-").tempdir_in(&args.work);
    let work = work.with_context(|| format!("could not make a folder in {}", args.work.display()))?;
    let mut others = tokio::select! {
        others = Others::start(&args, work.path()) => others,
        _ = interrupt.recv() => return Ok(ExitCode::FAILURE),
        _ = terminate.recv() => return Ok(ExitCode::FAILURE),
    };
    let report = tokio::select! {
        report = measure(&args, &mut others) => Some(report),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    others.stop().await;
    let Some(report) = report else { return Ok(ExitCode::FAILURE) };
    let report = report?;
    if let Some(path) = &args.json {
        let text = serde_json::to_vec(&report.json())?;
        std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))?;
    }
    let mut text = report.text(if args.markdown { Style::Markdown } else { Style::Plain });
    if args.trace {
        text.push('\n');
        text.push_str(&report.trace.text());
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn measure(args: &Args, others: &mut Others) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let mut systems = vec![format!("Warren {}", env!("CARGO_PKG_VERSION"))];
    match &mut others.docker {
        Ok(docker) => systems.push(docker.describe().await?),
        Err(reason) => systems.push(format!("no Docker ({reason})")),
    }
    systems.push(match &others.runc {
        Ok(_) => Runc::describe(),
        Err(reason) => format!("no runc ({reason})"),
    });
    systems.push(match &others.qemu {
        Ok(_) => Qemu::describe().await,
        Err(reason) => format!("no QEMU ({reason})"),
    });
    let take = |reason: &str| Err(reason.to_owned());
    let mut bench = Bench {
        warren: Warren::new(args.server, &args.api_key)?,
        docker: others.docker.clone(),
        docker_home: others.daemon.as_ref().map(Daemon::home).unwrap_or_default(),
        runc: std::mem::replace(&mut others.runc, take("in use")),
        qemu: others.qemu.clone(),
        server: args.server_pid.map(|pid| Home { pids: vec![pid], folder: args.data_dir.clone() }),
        sizes: if args.quick { Sizes::quick() } else { Sizes::full() },
        trace: Trace::default(),
    };
    let mut report = Report {
        machine,
        begun: jiff::Timestamp::now(),
        systems,
        lines: Vec::new(),
        trace: Trace::default(),
        quick: args.quick,
    };
    for row in Row::value_variants().iter().filter(|row| args.only.is_empty() || args.only.contains(row)) {
        let begun = Instant::now();
        progress(&format!("measuring: {}", row.title().0));
        report.lines.extend(row.measure(&mut bench).await);
        progress(&format!("          {:.0} s", begun.elapsed().as_secs_f64()));
        // A peer that failed in one row gets another chance in the next.
        bench.docker = others.docker.clone();
    }
    report.trace = bench.trace;
    Ok(report)
}

// === impl Others ===

impl Others {
    /// Starts what can be started; what cannot has its reason.
    async fn start(args: &Args, work: &Path) -> Self {
        let needed = |rows: &[Row]| {
            !args.no_peers && (args.only.is_empty() || rows.iter().any(|row| args.only.contains(row)))
        };
        let mut others = Self {
            docker: Err("left out".to_owned()),
            daemon: None,
            runc: Err("left out".to_owned()),
            qemu: Err("left out".to_owned()),
            _template: None,
        };
        if args.no_peers {
            return others;
        }
        if needed(&[Row::Machine]) {
            let folder = work.join("qemu");
            let found = args.data_dir.as_ref().ok_or("without --data-dir there is no disk for it".to_owned());
            others.qemu = found
                .and_then(|data_dir| Qemu::find(&folder, data_dir).map_err(|error| format!("{error:#}")));
        }
        let image = args.template.clone().map_or_else(template::newest, Ok);
        let template = match image.and_then(|image| Mounted::new(&image, work.join("root"))) {
            Ok(template) => template,
            Err(error) => {
                let reason = format!("{error:#}");
                return Self { docker: Err(reason.clone()), runc: Err(reason), ..others };
            }
        };
        if needed(&[Row::Create]) {
            others.runc =
                Runc::new(&work.join("runc"), template.path()).map_err(|error| format!("{error:#}"));
        }
        progress("starting Docker and giving it the template");
        match start_docker(&work.join("docker"), template.path()).await {
            Ok((docker, daemon)) => {
                others.docker = Ok(docker);
                others.daemon = Some(daemon);
            }
            Err(error) => others.docker = Err(format!("{error:#}")),
        }
        others._template = Some(template);
        others
    }

    async fn stop(mut self) {
        if let Ok(docker) = &mut self.docker
            && let Err(error) = docker.delete_all().await
        {
            progress(&format!("containers are left: {error:#}"));
        }
        if let Some(daemon) = self.daemon.take() {
            daemon.stop().await;
        }
    }
}

async fn start_docker(folder: &Path, root: &Path) -> anyhow::Result<(Docker, Daemon)> {
    let daemon = Daemon::start(folder).await?;
    let mut docker = Docker::new(&daemon.socket(), daemon.network());
    match docker.import(root).await {
        Ok(()) => Ok((docker, daemon)),
        Err(error) => {
            daemon.stop().await;
            Err(error.context("docker could not import the template"))
        }
    }
}

fn progress(what: &str) {
    eprintln!("{what}");
}
