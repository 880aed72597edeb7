//! Licences of everything we build from, and crates that are not to be used.
//!
//! Our own few lines rather than cargo-deny: that wants to fetch its advisory database, and CI runs without a network
//! beyond the package registries.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};

use crate::spdx;

/// Licences that ask for no more than their text to be passed on.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// A crate, and what we use instead.
const BANNED: &[(&str, &str)] = &[
    ("libseccomp", "seccompiler, which needs no C library"),
    ("libseccomp-sys", "seccompiler, which needs no C library"),
    ("native-tls", "rustls with aws-lc-rs"),
    ("openssl-sys", "rustls with aws-lc-rs"),
    ("ring", "aws-lc-rs; two crypto providers in one program panic when it runs"),
    ("rusqlite", "sqlx; two SQLite linkages do not fit into one graph"),
];

pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Package { name, version, licence } in packages(root)? {
        let who = format!("{name} {version} (see `cargo tree --workspace --invert {name}@{version}`)");
        if let Some((_, instead)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            wrong.push(format!("{who}: use {instead}"));
        }
        match spdx::is_satisfied(&licence, &|id| ALLOWED.contains(&id)) {
            Ok(true) => {}
            Ok(false) => wrong.push(format!("{who}: licence {licence}")),
            Err(error) => wrong.push(format!("{who}: {error}")),
        }
        versions.entry(name).or_default().push(version);
    }
    let several: Vec<String> = versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| format!("{name} ({})", versions.join(", ")))
        .collect();
    if !several.is_empty() {
        println!("   for your information, in more than one version: {}", several.join("; "));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("\n   {}", wrong.join("\n   "))
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    licence: String,
}

/// What is really compiled, tests included. `cargo metadata` also lists what no enabled feature asks for.
fn packages(root: &Path) -> anyhow::Result<BTreeSet<Package>> {
    let output = crate::cargo(root)
        .args(["tree", "--workspace", "--edges", "normal,build,dev", "--target", "x86_64-unknown-linux-gnu"])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"])
        .stderr(Stdio::inherit())
        .output()
        .context("could not start cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree ended with {}", output.status);
    }
    String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.is_empty()).map(parse).collect()
}

/// `name v1.2.3 (where from)|licence`
fn parse(line: &str) -> anyhow::Result<Package> {
    let read = || {
        let (package, licence) = line.split_once('|')?;
        let mut words = package.split_whitespace();
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        Some(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: licence.trim().to_owned(),
        })
    };
    read().with_context(|| format!("cargo tree wrote a line we cannot read: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cargo_tree_are_read() {
        let package = parse("serde_derive v1.0.2 (proc-macro)|MIT OR Apache-2.0").unwrap();
        assert_eq!(
            (package.name.as_str(), package.version.as_str(), package.licence.as_str()),
            ("serde_derive", "1.0.2", "MIT OR Apache-2.0")
        );
        assert_eq!(parse("own v0.1.0 (/some/where)|").unwrap().licence, "");
        assert!(parse("nonsense").is_err());
    }
}
