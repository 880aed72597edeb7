//! Packing: files, folders and symlinks with their modes; sockets, pipes and devices are left out, and so is what is in `/proc`, `/sys`
//! and their like: what is read there is made up by the kernel as it is read, and has no size that could be said before.
//!
//! Nothing is followed out of the folder, whatever changes in it meanwhile: every name is opened below the folder's own
//! descriptor.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};
use warren_types::Error;
use warren_types::error::Result;

use crate::files::errors::explain;
use crate::paths::GuestPath;

const READ: usize = 128 * 1024;

/// File systems whose files the kernel makes up: proc, sysfs, cgroup, cgroup2, devpts, debugfs, tracefs, securityfs, bpf, mqueue.
const MADE_UP: [u32; 10] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x1980_0202,
];

/// Opens the folder to pack.
pub(super) fn open(path: &GuestPath) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder =
        rustix::fs::openat(CWD, path.as_path(), flags, Mode::empty()).map_err(|error| match error {
            Errno::NOTDIR => Error::invalid(format!("{path} is not a directory")),
            error => explain(&error.into(), path),
        })?;
    if is_made_up(&folder).map_err(|error| explain(&error.into(), path))? {
        return Err(Error::invalid(format!(
            "{path} is made up by the kernel and cannot be packed; read its files"
        )));
    }
    Ok(folder)
}

fn is_made_up(folder: &OwnedFd) -> rustix::io::Result<bool> {
    // Its type differs between processors; the number is one of 32 bits on all of them.
    let kind = rustix::fs::fstatfs(folder)?.f_type as u32;
    Ok(MADE_UP.contains(&kind))
}

pub(super) fn pack(root: &OwnedFd, output: &mut impl Write) -> io::Result<()> {
    let mut archive = Builder::new(output);
    let mut folders = VecDeque::from([PathBuf::new()]);
    while let Some(below) = folders.pop_front() {
        let folder = match open_below(root, &below) {
            Ok(folder) => folder,
            // It has gone, or become something else.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(error.into()),
        };
        if is_made_up(&folder)? {
            continue;
        }
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = below.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            let stat = match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => {
                    let named = |error: io::Error| {
                        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                    };
                    pack_file(&mut archive, &folder, name, &path).map_err(named)?;
                }
                FileType::Directory => {
                    let mut header = header(EntryType::Directory, &stat);
                    archive.append_data(&mut header, &path, io::empty())?;
                    folders.push_back(path);
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&folder, name, Vec::new())?;
                    let target = PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes()));
                    let mut header = header(EntryType::Symlink, &stat);
                    archive.append_link(&mut header, &path, target)?;
                }
                _ => {}
            }
        }
    }
    archive.finish()
}

fn open_below(root: &OwnedFd, below: &Path) -> rustix::io::Result<OwnedFd> {
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::io::retry_on_intr(|| rustix::fs::openat2(root, below, flags, Mode::empty(), inside))
}

fn pack_file(
    archive: &mut Builder<impl Write>,
    folder: &OwnedFd,
    name: &std::ffi::CStr,
    path: &Path,
) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let stat = rustix::fs::fstat(file.as_fd())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(());
    }
    let mut header = header(EntryType::Regular, &stat);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    header.set_size(size);
    let content = Exactly { file: BufReader::with_capacity(READ, File::from(file).take(size)), left: size };
    archive.append_data(&mut header, path, content)
}

/// A file as long as its header says; one that has become shorter breaks the archive off rather than make something up.
struct Exactly<R> {
    file: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        if count == 0 && self.left > 0 && !into.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a file became shorter while it was packed",
            ));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn header(kind: EntryType, stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}
