//! QEMU's own way of taking a machine: `savevm` and `loadvm`.
//!
//! A plain QEMU with Warren's kernel, initramfs and template and the same processor and memory. Its memory is its own and
//! its disk a qcow2, because that is what `savevm` writes to. Nobody talks to the agent inside.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};

use crate::template;

const PROGRAM: &str = "qemu-system-x86_64";
/// Of one call; `savevm` of a large machine takes seconds.
const DEADLINE: Duration = Duration::from_secs(60);
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// As Warren has it for machines that are emulated.
const PROCESSOR: &str = "qemu64,+cx16,+lahf-lm,+popcnt,+ssse3,+sse4.1,+sse4.2,+aes,+pclmulqdq,+rdrand,+movbe";
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=t tsc=reliable no_timer_check mitigations=off \
                            init_on_alloc=0 kfence.sample_interval=0 hardened_usercopy=off nowatchdog apparmor=0 audit=0 \
                            random.trust_cpu=on net.ifnames=0 -- machine";

/// What a machine is made of.
#[derive(Clone)]
pub(crate) struct Qemu {
    folder: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    template: PathBuf,
    /// The server's empty disks.
    blanks: PathBuf,
}

/// A machine that runs. Dropped, it is gone.
pub(crate) struct Machine {
    child: Child,
    answers: Lines<BufReader<OwnedReadHalf>>,
    calls: OwnedWriteHalf,
}

// === impl Qemu ===

impl Qemu {
    /// Finds what a Warren with that data directory makes its machines of. Machines are kept in `folder`, whose path must
    /// be short: it holds sockets.
    pub(crate) fn find(folder: &Path, data_dir: &Path) -> anyhow::Result<Self> {
        let cache = template::cache_of_machines();
        Ok(Self {
            folder: folder.to_owned(),
            kernel: newest(&cache.join("kernels"), "vmlinuz")?,
            initramfs: newest(&cache.join("initramfs"), "initramfs")?,
            template: template::newest()?,
            blanks: data_dir.join("volume").join("blanks"),
        })
    }

    /// What this is, in a few words.
    pub(crate) async fn describe() -> String {
        let output = Command::new(PROGRAM).arg("--version").output().await;
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
        version.map_or_else(|| "QEMU".to_owned(), |version| format!("QEMU {version}"))
    }

    /// Boots a machine; returns when the agent inside has come up.
    pub(crate) async fn boot(&self, memory_mb: u32) -> anyhow::Result<Machine> {
        std::fs::create_dir_all(&self.folder)?;
        let (socket, disk) = (self.folder.join("qmp"), self.folder.join("disk.qcow2"));
        let _ = std::fs::remove_file(&socket);
        self.make_disk(&disk).await?;
        let mut child = Command::new(PROGRAM)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", "q35,smbus=off,sata=off,vmport=off,graphics=off"])
            .args(["-accel", "tcg,thread=multi,tb-size=128", "-cpu", PROCESSOR, "-smp", "1"])
            .args(["-m", &format!("{memory_mb}M")])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", COMMAND_LINE])
            .args(["-chardev", "ringbuf,id=console,size=65536", "-serial", "chardev:console"])
            .arg("-chardev")
            .arg(format!("socket,id=agent,path={},server=on,wait=off", self.folder.join("agent").display()))
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=agent,name=warren.agent"])
            .arg("-drive")
            .arg(format!("if=virtio,format=raw,readonly=on,file={}", self.template.display()))
            .arg("-drive")
            .arg(format!("if=virtio,format=qcow2,discard=unmap,file={}", disk.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(self.folder.join("stderr"))?)
            .kill_on_drop(true)
            .spawn()
            .context("QEMU could not be started; install it with: apt-get install qemu-system-x86")?;
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(_) if begun.elapsed() < DEADLINE && child.try_wait()?.is_none() => {
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => {
                    let words = std::fs::read_to_string(self.folder.join("stderr")).unwrap_or_default();
                    return Err(error).with_context(|| format!("QEMU does not listen: {}", words.trim()));
                }
            }
        };
        let (answers, calls) = stream.into_split();
        let mut machine = Machine { child, answers: BufReader::new(answers).lines(), calls };
        machine.call("qmp_capabilities", &json!({})).await?;
        machine.come_up().await?;
        Ok(machine)
    }

    /// An empty disk as Warren gives one.
    async fn make_disk(&self, disk: &Path) -> anyhow::Result<()> {
        let blank = std::fs::read_dir(&self.blanks)
            .with_context(|| format!("could not list {}", self.blanks.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "img"))
            .context("the server has made no empty disk yet")?;
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .args([&blank, disk])
            .output()
            .await
            .context("qemu-img could not be started; install it with: apt-get install qemu-utils")?;
        ensure!(output.status.success(), "qemu-img: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

/// The newest file of that name one folder down.
fn newest(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("could not list {}", folder.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path().join(name))
        .filter_map(|path| Some((path.metadata().and_then(|metadata| metadata.modified()).ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .with_context(|| format!("no {name} in {}: start `warren serve` once", folder.display()))
}

// === impl Machine ===

impl Machine {
    /// Keeps it as it is under that name; how long it stood still, which is until `savevm` returns.
    pub(crate) async fn save(&mut self, name: &str) -> anyhow::Result<Duration> {
        self.order(&format!("savevm {name}")).await
    }

    /// Makes it again what was kept; how long until it runs on.
    pub(crate) async fn load(&mut self, name: &str) -> anyhow::Result<Duration> {
        self.order(&format!("loadvm {name}")).await
    }

    pub(crate) async fn forget(&mut self, name: &str) -> anyhow::Result<()> {
        self.order(&format!("delvm {name}")).await.map(drop)
    }

    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("QEMU could not be ended")
    }

    async fn come_up(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < BOOT_DEADLINE {
            let channels = self.call("query-chardev", &json!({})).await?;
            let channels = channels.as_array().map(Vec::as_slice).unwrap_or_default();
            if channels.iter().any(|one| one["label"] == "agent" && one["frontend-open"] == true) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("the machine was not up in {} s", BOOT_DEADLINE.as_secs())
    }

    /// A command for people: it says something only when it fails.
    async fn order(&mut self, command: &str) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let said = self.call("human-monitor-command", &json!({ "command-line": command })).await?;
        let taken = begun.elapsed();
        let said = said.as_str().unwrap_or_default().trim();
        ensure!(said.is_empty(), "{command}: {said}");
        Ok(taken)
    }

    async fn call(&mut self, name: &str, arguments: &Value) -> anyhow::Result<Value> {
        let line = format!("{}\n", json!({ "execute": name, "arguments": arguments }));
        self.calls.write_all(line.as_bytes()).await.context("QEMU has hung up")?;
        tokio::time::timeout(DEADLINE, async {
            loop {
                let line = self.answers.next_line().await?.context("QEMU has ended")?;
                let mut answer: Value = serde_json::from_str(&line).context("QEMU sent no JSON")?;
                if let Some(returned) = answer.get_mut("return") {
                    return Ok(returned.take());
                }
                // Anything else is a greeting or news.
                ensure!(answer.get("error").is_none(), "{name}: {}", answer["error"]["desc"]);
            }
        })
        .await
        .with_context(|| format!("{name}: no answer in {} s", DEADLINE.as_secs()))?
    }
}
