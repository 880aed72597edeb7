//! QEMU, copied out of the distribution's package with all it loads, into a tree of its own.
//!
//! The tree is the root that every QEMU runs in, so a machine that breaks out of its QEMU finds nothing else. And it
//! stays as it is when the host's packages change: snapshots are only good for the very QEMU that made them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::hardware::{INITRAMFS, KERNEL, MEMORY, PROGRAM};

/// Where distributions keep what QEMU loads at run time; the first that is there counts.
const MODULE_FOLDERS: [&str; 3] = ["/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib64/qemu", "/usr/lib/qemu"];
const FIRMWARE_FOLDERS: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-firmware"];
/// Where QEMU looks for firmware in the tree.
pub(crate) const FIRMWARE: &str = "/usr/share/qemu";
/// What the two machine types start with.
const FIRMWARE_FILES: [&str; 6] =
    ["bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot.bin", "linuxboot_dma.bin", "pvh.bin"];
/// Raise it when the tree is made of other things.
const VERSION: u32 = 2;

/// A tree with one QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emulator {
    pub tree: PathBuf,
    /// As it says itself, for people.
    pub version: String,
    /// Of everything in the tree.
    pub digest: String,
}

#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    #[error("QEMU is not installed; install it with: apt-get install qemu-system-x86")]
    Missing,
    #[error("could not {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{program} {why}")]
    Program { program: &'static str, why: String },
}

type Result<T> = std::result::Result<T, EmulatorError>;

fn trouble(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EmulatorError {
    let path = path.to_owned();
    move |source| EmulatorError::Io { action, path, source }
}

/// The version of the installed QEMU, as it says itself; blocks.
pub fn installed() -> Result<String> {
    if !Path::new(PROGRAM).is_file() {
        return Err(EmulatorError::Missing);
    }
    let version = run("qemu-system-x86_64", Command::new(PROGRAM).arg("--version"))?;
    Ok(version.lines().next().unwrap_or_default().to_owned())
}

/// The tree of the installed QEMU, if there is one in `cache`; blocks.
pub fn find(cache: &Path) -> Result<Option<Emulator>> {
    if !Path::new(PROGRAM).is_file() {
        return Err(EmulatorError::Missing);
    }
    Ok(open(&cache.join(name(&files()?)?)))
}

/// Finds the tree of the installed QEMU in `cache`, or makes it; blocks.
pub fn ensure(cache: &Path) -> Result<Emulator> {
    if let Some(found) = find(cache)? {
        return Ok(found);
    }
    let files = files()?;
    let place = cache.join(name(&files)?);
    fs::create_dir_all(cache).map_err(trouble("make", cache))?;
    let work = cache.join(format!("unfinished-{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    let made = make(&files, &work).and_then(|()| {
        // Somebody else may have made the same meanwhile.
        match fs::rename(&work, &place) {
            Err(error) if open(&place).is_none() => Err(trouble("put in place", &place)(error)),
            _ => Ok(()),
        }
    });
    let _ = fs::remove_dir_all(&work);
    made?;
    open(&place).ok_or_else(|| trouble("read", &place)(io::ErrorKind::NotFound.into()))
}

fn open(place: &Path) -> Option<Emulator> {
    let digest = fs::read_to_string(place.join("digest")).ok()?;
    let version = fs::read_to_string(place.join("version")).ok()?;
    Some(Emulator { tree: place.join("tree"), version, digest })
}

/// Files of the host, and where each goes in the tree.
fn files() -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut programs = vec![PathBuf::from(PROGRAM)];
    let modules = MODULE_FOLDERS.iter().map(Path::new).find(|folder| folder.is_dir());
    for entry in modules.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("accel-tcg-x86_64") {
            programs.push(entry.path());
        }
    }
    let mut files: BTreeSet<PathBuf> = programs.iter().cloned().collect();
    for program in &programs {
        files.extend(libraries(program)?);
    }
    let mut placed: Vec<(PathBuf, PathBuf)> = files
        .into_iter()
        .map(|path| {
            let inside = path.strip_prefix("/").unwrap_or(&path).to_owned();
            (path, inside)
        })
        .collect();
    for name in FIRMWARE_FILES {
        if let Some(path) =
            FIRMWARE_FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
        {
            placed.push((path, Path::new(&FIRMWARE[1..]).join(name)));
        }
    }
    Ok(placed)
}

/// Shared libraries a program loads, its loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listing = run("ldd", Command::new("ldd").arg(program))?;
    // `name => /path (address)`, or `/path (address)` for the loader.
    let paths = listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from));
    Ok(paths.collect())
}

/// Changes whenever one of the files does.
fn name(files: &[(PathBuf, PathBuf)]) -> Result<String> {
    let mut hasher = Sha256::new_with_prefix(VERSION.to_le_bytes());
    for (path, _) in files {
        let meta = fs::metadata(path).map_err(trouble("look at", path))?;
        let changed = meta.modified().map_err(trouble("look at", path))?;
        hasher.update(format!("{}\n{}\n{changed:?}\n", path.display(), meta.len()));
    }
    Ok(warren_types::hex(&hasher.finalize()[..8]))
}

fn make(files: &[(PathBuf, PathBuf)], work: &Path) -> Result<()> {
    let tree = work.join("tree");
    let mut hasher = Sha256::new();
    for (path, inside) in files {
        let target = tree.join(inside);
        let content = fs::read(path).map_err(trouble("read", path))?;
        hasher.update(Sha256::digest(&content));
        let folder = target.parent().unwrap_or(&tree);
        fs::create_dir_all(folder).map_err(trouble("make", folder))?;
        fs::write(&target, content).map_err(trouble("write", &target))?;
    }
    // What a machine's own files are mounted on.
    for name in [MEMORY, KERNEL, INITRAMFS] {
        let path = tree.join(&name[1..]);
        fs::write(&path, "").map_err(trouble("write", &path))?;
    }
    for name in ["dev", "etc"] {
        let path = tree.join(name);
        fs::create_dir_all(&path).map_err(trouble("make", &path))?;
    }
    // Without its cache the loader tries a dozen folders for each library.
    run("ldconfig", Command::new("/sbin/ldconfig").arg("-r").arg(&tree))?;
    open_to_all(&tree).map_err(trouble("write", &tree))?;
    let version = installed()?;
    for (name, text) in [("digest", warren_types::hex(&hasher.finalize())), ("version", version)] {
        let path = work.join(name);
        fs::write(&path, text).map_err(trouble("write", &path))?;
    }
    Ok(())
}

/// QEMU is nobody in there; whatever umask this program has, it may read and run what it finds.
fn open_to_all(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    if path.is_dir() {
        fs::read_dir(path)?.try_for_each(|entry| open_to_all(&entry?.path()))?;
    }
    Ok(())
}

fn run(program: &'static str, command: &mut Command) -> Result<String> {
    let failed = |why: String| EmulatorError::Program { program, why };
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("could not be started: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("failed: {}", stderr.lines().next().unwrap_or("it said nothing"))))
}
