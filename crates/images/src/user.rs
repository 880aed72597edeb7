//! Whom an image means by a name or a number.

use std::io::Read;
use std::path::Path;

use rustix::fs::{self, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use warren_guest_api::boot::User;

use crate::ImageError;
use crate::error::shown;
use crate::unpack::IDS;

const LARGEST: u64 = 4 << 20;

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// The account that an image's `USER` names: `name`, `uid`, `name:group` or `uid:gid`; root when it is empty. Names are
/// looked up in the image's own files, which are never followed out of `root`.
///
/// # Errors
/// When there is no such user or group in the image, or its number is beyond what a sandbox has.
pub fn find_user(root: &Path, user: &str) -> Result<User, ImageError> {
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = read(root, "etc/passwd")?;
    let accounts: Vec<Account<'_>> = passwd.lines().filter_map(account).collect();
    let named = accounts.iter().find(|account| account.name == user);
    let found = named.or_else(|| {
        let uid = number(user)?;
        accounts.iter().find(|account| account.uid == uid)
    });
    let (name, uid, gid, home) = match (found, number(user)) {
        (Some(account), _) => (account.name.to_owned(), account.uid, account.gid, account.home),
        (None, Some(uid)) => (uid.to_string(), uid, 0, ""),
        // Images with nothing but a program in them have no accounts.
        (None, None) if user == "root" => (user.to_owned(), 0, 0, ""),
        (None, None) => return Err(unknown("user", user, "passwd")),
    };
    let gid = match group {
        None => gid,
        Some(group) => find_group(root, group)?,
    };
    if u64::from(uid) >= IDS || u64::from(gid) >= IDS {
        return Err(ImageError::Unsupported(format!(
            "it runs as user {uid} and group {gid}, and a sandbox has none above {}",
            IDS - 1
        )));
    }
    let home = if home.starts_with('/') { home } else { "/" };
    Ok(User { name, uid, gid, home: home.to_owned() })
}

fn find_group(root: &Path, group: &str) -> Result<u32, ImageError> {
    let groups = read(root, "etc/group")?;
    let listed = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| number(fields.nth(1)?)).flatten()
    });
    let root = || (group == "root").then_some(0);
    listed.or_else(|| number(group)).or_else(root).ok_or_else(|| unknown("group", group, "group"))
}

fn account(line: &str) -> Option<Account<'_>> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
    Some(Account { name, uid: number(uid)?, gid: number(gid)?, home })
}

/// Digits and nothing else.
fn number(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

fn unknown(what: &str, name: &str, file: &str) -> ImageError {
    let name = shown(name.as_bytes());
    ImageError::Unsupported(format!("it runs as the {what} {name}, whom its /etc/{file} does not have"))
}

/// A small file of the image, as a process in it would see it; empty where it is missing.
fn read(root: &Path, name: &str) -> Result<String, ImageError> {
    let failed = |error: Errno| ImageError::io(format!("read /{name} of the image"), error);
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = fs::openat(CWD, root, folder, Mode::empty()).map_err(failed)?;
    // Not blocked by a FIFO.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let mut tries = 0;
    let file = loop {
        match fs::openat2(&folder, name, flags, Mode::empty(), within) {
            Ok(file) => break file,
            Err(Errno::AGAIN) if tries < 1000 => tries += 1,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(String::new()),
            Err(error) => return Err(failed(error)),
        }
    };
    if FileType::from_raw_mode(fs::fstat(&file).map_err(failed)?.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(file).take(LARGEST + 1);
    file.read_to_end(&mut bytes)
        .map_err(|error| ImageError::io(format!("read /{name} of the image"), error))?;
    if bytes.len() as u64 > LARGEST {
        return Err(ImageError::TooLarge(format!("its /{name} has more than {LARGEST} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nnode:x:1000:1001::/home/node:/bin/sh\n12:x:77:77::nohome:\n\
                      big:x:70000:1::/:\n";
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        fs::write(root.path().join("etc/group"), "root:x:0:\nstaff:x:50:node\nhuge:x:4294967295:\n").unwrap();
        root
    }

    fn found(root: &Path, user: &str) -> String {
        let User { name, uid, gid, home } = find_user(root, user).unwrap();
        format!("{name} {uid}:{gid} {home}")
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let image = image();
        for (user, account) in [
            ("", "root 0:0 /root"),
            ("root", "root 0:0 /root"),
            ("node", "node 1000:1001 /home/node"),
            ("1000", "node 1000:1001 /home/node"),
            ("node:staff", "node 1000:50 /home/node"),
            ("node:", "node 1000:1001 /home/node"),
            (":staff", "root 0:50 /root"),
            ("2000:3000", "2000 2000:3000 /"),
            ("12", "12 77:77 /"),
        ] {
            assert_eq!(found(image.path(), user), account, "{user:?}");
        }
    }

    #[test]
    fn who_is_not_there_is_named() {
        let image = image();
        for (user, word) in [
            ("nobody", "`nobody`"),
            ("node:nogroup", "`nogroup`"),
            ("-1", "`-1`"),
            ("99999999999", "`99999999999`"),
            ("70000", "70000"),
            ("big", "70000"),
            ("0:65536", "65536"),
            ("0:huge", "4294967295"),
        ] {
            let error = find_user(image.path(), user).unwrap_err().to_string();
            assert!(error.contains(word), "{user:?}: {error}");
        }
    }

    #[test]
    fn files_are_read_within_the_image_only() {
        let outside = image();
        let image = tempfile::tempdir().unwrap();
        let etc = outside.path().join("etc");
        // Seen from within, the path leads nowhere.
        std::os::unix::fs::symlink(&etc, image.path().join("etc")).unwrap();
        assert!(find_user(image.path(), "node").is_err());
        assert_eq!(found(image.path(), "root"), "root 0:0 /");
        fs::create_dir_all(image.path().join(etc.strip_prefix("/").unwrap())).unwrap();
        let inner = image.path().join(etc.strip_prefix("/").unwrap());
        fs::write(inner.join("passwd"), "node:x:5:6::/n:\n").unwrap();
        assert_eq!(found(image.path(), "node"), "node 5:6 /n");
    }

    #[test]
    fn a_fifo_is_no_list_of_accounts() {
        let image = tempfile::tempdir().unwrap();
        fs::create_dir(image.path().join("etc")).unwrap();
        let (fifo, mode) = (image.path().join("etc/passwd"), Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
        assert_eq!(found(image.path(), "7"), "7 7:0 /");
    }
}
