//! What an image lacks to be what a sandbox starts from: the places that are mounted on, names and their resolver, the
//! gateway's certificate, a user.
//!
//! WHEN CHANGING WHAT IS WRITTEN: raise [`VERSION`], so that images that were imported before are imported again instead of
//! being taken for the new ones.

use std::io;
use std::os::fd::BorrowedFd;

use warren_guest_api::boot::{self, User};
use warren_node_api::ImageSettings;

use super::tree::{Owner, ROOT, Tree};
use crate::disk::trust;
use crate::template::{HOSTS, RESOLV_CONF};

pub(super) const VERSION: u32 = 2;

/// What the runtimes mount on.
const MOUNT_POINTS: [&str; 4] = ["dev", "proc", "run", "sys"];
/// Where images keep the authorities that their programs trust, all in one file.
const BUNDLES: [&str; 5] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/ssl/cert.pem",
    "etc/ssl/ca-bundle.pem",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];
/// Where those are put that such files are made of.
const ANCHORS: [&str; 2] = ["etc/pki/ca-trust/source/anchors", "etc/pki/trust/anchors"];
const WORKSPACE: &str = "workspace";
/// By convention the home of who has none.
const NO_HOME: &str = "/nonexistent";

/// Certificates that every image is to trust.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trusted {
    /// Name of the gateway's authority, and its certificate.
    pub(crate) authority: (&'static str, String),
    /// What the host's owner has added to the host, by file name.
    pub(crate) of_host: Vec<(String, String)>,
}

/// Makes an image, open at `root`, the file system that a sandbox starts from, with what `settings` say of its commands.
pub(super) fn prepare(root: BorrowedFd<'_>, settings: &ImageSettings, trusted: &Trusted) -> io::Result<()> {
    let tree = Tree::new(root);
    rustix::fs::fchmod(&tree.folder("", 0o755, ROOT)?, rustix::fs::Mode::from_raw_mode(0o755))?;
    for path in MOUNT_POINTS {
        tree.mount_point(path, 0o755)?;
    }
    tree.mount_point("tmp", 0o1777)?;
    for path in ["etc", "var/lib/warren", "var/log"] {
        tree.folder(path, 0o755, ROOT)?;
    }
    tree.folder("var/tmp", 0o1777, ROOT)?;
    tree.write("etc/resolv.conf", RESOLV_CONF, 0o644)?;
    tree.write("etc/hosts", HOSTS, 0o644)?;
    tree.write("etc/hostname", "sandbox\n", 0o644)?;
    tree.write("etc/machine-id", "", 0o444)?;
    trust_all(&tree, trusted)?;
    tree.named_folder("root", 0o700, ROOT)?;
    let usual = add_usual_user(&tree)?;
    for user in usual.iter().chain(&settings.user).filter(|user| user.home != NO_HOME) {
        tree.named_folder(user.home.trim_matches('/'), 0o755, Owner::from(user))?;
    }
    let owner = settings.user.as_ref().map_or(ROOT, Owner::from);
    // Engines make it when they start something, whether the image has it or not.
    if let Some(workdir) = &settings.workdir {
        tree.named_folder(workdir.trim_matches('/'), 0o755, owner)?;
    }
    if !tree.has(WORKSPACE) {
        tree.folder(WORKSPACE, 0o755, owner)?;
    }
    Ok(())
}

impl From<&User> for Owner {
    fn from(user: &User) -> Self {
        Self { uid: user.uid, gid: user.gid }
    }
}

fn trust_all(tree: &Tree<'_>, trusted: &Trusted) -> io::Result<()> {
    let (name, pem) = &trusted.authority;
    tree.write(trust::CERTIFICATE, pem, 0o644)?;
    let added = trust::CERTIFICATE.rsplit_once('/').map_or("", |(folder, _)| folder);
    for (name, pem) in &trusted.of_host {
        tree.write(&format!("{added}/{name}"), pem, 0o644)?;
    }
    if tree.has_folder(trust::FOLDER) {
        tree.link(&format!("{}/{}", trust::FOLDER, trust::LINK), &format!("/{}", trust::CERTIFICATE))?;
        let hashed = format!("{}/{:08x}.0", trust::FOLDER, trust::subject_hash(name));
        tree.link(&hashed, trust::LINK)?;
    }
    let all: String =
        std::iter::once(pem).chain(trusted.of_host.iter().map(|(_, pem)| pem)).cloned().collect();
    for folder in ANCHORS.into_iter().filter(|folder| tree.has_folder(folder)) {
        tree.write(&format!("{folder}/opensandbox-proxy.crt"), &all, 0o644)?;
    }
    let mut done = Vec::new();
    for path in BUNDLES {
        // An image without authorities trusts nobody that way.
        done.extend(tree.append(path, &all, &done)?);
    }
    Ok(())
}

/// Adds the user of other sandboxes to an image that has accounts, unless its name or number is taken. Returns it if the
/// image has it now.
fn add_usual_user(tree: &Tree<'_>) -> io::Result<Option<User>> {
    let user = User::default();
    let Some(accounts) = tree.read("etc/passwd")? else { return Ok(None) };
    if is_taken(&accounts, boot::USER, boot::UID) {
        return Ok(None);
    }
    let shell = if tree.has("bin/bash") { "/bin/bash" } else { "/bin/sh" };
    let line = format!("{}:x:{}:{}::{}:{shell}\n", boot::USER, boot::UID, boot::GID, boot::HOME);
    tree.append("etc/passwd", &line, &[])?;
    let groups = tree.read("etc/group")?.unwrap_or_default();
    if !is_taken(&groups, boot::USER, boot::GID) {
        tree.append("etc/group", &format!("{}:x:{}:\n", boot::USER, boot::GID), &[])?;
    }
    Ok(Some(user))
}

/// Whether a line of `/etc/passwd` or `/etc/group` has that name or number.
fn is_taken(text: &str, name: &str, number: u32) -> bool {
    text.lines().any(|line| {
        let mut fields = line.split(':');
        fields.next() == Some(name) || fields.nth(1).and_then(|id| id.parse().ok()) == Some(number)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn trusted() -> Trusted {
        Trusted {
            authority: ("OpenSandbox Proxy CA", "-----PROXY-----\n".to_owned()),
            of_host: vec![("host-1.crt".to_owned(), "-----HOST-----\n".to_owned())],
        }
    }

    fn prepare_at(image: &Path, user: &User) {
        let workdir = Some("/srv/./app/../work/".to_owned());
        let settings = ImageSettings { user: Some(user.clone()), workdir };
        if let Err(error) = prepare(File::open(image).unwrap().as_fd(), &settings, &trusted()) {
            panic!("{error}");
        }
    }

    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("SKIP: this test gives files away and needs root");
        }
        root
    }

    fn root_user() -> User {
        User { name: "root".into(), uid: 0, gid: 0, home: "/root".into() }
    }

    #[test]
    fn an_image_with_nothing_in_it_becomes_one_to_start_from() {
        if !is_root() {
            return;
        }
        let image = tempfile::tempdir().unwrap();
        let user = User { name: "7".into(), uid: 7, gid: 8, home: "/".into() };
        prepare_at(image.path(), &user);
        let at = |path: &str| image.path().join(path);
        for path in
            ["dev", "proc", "run", "sys", "tmp", "etc", "var/lib/warren", "workspace", "root", "srv/work"]
        {
            assert!(at(path).is_dir(), "{path}");
        }
        assert_eq!(fs::metadata(at("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
        assert_eq!(fs::metadata(image.path()).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(at("workspace")).unwrap().uid(), 7);
        assert_eq!(fs::metadata(at("srv/work")).unwrap().uid(), 7);
        assert_eq!(fs::read_to_string(at("etc/machine-id")).unwrap(), "");
        assert!(fs::read_to_string(at("etc/resolv.conf")).unwrap().contains("nameserver"));
        assert!(!at("etc/passwd").exists(), "it has no accounts, and gets none");
        assert!(!at("etc/ssl").exists());
        assert_eq!(fs::read_to_string(at(trust::CERTIFICATE)).unwrap(), "-----PROXY-----\n");
    }

    #[test]
    fn accounts_and_authorities_of_an_image_stay_and_ours_are_added() {
        if !is_root() {
            return;
        }
        let image = tempfile::tempdir().unwrap();
        let at = |path: &str| image.path().join(path);
        fs::create_dir_all(at("etc/ssl/certs")).unwrap();
        fs::create_dir_all(at("etc/pki/tls/certs")).unwrap();
        fs::write(at("etc/ssl/certs/ca-certificates.crt"), "-----THEIRS-----").unwrap();
        symlink("certs/ca-certificates.crt", at("etc/ssl/cert.pem")).unwrap();
        symlink("/etc/ssl/cert.pem", at("etc/pki/tls/certs/ca-bundle.crt")).unwrap();
        symlink("/run/systemd/resolve/stub-resolv.conf", at("etc/resolv.conf")).unwrap();
        fs::write(at("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::write(at("etc/group"), "root:x:0:\n").unwrap();
        prepare_at(image.path(), &root_user());
        let bundle = fs::read_to_string(at("etc/ssl/certs/ca-certificates.crt")).unwrap();
        assert_eq!(
            bundle, "-----THEIRS-----\n-----PROXY-----\n-----HOST-----\n",
            "once, through all its names"
        );
        let passwd = fs::read_to_string(at("etc/passwd")).unwrap();
        assert_eq!(passwd, "root:x:0:0::/root:/bin/sh\nsandbox:x:1000:1000::/home/sandbox:/bin/sh\n");
        assert_eq!(fs::metadata(at("home/sandbox")).unwrap().uid(), 1000);
        assert!(at("root").is_dir() && fs::symlink_metadata(at("etc/resolv.conf")).unwrap().is_file());
        assert!(fs::symlink_metadata(at("etc/ssl/certs/62c7c557.0")).unwrap().is_symlink());
    }

    #[test]
    fn a_taken_number_is_left_to_who_has_it() {
        if !is_root() {
            return;
        }
        let image = tempfile::tempdir().unwrap();
        fs::create_dir(image.path().join("etc")).unwrap();
        let node = "node:x:1000:1000::/home/node:/bin/sh\n";
        fs::write(image.path().join("etc/passwd"), node).unwrap();
        prepare_at(image.path(), &root_user());
        assert_eq!(fs::read_to_string(image.path().join("etc/passwd")).unwrap(), node);
        assert!(!image.path().join("home/sandbox").exists());
    }
}
