//! A sandbox with the tree in it: forked from a checkpoint that has it, with what changed since.
//!
//! ```text
//!   remembered ──fork (meanwhile: scan)──▶ send what changed ──▶ ready
//!        │ none, gone, another image, too much changed
//!        ▼
//!   create ──▶ send everything ──▶ list ──▶ checkpoint ──▶ remember ──fork──▶ ready
//! ```
//!
//! The sandbox that the tree is first sent to is never the one that the program gets: so what is remembered holds neither keys nor
//! anything the program did.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use warren_api::checkpoints::{CheckpointCreate, Fork};
use warren_api::sandboxes::{Sandbox, SandboxCreate};
use warren_types::{CheckpointId, SandboxId};

use super::super::patch::collect::MAX_FILE;
use super::super::patch::listing;
use super::super::tree::cache::{self, Place, Tree};
use super::super::tree::{Difference, Manifest, Name, Scan, ScanOptions, scan};
use super::record::Delta;
use super::upload;
use crate::build_source::Source;
use crate::build_view::{BuildView, seconds};
use crate::client::Client;
use crate::failure::{Refused, hinted};
use crate::output::{Output, human_bytes, printable};

/// What changed is sent over the remembered tree up to here; beyond, it is sent whole and remembered anew.
const MAX_SENT: u64 = 256 << 20;
const MAX_CHANGED: usize = 5000;
/// What the tag of an image stands for is looked up again after this.
const TAG_HOLDS: Duration = Duration::from_hours(24);
/// Metadata of everything that one command makes, so that it can take it back.
pub(crate) const METADATA_TOKEN: &str = "warren.agent.run";
/// Seconds without use after which the sandbox that a tree is sent to sleeps.
const ABANDONED: i64 = 600;
const LOOK: Duration = Duration::from_millis(30);

/// The machine, before anything is run in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine {
    pub(crate) image: Option<String>,
    pub(crate) snapshot: Option<String>,
    /// Steps that install the program.
    pub(crate) install: Vec<Value>,
    pub(crate) cpu: Option<u32>,
    pub(crate) memory: Option<u32>,
    pub(crate) disk: Option<u32>,
    pub(crate) isolation: Option<String>,
}

/// What is different for each sandbox of one tree.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own {
    pub(crate) envs: BTreeMap<String, String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) secret_store: Option<String>,
    pub(crate) allow_host: Vec<String>,
}

/// A tree that is on the server, and how it is different here.
pub(crate) struct Prepared {
    pub(crate) place: Place,
    pub(crate) tree: Tree,
    pub(crate) scan: Arc<Scan>,
    pub(crate) difference: Difference,
    /// Where it is in sandboxes.
    pub(crate) folder: String,
    /// A fork that was made while the tree was looked at.
    ready: Mutex<Option<SandboxId>>,
}

pub(crate) struct Preparing<'a> {
    pub(crate) client: &'a Client,
    pub(crate) output: Output,
    pub(crate) server: &'a str,
    pub(crate) root: &'a Path,
    pub(crate) options: &'a ScanOptions,
    pub(crate) machine: &'a Machine,
    pub(crate) fresh: bool,
}

impl Preparing<'_> {
    /// `own`: for the first sandbox, which is forked right away.
    pub(crate) async fn prepare(&self, own: &Own) -> anyhow::Result<Prepared> {
        let begun = Instant::now();
        let folder = format!("/workspace/{}", folder_name(self.root));
        let scanning = tokio::task::spawn_blocking({
            let (root, options) = (self.root.to_owned(), self.options.clone());
            move || scan(&root, &options)
        });
        let machine = self.machine;
        let version = self.version().await?;
        let key = json!([
            self.server,
            self.root,
            machine.image,
            machine.snapshot,
            machine.install,
            machine.cpu,
            machine.memory,
            machine.disk,
            machine.isolation,
            self.options.git,
            version
        ])
        .to_string();
        let place = tokio::task::spawn_blocking(move || Place::lock(&[&key]))
            .await
            .context("the lock was lost")??;
        let loaded = place.load();
        let before = loaded.as_ref().map(|(tree, _)| tree.clone());
        let known =
            loaded.filter(|(tree, _)| !self.fresh && tree.folder == self.root && self.is_current(&place));
        let mut ready = None;
        if let Some((tree, _)) = &known {
            ready = self.try_fork(tree, own).await?;
        }
        let scan = Arc::new(scanning.await.context("the scanning thread failed")??);
        for left_out in scan.left_out.iter().take(20) {
            self.output.note(&format!("left out: {}", printable(left_out)));
        }
        if let (Some((tree, manifest)), Some(fork)) = (&known, &ready) {
            let difference = manifest.difference(&scan);
            if difference.bytes <= MAX_SENT && difference.send.len() + difference.remove.len() <= MAX_CHANGED
            {
                place.touch();
                return Ok(Prepared {
                    place,
                    tree: tree.clone(),
                    scan,
                    difference,
                    folder,
                    ready: Mutex::new(ready),
                });
            }
            let _ = self.client.kill_sandbox(fork).await;
        }
        let tree = self.send_whole(&place, &scan, &folder, before, own).await?;
        self.output.note(&format!(
            "{} in {} files went in, in {}; the next run sends only what changed",
            human_bytes(scan.bytes()),
            scan.entries.len(),
            seconds(begun.elapsed())
        ));
        Ok(Prepared { place, tree, scan, difference: Difference::default(), folder, ready: Mutex::default() })
    }

    /// Which version of a snapshot a name stands for.
    async fn version(&self) -> anyhow::Result<Option<String>> {
        let Some(name) = &self.machine.snapshot else { return Ok(None) };
        let snapshot = self.client.get_snapshot(name).await?.value;
        Ok(Some(snapshot.id))
    }

    /// Whether the image is still what it was, as far as that is known here.
    fn is_current(&self, place: &Place) -> bool {
        let Some(image) = self.machine.image.as_deref().filter(|image| !image.contains("@sha256:")) else {
            return true;
        };
        // A manifest on this machine may have been changed.
        if Path::new(image).exists() {
            let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
            return changed(Path::new(image)) <= changed(&place.folder.join(cache::MANIFEST));
        }
        let made =
            std::fs::metadata(place.folder.join(cache::MANIFEST)).and_then(|metadata| metadata.modified());
        made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age < TAG_HOLDS))
    }

    /// None when the checkpoint is gone or cannot be used any more.
    async fn try_fork(&self, tree: &Tree, own: &Own) -> anyhow::Result<Option<SandboxId>> {
        match fork(self.client, tree, own).await {
            Ok(id) => Ok(Some(id)),
            Err(error)
                if error
                    .downcast_ref::<Refused>()
                    .is_some_and(|refused| matches!(refused.status, 400 | 403 | 404 | 410)) =>
            {
                // It may as well be what was asked for that is refused; the fork of a new one will say so.
                self.output.note("the tree is not on the server any more and is sent again");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn send_whole(
        &self,
        place: &Place,
        scan: &Arc<Scan>,
        folder: &str,
        before: Option<Tree>,
        own: &Own,
    ) -> anyhow::Result<Tree> {
        let sandbox = self.create(own).await?;
        let made = self.send_to(&sandbox, place, scan, folder).await;
        // Its checkpoint outlives it.
        let killed = self.client.kill_sandbox(&sandbox).await;
        let tree = made?;
        if let Err(error) = killed {
            self.output
                .warn(&format!("the sandbox {sandbox} that the tree was sent to is still there: {error:#}"));
        }
        if let Some(before) = before {
            place.retire(&before)?;
        }
        for tree in place.retired() {
            delete_checkpoint(self.client, &tree).await;
        }
        Ok(tree)
    }

    async fn send_to(
        &self,
        sandbox: &SandboxId,
        place: &Place,
        scan: &Arc<Scan>,
        folder: &str,
    ) -> anyhow::Result<Tree> {
        let mut manifest = Manifest::new();
        self.client.make_folder(sandbox, folder).await?;
        let names = scan.entries.keys().cloned().collect();
        let packed = upload::send(self.client, self.output, (sandbox, folder), scan, names, None).await?;
        for left_out in packed.left_out.iter().take(20) {
            self.output.warn(&printable(&format!("left out: {left_out}")));
        }
        manifest.entries = packed.entries;
        // What it could not look at is looked at when the work is brought home.
        let baseline = listing::list(self.client, sandbox, folder).await?.bytes;
        let listed = listing::parse(&baseline)?;
        let checkpoint = self.checkpoint(sandbox).await?;
        let tree = Tree {
            server: self.server.to_owned(),
            folder: self.root.to_owned(),
            checkpoint,
            sandbox: sandbox.to_string(),
            coarse: listed.coarse,
            listed: listed.at,
        };
        place.store(&tree, &manifest, &baseline)?;
        Ok(tree)
    }

    async fn create(&self, own: &Own) -> anyhow::Result<SandboxId> {
        let machine = self.machine;
        let (image, snapshot) = image_of(machine)?;
        // It is no agent's: of what the agent's sandbox is told, only whose command it is made for.
        let mut metadata = own.metadata.clone();
        metadata.retain(|key, _| key == METADATA_TOKEN);
        metadata.insert("warren.agent.tree".to_owned(), self.root.display().to_string());
        let body = SandboxCreate {
            // Should we be cut off, it sleeps.
            timeout: Some(ABANDONED),
            image,
            snapshot,
            cpu_count: machine.cpu.map(i64::from),
            memory_mb: machine.memory.map(i64::from),
            disk_mb: machine.disk.map(i64::from),
            isolation: machine.isolation.clone(),
            metadata: Some(metadata),
            ..SandboxCreate::default()
        };
        let sandbox: Sandbox = if body.image.is_some() || body.snapshot.is_some() {
            let mut view = BuildView::new(self.output);
            let mut events = view.meanwhile(self.client.create_sandbox_streamed(&body, None)).await?;
            view.follow(&mut events).await?.value
        } else {
            self.client.create_sandbox(&body, None).await?.value
        };
        id_of(&sandbox.sandbox_id)
    }

    async fn checkpoint(&self, sandbox: &SandboxId) -> anyhow::Result<String> {
        checkpoint(self.client, sandbox, "tree").await
    }
}

impl Prepared {
    /// A sandbox with the tree as it is here.
    pub(crate) async fn start(
        &self,
        client: &Client,
        output: Output,
        own: &Own,
        copies: &Path,
    ) -> anyhow::Result<(SandboxId, Delta)> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sandbox = match ready {
            Some(ready) => ready,
            None => fork(client, &self.tree, own).await?,
        };
        match self.bring_up_to_date(client, output, &sandbox, copies).await {
            Ok(delta) => Ok((sandbox, delta)),
            Err(error) => {
                let _ = client.kill_sandbox(&sandbox).await;
                Err(error)
            }
        }
    }

    async fn bring_up_to_date(
        &self,
        client: &Client,
        output: Output,
        sandbox: &SandboxId,
        copies: &Path,
    ) -> anyhow::Result<Delta> {
        let at = (sandbox, self.folder.as_str());
        let mut delta = Delta { removed: self.difference.remove.clone(), ..Delta::default() };
        upload::remove(client, at, &delta.removed).await?;
        if !self.difference.send.is_empty() {
            let names = self.difference.send.clone();
            let packed = upload::send(client, output, at, &self.scan, names, Some(copies.to_owned())).await?;
            delta.sent = packed.entries;
        }
        let size = |name: &Name| self.scan.entries.get(name).map_or(0, |found| found.stamp.size);
        let is_large = |name: &Name| size(name) > MAX_FILE;
        if delta.sent.keys().any(is_large) {
            let listing = listing::parse(&listing::list(client, sandbox, &self.folder).await?.bytes)?;
            let large = |name: &String| delta.sent.contains_key(name) && is_large(name);
            delta.large = listing.entries.into_iter().filter(|(name, _)| large(name)).collect();
        }
        Ok(delta)
    }
}

/// As a disk or, where there is one, with memory; waits until it is made.
pub(crate) async fn checkpoint(client: &Client, sandbox: &SandboxId, name: &str) -> anyhow::Result<String> {
    let body = CheckpointCreate {
        name: Some(format!("{name}-{:08x}", super::random()? >> 32)),
        ..CheckpointCreate::default()
    };
    let mut made = client.create_checkpoint(sandbox, &body, None).await?.value;
    while made.status == "processing" {
        tokio::time::sleep(LOOK).await;
        let list = client.list_checkpoints(sandbox).await?.value;
        made = list.into_iter().find(|one| one.id == made.id).context("the checkpoint was deleted")?;
    }
    if made.status == "failed" {
        let why = made.error_msg.as_deref().unwrap_or("the server gave no reason");
        anyhow::bail!("the checkpoint failed: {}", printable(why));
    }
    Ok(made.id)
}

pub(crate) async fn delete_checkpoint(client: &Client, tree: &Tree) {
    if let (Ok(sandbox), Ok(checkpoint)) = (tree.sandbox.parse(), tree.checkpoint.parse()) {
        let _ = client.delete_checkpoint(&sandbox, &checkpoint).await;
    }
}

pub(crate) async fn fork(client: &Client, tree: &Tree, own: &Own) -> anyhow::Result<SandboxId> {
    let checkpoint: CheckpointId =
        tree.checkpoint.parse().map_err(|_| anyhow::anyhow!("{:?} is no checkpoint", tree.checkpoint))?;
    let body = Fork {
        envs: (!own.envs.is_empty()).then(|| own.envs.clone()),
        metadata: Some(own.metadata.clone()),
        secret_store: own.secret_store.clone(),
        egress_allowlist: (!own.allow_host.is_empty()).then(|| own.allow_host.clone()),
        ..Fork::default()
    };
    id_of(&client.fork_checkpoint(&checkpoint, &body, None).await?.value.sandbox_id)
}

pub(crate) fn id_of(text: &str) -> anyhow::Result<SandboxId> {
    text.parse().map_err(|_| {
        hinted("the server named the sandbox in a way that cannot be read", "is it a Warren server?")
    })
}

/// What `image` and `snapshot` of a request are.
fn image_of(machine: &Machine) -> anyhow::Result<(Option<Value>, Option<String>)> {
    let base = match (&machine.image, &machine.snapshot) {
        (Some(word), _) => Some(Source::read(word)?.image().ok_or_else(|| {
            hinted(
                format!("{} has to be sent to the server first", printable(word)),
                "`warren build SOURCE --name NAME` does that; then give --snapshot NAME",
            )
        })?),
        (None, Some(snapshot)) if machine.install.is_empty() => return Ok((None, Some(snapshot.clone()))),
        (None, Some(snapshot)) => Some(Value::String(format!("snapshot:{snapshot}"))),
        (None, None) if machine.install.is_empty() => return Ok((None, None)),
        (None, None) => Some(Value::String("base".to_owned())),
    };
    if machine.install.is_empty() {
        return Ok((base, None));
    }
    let mut manifest = match base {
        Some(Value::Object(manifest)) => manifest,
        other => serde_json::Map::from_iter([("base".to_owned(), other.unwrap_or_default())]),
    };
    match manifest.entry("steps").or_insert_with(|| json!([])) {
        Value::Array(steps) => steps.extend(machine.install.iter().cloned()),
        other => *other = Value::Array(machine.install.clone()),
    }
    Ok((Some(Value::Object(manifest)), None))
}

/// The last name of the folder, in letters that need no quoting anywhere.
fn folder_name(root: &Path) -> String {
    let name: PathBuf = root.file_name().map(PathBuf::from).unwrap_or_default();
    let plain: String = name
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(100)
        .collect();
    let plain = plain.trim_start_matches(['.', '-']);
    if plain.is_empty() { "tree".to_owned() } else { plain.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_gets_the_steps_that_install_the_agent() {
        let step = json!({"type": "run", "args": {"commands": ["x"]}});
        let machine = Machine { install: vec![step.clone()], ..Machine::default() };
        assert_eq!(image_of(&machine).unwrap(), (Some(json!({"base": "base", "steps": [step]})), None));
        let on_snapshot = Machine { snapshot: Some("s".to_owned()), ..machine.clone() };
        assert_eq!(image_of(&on_snapshot).unwrap().0.unwrap()["base"], "snapshot:s");
        let plain = Machine { image: Some("node:22".to_owned()), ..Machine::default() };
        assert_eq!(image_of(&plain).unwrap(), (Some(json!("node:22")), None));
    }

    #[test]
    fn names_of_folders_are_plain() {
        for (path, name) in
            [("/a/my app", "my-app"), ("/", "tree"), ("/x/.hidden", "hidden"), ("/x/é", "tree")]
        {
            assert_eq!(folder_name(Path::new(path)), name, "{path}");
        }
    }
}
