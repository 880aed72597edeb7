//! Builds the guest agent, statically linked, so that it can be carried inside this crate.
//!
//! It is another program for another place: no shared libraries, its own profile, its own target folder. Cargo cannot
//! express that as a dependency, so it is asked a second time.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for path in ["crates/guest", "crates/guest-api", "crates/types", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo::rerun-if-env-changed=WARREN_GUEST_AGENT");
    let agent = match std::env::var_os("WARREN_GUEST_AGENT") {
        Some(path) => PathBuf::from(path),
        None => build(&root),
    };
    println!("cargo::rustc-env=WARREN_GUEST_AGENT={}", agent.display());
}

fn build(root: &Path) -> PathBuf {
    let architecture =
        std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo says which architecture it builds for");
    let target = format!("{architecture}-unknown-linux-gnu");
    // One folder for all profiles of this crate: the agent is the same in each.
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo gives build scripts a folder"));
    let target_dir = out
        .ancestors()
        .find(|path| path.join("CACHEDIR.TAG").exists() || path.join(".rustc_info.json").exists())
        .map_or_else(|| out.clone(), Path::to_path_buf)
        .join("guest");
    let status = Command::new(std::env::var_os("CARGO").expect("cargo names itself"))
        .current_dir(root)
        .args([
            "build",
            "--package",
            "warren-guest",
            "--bin",
            "warren-agent",
            "--profile",
            "guest",
            "--target",
            &target,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        // An explicit target keeps these flags away from procedural macros, which cannot be static.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .expect("cargo can be started again");
    assert!(status.success(), "the guest agent does not build; see above");
    target_dir.join(target).join("guest").join("warren-agent")
}
