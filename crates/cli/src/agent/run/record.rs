//! What is remembered of a run: here, and in the metadata and tags of its sandbox.
//!
//! ```text
//! $XDG_STATE_HOME/warren/agents/<sandbox>/   record.json  manifest.json  baseline  delta.json  changes.json  delivered.json  blobs/<hash>
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_types::SandboxId;

use super::super::launch::Lines;
use super::super::patch::base::blobs_of;
use super::super::patch::listing::{self, Listed, Listing};
use super::super::patch::{Changes, Delivered};
use super::super::tree::cache::{self, BASELINE, MANIFEST};
use super::super::tree::{Entry, Manifest, Name};
use crate::failure::hinted;

const RECORD: &str = "record.json";
const DELTA: &str = "delta.json";
const CHANGES: &str = "changes.json";
const DELIVERED: &str = "delivered.json";
const VERSION: u32 = 1;
/// Records of runs whose sandbox is gone are kept so long.
const KEPT: Duration = Duration::from_hours(24 * 30);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) server: String,
    pub(crate) sandbox: String,
    /// The folder here.
    pub(crate) root: PathBuf,
    /// The tree there.
    pub(crate) folder: String,
    /// What works on it, in a word.
    pub(crate) agent: String,
    pub(crate) argv: Vec<String>,
    /// What it reads on standard input: who begins it anew needs it.
    #[serde(default)]
    pub(crate) prompt: Option<String>,
    pub(crate) lines: String,
    pub(crate) session: Option<Session>,
    /// Seconds.
    pub(crate) timeout: Option<u32>,
    pub(crate) checkpoint: String,
    /// How the baseline tells times; see [`listing::Listing`].
    pub(crate) coarse: bool,
    pub(crate) listed: i64,
    /// The secret store that was made for it.
    pub(crate) store: Option<String>,
    pub(crate) include_ignored: bool,
    pub(crate) keep: bool,
    pub(crate) started: Timestamp,
    /// The exit code of the program, once it is known.
    pub(crate) ended: Option<u8>,
    /// It was put to sleep: who follows it leaves, so as not to wake it.
    #[serde(default)]
    pub(crate) paused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Session {
    Exec { id: String },
    Pty { id: String, exit_file: String },
}

/// What of the tree is other than in the checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Delta {
    pub(crate) sent: BTreeMap<Name, Entry>,
    pub(crate) removed: Vec<Name>,
    /// How those of what was sent are listed there that are too large to be looked into afterwards.
    #[serde(default)]
    pub(crate) large: BTreeMap<Name, Listed>,
}

/// A record and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) dir: PathBuf,
    pub(crate) record: Record,
}

impl Record {
    #[expect(clippy::too_many_arguments, reason = "each is a field")]
    pub(crate) fn new(
        server: &str,
        sandbox: &SandboxId,
        (root, folder): (&Path, &str),
        agent: &str,
        argv: Vec<String>,
        lines: Lines,
        tree: &cache::Tree,
        timeout: Option<u32>,
    ) -> Self {
        Self {
            version: VERSION,
            server: server.to_owned(),
            sandbox: sandbox.to_string(),
            root: root.to_owned(),
            folder: folder.to_owned(),
            agent: agent.to_owned(),
            argv,
            prompt: None,
            lines: lines_word(lines).to_owned(),
            session: None,
            timeout,
            checkpoint: tree.checkpoint.clone(),
            coarse: tree.coarse,
            listed: tree.listed,
            store: None,
            include_ignored: false,
            keep: false,
            started: Timestamp::now(),
            ended: None,
            paused: false,
        }
    }

    pub(crate) fn lines(&self) -> Lines {
        match self.lines.as_str() {
            "claude-code" => Lines::ClaudeCode,
            "codex" => Lines::Codex,
            "opencode" => Lines::OpenCode,
            _ => Lines::Plain,
        }
    }
}

fn lines_word(lines: Lines) -> &'static str {
    match lines {
        Lines::Plain => "plain",
        Lines::ClaudeCode => "claude-code",
        Lines::Codex => "codex",
        Lines::OpenCode => "opencode",
    }
}

impl Run {
    /// Begins a record; `from` holds the manifest and the baseline.
    pub(crate) fn create(record: Record, from: &Path) -> anyhow::Result<Self> {
        let dir = cache::runs()?.join(&record.sandbox);
        cache::make_private(&dir)?;
        for name in [MANIFEST, BASELINE] {
            let (from, to) = (from.join(name), dir.join(name));
            // They are never written to in place, so one file does for all.
            if fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to).with_context(|| format!("could not write {}", to.display()))?;
            }
        }
        let run = Self { dir, record };
        run.save()?;
        Ok(run)
    }

    pub(crate) fn save(&self) -> anyhow::Result<()> {
        cache::write(&self.dir.join(RECORD), &serde_json::to_vec_pretty(&self.record)?)
    }

    pub(crate) fn save_delta(&self, delta: &Delta) -> anyhow::Result<()> {
        cache::write(&self.dir.join(DELTA), &serde_json::to_vec(delta)?)
    }

    pub(crate) fn save_changes(&self, changes: &Changes) -> anyhow::Result<()> {
        cache::write(&self.dir.join(CHANGES), &serde_json::to_vec(changes)?)
    }

    /// What was sent beyond the checkpoint is kept with the record.
    pub(crate) fn keep_copies(&self, copies: &Path) -> anyhow::Result<()> {
        let to = blobs_of(&self.dir)?.0;
        for entry in fs::read_dir(copies).context("could not read what was sent")? {
            let entry = entry.context("could not read what was sent")?;
            fs::copy(entry.path(), to.join(entry.file_name())).context("could not keep what was sent")?;
        }
        Ok(())
    }

    pub(crate) fn changes(&self) -> Option<Changes> {
        cache::read_json(&self.dir.join(CHANGES))
    }

    pub(crate) fn delivered(&self) -> Delivered {
        cache::read_json(&self.dir.join(DELIVERED)).unwrap_or_default()
    }

    /// Contents stay in `blobs`, so that the next delivery can be compared with this one.
    pub(crate) fn save_delivered(&self, delivered: &Delivered) -> anyhow::Result<()> {
        cache::write(&self.dir.join(DELIVERED), &serde_json::to_vec(delivered)?)
    }

    pub(crate) fn find(sandbox: &SandboxId) -> anyhow::Result<Self> {
        let dir = cache::runs()?.join(sandbox.as_str());
        Self::read(&dir).ok_or_else(|| {
            hinted(
                format!("{sandbox} is no agent's sandbox of this machine's"),
                "`warren agent ls` lists them; those of another machine are reached from there",
            )
        })
    }

    /// As it is recorded now; none when it was forgotten.
    pub(crate) fn again(&self) -> Option<Self> {
        Self::read(&self.dir)
    }

    fn read(dir: &Path) -> Option<Self> {
        let record: Record = cache::read_json(&dir.join(RECORD))?;
        (record.version == VERSION).then(|| Self { dir: dir.to_owned(), record })
    }

    /// Those of a server, oldest first.
    pub(crate) fn all(server: &str) -> Vec<Self> {
        let Ok(entries) = cache::runs().and_then(|runs| Ok(fs::read_dir(runs)?)) else { return Vec::new() };
        let runs = entries.flatten().filter_map(|entry| Self::read(&entry.path()));
        let mut runs: Vec<Self> = runs.filter(|run| run.record.server == server).collect();
        runs.sort_by_key(|run| run.record.started);
        runs
    }

    pub(crate) fn sandbox(&self) -> anyhow::Result<SandboxId> {
        self.record.sandbox.parse().map_err(|_| anyhow::anyhow!("{} is no sandbox", self.record.sandbox))
    }

    pub(crate) fn is_old(&self) -> bool {
        let age = Timestamp::now().as_second() - self.record.started.as_second();
        u64::try_from(age).is_ok_and(|age| age > KEPT.as_secs())
    }

    /// The tree as the program found it.
    pub(crate) fn entries(&self) -> anyhow::Result<BTreeMap<Name, Entry>> {
        let lost =
            || hinted("the record of what went in cannot be read", "copy what you need with `warren cp`");
        let manifest: Manifest = cache::read_json(&self.dir.join(MANIFEST)).ok_or_else(lost)?;
        let delta: Delta = cache::read_json(&self.dir.join(DELTA)).ok_or_else(lost)?;
        let mut entries = manifest.entries;
        for name in &delta.removed {
            entries.remove(name);
        }
        entries.extend(delta.sent);
        Ok(entries)
    }

    pub(crate) fn baseline(&self) -> anyhow::Result<Listing> {
        let bytes =
            fs::read(self.dir.join(BASELINE)).context("could not read the listing of what went in")?;
        let mut listing = listing::parse(&bytes)?;
        let delta: Option<Delta> = cache::read_json(&self.dir.join(DELTA));
        listing.entries.extend(delta.unwrap_or_default().large);
        Ok(listing)
    }

    /// The same for a sandbox that begins where this one is.
    pub(crate) fn forked(&self, sandbox: &SandboxId) -> anyhow::Result<Self> {
        let record = Record {
            sandbox: sandbox.to_string(),
            session: None,
            store: None,
            ended: None,
            paused: false,
            started: Timestamp::now(),
            ..self.record.clone()
        };
        let run = Self::create(record, &self.dir)?;
        fs::copy(self.dir.join(DELTA), run.dir.join(DELTA)).context("could not copy the record")?;
        run.save_delivered(&self.delivered())?;
        let (from, to) = (self.dir.join("blobs"), run.dir.join("blobs"));
        cache::make_private(&to)?;
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            let _ = fs::hard_link(entry.path(), to.join(entry.file_name()));
        }
        Ok(run)
    }

    pub(crate) fn forget(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
