//! The kernel of machines: a distribution's own package, unpacked into a cache and never installed on the host.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::modules;

/// Packages that stand for the newest kernel, the smallest first.
const PACKAGES: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-amd64"];
/// A slow mirror takes minutes; one that is stuck must end.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// A kernel and the modules a machine loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub image: PathBuf,
    /// In the order in which they are to be loaded.
    pub modules: Vec<PathBuf>,
    /// The package and its version, for people.
    pub package: String,
}

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "no kernel package is known to this host's apt: run `apt-get update`, or see that it has a Debian archive"
    )]
    NoPackage,
    #[error("{program} could not be started; install it with: apt-get install {package}")]
    Missing { program: &'static str, package: &'static str, source: io::Error },
    #[error("{command} failed: {stderr}")]
    Failed { command: String, stderr: String },
    #[error("{program} took longer than {} minutes", DEADLINE.as_secs() / 60)]
    TooSlow { program: &'static str },
    #[error("could not {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the package {package} holds no kernel")]
    Empty { package: String },
}

type Result<T> = std::result::Result<T, KernelError>;

fn trouble(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::Io { action, path, source }
}

/// A kernel from `cache`, whichever was put there last; `None` when there is none that fits this program.
pub fn find(cache: &Path) -> Option<Kernel> {
    let ending = format!("-{}", recipe_tag());
    let mut found: Vec<(std::time::SystemTime, PathBuf)> = fs::read_dir(cache)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(&ending))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    found.into_iter().rev().find_map(|(_, folder)| open(&folder).ok())
}

/// Finds a kernel in `cache`, or fetches the newest this host's apt knows.
pub async fn ensure(cache: &Path) -> Result<Kernel> {
    if let Some(kernel) = find(cache) {
        return Ok(kernel);
    }
    let package = newest().await?;
    fs::create_dir_all(cache).map_err(trouble("make", cache))?;
    let work = cache.join(format!("unfinished-{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    let fetched = fetch(&package, cache, &work).await;
    let _ = fs::remove_dir_all(&work);
    fetched
}

async fn fetch(package: &str, cache: &Path, work: &Path) -> Result<Kernel> {
    let (tree, made) = (work.join("tree"), work.join("made"));
    fs::create_dir_all(made.join("modules")).map_err(trouble("make", &made))?;
    run("apt-get", "apt", Command::new("apt-get").args(["download", package]).current_dir(work)).await?;
    let archive = fs::read_dir(work)
        .map_err(trouble("read", work))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .ok_or_else(|| KernelError::Empty { package: package.into() })?;
    run("dpkg-deb", "dpkg", Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree)).await?;

    let empty = || KernelError::Empty { package: package.into() };
    let boot = tree.join("boot");
    let image = fs::read_dir(&boot)
        .map_err(trouble("read", &boot))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .ok_or_else(empty)?;
    // Either layout is in use.
    let modules = [tree.join("lib/modules"), tree.join("usr/lib/modules")];
    let modules = modules.iter().find(|path| path.is_dir()).ok_or_else(empty)?;
    let chosen = modules::choose(modules, unpack).map_err(trouble("read the modules in", modules))?;
    for (place, module) in chosen.iter().enumerate() {
        let path = made.join("modules").join(format!("{place:03}-{}.ko", module.name));
        fs::write(&path, &module.content).map_err(trouble("write", &path))?;
    }
    let copied = made.join("vmlinuz");
    // QEMU is nobody, and reads it; some distributions let only root.
    fs::copy(&image, &copied)
        .and_then(|_| fs::set_permissions(&copied, fs::Permissions::from_mode(0o644)))
        .map_err(trouble("copy", &image))?;
    let version = archive.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = made.join("package");
    fs::write(&name, &version).map_err(trouble("write", &name))?;
    let place = cache.join(format!("{version}-{}", recipe_tag()));
    let _ = fs::remove_dir_all(&place);
    fs::rename(&made, &place).map_err(trouble("put in place", &place))?;
    open(&place).map_err(trouble("read", &place))
}

fn open(folder: &Path) -> io::Result<Kernel> {
    let image = folder.join("vmlinuz");
    fs::metadata(&image)?;
    let mut modules: Vec<PathBuf> =
        fs::read_dir(folder.join("modules"))?.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    Ok(Kernel { image, modules, package: fs::read_to_string(folder.join("package"))? })
}

/// Tells kernels unpacked by other versions of this program apart.
fn recipe_tag() -> String {
    let digest = Sha256::digest(modules::recipe());
    warren_types::hex(&digest[..4])
}

/// The package that the newest kernel is in: what the packages that stand for it depend on.
async fn newest() -> Result<String> {
    for stands_for_it in PACKAGES {
        let mut command = Command::new("apt-cache");
        command.args(["depends", "--no-recommends", "--no-suggests", stands_for_it]);
        let Ok(listing) = run("apt-cache", "apt", &mut command).await else { continue };
        let package = listing
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"));
        if let Some(package) = package {
            return Ok(package.to_owned());
        }
    }
    Err(KernelError::NoPackage)
}

async fn run(program: &'static str, package: &'static str, command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null()).env("LC_ALL", "C").kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output())
        .await
        .map_err(|_| KernelError::TooSlow { program })?
        .map_err(|source| KernelError::Missing { program, package, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(KernelError::Failed { command: program.into(), stderr: last.to_owned() })
}

/// A module's content. Compressed ones are unpacked by the program made for it: it is done once for each kernel.
fn unpack(path: &Path) -> io::Result<Vec<u8>> {
    let program = match path.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path),
    };
    let output = std::process::Command::new(program).arg("-dc").arg(path).output()?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(io::Error::other(format!("{program} could not unpack {}", path.display())))
    }
}
