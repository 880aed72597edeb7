//! Which files have changed, as the kernel tells it.

use std::collections::{BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};

/// Folders below the first that are watched.
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
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// These, some of which may be gone.
    Files(BTreeSet<PathBuf>),
    /// Everything: these are all files there are.
    All(BTreeSet<PathBuf>),
}

impl Watch {
    pub(super) fn start(folder: &Path, inotify: OwnedFd) -> Self {
        let mut watch = Self { inotify, folder: folder.to_owned(), watched: HashMap::new() };
        watch.watch_all();
        watch
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
        if !everything {
            return Changed::Files(files);
        }
        self.watch_all();
        Changed::All(files_in(&self.folder))
    }

    /// Watches the folders there are now, and no others.
    fn watch_all(&mut self) {
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
        self.add(self.folder.clone());
        for folder in folders_in(&self.folder) {
            self.add(folder);
        }
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

/// Regular files in a folder and in the folders in it. Those whose names are not UTF-8 are left out.
pub(super) fn files_in(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for folder in std::iter::once(folder.to_owned()).chain(folders_in(folder)) {
        files.extend(entries(&folder).filter(|(kind, _)| kind.is_file()).map(|(_, path)| path));
    }
    files
}

fn folders_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    entries(folder).filter(|(kind, _)| kind.is_dir()).map(|(_, path)| path).take(MAX_FOLDERS)
}

fn entries(folder: &Path) -> impl Iterator<Item = (std::fs::FileType, PathBuf)> + use<> {
    // Never through a link, which could lead anywhere.
    let is_folder = std::fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_dir());
    let entries = is_folder.then(|| std::fs::read_dir(folder).ok()).flatten();
    let entries = entries.into_iter().flatten().flatten().take(MAX_ENTRIES);
    entries.filter_map(|entry| {
        let path = entry.path();
        path.to_str()?;
        Some((entry.file_type().ok()?, path))
    })
}
