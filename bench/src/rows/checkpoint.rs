//! How long a sandbox stands still while its disk is taken, beside what copies the disk.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::{Bench, Clock, keep, milliseconds, peer_line};
use crate::docker::Docker;
use crate::report::{Line, Unit, WARREN};

pub(super) const FIGURE: &str = "checkpoint: pause, little written since the last";
const AFTER_WRITES: &str = "checkpoint: pause, 64 MiB written just before";
const DATABASE: &str = "checkpoint: pause, SQLite committing all the time";
const UNTIL_READY: &str = "checkpoint: asked until ready";
const WARM_UP: usize = 3;
const LITTLE: &str = "date > ~/little";
const MUCH: &str = "head -c 67108864 /dev/zero | tr '\\0' x > ~/much";
/// Commits one row after the other, each brought to the disk, and says after the first that it does.
const COMMITS: &str = r#"exec python3 -c '
import sqlite3
db = sqlite3.connect("/home/sandbox/db", isolation_level=None)
db.execute("create table t (n integer primary key, word text)")
while True:
    db.execute("insert into t (word) values (hex(randomblob(200)))")
'"#;
const CHECK: &str = r#"python3 -c '
import sqlite3
db = sqlite3.connect("/home/sandbox/db")
print(db.execute("pragma integrity_check").fetchone()[0], db.execute("select count(*) > 0 from t").fetchone()[0])
'"#;

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let sandbox = bench.warren.create().await?.id;
    let mut container = match &mut bench.docker {
        Ok(docker) => docker.create().await.map_err(|error| format!("{error:#}")),
        Err(reason) => Err(reason.clone()),
    };
    let measured = take_turns(bench, &sandbox, &mut container).await;
    bench.warren.delete(&sandbox).await?;
    if let (Ok(docker), Ok(container)) = (&mut bench.docker, &container) {
        docker.delete(container).await?;
    }
    let mut lines = measured?;
    lines.push(with_database(bench).await?);
    Ok(lines)
}

async fn take_turns(
    bench: &mut Bench,
    sandbox: &str,
    container: &mut Result<String, String>,
) -> anyhow::Result<Vec<Line>> {
    let bytes = bench.sizes.checkpoint_bytes;
    let fill = format!("head -c {bytes} /dev/urandom > ~/filled; sync");
    bench.warren.run(sandbox, &fill).await?;
    if let (Ok(docker), Ok(id)) = (&mut bench.docker, &*container) {
        docker.exec(id, &["sh", "-c", &fill], false).await?.drain().await?;
    }
    for _ in 0..WARM_UP {
        warren_once(bench, sandbox, LITTLE).await?;
    }
    let (mut little, mut much, mut ready) = (Vec::new(), Vec::new(), Vec::new());
    let clock = Clock::start(bench);
    for _ in 0..bench.sizes.checkpoints {
        let (pause, until_ready) = warren_once(bench, sandbox, LITTLE).await?;
        little.push(pause);
        ready.push(until_ready);
        if clock.is_over() {
            break;
        }
    }
    for _ in 0..bench.sizes.checkpoints.div_ceil(4) {
        much.push(warren_once(bench, sandbox, MUCH).await?.0);
    }
    let (mut commits, mut copies) = (Vec::new(), Vec::new());
    let mut copying = image_of(bench, sandbox);
    for _ in 0..bench.sizes.peer_checkpoints {
        if let (Ok(docker), Ok(id)) = (&mut bench.docker, &*container) {
            let measured = docker_once(docker, id).await.map(milliseconds);
            keep(container, &mut commits, measured);
        }
        if let Ok((image, copy)) = &copying {
            let measured = copy_once(image, copy).map(milliseconds);
            keep(&mut copying, &mut copies, measured);
        }
    }
    let unit = Unit::Milliseconds;
    let megabytes = bytes / 1_000_000;
    let little = Line::new(FIGURE, WARREN, unit, little).aim(50, true, 10.0).note(format!(
        "from the order to stand still to the order to go on, measured by the server; a disk of 20 GiB with {megabytes} MB on it"
    ));
    let commits = peer_line(FIGURE, "Docker commit", unit, container, commits)
        .against(&little.samples, 50, None)
        .note("Docker commit: the whole call, during which the container is paused");
    let copies = peer_line(FIGURE, "copy of the disk", unit, &copying, copies)
        .against(&little.samples, 50, None)
        .note(
            "copy of the disk: cp of what the image holds to the same drive, without waiting for the drive",
        );
    let much = Line::new(AFTER_WRITES, WARREN, unit, much);
    let ready = Line::new(UNTIL_READY, WARREN, unit, ready)
        .note("ready: on the drive, read to its end, with its digest");
    Ok(vec![little, commits, copies, much, ready])
}

/// Milliseconds: of the pause, and from asking until it is ready.
async fn warren_once(bench: &mut Bench, sandbox: &str, write: &str) -> anyhow::Result<(f64, f64)> {
    let warren = &mut bench.warren;
    warren.run(sandbox, write).await?;
    let begun = Instant::now();
    let taken = warren.checkpoint(sandbox, "bench").await?;
    warren.wait_checkpoint(sandbox, &taken.id).await?;
    let ready = milliseconds(begun.elapsed());
    warren.delete_checkpoint(sandbox, &taken.id).await?;
    Ok((taken.pause, ready))
}

async fn docker_once(docker: &mut Docker, id: &str) -> anyhow::Result<Duration> {
    docker.exec(id, &["sh", "-c", LITTLE], false).await?.drain().await?;
    let begun = Instant::now();
    let image = docker.commit(id).await?;
    let taken = begun.elapsed();
    docker.delete_image(&image).await?;
    Ok(taken)
}

/// The sandbox's image, and where a copy of it can be.
fn image_of(bench: &Bench, sandbox: &str) -> Result<(std::path::PathBuf, std::path::PathBuf), String> {
    let folder =
        bench.server.as_ref().and_then(|home| home.folder.as_ref()).ok_or("no --data-dir was given")?;
    let found =
        ["volume/sandboxes", "sandboxes"].map(|place| folder.join(place).join(sandbox).join("disk.img"));
    let image = found.into_iter().find(|image| image.exists()).ok_or("the sandbox's image was not found")?;
    Ok((image, folder.join("bench-copy.img")))
}

fn copy_once(image: &Path, copy: &Path) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let status = Command::new("cp")
        .args(["--reflink=never", "--sparse=always"])
        .args([image, copy])
        .stdin(Stdio::null())
        .status()
        .context("could not start cp")?;
    let taken = begun.elapsed();
    let _ = std::fs::remove_file(copy);
    ensure!(status.success(), "cp ended with {status}");
    Ok(taken)
}

/// A sandbox in which a database commits; the last of its checkpoints must hold a whole one.
async fn with_database(bench: &mut Bench) -> anyhow::Result<Line> {
    let sandbox = bench.warren.create().await?.id;
    let measured = with_database_in(bench, &sandbox).await;
    bench.warren.delete(&sandbox).await?;
    Ok(Line::new(DATABASE, WARREN, Unit::Milliseconds, measured?)
        .aim(50, true, 10.0)
        .note("a row a commit, each brought to the disk; a fork of the last checkpoint passes SQLite's integrity check"))
}

async fn with_database_in(bench: &mut Bench, sandbox: &str) -> anyhow::Result<Vec<f64>> {
    let warren = &mut bench.warren;
    let _writing = warren.start_command(sandbox, COMMITS).await?;
    warren.run(sandbox, "until [ -s ~/db ]; do sleep 0.05; done; sleep 0.5").await?;
    let mut pauses = Vec::new();
    for number in 0..bench.sizes.checkpoints {
        let taken = warren.checkpoint(sandbox, &format!("bench {number}")).await?;
        pauses.push(taken.pause);
        warren.wait_checkpoint(sandbox, &taken.id).await?;
        if number + 1 == bench.sizes.checkpoints {
            let fork = warren.fork(&taken.id).await?;
            let whole = warren.run(&fork, CHECK).await;
            warren.delete(&fork).await?;
            ensure!(whole? == "ok 1\n", "the database of a fork is damaged");
        }
        warren.delete_checkpoint(sandbox, &taken.id).await?;
    }
    Ok(pauses)
}
