//! Images: from a snapshot to the first output of a command, builds that find nearly all or all of their steps done, and the
//! import of an image of a registry. The last, and what ten sandboxes share, is measured by a program of the end-to-end suites,
//! because it has the registry and the images.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Bench, Clock, SETTLE, milliseconds};
use crate::report::{Line, Unit, WARREN};
use crate::samples::Samples;

pub(super) const FIGURE: &str = "create from a snapshot to first output";
const MACHINE: &str = "machine from a snapshot to first output";
const REBUILD: &str = "build with the last of five steps changed, less that step";
const AGAIN: &str = "identical build again";
const WARM_UP: usize = 3;
/// Machines are slow where they are emulated.
const MACHINES: usize = 10;
const MACHINE_MEMORY: u32 = 1024;
const BUILDS: usize = 30;
const DEADLINE: Duration = Duration::from_secs(15 * 60);
const SAY: &str = "cat ~/said";

/// One system's values, as the program prints them.
#[derive(Deserialize)]
struct Measured {
    figure: String,
    system: String,
    unit: String,
    values: Vec<f64>,
    notes: Vec<String>,
    /// Aim for Warren's value over this one's.
    limit: Option<f64>,
}

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let mut lines = creates(bench, false).await?;
    lines.extend(builds(bench).await?);
    lines.extend(creates(bench, true).await.unwrap_or_else(|error| {
        vec![Line::skipped(MACHINE, "Warren machines", Unit::Milliseconds, &format!("{error:#}"))]
    }));
    lines.extend(elsewhere(bench).await.unwrap_or_else(|error| {
        vec![Line::skipped("import of an image", WARREN, Unit::Milliseconds, &format!("{error:#}"))]
    }));
    Ok(lines)
}

/// Five steps; the last one is different each time.
fn manifest(last: usize) -> Value {
    let run = |command: String| json!({ "type": "run", "args": { "commands": [command] } });
    json!({ "base": "base", "steps": [
        run("echo hi > ~/said".to_owned()),
        run("head -c 20000000 /dev/urandom > ~/filled".to_owned()),
        json!({ "type": "env", "args": { "vars": { "A": "1" } } }),
        run("mkdir -p ~/a/b && seq 1 1000 > ~/a/b/numbers".to_owned()),
        run(last_step(last)),
    ] })
}

fn last_step(last: usize) -> String {
    format!("echo {last} > ~/last")
}

/// Plain creates and those from a snapshot, in turns.
async fn creates(bench: &mut Bench, machines: bool) -> anyhow::Result<Vec<Line>> {
    let name = if machines { "bench-machine" } else { "bench" };
    let isolation = if machines { "vm" } else { "container" };
    let mut image = manifest(0);
    if machines {
        // One of another size would be booted, or have memory taken from it first.
        image["runtimeMemoryMB"] = MACHINE_MEMORY.into();
    }
    bench.warren.build(name, &image, isolation).await?;
    let measured = take_turns(bench, name, machines).await;
    bench.warren.delete_snapshot(name).await?;
    let (plain, from_snapshot) = measured?;
    let unit = Unit::Milliseconds;
    let figure = if machines { MACHINE } else { FIGURE };
    let line = Line::new(figure, WARREN, unit, from_snapshot).note("create, exec, to the exit code");
    let plain = Line::new(figure, "Warren create", unit, plain).against(&line.samples, 50, Some(1.1));
    Ok(vec![line, plain])
}

async fn take_turns(bench: &mut Bench, name: &str, machines: bool) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (mut plain, mut from_snapshot) = (Vec::new(), Vec::new());
    let clock = Clock::start(bench);
    let (warm_up, count) = if machines { (1, MACHINES) } else { (WARM_UP, bench.sizes.forks) };
    for round in 0..warm_up + count {
        let begun = Instant::now();
        let id = if machines {
            bench.warren.create_machine(MACHINE_MEMORY).await?
        } else {
            bench.warren.create().await?.id
        };
        let one = say(bench, &id, "echo hi", begun).await?;
        let begun = Instant::now();
        let memory = machines.then_some(MACHINE_MEMORY);
        let id = bench.warren.create_from(name, memory).await?;
        let two = say(bench, &id, SAY, begun).await?;
        if round >= warm_up {
            plain.push(milliseconds(one));
            from_snapshot.push(milliseconds(two));
        }
        if clock.is_over() {
            break;
        }
    }
    Ok((plain, from_snapshot))
}

async fn say(bench: &mut Bench, id: &str, command: &str, begun: Instant) -> anyhow::Result<Duration> {
    let output = bench.warren.run(id, command).await;
    let taken = begun.elapsed();
    bench.warren.delete(id).await?;
    ensure!(output? == "hi\n", "`{command}` in {id} said something else");
    tokio::time::sleep(SETTLE).await;
    Ok(taken)
}

async fn builds(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let name = "bench-builds";
    let warren = &mut bench.warren;
    warren.build(name, &manifest(0), "container").await?;
    let sandbox = warren.create().await?.id;
    let (mut rebuilt, mut again) = (Vec::new(), Vec::new());
    let count = bench.sizes.rounds.max(2) * BUILDS / 3;
    for round in 1..=count {
        let begun = Instant::now();
        warren.run(&sandbox, &last_step(round)).await?;
        let step = begun.elapsed();
        let begun = Instant::now();
        warren.build(name, &manifest(round), "container").await?;
        rebuilt.push(milliseconds(begun.elapsed().saturating_sub(step)));
        let begun = Instant::now();
        warren.build(name, &manifest(round), "container").await?;
        again.push(milliseconds(begun.elapsed()));
    }
    warren.delete(&sandbox).await?;
    warren.delete_snapshot(name).await?;
    let unit = Unit::Milliseconds;
    let rebuilt = Line::new(REBUILD, WARREN, unit, rebuilt)
        .aim(50, true, 150.0)
        .note("the whole call, less what the same command takes as an exec in a sandbox that runs");
    Ok(vec![rebuilt, Line::new(AGAIN, WARREN, unit, again).aim(50, true, 20.0)])
}

async fn elsewhere(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/e2e");
    let python = root.join(".venv/bin/python");
    ensure!(python.exists(), "there is no {}; tests/e2e/run makes it", python.display());
    let program = std::env::current_exe()?.with_file_name("warren");
    let mut command = tokio::process::Command::new(&python);
    command
        .args(["-m", "images.measure"])
        .current_dir(&root)
        .env("WARREN_BIN", program)
        .env("WARREN_URL", "http://127.0.0.1:9")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    if bench.sizes.is_quick() {
        command.arg("--quick");
    }
    let output = tokio::time::timeout(DEADLINE, command.output()).await.context("it took too long")??;
    ensure!(output.status.success(), "images.measure ended with {}", output.status);
    let measured: Vec<Measured> =
        serde_json::from_slice(&output.stdout).context("images.measure sent no lines")?;
    Ok(lines(measured))
}

/// Of each figure the first is Warren's, and what the others stand against.
fn lines(measured: Vec<Measured>) -> Vec<Line> {
    let mut first: Option<(String, Samples)> = None;
    let mut lines = Vec::new();
    for one in measured {
        let unit = if one.unit == "MB" { Unit::Megabytes } else { Unit::Milliseconds };
        let mut line = Line::new(&one.figure, &one.system, unit, one.values);
        match &first {
            Some((figure, warren)) if *figure == one.figure => {
                line = line.against(warren, 50, one.limit);
            }
            _ => first = Some((one.figure.clone(), line.samples.clone())),
        }
        lines.push(one.notes.into_iter().fold(line, Line::note));
    }
    lines
}
