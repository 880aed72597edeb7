//! Where a server looks for the programs it starts.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders of programs for administration, as `nft` and `mkfs.xfs` are. `cron`, `su` and `env -i` leave them out.
const ADMINISTRATION: [&str; 2] = ["/usr/sbin", "/sbin"];
/// What is searched where nothing is said.
const USUAL: &str = "/usr/local/bin:/usr/bin:/bin";

/// Runs this program anew, with all folders to search, when some are missing. Must be called before there is anything to lose.
pub(crate) fn complete() {
    let (Some(path), Ok(program)) = (completed(std::env::var_os("PATH")), std::env::current_exe()) else {
        return;
    };
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Comes back only when it cannot be run; what is missing is told then by whoever misses it.
    let _ = command.args(arguments).env("PATH", path).exec();
}

/// The folders to search, if these are not all.
fn completed(path: Option<OsString>) -> Option<OsString> {
    let path = path.filter(|path| !path.is_empty()).unwrap_or_else(|| USUAL.into());
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let missing = |folder: &&str| !folders.iter().any(|there| there == Path::new(folder));
    let missing: Vec<PathBuf> = ADMINISTRATION.into_iter().filter(missing).map(PathBuf::from).collect();
    if missing.is_empty() {
        return None;
    }
    folders.extend(missing);
    std::env::join_paths(folders).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_added_behind_what_is_there() {
        let of = |path: &str| completed(Some(path.into()));
        assert_eq!(of("/opt/bin:/bin").unwrap(), "/opt/bin:/bin:/usr/sbin:/sbin");
        assert_eq!(of("/usr/sbin").unwrap(), "/usr/sbin:/sbin");
        assert_eq!(of("/sbin:/usr/sbin:/bin"), None);
        for nothing in [None, Some("".into())] {
            assert_eq!(completed(nothing).unwrap(), "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        }
    }
}
