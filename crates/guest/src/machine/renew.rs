//! Making a machine its sandbox's own, after a boot and after every restore: clock, randomness, names, keys, packet
//! size. The answer says that all of it is done.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec};
use warren_guest_api::machine::{ENTROPY_BYTES, Identity, Renew, Renewed};
use warren_types::error::Result;
use warren_types::{Error, ErrorKind};

use super::{doing, network};
use crate::{machine_id, sys};

const MACHINE_ID: &str = "/etc/machine-id";
const HOST_KEYS: &str = "/etc/ssh";
const MAX_HOSTNAME: usize = 64;

/// Does all of it; blocks.
pub(crate) fn renew(renew: &Renew) -> Result<Renewed> {
    if renew.entropy.len() != ENTROPY_BYTES {
        return Err(Error::invalid(format!("entropy must be {ENTROPY_BYTES} bytes")));
    }
    if renew.hostname.is_empty() || renew.hostname.len() > MAX_HOSTNAME {
        return Err(Error::invalid(format!("hostname must be 1 to {MAX_HOSTNAME} bytes")));
    }
    let apply = || -> io::Result<String> {
        // First: everything below that is random must be of the new sequence.
        doing("reseed the random number generator", sys::reseed(&renew.entropy))?;
        doing("set the clock", set_clock(renew.unix_time_us))?;
        doing("set the host name", rustix::system::sethostname(renew.hostname.as_bytes()))?;
        doing("set the packet size", network::set_mtu(renew.mtu))?;
        if renew.identity == Identity::New {
            doing("make new host keys", renew_host_keys(Path::new(HOST_KEYS)))?;
            doing("make a new machine id", machine_id::renew(Path::new(MACHINE_ID)))
        } else {
            Ok(fs::read_to_string(MACHINE_ID).unwrap_or_default().trim_end().to_owned())
        }
    };
    let machine_id = apply().map_err(|error| {
        Error::new(ErrorKind::SandboxFailed, format!("the machine could not be renewed: {error}"))
    })?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Renewed {
        machine_id,
        unix_time_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    })
}

fn set_clock(unix_time_us: u64) -> io::Result<()> {
    let seconds = i64::try_from(unix_time_us / 1_000_000).map_err(io::Error::other)?;
    let nanoseconds = i64::try_from(unix_time_us % 1_000_000 * 1000).map_err(io::Error::other)?;
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    rustix::time::clock_settime(ClockId::Realtime, time).map_err(Into::into)
}

/// Replaces each key that is there by a new one of its kind. A plain template has none.
fn renew_host_keys(folder: &Path) -> io::Result<()> {
    for (path, kind) in host_keys(folder)? {
        fs::remove_file(&path)?;
        let _ = fs::remove_file(path.with_added_extension("pub"));
        let made = Command::new("/usr/bin/ssh-keygen")
            .args(["-q", "-N", "", "-t", &kind, "-f"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if !made.success() {
            return Err(io::Error::other(format!("ssh-keygen could not make {}", path.display())));
        }
    }
    Ok(())
}

/// `ssh_host_<kind>_key` files and their kinds.
fn host_keys(folder: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let keys = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let kind = name.strip_prefix("ssh_host_")?.strip_suffix("_key")?.to_owned();
        Some((entry.path(), kind))
    });
    Ok(keys.collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use warren_guest_api::boot::Boot;

    use super::*;

    #[test]
    fn only_private_host_keys_are_renewed() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "ssh_config", "ssh_host_ed25519_key"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let mut kinds: Vec<_> = host_keys(folder.path()).unwrap().into_iter().map(|(_, kind)| kind).collect();
        kinds.sort();
        assert_eq!(kinds, ["ed25519", "rsa"]);
        assert!(host_keys(&folder.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn short_entropy_and_absurd_names_are_refused_before_anything_changes() {
        let whole = Renew {
            boot: Boot {
                sandbox_id: warren_types::SandboxId::generate(),
                envs: BTreeMap::new(),
                user: warren_guest_api::boot::User::default(),
                workdir: None,
            },
            identity: Identity::Same,
            hostname: "sandbox".into(),
            unix_time_us: 1,
            entropy: vec![0; ENTROPY_BYTES],
            mtu: 1500,
        };
        let short = Renew { entropy: vec![0; 3], ..whole.clone() };
        assert_eq!(renew(&short).unwrap_err().kind, ErrorKind::Invalid);
        let long = Renew { hostname: "x".repeat(100), ..whole };
        assert_eq!(renew(&long).unwrap_err().kind, ErrorKind::Invalid);
    }
}
