//! `sandbox_list_files`: what is in a folder and below it. Symbolic links are shown and never followed, so loops have an end.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use warren_api::files::FileEntry;
use warren_types::Error;

use super::glob::Glob;
use super::{Call, Output, input, text};
use crate::app::App;
use crate::app::auth::Live;

const DEFAULT_ENTRIES: usize = 500;
/// How deep a search with a pattern goes when nothing is said.
const PATTERN_DEPTH: u64 = 10;
/// Folders that are opened in one call.
const MAX_FOLDERS: usize = 2000;
const WITHIN: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct List {
    path: Option<String>,
    depth: Option<u64>,
    glob: Option<String>,
    max_results: Option<usize>,
}

/// A folder that is still to be opened.
struct Waiting {
    path: String,
    /// Below where the listing began, with a slash at its end.
    shown: String,
    depth: u64,
}

struct Walk<'a> {
    app: &'a App,
    live: &'a Live,
    glob: Option<Glob>,
    depth: u64,
    most: usize,
    lines: Vec<String>,
    bytes: usize,
    folders: usize,
    /// Why there may be more.
    stopped: Option<String>,
    unreadable: usize,
}

pub(super) async fn list(call: Call, input: Value) -> Result<Output, Error> {
    let input: List = input::decode(input)?;
    let live = call.live().await?;
    let glob = input.glob.as_deref().map(Glob::parse).transpose()?;
    let depth = input.depth.unwrap_or(if glob.is_some() { PATTERN_DEPTH } else { 1 });
    let most = input.max_results.unwrap_or(DEFAULT_ENTRIES);
    let path = input.path.unwrap_or_else(|| ".".to_owned());
    let mut walk = Walk {
        app: &call.app,
        live: &live,
        glob,
        depth,
        most,
        lines: Vec::new(),
        bytes: 0,
        folders: 0,
        stopped: None,
        unreadable: 0,
    };
    walk.run(path.clone()).await?;
    let mut said = walk.lines.join("\n");
    if walk.lines.is_empty() {
        said =
            if walk.glob.is_some() { "nothing matches".to_owned() } else { "the folder is empty".to_owned() };
    }
    if let Some(why) = &walk.stopped {
        text::push_note(&mut said, why);
    }
    if walk.unreadable > 0 {
        text::push_note(&mut said, &format!("{} folders could not be read", walk.unreadable));
    }
    let structured = json!({"path": path, "entries": walk.lines.len(), "complete": walk.stopped.is_none()});
    Ok(Output::new(said, structured))
}

impl Walk<'_> {
    /// Goes through the folders depth first, each by name.
    async fn run(&mut self, path: String) -> Result<(), Error> {
        let deadline = Instant::now() + WITHIN;
        let mut waiting = vec![Waiting { path, shown: String::new(), depth: 1 }];
        while let Some(folder) = waiting.pop() {
            self.folders += 1;
            if self.folders > MAX_FOLDERS {
                self.stopped =
                    Some(format!("stopped after {MAX_FOLDERS} folders; name a folder further down"));
                break;
            }
            let opened = tokio::time::timeout_at(deadline, self.open(&folder)).await;
            match opened {
                Ok(Ok(below)) => waiting.extend(below.into_iter().rev()),
                // The first one is what was asked for; the others may have gone since.
                Ok(Err(error)) if folder.depth == 1 => return Err(error),
                Ok(Err(_)) => self.unreadable += 1,
                Err(_) => {
                    self.stopped =
                        Some(format!("stopped after {} s; name a folder further down", WITHIN.as_secs()));
                    break;
                }
            }
            if self.stopped.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Shows what is in a folder; the folders in it that are to be opened.
    async fn open(&mut self, folder: &Waiting) -> Result<Vec<Waiting>, Error> {
        let mut listing = self.app.list_files(self.live, &input::path(&folder.path)?).await?;
        let mut below = Vec::new();
        while let Some(entry) = listing.next().await? {
            let shown = format!("{}{}", folder.shown, entry.name);
            if self.glob.as_ref().is_none_or(|glob| glob.matches(&shown)) && !self.show(&shown, &entry) {
                self.stopped = Some(format!(
                    "there are more than {} entries; use glob, or name a folder",
                    self.lines.len()
                ));
                break;
            }
            if entry.is_dir && folder.depth < self.depth && below.len() <= MAX_FOLDERS {
                below.push(Waiting { path: entry.path, shown: format!("{shown}/"), depth: folder.depth + 1 });
            }
        }
        Ok(below)
    }

    /// Whether there was room for it.
    fn show(&mut self, shown: &str, entry: &FileEntry) -> bool {
        let name = text::name(shown);
        let line = if entry.is_dir { format!("{name}/") } else { format!("{name}  ({} bytes)", entry.size) };
        if self.lines.len() >= self.most || self.bytes + line.len() > text::MAX_BYTES {
            return false;
        }
        self.bytes += line.len() + 1;
        self.lines.push(line);
        true
    }
}
