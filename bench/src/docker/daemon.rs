//! A Docker of our own: containerd and dockerd with everything below one temporary folder.
//!
//! A Docker that runs on this machine is not touched: other sockets, other data, other bridge, no packet filter rules,
//! no change of forwarding. Stopped by process id, dockerd first; what it left mounted is detached.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::Docker;
use crate::rows::Home;

const START_LIMIT: Duration = Duration::from_secs(40);
const STOP_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
/// At most 15 characters; ours alone.
const BRIDGE: &str = "warren-bench0";
/// From the block that is set aside for measuring networks.
const BRIDGE_ADDRESS: &str = "198.18.213.1/24";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Parent of our containers' control groups.
const CGROUP: &str = "warren-bench";

pub(crate) struct Daemon {
    folder: PathBuf,
    containerd: Child,
    dockerd: Child,
    network: Network,
}

/// What containers are attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// A bridge of our own, without packet filter rules.
    Bridge,
    None,
}

// === impl Daemon ===

impl Daemon {
    /// Starts both below `folder`, whose path must be short: it holds sockets.
    pub(crate) async fn start(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
        let containerd_socket = folder.join("c.sock");
        std::fs::write(folder.join("containerd.toml"), containerd_config(folder, &containerd_socket))?;
        std::fs::write(folder.join("daemon.json"), "{}")?;
        let network = if make_bridge() { Network::Bridge } else { Network::None };

        let mut containerd = logged("containerd", folder)?;
        let mut containerd = containerd
            .arg("--config")
            .arg(folder.join("containerd.toml"))
            .spawn()
            .context("containerd could not be started; install it with: apt-get install docker.io")?;
        wait_for("containerd", folder, &mut containerd, || containerd_socket.exists()).await?;

        let mut failed = None;
        for driver in ["overlay2", "vfs"] {
            let mut dockerd = spawn_dockerd(folder, &containerd_socket, driver, network)?;
            let socket = Self::socket_in(folder);
            match wait_for("dockerd", folder, &mut dockerd, || socket.exists()).await {
                Ok(()) => {
                    let daemon = Self { folder: folder.to_owned(), containerd, dockerd, network };
                    Docker::wait_ready(&socket, START_LIMIT).await?;
                    return Ok(daemon);
                }
                Err(error) => failed = Some(error),
            }
            end("dockerd", &mut dockerd).await;
        }
        end("containerd", &mut containerd).await;
        drop_bridge(network);
        Err(failed.context("no storage driver to try")?)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        Self::socket_in(&self.folder)
    }

    fn socket_in(folder: &Path) -> PathBuf {
        folder.join("d.sock")
    }

    pub(crate) fn network(&self) -> Network {
        self.network
    }

    pub(crate) fn home(&self) -> Home {
        let pids = [self.dockerd.id(), self.containerd.id()].into_iter().flatten().collect();
        Home { pids, folder: Some(self.folder.clone()) }
    }

    /// Ends both. Containers must have been removed before.
    pub(crate) async fn stop(mut self) {
        end("dockerd", &mut self.dockerd).await;
        end("containerd", &mut self.containerd).await;
        drop_bridge(self.network);
        detach_below(&self.folder);
        drop_cgroups();
    }
}

fn containerd_config(folder: &Path, socket: &Path) -> String {
    let folder = folder.display();
    format!(
        "version = 2\nroot = \"{folder}/containerd\"\nstate = \"{folder}/containerd-state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{}\"\n",
        socket.display()
    )
}

fn spawn_dockerd(
    folder: &Path,
    containerd_socket: &Path,
    driver: &str,
    network: Network,
) -> anyhow::Result<Child> {
    let mut command = logged("dockerd", folder)?;
    command
        .arg(format!("--host=unix://{}", Daemon::socket_in(folder).display()))
        .arg("--config-file")
        .arg(folder.join("daemon.json"))
        .arg("--data-root")
        .arg(folder.join("data"))
        .arg("--exec-root")
        .arg(folder.join("exec"))
        .arg("--pidfile")
        .arg(folder.join("d.pid"))
        .arg("--containerd")
        .arg(containerd_socket)
        .args(["--storage-driver", driver, "--iptables=false", "--ip-forward=false", "--ip-masq=false"])
        .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
        .arg(format!("--cgroup-parent=/{CGROUP}"));
    match network {
        Network::Bridge => command.args(["--bridge", BRIDGE]),
        Network::None => command.arg("--bridge=none"),
    };
    command.spawn().context("dockerd could not be started; install it with: apt-get install docker.io")
}

/// A program that writes to a log in `folder` and does not outlive us.
fn logged(program: &str, folder: &Path) -> anyhow::Result<Command> {
    let log = File::options().create(true).append(true).open(log_of(folder, program))?;
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    // An interrupt from the terminal is for us; they end in order, after their containers.
    command.process_group(0);
    Ok(command)
}

fn log_of(folder: &Path, program: &str) -> PathBuf {
    folder.join(format!("{program}.log"))
}

async fn wait_for(
    program: &str,
    folder: &Path,
    child: &mut Child,
    ready: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !ready() {
        if let Some(status) = child.try_wait()? {
            bail!("{program} ended with {status}: {}", last_line(&log_of(folder, program)));
        }
        if begun.elapsed() > START_LIMIT {
            bail!("{program} was not ready in {} s", START_LIMIT.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("it wrote nothing").to_owned()
}

/// Asks a process to end, and makes it when it does not.
async fn end(program: &str, child: &mut Child) {
    let asked = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
        .is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
    let ended = asked && tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_ok();
    if !ended && let Err(error) = child.kill().await {
        eprintln!("could not end {program}: {error}");
    }
}

/// A bridge that only our containers are on. False when this machine cannot have one.
fn make_bridge() -> bool {
    drop_bridge(Network::Bridge);
    ip(&["link", "add", BRIDGE, "type", "bridge"])
        && ip(&["address", "add", BRIDGE_ADDRESS, "dev", BRIDGE])
        && ip(&["link", "set", BRIDGE, "up"])
}

fn drop_bridge(network: Network) {
    if network == Network::Bridge {
        ip(&["link", "delete", BRIDGE]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    std::process::Command::new("ip").args(arguments).output().is_ok_and(|output| output.status.success())
}

/// Removes the empty parent groups, in one tree or in each of version 1's. One that is in use stays.
fn drop_cgroups() {
    let trees = std::fs::read_dir(CGROUP_ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    for tree in trees.chain([PathBuf::from(CGROUP_ROOT)]) {
        if let Err(error) = std::fs::remove_dir(tree.join(CGROUP))
            && error.kind() != std::io::ErrorKind::NotFound
            && error.kind() != std::io::ErrorKind::NotADirectory
        {
            eprintln!("could not remove the control group {CGROUP} in {}: {error}", tree.display());
        }
    }
}

/// Detaches what is still mounted below a folder, innermost first.
fn detach_below(folder: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut below: Vec<&Path> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(Path::new)
        .filter(|path| path.starts_with(folder))
        .collect();
    below.sort();
    for path in below.into_iter().rev() {
        if let Err(error) = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("could not unmount {}: {error}", path.display());
        }
    }
}
