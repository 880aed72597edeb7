//! `runc run` of one command on the template: what an OCI runtime alone costs, without a daemon or a disk of its own.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

pub(crate) struct Runc {
    bundle: PathBuf,
    state: PathBuf,
    count: u32,
}

// === impl Runc ===

impl Runc {
    /// Prepares a bundle in `folder` whose root is `rootfs`, read-only.
    pub(crate) fn new(folder: &Path, rootfs: &Path) -> anyhow::Result<Self> {
        let (bundle, state) = (folder.join("bundle"), folder.join("state"));
        std::fs::create_dir_all(&bundle).with_context(|| format!("could not make {}", bundle.display()))?;
        let output = Command::new("runc").arg("spec").current_dir(&bundle).output();
        let output = output.context("runc could not be started; install it with: apt-get install runc")?;
        ensure!(output.status.success(), "runc spec: {}", String::from_utf8_lossy(&output.stderr).trim());
        let path = bundle.join("config.json");
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(&path)?).context("runc spec wrote no JSON")?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["echo", "hi"]);
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        config["root"] = json!({ "path": rootfs, "readonly": true });
        std::fs::write(&path, config.to_string())?;
        Ok(Self { bundle, state, count: 0 })
    }

    /// What this is, in a few words.
    pub(crate) fn describe() -> String {
        let output = Command::new("runc").arg("--version").output();
        let output =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        output.lines().next().map_or_else(|| "runc".to_owned(), |line| line.replace(" version", ""))
    }

    /// Runs `echo hi` in a new container; how long until its output came.
    pub(crate) fn run(&mut self) -> anyhow::Result<Duration> {
        self.count += 1;
        let name = format!("warren-bench-{}-{}", std::process::id(), self.count);
        let begun = Instant::now();
        let mut child = Command::new("runc")
            .arg("--root")
            .arg(&self.state)
            .args(["run", "--bundle"])
            .arg(&self.bundle)
            .arg(&name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("could not start runc")?;
        let mut line = String::new();
        let output = child.stdout.take().context("runc has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let taken = begun.elapsed();
        let output = child.wait_with_output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && line == "hi\n", "runc run: {} {}", output.status, words.trim());
        Ok(taken)
    }
}
