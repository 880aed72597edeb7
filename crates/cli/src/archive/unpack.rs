//! A tar stream from a sandbox into a local folder. The stream is hostile until proven otherwise.
//!
//! It is unpacked beside its destination and moved there when it is whole: a transfer that breaks leaves nothing behind, and
//! a file is replaced in one step or not at all. It refuses names that lead out, and links or devices that would.

use std::fs::{self, Permissions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType, PaxExtensions};

use super::Unpacked;

/// Longest comment that is read.
const MAX_COMMENT: u64 = 64 * 1024;

/// Unpacks into `target`, which is made, or added to when it is a folder already.
pub(crate) fn unpack(reader: impl Read, target: &Path) -> Result<Unpacked> {
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let beside = tempfile::Builder::new().prefix(".warren-").tempdir_in(parent)?;
    let whole = beside.path().join("unpacked");
    fs::create_dir(&whole)?;
    let mut unpacked = Unpacked::default();
    // Their modes are set last: a folder that may not be written to still has to be filled and moved.
    let mut folders: Vec<(PathBuf, u32)> = Vec::new();
    let mut reader = UntilEnd { reader, ended: false };
    let mut archive = Archive::new(&mut reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = inner_name(&entry.path()?)?;
        match entry.header().entry_type() {
            _ if name.as_os_str().is_empty() => {}
            EntryType::Directory => {
                ensure_folder(&whole, &name)?;
                folders.push((name, entry.header().mode()? & 0o777));
            }
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Symlink
            | EntryType::Link => {
                if !entry.unpack_in(&whole)? {
                    return Err(leads_out(&name));
                }
            }
            EntryType::XGlobalHeader => {
                unpacked.comment = comment_of(&mut entry)?.or(unpacked.comment);
            }
            _ => unpacked.skipped.0 += 1,
        }
    }
    // The end mark stops the reading before the stream ends. A stream that ends first was cut off between two entries,
    // where nothing else would tell.
    if reader.ended {
        return Err(Error::new(ErrorKind::UnexpectedEof, "the archive breaks off"));
    }
    // What follows is padding; a connection that breaks in it still says so.
    std::io::copy(&mut reader, &mut std::io::sink())?;
    merge(&whole, target)?;
    for (name, mode) in folders.iter().rev() {
        fs::set_permissions(target.join(name), Permissions::from_mode(*mode))?;
    }
    Ok(unpacked)
}

/// The comment in a global header.
fn comment_of(header: &mut impl Read) -> Result<Option<String>> {
    let mut text = Vec::new();
    header.take(MAX_COMMENT).read_to_end(&mut text)?;
    let comment =
        PaxExtensions::new(&text).filter_map(Result::ok).find(|record| record.key_bytes() == b"comment");
    Ok(comment.map(|record| String::from_utf8_lossy(record.value_bytes()).into_owned()))
}

/// Remembers whether the stream has come to its end.
struct UntilEnd<R> {
    reader: R,
    ended: bool,
}

impl<R: Read> Read for UntilEnd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let length = self.reader.read(buffer)?;
        self.ended |= length == 0 && !buffer.is_empty();
        Ok(length)
    }
}

/// The name without `.`; one with `..` or from the root is refused.
fn inner_name(name: &Path) -> Result<PathBuf> {
    let mut inner = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => inner.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return Err(leads_out(name)),
        }
    }
    Ok(inner)
}

fn leads_out(name: &Path) -> Error {
    Error::new(
        ErrorKind::InvalidData,
        format!("the archive holds a name that leads out of its folder: {:?}", name.display().to_string()),
    )
}

/// Makes a folder below `root`, following no link on the way.
fn ensure_folder(root: &Path, name: &Path) -> Result<()> {
    let mut path = root.to_owned();
    for part in name {
        path.push(part);
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.symlink_metadata()?.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Moves a tree to where it belongs. Folders are joined, everything else replaces what was there.
fn merge(from: &Path, to: &Path) -> Result<()> {
    let in_the_way =
        |what: &str| Error::new(ErrorKind::AlreadyExists, format!("{} {what} is in the way", to.display()));
    let is_folder = from.symlink_metadata()?.is_dir();
    match to.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => fs::rename(from, to),
        Err(error) => Err(error),
        Ok(there) if is_folder && there.is_dir() => {
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                merge(&entry.path(), &to.join(entry.file_name()))?;
            }
            Ok(())
        }
        Ok(_) if is_folder => Err(in_the_way("(not a folder)")),
        Ok(there) if there.is_dir() => Err(in_the_way("(a folder)")),
        Ok(_) => fs::rename(from, to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        fill(&mut builder);
        builder.into_inner().unwrap()
    }

    fn add(
        builder: &mut tar::Builder<Vec<u8>>,
        name: &str,
        kind: EntryType,
        contents: &[u8],
        link: Option<&str>,
    ) {
        let mut header = tar::Header::new_gnu();
        // Written byte by byte: the builder itself refuses names that lead out.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(link) = link {
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        builder.append(&header, contents).unwrap();
    }

    #[test]
    fn a_packed_folder_comes_back_whole() {
        let home = tempfile::tempdir().unwrap();
        let source = home.path().join("source");
        fs::create_dir_all(source.join("deep/closed")).unwrap();
        fs::write(source.join("deep/closed/file"), b"contents").unwrap();
        fs::write(source.join(format!("{}.long", "n".repeat(200))), b"").unwrap();
        std::os::unix::fs::symlink("deep/closed/file", source.join("link")).unwrap();
        fs::set_permissions(source.join("deep/closed"), Permissions::from_mode(0o555)).unwrap();
        let mut bytes = Vec::new();
        assert_eq!(super::super::pack(&source, &mut bytes).unwrap().0, 0);

        let target = home.path().join("target");
        unpack(&bytes[..], &target).unwrap();
        assert_eq!(fs::read(target.join("link")).unwrap(), b"contents");
        assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("deep/closed/file"));
        assert_eq!(fs::metadata(target.join("deep/closed")).unwrap().permissions().mode() & 0o777, 0o555);
        assert!(target.join(format!("{}.long", "n".repeat(200))).exists());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "nothing is left beside the target");
    }

    #[test]
    fn what_an_archive_says_of_itself_is_told() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("target");
        let bytes = stream(|tar| {
            add(tar, "a", EntryType::Regular, b"x", None);
            add(tar, "pax_global_header", EntryType::XGlobalHeader, b"25 comment=not as it was\n", None);
            add(tar, "./", EntryType::Directory, b"", None);
        });
        let unpacked = unpack(&bytes[..], &target).unwrap();
        assert_eq!(unpacked.comment.as_deref(), Some("not as it was"));
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    }

    #[test]
    fn what_leads_out_is_refused_and_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let outside = home.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let out = outside.to_str().unwrap();
        let attacks = [
            stream(|tar| add(tar, "../escaped", EntryType::Regular, b"x", None)),
            stream(|tar| add(tar, "/tmp/escaped-from-warren", EntryType::Regular, b"x", None)),
            stream(|tar| {
                add(tar, "door", EntryType::Symlink, b"", Some(out));
                add(tar, "door/escaped", EntryType::Regular, b"x", None);
            }),
            stream(|tar| {
                add(tar, "door", EntryType::Symlink, b"", Some(out));
                add(tar, "door/folder", EntryType::Directory, b"", None);
            }),
            stream(|tar| add(tar, "hard", EntryType::Link, b"", Some("../../../../etc/passwd"))),
        ];
        for (number, attack) in attacks.iter().enumerate() {
            let target = home.path().join("target");
            assert!(unpack(&attack[..], &target).is_err(), "attack {number}");
            assert!(!target.exists(), "attack {number}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_stream_that_breaks_off_changes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("a"), b"old").unwrap();
        let bytes = stream(|tar| {
            add(tar, "a", EntryType::Regular, b"new", None);
            add(tar, "b", EntryType::Regular, &[7; 4096], None);
        });
        for length in [0, 512, 1024, 1500, 2048, bytes.len() - 1024] {
            assert!(unpack(&bytes[..length], &target).is_err(), "cut at {length}");
            assert_eq!(fs::read(target.join("a")).unwrap(), b"old");
        }
        unpack(&bytes[..], &target).unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"new");
    }
}
