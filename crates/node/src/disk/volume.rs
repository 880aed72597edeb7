//! The file system that images live on. It must have reflinks.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tracing::info;

use super::create_folder;
use crate::config::{CommandError, StartError};

/// Smallest volume worth making: the template, and some sandboxes' changes.
const MIN_BYTES: u64 = 8 << 30;
/// Of the volume's file, beside the folder it is mounted at.
const IMAGE_EXTENSION: &str = "img";
/// Bytes of a helper's complaint that are kept.
const MAX_STDERR: usize = 2000;

/// Returns the folder that images go to, and the mount point when that is a volume file of ours.
pub(super) async fn ensure(
    data_dir: &Path,
    size: Option<u64>,
) -> Result<(PathBuf, Option<PathBuf>), StartError> {
    let folder = data_dir.join("volume");
    let file = folder.with_extension(IMAGE_EXTENSION);
    create_folder("the volume", &folder)?;
    if is_mount_point(&folder) {
        return Ok((folder.clone(), Some(folder)));
    }
    if !file.exists() {
        if has_reflinks(&folder) {
            return Ok((folder, None));
        }
        make(&file, size).await?;
    }
    mount(&file, &folder).await?;
    Ok((folder.clone(), Some(folder)))
}

/// Makes an XFS in a sparse file.
async fn make(file: &Path, size: Option<u64>) -> Result<(), StartError> {
    let trouble = |source| StartError::Folder { what: "the volume file", path: file.into(), source };
    let parent = file.parent().unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(parent).map_err(|error| trouble(error.into()))?;
    let free = stat.f_bavail * stat.f_frsize;
    let size = size.unwrap_or(free / 10 * 9);
    if size < MIN_BYTES {
        return Err(trouble(std::io::Error::other(format!(
            "a volume takes at least {} GiB and {} GiB are free; choose another --data-dir",
            MIN_BYTES >> 30,
            free >> 30
        ))));
    }
    info!(gib = size >> 30, path = %file.display(), "the data directory has no reflinks: making an XFS volume file");
    let unfinished = file.with_extension("unfinished");
    File::create(&unfinished).and_then(|file| file.set_len(size)).map_err(trouble)?;
    let args = ["-q", "-f", "-m", "reflink=1", "-L", "warren"].map(OsStr::new);
    run_command("mkfs.xfs", "xfsprogs", &[&args[..], &[unfinished.as_os_str()]].concat())
        .await
        .map_err(|source| StartError::Command { what: "make the volume".into(), source })?;
    fs::rename(&unfinished, file).map_err(trouble)
}

async fn mount(file: &Path, folder: &Path) -> Result<(), StartError> {
    // Sandboxes of an earlier start may hold the old device open although nothing is mounted here any more. A second
    // device on the same file would be a second, contradicting, cache of it.
    let device = loop_device_of(file);
    let (options, source) = match &device {
        Some(device) => ("noatime,nodev", device.as_os_str()),
        None => ("loop,noatime,nodev", file.as_os_str()),
    };
    let args = ["-t", "xfs", "-o", options].map(OsStr::new);
    run_command("mount", "mount", &[&args[..], &[source, folder.as_os_str()]].concat())
        .await
        .map_err(|source| StartError::Command { what: "mount the volume".into(), source })
}

/// Bytes that can still be written to a volume in a file before the file system below it is full: that file is sparse, and others
/// may have used what it was to grow into. What cannot be written there, the volume forgets, or it shuts down.
pub(super) fn backed_bytes(mounted: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let file = mounted.with_extension(IMAGE_EXTENSION);
    let (volume, below) = (rustix::fs::statvfs(mounted).ok()?, rustix::fs::statvfs(&file).ok()?);
    let used = (volume.f_blocks - volume.f_bfree) * volume.f_frsize;
    // What was used once and is free again has its place still.
    let to_use_again = (fs::metadata(&file).ok()?.blocks() * 512).saturating_sub(used);
    Some(below.f_bavail * below.f_frsize + to_use_again)
}

/// The loop device that has `file` already.
fn loop_device_of(file: &Path) -> Option<PathBuf> {
    let file = file.canonicalize().ok()?;
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end()) == file).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

pub(super) fn is_mount_point(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let parent = folder.parent().unwrap_or(folder);
    match (fs::metadata(folder), fs::metadata(parent)) {
        (Ok(inside), Ok(outside)) => inside.dev() != outside.dev(),
        _ => false,
    }
}

/// Tries it: no list of file systems says what this very one can do.
fn has_reflinks(folder: &Path) -> bool {
    let (from, to) = (folder.join(".reflink-from"), folder.join(".reflink-to"));
    let tried = File::create(&from)
        .and_then(|mut file| file.write_all(&[1; 4096]))
        .and_then(|()| super::reflink(&File::open(&from)?, &to));
    let _ = fs::remove_file(&from);
    let _ = fs::remove_file(&to);
    tried.is_ok()
}

/// Runs a helper program to its end.
pub(crate) async fn run_command(
    program: &str,
    package: &'static str,
    args: &[&OsStr],
) -> Result<(), CommandError> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| CommandError::Missing { program: program.into(), package, source })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = &output.stderr[output.stderr.len().saturating_sub(MAX_STDERR)..];
    let args: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    Err(CommandError::Failed {
        command: format!("{program} {}", args.join(" ")),
        stderr: String::from_utf8_lossy(stderr).trim().to_owned(),
    })
}
