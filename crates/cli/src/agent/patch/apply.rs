//! Writes changes here: each file in one step, and only over what went in.
//!
//! What was changed here meanwhile is merged where both changes are to be had in one text; else it is a conflict and nothing is
//! written. One conflict does not hold up the other files.

use rustix::fs::FileType;
use rustix::io::Errno;
use serde::Serialize;

use super::base::Sides;
use super::collect::MAX_FILE;
use super::diff::Contents as _;
use super::merge::merge;
use super::names::{link_refusal, refusal};
use super::repository::{self, Stands};
use super::{Change, Content, Delivered};
use crate::agent::tree::hash_of;
use crate::agent::tree::root::{Found, Root};

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Applied {
    pub(crate) written: Vec<String>,
    pub(crate) merged: Vec<String>,
    /// As it should be already.
    pub(crate) same: Vec<String>,
    pub(crate) conflicts: Vec<Conflict>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Conflict {
    pub(crate) name: String,
    pub(crate) why: String,
}

/// What is here now.
enum Here {
    Missing,
    File { content: Vec<u8>, found: Found },
    Link { target: String },
    Other,
}

enum Done {
    Written,
    Merged,
    Same,
}

pub(crate) fn apply(root: &Root, sides: &Sides<'_>, changes: &[Change], delivered: &Delivered) -> Applied {
    let mut applied = Applied::default();
    // What goes makes room for what comes; links last, so that nothing is ever written behind one.
    let rank = |change: &&Change| match change.after {
        None => 0,
        Some(Content::File { .. }) => 1,
        Some(Content::Link { .. }) => 2,
    };
    let mut ordered: Vec<&Change> = changes.iter().collect();
    ordered.sort_by_key(rank);
    let stands = |name: &str| match root.find(name) {
        Ok(None) => Stands::Nothing,
        // Behind a link: nothing is written there.
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Stands::Nothing,
        Ok(Some(found)) if found.kind == FileType::Directory => Stands::Folder,
        // What cannot be looked at counts as there: it is the careful answer.
        Ok(Some(_)) | Err(_) => Stands::Other,
    };
    let repositories = repository::refusals(changes, stands);
    for change in ordered {
        let name = change.name.clone();
        let done = match repositories.get(&name) {
            Some(why) => Err((*why).to_owned()),
            None => one(root, sides, change, delivered.get(&name)),
        };
        match done {
            Ok(Done::Written) => applied.written.push(name),
            Ok(Done::Merged) => applied.merged.push(name),
            Ok(Done::Same) => applied.same.push(name),
            Err(why) => applied.conflicts.push(Conflict { name, why }),
        }
    }
    for list in [&mut applied.written, &mut applied.merged, &mut applied.same] {
        list.sort();
    }
    applied
}

/// `delivered`: what was written here from this run before.
fn one(
    root: &Root,
    sides: &Sides<'_>,
    change: &Change,
    delivered: Option<&Option<Content>>,
) -> Result<Done, String> {
    let name = change.name.as_str();
    // Also of a record that was read from a file.
    if let Some(why) = refusal(name) {
        return Err(why.to_owned());
    }
    if let Some(Content::Link { target }) = &change.after
        && let Some(why) = link_refusal(name, target)
    {
        return Err(why.to_owned());
    }
    let here = look(root, name).map_err(|error| error.to_string())?;
    if is(&here, change.after.as_ref()) {
        return Ok(Done::Same);
    }
    // Whoever took a delivery back, or has the last one, wants the next.
    let is_ours = delivered.is_some_and(|delivered| is(&here, delivered.as_ref()));
    let (after, done) = if is_ours || is(&here, change.before.as_ref()) {
        let after = change.after.clone().map(|content| (content, sides.after(change).unwrap_or_default()));
        if let Some((Content::File { hash, .. }, bytes)) = &after
            && hash_of(bytes) != *hash
        {
            return Err("its new content is not to be had any more".to_owned());
        }
        (after, Done::Written)
    } else {
        let since = match delivered {
            // There is nothing new there; what was done here since stays.
            Some(delivered) if *delivered == change.after => return Ok(Done::Same),
            Some(delivered) => Change { before: delivered.clone(), ..change.clone() },
            None => change.clone(),
        };
        (Some(merged(sides, &since, &here)?), Done::Merged)
    };
    unchanged(root, name, &here)?;
    write(root, name, &here, after).map_err(|error| error.to_string())?;
    Ok(done)
}

/// Both changes of a file in one: of its content, and of whether it may be run.
fn merged(sides: &Sides<'_>, change: &Change, here: &Here) -> Result<(Content, Vec<u8>), String> {
    let (Some(before), Some(after)) = (&change.before, &change.after) else {
        return Err(match (&change.before, here) {
            (None, _) => "it is new there, and something else is here",
            (_, Here::Missing) => "it was removed there and is gone here too",
            _ => "it was removed there and changed here",
        }
        .to_owned());
    };
    match (before, after, here) {
        (
            Content::File { executable: was, .. },
            Content::File { hash, executable: there },
            Here::File { content, found },
        ) => {
            let base = sides
                .before(change)
                .ok_or("it was changed here too, and what went in is not to be had any more")?;
            let theirs = sides.after(change).ok_or("its new content is not to be had any more")?;
            let merged = merge(&base, content, &theirs).ok_or("both changed the same lines")?;
            let executable = if there == was { is_executable(found) } else { *there };
            Ok((Content::File { hash: hash.clone(), executable }, merged))
        }
        (_, _, Here::Missing) => Err("it was changed there and removed here".to_owned()),
        _ => Err("it was changed there and here".to_owned()),
    }
}

fn look(root: &Root, name: &str) -> std::io::Result<Here> {
    Ok(match root.find(name)? {
        None => Here::Missing,
        Some(found) if found.kind == FileType::RegularFile => {
            Here::File { content: root.read(name, MAX_FILE)?, found }
        }
        Some(found) if found.kind == FileType::Symlink => Here::Link { target: root.read_link(name)? },
        Some(_) => Here::Other,
    })
}

fn is(here: &Here, wanted: Option<&Content>) -> bool {
    match (here, wanted) {
        (Here::Missing, None) => true,
        (Here::File { content, found }, Some(Content::File { hash, executable })) => {
            is_executable(found) == *executable && hash_of(content) == *hash
        }
        (Here::Link { target }, Some(Content::Link { target: wanted })) => target == wanted,
        // A folder may be in the way of a file: it goes when nothing is left in it, and else it is said.
        (Here::Other, None) => true,
        _ => false,
    }
}

fn is_executable(found: &Found) -> bool {
    found.mode & 0o100 != 0
}

/// Looks once more, since reading took a while.
fn unchanged(root: &Root, name: &str, here: &Here) -> Result<(), String> {
    let now = root.find(name).map_err(|error| error.to_string())?;
    let is_same = match (here, now) {
        (Here::File { found, .. }, Some(now)) => *found == now,
        (Here::Missing, None) | (Here::Link { .. } | Here::Other, Some(_)) => true,
        _ => false,
    };
    if is_same { Ok(()) } else { Err("it is being changed here at this moment".to_owned()) }
}

fn write(root: &Root, name: &str, here: &Here, after: Option<(Content, Vec<u8>)>) -> std::io::Result<()> {
    match after {
        None => {
            root.remove(name)?;
            root.remove_empty_parents(name);
            Ok(())
        }
        Some((Content::Link { target }, _)) => {
            root.make_parents(name)?;
            root.link(name, &target)
        }
        Some((Content::File { executable, .. }, content)) => {
            root.make_parents(name)?;
            let mode = match here {
                Here::File { found, .. } => found.mode,
                _ => 0o666 & !umask(),
            };
            // Who may read it may run it.
            let mode = if executable { mode | (mode & 0o444) >> 2 } else { mode & !0o111 };
            match here {
                Here::File { content: old, .. } if *old == content => root.set_mode(name, mode),
                _ => root.write(name, &content, mode),
            }
        }
    }
}

fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::umask(mask);
    mask.bits()
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
