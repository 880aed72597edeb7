//! Files of an image, reached from its root and never beyond it.
//!
//! The image was made by a stranger and whoever writes here is the host's root, so the kernel resolves each path inside the
//! image, as a process in it would see it (`RESOLVE_IN_ROOT`), and the last name of what is made is never followed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

/// The most that is read of a file.
const MAX_BYTES: u64 = 4 << 20;

/// Links that are followed on the way to a folder that is not there.
const LINKS: usize = 8;

/// Who owns what is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

pub(super) const ROOT: Owner = Owner { uid: 0, gid: 0 };

/// An image that is open for changes.
pub(super) struct Tree<'a> {
    root: BorrowedFd<'a>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root }
    }

    fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let path = if path.is_empty() { "." } else { path };
        loop {
            match rustix::fs::openat2(self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), within) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened,
            }
        }
    }

    fn open_folder(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Whether there is a folder, through links or not.
    pub(super) fn has_folder(&self, path: &str) -> bool {
        self.open_folder(path).is_ok()
    }

    /// The folder `path`; made, with those above it, where there is none. What leads nowhere is replaced.
    pub(super) fn folder(&self, path: &str, mode: u32, owner: Owner) -> io::Result<OwnedFd> {
        match self.open_folder(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !path.is_empty() => {
                let (above, name) = split(path);
                let above = self.folder(above, 0o755, ROOT)?;
                make_folder(&above, name, mode, owner)?;
                Ok(self.open_folder(path)?)
            }
            opened => Ok(opened?),
        }
    }

    /// The same of a folder that the image itself speaks of: nothing of the image is replaced. A link that leads nowhere is
    /// followed to what is to be there; a file that is in the way is an error.
    pub(super) fn named_folder(&self, path: &str, mode: u32, owner: Owner) -> io::Result<OwnedFd> {
        self.follow_to_folder(path, mode, owner, LINKS)
    }

    fn follow_to_folder(&self, path: &str, mode: u32, owner: Owner, links: usize) -> io::Result<OwnedFd> {
        let (above, name) = split(path);
        match self.open_folder(path) {
            Err(Errno::NOENT) if !path.is_empty() => {}
            Err(Errno::NOTDIR) => return Err(in_the_way(path)),
            opened => return Ok(opened?),
        }
        let folder = self.follow_to_folder(above, 0o755, ROOT, links)?;
        if name == "." || name == ".." {
            return Ok(self.open_folder(path)?);
        }
        match rustix::fs::readlinkat(&folder, name, Vec::new()) {
            Err(Errno::NOENT) => {
                make_folder(&folder, name, mode, owner)?;
                Ok(self.open_folder(path)?)
            }
            Ok(target) if links > 0 => {
                let target = target.to_str().map_err(|_| in_the_way(path))?;
                let target = match target.strip_prefix('/') {
                    Some(absolute) => absolute.to_owned(),
                    None => format!("{above}/{target}"),
                };
                self.follow_to_folder(target.trim_matches('/'), mode, owner, links - 1)
            }
            _ => Err(in_the_way(path)),
        }
    }

    /// Like [`Tree::folder`], of one that must not be a link, because something is mounted on it.
    pub(super) fn mount_point(&self, path: &str, mode: u32) -> io::Result<()> {
        let (above, name) = split(path);
        let above = self.folder(above, 0o755, ROOT)?;
        make_folder(&above, name, mode, ROOT)?;
        Ok(())
    }

    /// Puts a file in the place of whatever file or link is there.
    pub(super) fn write(&self, path: &str, text: &str, mode: u32) -> io::Result<()> {
        let (above, name) = split(path);
        let above = self.folder(above, 0o755, ROOT)?;
        remove(&above, name).map_err(|error| no_file(path, error))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&above, name, flags, Mode::from_raw_mode(0o600))?;
        File::from(file.try_clone()?).write_all(text.as_bytes())?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(())
    }

    /// Puts a link in the place of whatever file or link is there.
    pub(super) fn link(&self, path: &str, target: &str) -> io::Result<()> {
        let (above, name) = split(path);
        let above = self.folder(above, 0o755, ROOT)?;
        remove(&above, name).map_err(|error| no_file(path, error))?;
        rustix::fs::symlinkat(target, &above, name).map_err(Into::into)
    }

    /// Whether there is anything of that name, a link that leads nowhere included.
    pub(super) fn has(&self, path: &str) -> bool {
        let (above, name) = split(path);
        self.open_folder(above)
            .is_ok_and(|above| rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW).is_ok())
    }

    /// What a file says; `None` where there is no regular file, or one that is too large.
    pub(super) fn read(&self, path: &str) -> io::Result<Option<String>> {
        let Some((file, _)) = self.open_file(path, OFlags::RDONLY)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        let whole = bytes.len() as u64 <= MAX_BYTES;
        Ok(whole.then(|| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Adds text to a regular file, as lines of its own. Returns its number; `None` where there is none.
    pub(super) fn append(&self, path: &str, text: &str, not_to: &[u64]) -> io::Result<Option<u64>> {
        let Some((mut file, inode)) = self.open_file(path, OFlags::RDWR | OFlags::APPEND)? else {
            return Ok(None);
        };
        if !not_to.contains(&inode) {
            let mut last = [b'\n'];
            let length = file.metadata()?.len();
            if length > 0 {
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut last, length - 1)?;
            }
            let break_line = if last == *b"\n" { "" } else { "\n" };
            file.write_all(format!("{break_line}{text}").as_bytes())?;
        }
        Ok(Some(inode))
    }

    /// A regular file and its number.
    fn open_file(&self, path: &str, flags: OFlags) -> io::Result<Option<(File, u64)>> {
        // Not kept waiting by a FIFO.
        let file = match self.open(path, flags | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::ISDIR | Errno::ACCESS) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
        Ok(metadata.is_file().then_some((file, inode)))
    }
}

fn in_the_way(path: &str) -> io::Error {
    let text = format!("/{path} is to be a folder, and in the image it is none");
    io::Error::new(io::ErrorKind::NotADirectory, text)
}

fn no_file(path: &str, error: io::Error) -> io::Error {
    match error.kind() {
        kind @ io::ErrorKind::IsADirectory => {
            io::Error::new(kind, format!("/{path} is to be a file, and in the image it is a folder"))
        }
        _ => error,
    }
}

/// The folder of a path, and its last name.
fn split(path: &str) -> (&str, &OsStr) {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    (above, Path::new(name).as_os_str())
}

fn make_folder(above: &OwnedFd, name: &OsStr, mode: u32, owner: Owner) -> io::Result<()> {
    match rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(()),
        Ok(_) => remove(above, name)?,
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o700))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(above, name, flags, Mode::empty())?;
    rustix::fs::fchown(&folder, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    // Whatever the umask; and after the owner, whose change may take bits away.
    rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?;
    Ok(())
}

/// Removes a file or a link; a folder is refused.
fn remove(above: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(above, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn nothing_is_reached_outside_whatever_the_links_of_an_image_say() {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("etc")).unwrap();
        fs::write(outside.path().join("etc/victim"), "safe").unwrap();
        let image = tempfile::tempdir().unwrap();
        let root = File::open(image.path()).unwrap();
        let tree = Tree::new(root.as_fd());
        let away = outside.path().join("etc");
        symlink(&away, image.path().join("etc")).unwrap();
        symlink(away.join("victim"), image.path().join("file")).unwrap();
        symlink("../../../../../../../../..", image.path().join("up")).unwrap();

        tree.write("etc/victim", "changed", 0o644).unwrap();
        tree.write("file", "changed", 0o644).unwrap();
        tree.folder("up/made", 0o755, Owner { uid: 0, gid: 0 }).unwrap();
        assert_eq!(tree.append("up/etc/nothing", "x", &[]).unwrap(), None);
        assert_eq!(fs::read_to_string(outside.path().join("etc/victim")).unwrap(), "safe");
        assert_eq!(fs::read_dir(outside.path().join("etc")).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(image.path().join("file")).unwrap(), "changed");
        assert!(image.path().join("made").is_dir());
        assert_eq!(tree.read("etc/victim").unwrap().as_deref(), Some("changed"));
    }

    #[test]
    fn what_something_is_mounted_on_is_a_folder_of_its_own() {
        let image = tempfile::tempdir().unwrap();
        let root = File::open(image.path()).unwrap();
        let tree = Tree::new(root.as_fd());
        symlink("/tmp", image.path().join("dev")).unwrap();
        fs::write(image.path().join("proc"), "").unwrap();
        fs::create_dir(image.path().join("sys")).unwrap();
        for path in ["dev", "proc", "sys", "tmp"] {
            tree.mount_point(path, 0o1777).unwrap();
            let metadata = fs::symlink_metadata(image.path().join(path)).unwrap();
            assert!(metadata.is_dir(), "{path}");
            assert_eq!(metadata.permissions().mode() & 0o7777 == 0o1777, path != "sys", "{path}");
        }
    }

    #[test]
    fn a_folder_that_the_image_speaks_of_takes_the_place_of_nothing() {
        let image = tempfile::tempdir().unwrap();
        let root = File::open(image.path()).unwrap();
        let tree = Tree::new(root.as_fd());
        let owner = Owner { uid: 7, gid: 8 };
        fs::write(image.path().join("file"), "kept").unwrap();
        for path in ["file", "file/below", "file/below/it"] {
            let error = tree.named_folder(path, 0o755, owner).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{path}: {error}");
        }
        assert_eq!(fs::read_to_string(image.path().join("file")).unwrap(), "kept");
        symlink("var/home", image.path().join("home")).unwrap();
        symlink("/../../var/root", image.path().join("root")).unwrap();
        symlink("loop", image.path().join("loop")).unwrap();
        tree.named_folder("home/app", 0o755, owner).unwrap();
        tree.named_folder("root", 0o700, ROOT).unwrap();
        assert!(tree.named_folder("loop", 0o755, owner).is_err());
        assert!(fs::symlink_metadata(image.path().join("home")).unwrap().is_symlink());
        let made = fs::metadata(image.path().join("var/home/app")).unwrap();
        assert_eq!((made.is_dir(), std::os::unix::fs::MetadataExt::uid(&made)), (true, 7));
        assert!(image.path().join("var/root").is_dir());
    }

    #[test]
    fn text_is_added_once_on_lines_of_its_own() {
        let image = tempfile::tempdir().unwrap();
        let root = File::open(image.path()).unwrap();
        let tree = Tree::new(root.as_fd());
        fs::write(image.path().join("bundle"), "old").unwrap();
        symlink("/bundle", image.path().join("alias")).unwrap();
        let first = tree.append("bundle", "new\n", &[]).unwrap().unwrap();
        assert_eq!(tree.append("alias", "new\n", &[first]).unwrap(), Some(first));
        assert_eq!(fs::read_to_string(image.path().join("bundle")).unwrap(), "old\nnew\n");
        assert_eq!(tree.append("none", "x", &[]).unwrap(), None);
        fs::create_dir(image.path().join("folder")).unwrap();
        assert_eq!(tree.append("folder", "x", &[]).unwrap(), None);
        assert!(tree.write("folder", "x", 0o644).is_err());
    }
}
