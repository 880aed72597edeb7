//! The end of a run: what changed is brought here, shown or written, and the sandbox goes.
//!
//! It goes when everything that changed is here, in the folder or in the record, and `--keep` was not given. What cannot come
//! here keeps it, asleep.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::Access;
use serde_json::json;
use warren_types::SandboxId;

use super::super::patch::apply::{Applied, apply};
use super::super::patch::base::{Sides, blobs_of, fetch_missing};
use super::super::patch::collect::{Collect, collect};
use super::super::patch::diff::diff;
use super::super::patch::names::folder_of_rules;
use super::super::patch::{Change, Changes};
use super::super::tree::root::Root;
use super::super::tree::rules::Rules;
use super::keys;
use super::record::Run;
use super::turn::Turn;
use crate::client::Client;
use crate::failure::{CONFLICT, Refused, hinted};
use crate::output::{Output, printable};

/// What to do with the patch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) apply: bool,
    pub(crate) patch_file: Option<PathBuf>,
    /// Shown on stdout.
    pub(crate) show: bool,
}

/// How it went.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    pub(crate) changes: Changes,
    pub(crate) applied: Option<Applied>,
}

impl Wanted {
    /// What can be known to fail is said before anything is done.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let Some(path) = &self.patch_file else { return Ok(()) };
        let may = |path: &Path, access| rustix::fs::access(path, access).map_err(std::io::Error::from);
        let checked = match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Err(std::io::ErrorKind::IsADirectory.into()),
            Ok(_) => may(path, Access::WRITE_OK),
            Err(_) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                may(folder.unwrap_or(Path::new(".")), Access::WRITE_OK | Access::EXEC_OK)
            }
        };
        checked.map_err(|error| {
            hinted(
                format!("could not write {}: {error}", path.display()),
                "--patch-file names a file in a folder that is there and may be written to",
            )
        })
    }
}

impl Finished {
    pub(crate) fn conflicts(&self) -> usize {
        self.applied.as_ref().map_or(0, |applied| applied.conflicts.len())
    }

    /// The exit code, unless the program had one of its own to tell.
    pub(crate) fn code(&self) -> u8 {
        if self.conflicts() > 0 || !self.changes.refused.is_empty() { CONFLICT } else { 0 }
    }

    /// Whether nothing is left that is only in the record.
    fn is_settled(&self) -> bool {
        self.changes.changes.is_empty() || self.applied.is_some() && self.conflicts() == 0
    }
}

/// Looks at what changed so far and keeps it in the record.
pub(crate) async fn collected(client: &Client, run: &Run) -> anyhow::Result<Changes> {
    let sandbox = run.sandbox()?;
    let entries = run.entries()?;
    let blobs = blobs_of(&run.dir)?;
    let baseline = run.baseline()?;
    let rules = (!run.record.include_ignored)
        .then(|| Rules::of(&run.record.root, entries.keys().filter_map(|name| folder_of_rules(name))));
    let changes = collect(Collect {
        client,
        sandbox: &sandbox,
        folder: &run.record.folder,
        entries: &entries,
        baseline: &baseline,
        rules,
        blobs: &blobs,
        delivered: &run.delivered(),
    })
    .await?;
    run.save_changes(&changes)?;
    Ok(changes)
}

/// The same, or what is in the record when the sandbox is gone.
pub(crate) async fn brought(client: &Client, run: &Run) -> anyhow::Result<Changes> {
    match collected(client, run).await {
        Err(error)
            if error.downcast_ref::<Refused>().is_some_and(|refused| matches!(refused.status, 404 | 410)) =>
        {
            run.changes().ok_or_else(|| {
                hinted(
                    "the sandbox is gone, and nothing was brought from it",
                    format!("`warren agent rm {}` forgets it", run.record.sandbox),
                )
            })
        }
        collected => collected,
    }
}

/// Shows and writes as wanted.
pub(crate) async fn deliver(
    client: &Client,
    output: Output,
    run: &Run,
    changes: Changes,
    wanted: &Wanted,
) -> anyhow::Result<Finished> {
    let record = &run.record;
    let opened = Root::open(&record.root);
    let blobs = blobs_of(&run.dir)?;
    let sides = Sides { root: opened.as_ref().ok(), blobs: &blobs };
    let mut to_write = changes.changes.clone();
    to_write.extend(changes.undone.iter().cloned());
    fetch_missing(client, &sides, &to_write, (&record.checkpoint, &record.folder)).await;
    if let Some(path) = &wanted.patch_file {
        let text = diff(&changes.changes, &sides, true);
        std::fs::write(path, text).with_context(|| format!("could not write {}", path.display()))?;
    }
    // Before writing: what is shown is what is about to be written.
    let shown = wanted.show.then(|| diff(&changes.changes, &sides, output.json));
    if let Some(text) = shown.as_ref().filter(|_| !output.json) {
        output.write(&for_terminal(output, text))?;
    }
    let applied = match &opened {
        _ if !wanted.apply => None,
        Ok(root) => Some(write(root, &sides, run, &to_write)?),
        Err(error) => {
            let at = record.root.display();
            let id = &record.sandbox;
            return Err(hinted(
                format!("nothing was written: {at} cannot be opened ({error})"),
                format!(
                    "put the folder back there and repeat `warren agent patch {id} --apply`, or take what it changed as a file: `warren agent patch {id} --patch-file FILE`"
                ),
            ));
        }
    };
    if output.json {
        let files: Vec<_> = changes
            .changes
            .iter()
            .map(|change| json!({"name": change.name, "status": change.letter().to_string()}))
            .collect();
        let event = json!({
            "type": "patch", "sandbox": record.sandbox, "files": files, "refused": changes.refused, "applied": applied,
            "diff": shown.map(|text| String::from_utf8_lossy(&text).into_owned()),
        });
        output.line(&event.to_string())?;
    } else {
        say(output, &changes, applied.as_ref(), wanted, &sides);
    }
    Ok(Finished { changes, applied })
}

/// Writes the changes here, and notes what of them is here now.
fn write(root: &Root, sides: &Sides<'_>, run: &Run, changes: &[Change]) -> anyhow::Result<Applied> {
    let mut delivered = run.delivered();
    let applied = apply(root, sides, changes, &delivered);
    let is_here = |change: &&Change| !applied.conflicts.iter().any(|conflict| conflict.name == change.name);
    delivered
        .extend(changes.iter().filter(is_here).map(|change| (change.name.clone(), change.after.clone())));
    run.save_delivered(&delivered)?;
    Ok(applied)
}

fn say(output: Output, changes: &Changes, applied: Option<&Applied>, wanted: &Wanted, sides: &Sides<'_>) {
    let count = |number: usize| match number {
        1 => "1 file".to_owned(),
        number => format!("{number} files"),
    };
    match applied {
        // What it took back is written, though all is as it went in.
        _ if changes.changes.is_empty() && changes.undone.is_empty() => output.note("nothing was changed"),
        Some(applied) => {
            let mut text = format!("wrote {}", count(applied.written.len() + applied.merged.len()));
            if !applied.merged.is_empty() {
                text.push_str(&format!(", {} of them merged with what changed here", applied.merged.len()));
            }
            output.note(&text);
        }
        None => {
            let names: Vec<_> = changes
                .changes
                .iter()
                .take(20)
                .map(|change| format!("{} {}", change.letter(), printable(&change.name)))
                .collect();
            let more = changes.changes.len().saturating_sub(20);
            if !wanted.show {
                output.note(&names.join("\n"));
            }
            output.note(&format!(
                "{} changed{}",
                count(changes.changes.len()),
                if more > 0 && !wanted.show { format!(", {more} not named") } else { String::new() }
            ));
        }
    }
    for conflict in applied.into_iter().flat_map(|applied| &applied.conflicts) {
        output.warn(&printable(&format!("conflict: {}: {}; not written", conflict.name, conflict.why)));
        if !wanted.show
            && let Some(change) = changes.changes.iter().find(|change| change.name == conflict.name)
        {
            output.note(&readable(output, &conflicting(sides, change)));
        }
    }
    for refused in &changes.refused {
        output.warn(&printable(&format!("stays in the sandbox: {}: {}", refused.name, refused.why)));
    }
}

/// The change that was not written, for a person to write it.
fn conflicting(sides: &Sides<'_>, change: &Change) -> Vec<u8> {
    const SHOWN: usize = 64 * 1024;
    let mut text = diff(std::slice::from_ref(change), sides, false);
    text.truncate(SHOWN);
    text
}

/// As it is, unless a person looks at it.
fn for_terminal(output: Output, text: &[u8]) -> Vec<u8> {
    if std::io::stdout().is_terminal() { readable(output, text).into_bytes() } else { text.to_vec() }
}

/// A diff with colours, where those are wanted, and nothing in it that could steer a terminal.
fn readable(output: Output, text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(|line| {
        let colour = match line.as_bytes() {
            [b'+', b'+', b'+', ..] | [b'-', b'-', b'-', ..] | [b'd', b'i', b'f', b'f', ..] => 1,
            [b'+', ..] => 32,
            [b'-', ..] => 31,
            [b'@', b'@', ..] => 36,
            _ => 0,
        };
        let plain = line.split('\t').map(printable).collect::<Vec<_>>().join("\t");
        format!("{}\n", output.painted(colour, &plain))
    });
    lines.collect()
}

/// Takes away what is not needed any more, and says what is left and how to get it.
pub(crate) async fn clean_up(
    client: &Client,
    output: Output,
    run: &mut Run,
    turn: &Turn,
    finished: &Finished,
) -> anyhow::Result<()> {
    let sandbox = run.sandbox()?;
    end_keys(client, run).await;
    let is_kept = run.record.keep || !finished.changes.refused.is_empty();
    if is_kept {
        keep(client, output, run, &sandbox).await;
        return run.save();
    }
    kill(client, &sandbox).await?;
    if finished.is_settled() {
        let what = match &finished.applied {
            Some(_) => format!("what it changed was written to {}", run.record.root.display()),
            None => "it changed nothing".to_owned(),
        };
        let text = format!("another command (process {}) brought its work home: {what}", std::process::id());
        turn.leave_word(&text, run.record.ended)?;
        run.forget();
    } else {
        run.save()?;
        output.note(&format!(
            "`warren agent patch {sandbox} --apply` writes it here; `warren agent rm {sandbox}` forgets it"
        ));
    }
    Ok(())
}

/// Lets it sleep.
async fn keep(client: &Client, output: Output, run: &Run, sandbox: &SandboxId) {
    let _ = client.hibernate_sandbox(sandbox).await;
    output.note(&format!(
        "kept: {sandbox}, its tree is {}; `warren shell {sandbox}` opens it, `warren cp {sandbox}:{}/… .` copies from it, `warren agent rm {sandbox}` ends it",
        run.record.folder, run.record.folder
    ));
}

/// The keys of a run go with its program.
pub(crate) async fn end_keys(client: &Client, run: &mut Run) {
    if let Some(store) = run.record.store.take() {
        keys::delete(client, &store, &run.record.sandbox).await;
    }
}

/// One that is gone is as good.
pub(crate) async fn kill(client: &Client, sandbox: &SandboxId) -> anyhow::Result<()> {
    match client.kill_sandbox(sandbox).await {
        Err(error)
            if error.downcast_ref::<Refused>().is_some_and(|refused| matches!(refused.status, 404 | 410)) =>
        {
            Ok(())
        }
        killed => killed,
    }
}

/// Says what goes on without us.
pub(crate) fn say_left(output: Output, run: &Run) {
    let id = &run.record.sandbox;
    output.note(&format!(
        "\nleft running in {id}: `warren agent attach {id}` goes on with it, `warren agent patch {id}` shows what it changed so far, \
         `warren agent rm {id}` ends it and forgets what it did"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_file_that_cannot_be_written_is_known_before_the_work() {
        let home = tempfile::tempdir().unwrap();
        let check = |path: PathBuf| Wanted { patch_file: Some(path), ..Wanted::default() }.check();
        for wrong in [home.path().join("none/x"), home.path().to_owned()] {
            assert!(check(wrong.clone()).is_err(), "{}", wrong.display());
        }
        for fine in [home.path().join("x"), PathBuf::from("x"), PathBuf::from("/dev/stdout")] {
            check(fine).unwrap();
        }
        assert!(!home.path().join("x").exists(), "it is only looked at");
    }
}
