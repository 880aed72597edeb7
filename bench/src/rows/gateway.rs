//! What the egress gateway adds to a request and takes from a transfer. A program of the end-to-end suites does the
//! measuring, because it has the small internet that this needs, and a server that asks it for names.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use super::Bench;
use crate::report::{Line, Unit, WARREN};
use crate::samples::Samples;

pub(super) const FIGURE: &str = "HTTPS request with a secret, kept-alive";
const DEADLINE: Duration = Duration::from_secs(15 * 60);
const DIRECT: &str = "direct";
const MITMPROXY: &str = "mitmproxy";

/// One system's values, as the program prints them.
#[derive(Deserialize)]
struct Measured {
    figure: String,
    system: String,
    unit: String,
    values: Vec<f64>,
    notes: Vec<String>,
}

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/e2e");
    let python = root.join(".venv/bin/python");
    ensure!(python.exists(), "there is no {}; tests/e2e/run makes it", python.display());
    let program = std::env::current_exe()?.with_file_name("warren");
    let mut command = tokio::process::Command::new(&python);
    command
        .args(["-m", "egress.measure"])
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
    if let Some(mitmdump) = mitmdump() {
        command.arg("--mitmdump").arg(mitmdump);
    }
    let output = tokio::time::timeout(DEADLINE, command.output()).await.context("it took too long")??;
    ensure!(output.status.success(), "egress.measure ended with {}", output.status);
    let measured: Vec<Measured> =
        serde_json::from_slice(&output.stdout).context("egress.measure sent no lines")?;
    lines(measured)
}

fn lines(measured: Vec<Measured>) -> anyhow::Result<Vec<Line>> {
    let mut lines: Vec<Line> = Vec::new();
    for one in measured {
        let unit = match one.unit.as_str() {
            "ms" => Unit::Milliseconds,
            "MB/s" => Unit::Speed,
            _ => Unit::Megabytes,
        };
        let warren = lines.iter().find(|line| line.figure == one.figure && line.system == WARREN);
        let warren = warren.map(|line| line.samples.clone());
        let mut line = Line::new(&one.figure, &one.system, unit, one.values);
        line = match (unit, warren) {
            (_, Some(warren)) => line.against(&warren, 50, None),
            (Unit::Megabytes, None) => line.aim(50, true, 20.0),
            (Unit::Milliseconds, None) if one.figure != FIGURE => line.aim(50, true, 10.0),
            _ => line,
        };
        lines.push(one.notes.into_iter().fold(line, Line::note));
    }
    let added = added(&lines);
    lines.splice(lines.len().min(4)..lines.len().min(4), added);
    Ok(lines)
}

/// What is added to the direct request: quantiles of one less the same of the other, as each pair of values of that rank.
fn added(lines: &[Line]) -> Option<Line> {
    let find = |system| lines.iter().find(|line| line.figure == FIGURE && line.system == system);
    let less = |line: &Line, direct: &Line| -> Samples {
        (1..=100)
            .filter_map(|percent| {
                Some(line.samples.percentile(percent)? - direct.samples.percentile(percent)?)
            })
            .collect()
    };
    let (warren, direct) = (find(WARREN)?, find(DIRECT)?);
    let ours = less(warren, direct);
    let mut line =
        Line::new("added by the gateway to that request", WARREN, Unit::Milliseconds, ours.values().to_vec())
            .aim(50, true, 1.0)
            .aim(99, true, 5.0)
            .note("differences of the quantiles of the two, rank by rank");
    if let Some(theirs) =
        find(MITMPROXY).map(|line| less(line, direct)).and_then(|theirs| theirs.percentile(50))
    {
        let ratio = ours.percentile(50).unwrap_or_default() / theirs;
        line = line.note(format!("mitmproxy adds {theirs:.2} ms: ours is {ratio:.3} of it, the aim 1/20"));
    }
    Some(line)
}

/// The peer, if it is installed: in `WARREN_BENCH_MITMDUMP`, or in the path.
fn mitmdump() -> Option<PathBuf> {
    let named = std::env::var_os("WARREN_BENCH_MITMDUMP").map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&paths).map(|folder| folder.join("mitmdump")).find(|path| path.exists());
    named.or(found)
}
