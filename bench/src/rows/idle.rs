//! What sandboxes that do nothing hold and use.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::try_join_all;

use super::{Bench, Home};
use crate::process::{self, Table, Threads};
use crate::report::{Line, Unit, WARREN};

pub(super) const FIGURE: &str = "idle sandbox: its processes and its share of the server";
const KERNEL: &str = "idle sandbox: all memory the machine has less";
const CPU: &str = "idle sandboxes: CPU of all of them and the server";
/// Sandboxes made at the same time.
const AT_ONCE: usize = 8;
/// After the last was made: what was put off is done, caches are filled.
const REST: Duration = Duration::from_secs(3);

/// A moment before anything was made.
struct Before {
    /// Bytes of the server and its helpers.
    own: u64,
    available: u64,
}

/// What a number of idle machines cost.
struct Cost {
    number: usize,
    processes: usize,
    /// Bytes, in all.
    memory: u64,
    /// Bytes, in all; less than nothing when other work on the machine ended meanwhile.
    machine: f64,
    cpu: Duration,
    time: Duration,
}

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let home = bench.server.clone().context("no --server-pid was given")?;
    let before = Before::now(&home).await;
    let ids = make_sandboxes(bench).await?;
    let warren = Cost::of(&home, &before, &ids, bench.sizes.idle_time).await;
    let mut clients = vec![bench.warren.clone(); AT_ONCE];
    for ids in ids.chunks(AT_ONCE) {
        try_join_all(clients.iter_mut().zip(ids).map(|(client, id)| client.delete(id))).await?;
    }
    let [memory, machine, cpu] = warren.lines(WARREN);
    let mut lines = vec![
        memory.aim(50, true, 3.0).note(format!(
            "{} idle: shared pages counted by their share; the server and its helpers by what they grew",
            warren.number
        )),
        machine.note(
            "by MemAvailable, so with what the kernel keeps: namespaces, mounts, control groups, page tables",
        ),
        cpu.aim(50, true, 1.0).note(format!("over {} s, from the scheduler", warren.time.as_secs())),
    ];
    if bench.docker.is_ok() {
        match docker_cost(bench).await {
            Ok(docker) => {
                let each: Vec<Line> = docker
                    .lines("Docker")
                    .into_iter()
                    .zip(&lines)
                    .map(|(line, warren)| {
                        line.against(&warren.samples, 50, None)
                            .note(format!("{} idle containers", docker.number))
                    })
                    .collect();
                lines.extend(each);
            }
            Err(error) => lines.push(Line::skipped(FIGURE, "Docker", Unit::Megabytes, &format!("{error:#}"))),
        }
        // Figures together, Warren first.
        lines.sort_by_key(|line| [FIGURE, KERNEL, CPU].iter().position(|figure| *figure == line.figure));
    }
    Ok(lines)
}

async fn make_sandboxes(bench: &Bench) -> anyhow::Result<Vec<String>> {
    let mut clients = vec![bench.warren.clone(); AT_ONCE];
    let mut ids = Vec::new();
    while ids.len() < bench.sizes.idle {
        let more = bench.sizes.idle - ids.len();
        let made = try_join_all(clients.iter_mut().take(more).map(|client| async {
            let id = client.create().await?.id;
            // Used once, as any real one is before it idles.
            client.run(&id, "true").await?;
            anyhow::Ok(id)
        }));
        ids.extend(made.await?);
    }
    Ok(ids)
}

async fn docker_cost(bench: &mut Bench) -> anyhow::Result<Cost> {
    let docker = bench.docker.as_mut().map_err(|reason| anyhow::anyhow!(reason.clone()))?;
    let before = Before::now(&bench.docker_home).await;
    let mut ids = Vec::new();
    for _ in 0..bench.sizes.peer_idle {
        ids.push(docker.create().await?);
    }
    let time = bench.sizes.idle_time.min(Duration::from_secs(10));
    let cost = Cost::of(&bench.docker_home, &before, &ids, time).await;
    docker.delete_all().await?;
    Ok(cost)
}

// === impl Before ===

impl Before {
    async fn now(home: &Home) -> Self {
        rustix::fs::sync();
        tokio::time::sleep(REST).await;
        let own = Table::read().family(&home.pids, home.folder.as_deref());
        Self { own: process::memory(&own), available: process::meminfo("MemAvailable").unwrap_or_default() }
    }
}

// === impl Cost ===

impl Cost {
    async fn of(home: &Home, before: &Before, ids: &[String], idle: Duration) -> Self {
        rustix::fs::sync();
        tokio::time::sleep(REST).await;
        let table = Table::read();
        let inside = table.inside(ids);
        let own = table.family(&home.pids, home.folder.as_deref());
        let all: BTreeSet<u32> = inside.union(&own).copied().collect();
        let available = process::meminfo("MemAvailable").unwrap_or_default();
        let memory = process::memory(&all);
        let (begun, threads) = (Instant::now(), Threads::read(&all));
        tokio::time::sleep(idle).await;
        let cpu = Threads::read(&all).since(&threads);
        Self {
            number: ids.len(),
            processes: inside.len(),
            memory: memory.saturating_sub(before.own),
            machine: before.available as f64 - available as f64,
            cpu,
            time: begun.elapsed(),
        }
    }

    fn lines(&self, system: &str) -> [Line; 3] {
        let each = |bytes: f64| vec![bytes / 1e6 / self.number as f64];
        let cpu = self.cpu.as_secs_f64() / self.time.as_secs_f64() * 100.0;
        [
            Line::new(FIGURE, system, Unit::Megabytes, each(self.memory as f64)).note(format!(
                "{system}: {:.1} processes each inside",
                self.processes as f64 / self.number as f64
            )),
            Line::new(KERNEL, system, Unit::Megabytes, each(self.machine)),
            Line::new(CPU, system, Unit::Percent, vec![cpu]),
        ]
    }
}
