//! Which files there are, and which have changed, as the kernel tells it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};

/// Folders below the first that are looked into.
const MAX_FOLDERS: usize = 64;
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 4096;
/// Changed files that are told apart.
const MAX_CHANGED: usize = 1024;

pub(super) struct Watch {
    inotify: OwnedFd,
    folder: PathBuf,
    watched: HashMap<i32, PathBuf>,
}

/// What to look at.
#[derive(Debug)]
pub(super) enum Changed {
    /// These, some of which may be gone.
    Files(BTreeSet<PathBuf>),
    /// Everything: these are all files there are, and their sizes.
    All(Files),
}

/// Regular files and their sizes.
pub(super) type Files = BTreeMap<PathBuf, u64>;

impl Watch {
    /// Watches a folder, and the files there are from then on.
    pub(super) fn start(folder: &Path, inotify: OwnedFd) -> (Self, Files) {
        let mut watch = Self { inotify, folder: folder.to_owned(), watched: HashMap::new() };
        let files = watch.watch_all();
        (watch, files)
    }

    /// Takes what the kernel has to tell since the last call.
    pub(super) fn changed(&mut self) -> Changed {
        let mut files = BTreeSet::new();
        let mut everything = false;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = events.next() {
            let folders = ReadFlags::ISDIR | ReadFlags::QUEUE_OVERFLOW;
            if event.events().intersects(folders) || files.len() > MAX_CHANGED {
                everything = true;
                continue;
            }
            let name = event.file_name().and_then(|name| name.to_str().ok());
            if let (Some(folder), Some(name)) = (self.watched.get(&event.wd()), name) {
                files.insert(folder.join(name));
            }
        }
        if everything { Changed::All(self.watch_all()) } else { Changed::Files(files) }
    }

    /// Watches the folders there are now, and no others; returns the files in them.
    fn watch_all(&mut self) -> Files {
        for (number, _) in self.watched.drain() {
            // It is gone already when its folder is.
            let _ = inotify::remove_watch(&self.inotify, number);
        }
        // Whether the folder itself comes or goes.
        if let Some(parent) = self.folder.parent() {
            let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::ONLYDIR;
            // Its other entries are no files of ours: it is not in `watched`.
            let _ = inotify::add_watch(&self.inotify, parent, flags);
        }
        let mut files = Files::new();
        // Each is watched before it is looked into, so that no change falls between.
        self.add(self.folder.clone());
        for folder in look_into(&self.folder.clone(), &mut files) {
            self.add(folder.clone());
            look_into(&folder, &mut files);
        }
        files
    }

    fn add(&mut self, folder: PathBuf) {
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        if let Ok(number) = inotify::add_watch(&self.inotify, &folder, flags) {
            self.watched.insert(number, folder);
        }
    }
}

/// Adds the regular files in a folder, and returns the folders in it. Names that are not UTF-8 are left out.
fn look_into(folder: &Path, files: &mut Files) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    // Never through a link, which could lead anywhere.
    let is_folder = std::fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_dir());
    let entries = is_folder.then(|| std::fs::read_dir(folder).ok()).flatten();
    for entry in entries.into_iter().flatten().flatten().take(MAX_ENTRIES) {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if path.to_str().is_none() {
            continue;
        }
        if kind.is_file() {
            files.insert(path, entry.metadata().map_or(0, |meta| meta.len()));
        } else if kind.is_dir() && folders.len() < MAX_FOLDERS {
            folders.push(path);
        }
    }
    folders
}

/// The same without watching, for tests.
#[cfg(test)]
pub(super) fn files_in(folder: &Path) -> Files {
    let mut files = Files::new();
    for folder in look_into(folder, &mut files) {
        look_into(&folder, &mut files);
    }
    files
}
