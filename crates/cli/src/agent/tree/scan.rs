//! Walks a folder: what goes into a sandbox, by name and `stat`, without reading it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::Context as _;
use ignore::{DirEntry, WalkBuilder, WalkState};

use super::root::{stamp_of, text_of};
use super::rules::RULES;
use super::{Kind, Name, Stamp, git};
use crate::agent::patch::repository::{Stands, is_repository};
use crate::failure::hinted;
use crate::output::{human_bytes, printable};

/// How many files that are too large are named.
const NAMED: usize = 10;
const GIT: &str = ".git";

#[derive(Debug, Clone)]
pub(crate) struct ScanOptions {
    /// Whether the repository itself goes in.
    pub(crate) git: bool,
    /// Largest file that goes in, in bytes.
    pub(crate) max_file: u64,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self { git: true, max_file: 1 << 30 }
    }
}

/// One thing that was found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) stamp: Stamp,
    /// Content that is not that of the file here.
    pub(crate) made: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) root: PathBuf,
    pub(crate) entries: BTreeMap<Name, Found>,
    /// What stays here and why, for the user.
    pub(crate) left_out: Vec<String>,
}

impl Scan {
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.values().map(|found| found.stamp.size).sum()
    }
}

/// What a walk collects, from several threads.
#[derive(Default)]
struct Collected {
    entries: BTreeMap<Name, Found>,
    left_out: Vec<String>,
    too_large: Vec<(Name, u64)>,
}

pub(crate) fn scan(folder: &Path, options: &ScanOptions) -> anyhow::Result<Scan> {
    let root = folder.canonicalize().with_context(|| format!("could not read {}", folder.display()))?;
    not_in_repository(&root)?;
    let rules_outside = root.ancestors().skip(1).find_map(|above| odd_rules(&above.join(RULES)));
    let exclude = root.join(GIT).join("info/exclude");
    if let Some(odd) = odd_rules(&root.join(RULES)).or_else(|| odd_rules(&exclude)).or(rules_outside) {
        return Err(unreadable_rules(&odd));
    }
    let collected = Mutex::new(Collected::default());
    let odd = walk(&root, options, &collected);
    let mut collected = collected.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(odd) = odd {
        return Err(unreadable_rules(&odd));
    }
    // A folder or a repository's parent may be the repository; a submodule's file says so too.
    if root.ancestors().any(|above| above.join(GIT).exists()) {
        match git::tracked_but_ignored(&root) {
            Ok(names) => {
                for name in names {
                    add_tracked(&root, &name, options, &mut collected);
                }
            }
            Err(why) => {
                collected
                    .left_out
                    .push(format!("files that are tracked although a rule ignores them: {why}"));
            }
        }
    }
    match std::fs::symlink_metadata(root.join(GIT)) {
        Ok(metadata) if metadata.is_dir() && options.git => add_repository(&root, options, &mut collected),
        Ok(metadata) if metadata.is_file() && options.git => collected.left_out.push(
            "the history stays here: .git is a file that points elsewhere (a worktree or a submodule)"
                .to_owned(),
        ),
        Ok(metadata) if !metadata.is_dir() && options.git => {
            let what = if metadata.is_symlink() { "a symbolic link" } else { "neither folder nor file" };
            collected.left_out.push(format!("the history stays here: .git is {what}"));
        }
        _ => {}
    }
    collected.too_large.sort();
    if !collected.too_large.is_empty() {
        let named: Vec<_> = collected
            .too_large
            .iter()
            .take(NAMED)
            .map(|(name, size)| format!("{} ({})", printable(name), human_bytes(*size)))
            .collect();
        let more = collected.too_large.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return Err(hinted(
            format!("larger than {}: {}{more}", human_bytes(options.max_file), named.join(", ")),
            "add them to .gitignore, or allow more with --max-file-mb",
        ));
    }
    Ok(Scan { root, entries: collected.entries, left_out: collected.left_out })
}

/// What a repository keeps for itself is nothing to work on: its settings and hooks would go in as they are.
fn not_in_repository(root: &Path) -> anyhow::Result<()> {
    let stands = |path: &Path| match std::fs::symlink_metadata(path) {
        Err(_) => Stands::Nothing,
        Ok(metadata) if metadata.is_dir() => Stands::Folder,
        Ok(_) => Stands::Other,
    };
    match root.ancestors().find(|at| is_repository(|child| stands(&at.join(child)))) {
        None => Ok(()),
        Some(at) => Err(hinted(
            format!("{} is a repository's own, not a folder of files", printable(&at.display().to_string())),
            "say which folder to work on with --dir; of a bare repository make a clone first",
        )),
    }
}

/// A file of rules that is none and would be read for ever.
fn odd_rules(path: &Path) -> Option<PathBuf> {
    const NULL: u64 = 0x103;
    let metadata = std::fs::metadata(path).ok()?;
    let is_fine = metadata.is_file() || metadata.is_dir() || metadata.rdev() == NULL;
    (!is_fine).then(|| path.to_owned())
}

fn unreadable_rules(path: &Path) -> anyhow::Error {
    hinted(
        format!(
            "{} is a pipe, a socket or a device, and git reads rules from it",
            printable(&path.display().to_string())
        ),
        "remove it, or make it a file",
    )
}

/// The first file of rules that cannot be one, if there is such.
fn walk(root: &Path, options: &ScanOptions, collected: &Mutex<Collected>) -> Option<PathBuf> {
    let odd = Arc::new(OnceLock::new());
    let mut builder = WalkBuilder::new(root);
    builder
        .standard_filters(false)
        .git_ignore(true)
        .git_exclude(true)
        .git_global(true)
        .parents(true)
        .require_git(false)
        .follow_links(false)
        .filter_entry({
            let odd = Arc::clone(&odd);
            move |entry| {
                // The walk reads rules without looking at what they are.
                let is_folder = entry.file_type().is_some_and(|kind| kind.is_dir());
                if let Some(found) = is_folder.then(|| odd_rules(&entry.path().join(RULES))).flatten() {
                    let _ = odd.set(found);
                    return false;
                }
                entry.file_name() != GIT
            }
        });
    builder.build_parallel().run(|| {
        let mut own = OwnPart { collected, part: Collected::default() };
        Box::new(move |entry| {
            match entry {
                Ok(entry) if entry.depth() > 0 => add_entry(root, &entry, options, &mut own.part),
                Ok(_) => {}
                Err(error) => own.part.left_out.push(error.to_string()),
            }
            WalkState::Continue
        })
    });
    odd.get().cloned()
}

/// What one thread found, added to the rest when it ends.
struct OwnPart<'a> {
    collected: &'a Mutex<Collected>,
    part: Collected,
}

impl Drop for OwnPart<'_> {
    fn drop(&mut self) {
        let part = std::mem::take(&mut self.part);
        let mut all = self.collected.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.entries.extend(part.entries);
        all.left_out.extend(part.left_out);
        all.too_large.extend(part.too_large);
    }
}

fn add_entry(root: &Path, entry: &DirEntry, options: &ScanOptions, to: &mut Collected) {
    let path = entry.path();
    match entry.metadata() {
        Ok(metadata) => add(root, path, &metadata, options, to),
        Err(error) => to.left_out.push(error.to_string()),
    }
}

fn add(root: &Path, path: &Path, metadata: &std::fs::Metadata, options: &ScanOptions, to: &mut Collected) {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(name) = path.strip_prefix(root).ok().and_then(text_of) else {
        to.left_out.push(format!("{}: its name is not UTF-8", path.display()));
        return;
    };
    let mode = metadata.permissions().mode() & 0o777;
    let mut stamp = stamp_of(metadata);
    let kind = if metadata.is_file() {
        if stamp.size > options.max_file {
            to.too_large.push((name, stamp.size));
            return;
        }
        Kind::File { executable: mode & 0o100 != 0 }
    } else if metadata.is_dir() {
        stamp.size = 0;
        Kind::Folder
    } else if metadata.is_symlink() {
        stamp.size = 0;
        match std::fs::read_link(path).ok().and_then(|target| text_of(&target)) {
            Some(target) => Kind::Link { target },
            None => {
                to.left_out.push(format!("{name}: where the link leads is not UTF-8"));
                return;
            }
        }
    } else {
        to.left_out.push(format!("{name}: it is neither file, folder nor link"));
        return;
    };
    to.entries.insert(name, Found { kind, mode, stamp, made: None });
}

/// Adds a tracked file that a rule ignores, and the folders above it.
fn add_tracked(root: &Path, name: &str, options: &ScanOptions, to: &mut Collected) {
    let parts = name.match_indices('/').map(|(end, _)| &name[..end]).chain([name]);
    for part in parts {
        if part.split('/').any(|part| matches!(part, "" | "." | ".." | GIT)) {
            return;
        }
        if to.entries.contains_key(part) {
            continue;
        }
        let path = root.join(part);
        // Tracked and gone is as good as gone; what is below a link is not in this folder.
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { return };
        if part != name && !metadata.is_dir() {
            return;
        }
        add(root, &path, &metadata, options, to);
    }
}

fn add_repository(root: &Path, options: &ScanOptions, to: &mut Collected) {
    let repository = root.join(GIT);
    let walk = WalkBuilder::new(&repository)
        .standard_filters(false)
        .follow_links(false)
        .filter_entry({
            let repository = repository.clone();
            move |entry| {
                let name = entry.path().strip_prefix(&repository).ok().and_then(text_of);
                name.is_some_and(|name| name.is_empty() || git::goes_in(&name))
            }
        })
        .build();
    for entry in walk.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() || metadata.is_dir() {
            // Of history nothing is too large.
            add(root, entry.path(), &metadata, &ScanOptions { max_file: u64::MAX, ..options.clone() }, to);
        }
    }
    if repository.join("objects/info/alternates").exists() {
        to.left_out
            .push("part of the history stays here: the repository borrows objects from another".to_owned());
    }
    let made = git::config(&repository).into_bytes();
    let stamp = Stamp { size: made.len() as u64, modified: 0, changed: 0, inode: 0 };
    let kind = Kind::File { executable: false };
    to.entries.insert(format!("{GIT}/config"), Found { kind, mode: 0o644, stamp, made: Some(made) });
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn ignored_files_hooks_and_links_are_not_followed_in() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        for folder in ["src", "target", ".git/hooks", ".git/refs/heads", "sub/.git"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at(".gitignore"), "target/\n*.log\n!keep.log\n").unwrap();
        for name in [
            "src/a",
            "target/b",
            "c.log",
            "keep.log",
            ".hidden",
            ".git/HEAD",
            ".git/hooks/x",
            "sub/.git/HEAD",
        ] {
            fs::write(at(name), "x").unwrap();
        }
        fs::write(at(".git/config"), "[remote \"o\"]\n\turl = https://u:p@h/x\n").unwrap();
        symlink("/etc", at("etc")).unwrap();
        let found = scan(home.path(), &ScanOptions::default()).unwrap();
        let names: Vec<_> = found.entries.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                ".git",
                ".git/HEAD",
                ".git/config",
                ".git/refs",
                ".git/refs/heads",
                ".gitignore",
                ".hidden",
                "etc",
                "keep.log",
                "src",
                "src/a",
                "sub"
            ]
        );
        assert_eq!(
            found.entries[".git/config"].made.as_deref(),
            Some(&b"[remote \"o\"]\n\turl = https://h/x\n"[..])
        );
        assert_eq!(found.entries["etc"].kind, Kind::Link { target: "/etc".to_owned() });
        let none = scan(home.path(), &ScanOptions { git: false, ..ScanOptions::default() }).unwrap();
        assert!(!none.entries.keys().any(|name| name.starts_with(".git/")));
        let small = ScanOptions { max_file: 2, ..ScanOptions::default() };
        assert!(scan(home.path(), &small).unwrap_err().to_string().contains(".gitignore"));
    }

    #[test]
    fn a_pipe_where_rules_or_settings_are_is_not_waited_for() {
        let fifo = |path: &Path| {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(0o600),
                0,
            )
            .unwrap();
        };
        for name in [".gitignore", "a/b/.gitignore", ".git/info/exclude"] {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fifo(&path);
            let said = scan(home.path(), &ScanOptions::default()).unwrap_err().to_string();
            assert!(said.contains("is a pipe"), "{said}");
        }
        for name in [".git", ".gitattributes", ".git/config", "x"] {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fifo(&path);
            let found = scan(home.path(), &ScanOptions::default()).unwrap();
            assert!(!found.entries.contains_key(name) || name == ".git/config");
            assert!(name == ".git/config" || !found.left_out.is_empty(), "{name}");
        }
        let home = tempfile::tempdir().unwrap();
        symlink("/dev/null", home.path().join(".gitignore")).unwrap();
        scan(home.path(), &ScanOptions::default()).unwrap();
    }

    #[test]
    fn history_behind_a_link_stays_here_and_that_is_said() {
        let home = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("HEAD"), "x").unwrap();
        symlink(outside.path(), home.path().join(".git")).unwrap();
        let found = scan(home.path(), &ScanOptions::default()).unwrap();
        assert!(found.entries.is_empty(), "{:?}", found.entries);
        assert!(
            found.left_out.iter().any(|said| said.contains(".git is a symbolic link")),
            "{:?}",
            found.left_out
        );
    }

    #[test]
    fn what_a_repository_keeps_for_itself_does_not_go_in() {
        let home = tempfile::tempdir().unwrap();
        for folder in ["objects", "refs", "hooks"] {
            fs::create_dir(home.path().join(folder)).unwrap();
        }
        fs::write(home.path().join("HEAD"), "ref: refs/heads/main\n").unwrap();
        for folder in ["", "hooks"] {
            let said = scan(&home.path().join(folder), &ScanOptions::default()).unwrap_err().to_string();
            assert!(said.contains("a repository's own"), "{said}");
        }
    }
}
