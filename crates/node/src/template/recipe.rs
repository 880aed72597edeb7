//! What the base template is made of. Its hash names the result in the cache.
//!
//! WHEN CHANGING WHAT A SANDBOX HOLDS: change the lists and texts here and `customise.sh`; the hash follows by itself
//! and servers rebuild on their next start. Raise [`VERSION`] when `build.rs` or `image.rs` make something else of
//! the same recipe.

use sha2::{Digest, Sha256};

use super::authorities::{self, Certificates};
use super::mirror::Mirror;
use super::{BuildOptions, TemplateError};

const VERSION: u32 = 1;
pub(super) const SUITE: &str = "trixie";
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Ends in these bytes the fingerprint of the key that signs trixie; its own signatures in the keyring carry them.
pub(super) const SUITE_KEY_ID: [u8; 8] = [0x78, 0xdb, 0xa3, 0xbc, 0x47, 0xef, 0x22, 0x65];

/// On top of Debian's `minbase`; section 27 of the sandbox contract.
const PACKAGES: &[&str] = &[
    "bind9-dnsutils",
    "build-essential",
    "ca-certificates",
    "cmake",
    "curl",
    "docker-cli",
    "docker.io",
    "file",
    "fuse3",
    "git",
    "git-lfs",
    "htop",
    "iproute2",
    "iputils-ping",
    "jq",
    "less",
    "locales",
    "nano",
    "netcat-openbsd",
    "nodejs",
    "npm",
    "openssh-client",
    "procps",
    "psmisc",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "rclone",
    "rsync",
    "sqlite3",
    "strace",
    "sudo",
    "supervisor",
    "tree",
    "unzip",
    "vim-tiny",
    "wget",
    "xz-utils",
    "zip",
];

/// Manuals nobody reads there. The marker that makes pip refuse to install goes too: the machine is the agent's own.
const DPKG: &str = "\
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/lib/python3*/EXTERNALLY-MANAGED
";
const APT: &str = "Acquire::Languages \"none\";\n";
pub(crate) const HOSTS: &str = "\
127.0.0.1 localhost
127.0.1.1 sandbox
::1 localhost ip6-localhost ip6-loopback
";
const ENVIRONMENT: &str = "\
PATH=\"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"
LANG=en_US.UTF-8
";
/// The resolver every network slot answers on.
pub(crate) const RESOLV_CONF: &str = "nameserver 169.254.169.253\noptions timeout:2 attempts:3 edns0\n";
/// There is no service manager: an installed service is started by who wants it.
const POLICY_RC_D: &str = "#!/bin/sh\nexit 101\n";

/// Runs inside the tree after the files are in place; prints the package list.
pub(super) const CUSTOMISE: &str = include_str!("customise.sh");

/// A file of the tree, owned by root.
pub(super) struct File {
    pub(super) path: &'static str,
    pub(super) mode: u32,
    pub(super) text: String,
}

pub(super) struct Recipe {
    mirror: Mirror,
    /// Of the host; those the template has anyway are left out when it is made.
    authorities: Certificates,
    hash: String,
}

impl Recipe {
    /// Reads what of the host goes into the template.
    pub(super) fn gather(options: &BuildOptions) -> Result<Self, TemplateError> {
        let authorities = if options.trust_host_cas { authorities::of_host() } else { Certificates::new() };
        Ok(Self::new(Mirror::detect()?, authorities))
    }

    fn new(mirror: Mirror, authorities: Certificates) -> Self {
        let mut recipe = Self { mirror, authorities, hash: String::new() };
        let mut hasher = Sha256::new();
        let mut add = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        add(&format!("warren base template, recipe format {VERSION}, {}", std::env::consts::ARCH));
        recipe.mmdebstrap_args().iter().for_each(|arg| add(arg));
        for file in recipe.files() {
            add(&format!("{} {:o}", file.path, file.mode));
            add(&file.text);
        }
        recipe.authorities.values().for_each(|pem| add(pem));
        add(CUSTOMISE);
        recipe.hash = warren_types::hex(&hasher.finalize());
        recipe
    }

    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    pub(super) fn authorities(&self) -> &Certificates {
        &self.authorities
    }

    /// Options before the suite and the target directory, and sources after them.
    pub(super) fn mmdebstrap_args(&self) -> Vec<String> {
        let mut args: Vec<String> =
            ["--mode=root", "--variant=minbase", "--format=directory"].map(str::to_owned).into();
        args.push(format!("--include={}", PACKAGES.join(",")));
        args.push(format!("--aptopt={}", APT.trim_end()));
        args.push("--dpkgopt=force-unsafe-io".to_owned());
        args.extend(DPKG.lines().map(|line| format!("--dpkgopt={line}")));
        args
    }

    pub(super) fn sources(&self) -> Vec<String> {
        let line = |url: &str, suite: &str| format!("deb [signed-by=\"{KEYRING}\"] {url} {suite} main");
        vec![
            line(&self.mirror.main, SUITE),
            line(&self.mirror.main, &format!("{SUITE}-updates")),
            line(&self.mirror.security, &format!("{SUITE}-security")),
        ]
    }

    pub(super) fn files(&self) -> Vec<File> {
        let file = |path, text: &str| File { path, mode: 0o644, text: text.to_owned() };
        let Mirror { main, security } = &self.mirror;
        let stanza = |url: &str, suites: &str| {
            format!("Types: deb\nURIs: {url}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n")
        };
        let sources = format!(
            "{}\n{}",
            stanza(main, &format!("{SUITE} {SUITE}-updates")),
            stanza(security, &format!("{SUITE}-security"))
        );
        vec![
            file("etc/apt/sources.list.d/debian.sources", &sources),
            file("etc/apt/apt.conf.d/90warren", APT),
            file("etc/dpkg/dpkg.cfg.d/90warren", DPKG),
            file("etc/hostname", "sandbox\n"),
            file("etc/hosts", HOSTS),
            file("etc/resolv.conf", RESOLV_CONF),
            file("etc/environment", ENVIRONMENT),
            file("etc/default/locale", "LANG=en_US.UTF-8\n"),
            file("etc/locale.gen", "en_US.UTF-8 UTF-8\n"),
            file("etc/machine-id", ""),
            File {
                path: "etc/sudoers.d/90-sandbox",
                mode: 0o440,
                text: "sandbox ALL=(ALL:ALL) NOPASSWD: ALL\n".into(),
            },
            File { path: "usr/sbin/policy-rc.d", mode: 0o755, text: POLICY_RC_D.into() },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(main: &str) -> Mirror {
        Mirror { main: main.into(), security: "http://m/debian-security".into() }
    }

    #[test]
    fn whatever_goes_in_is_in_the_hash() {
        let plain = Recipe::new(mirror("http://m/debian"), Certificates::new());
        let again = Recipe::new(mirror("http://m/debian"), Certificates::new());
        let elsewhere = Recipe::new(mirror("http://n/debian"), Certificates::new());
        let trusting = Recipe::new(mirror("http://m/debian"), [("a".into(), "b".into())].into());
        assert_eq!(plain.hash(), again.hash());
        assert_ne!(plain.hash(), elsewhere.hash());
        assert_ne!(plain.hash(), trusting.hash());
    }
}
