//! Packing: files, folders and symlinks with their modes; sockets, pipes and devices are left out, and so is what is in `/proc`, `/sys`
//! and their like: what is read there is made up by the kernel as it is read, and has no size that could be said before.
//!
//! Nothing is followed out of the folder, whatever changes in it meanwhile: every name is opened below the folder's own
//! descriptor. An archive of a folder that is written to is whole all the same: what has gone before it was opened is left out, what has
//! grown is as long as it was when it was opened, and what has become shorter is filled up with zeros, as other programs that pack do.
//! Nothing could take a header back. Which files that were is said at the end, in a comment ([`Shortened`]).

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
/// What the comment begins with.
const SHORTENED: &str = "shorter than when they were opened, filled up with zeros: ";
/// Names of files that became shorter that are told, in bytes; of the others their number is.
const MAX_TOLD: usize = 16 * 1024;

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
    let mut shortened = Shortened::default();
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
                    let is_shorter = pack_file(&mut archive, &folder, name, &path).map_err(named)?;
                    if is_shorter {
                        shortened.add(&path);
                    }
                }
                FileType::Directory => {
                    let mut header = header(EntryType::Directory, &stat);
                    archive.append_data(&mut header, &path, io::empty())?;
                    folders.push_back(path);
                }
                FileType::Symlink => {
                    let target = match rustix::fs::readlinkat(&folder, name, Vec::new()) {
                        Ok(target) => target,
                        // It has gone, or is no symlink any more.
                        Err(Errno::NOENT | Errno::INVAL) => continue,
                        Err(error) => return Err(error.into()),
                    };
                    let target = PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes()));
                    let mut header = header(EntryType::Symlink, &stat);
                    archive.append_link(&mut header, &path, target)?;
                }
                _ => {}
            }
        }
    }
    shortened.tell(&mut archive, root)?;
    archive.finish()
}

fn open_below(root: &OwnedFd, below: &Path) -> rustix::io::Result<OwnedFd> {
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::io::retry_on_intr(|| rustix::fs::openat2(root, below, flags, Mode::empty(), inside))
}

/// Packs a file, if it is one still; whether it became shorter meanwhile.
fn pack_file(
    archive: &mut Builder<impl Write>,
    folder: &OwnedFd,
    name: &std::ffi::CStr,
    path: &Path,
) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let stat = rustix::fs::fstat(file.as_fd())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(false);
    }
    let mut header = header(EntryType::Regular, &stat);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    header.set_size(size);
    let file = BufReader::with_capacity(READ, File::from(file).take(size));
    let mut content = Exactly { file, left: size, is_shorter: false };
    archive.append_data(&mut header, path, &mut content)?;
    Ok(content.is_shorter)
}

/// A file as long as its header says.
struct Exactly<R> {
    file: R,
    left: u64,
    /// It ended before, and zeros take the place of the rest.
    is_shorter: bool,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut count = if self.is_shorter { 0 } else { self.file.read(into)? };
        if count == 0 && self.left > 0 && !into.is_empty() {
            self.is_shorter = true;
            count = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
            into[..count].fill(0);
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// The files of an archive that end in zeros they never had.
#[derive(Default)]
struct Shortened {
    names: String,
    more: u64,
}

impl Shortened {
    fn add(&mut self, path: &Path) {
        let name = format!("{path:?}");
        if self.names.len() + name.len() > MAX_TOLD {
            self.more += 1;
            return;
        }
        if !self.names.is_empty() {
            self.names.push_str(", ");
        }
        self.names.push_str(&name);
    }

    /// Says it as a global comment, which whoever unpacks is to pass over.
    fn tell(&self, archive: &mut Builder<impl Write>, root: &OwnedFd) -> io::Result<()> {
        if self.names.is_empty() {
            return Ok(());
        }
        let more = if self.more > 0 { format!(" and {} more", self.more) } else { String::new() };
        let record = record("comment", &format!("{SHORTENED}{}{more}", self.names));
        let mut comment = Header::new_ustar();
        comment.set_entry_type(EntryType::XGlobalHeader);
        comment.set_path("pax_global_header")?;
        comment.set_mode(0o644);
        comment.set_size(record.len() as u64);
        comment.set_cksum();
        archive.append(&comment, record.as_bytes())?;
        // Some readers take a comment that nothing follows for a damaged archive. The folder itself may follow anything.
        let mut folder = header(EntryType::Directory, &rustix::fs::fstat(root)?);
        archive.append_data(&mut folder, "./", io::empty())
    }
}

/// A record of extended attributes, which begins with its own length.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len();
    loop {
        let text = format!("{length}{rest}");
        if text.len() == length {
            return text;
        }
        length = text.len();
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// Takes an archive, and does something to the folder when the headers of its files have come.
    struct Meddler<F> {
        archive: Vec<u8>,
        meddle: Option<F>,
        when: &'static [u8],
    }

    impl<F: FnOnce()> Write for Meddler<F> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.archive.extend_from_slice(bytes);
            if bytes.starts_with(self.when)
                && let Some(meddle) = self.meddle.take()
            {
                meddle();
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn packed(folder: &Path, when: &'static [u8], meddle: impl FnOnce()) -> Vec<u8> {
        let root = open(&GuestPath::parse(folder.as_os_str().as_bytes()).unwrap()).unwrap();
        let mut output = Meddler { archive: Vec::new(), meddle: Some(meddle), when };
        pack(&root, &mut output).unwrap();
        assert!(output.meddle.is_none(), "the folder was changed");
        output.archive
    }

    /// Names and contents, in order of name; what it says is among them.
    fn unpacked(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let mut found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().display().to_string(), content)
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn a_file_that_becomes_shorter_is_filled_up_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        fs::write(&file, vec![b'x'; 300_000]).unwrap();
        let archive = packed(folder.path(), b"log\0", || fs::write(&file, "short").unwrap());
        let found = unpacked(&archive);
        assert_eq!(
            found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["./", "log", "pax_global_header"]
        );
        let (said, content) = (String::from_utf8(found[2].1.clone()).unwrap(), &found[1].1);
        assert_eq!(content.len(), 300_000);
        assert!(content.starts_with(b"short\0") && content[5..].iter().all(|byte| *byte == 0));
        assert!(said.ends_with(&format!(" comment={SHORTENED}\"log\"\n")), "{said}");
        assert!(said.starts_with(&format!("{} ", said.len())), "{said}");
    }

    #[test]
    fn a_file_that_grows_is_as_long_as_it_was_and_nothing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        fs::write(&file, vec![b'x'; 1000]).unwrap();
        let archive = packed(folder.path(), b"log\0", || fs::write(&file, vec![b'y'; 9000]).unwrap());
        assert_eq!(unpacked(&archive), [("log".to_owned(), vec![b'y'; 1000])]);
    }

    #[test]
    fn what_goes_before_it_is_opened_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::create_dir(path.join("gone")).unwrap();
        fs::write(path.join("gone/file"), "x").unwrap();
        std::os::unix::fs::symlink("x", path.join("gone/link")).unwrap();
        let archive = packed(path, b"gone", || fs::remove_dir_all(path.join("gone")).unwrap());
        assert_eq!(unpacked(&archive).len(), 1);
    }

    #[test]
    fn names_are_told_up_to_a_bound() {
        let mut shortened = Shortened::default();
        (0..10_000).for_each(|number| shortened.add(Path::new(&format!("a file with the number {number}"))));
        assert!(shortened.names.len() <= MAX_TOLD && shortened.more > 9000);
        for length in 0..200 {
            let text = record("comment", &"x".repeat(length));
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), text.len());
        }
    }
}
