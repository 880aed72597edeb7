//! `cargo xtask`: what CI checks, on your machine.
//!
//! `cargo xtask check` runs everything and goes on after a failure, so that one run tells all. Each part can be run
//! alone by its name. `scripts/test` runs the same parts, then the end-to-end tests, which need a server.

#![expect(clippy::print_stdout, reason = "a program for people")]

mod architecture;
mod licences;
mod metadata;
mod sizes;
mod spdx;
mod tests_run;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, bail};

type Part = (&'static str, &'static str, fn(&Path) -> anyhow::Result<()>);

/// Quick ones first.
const PARTS: [Part; 6] = [
    ("fmt", "the code is formatted", fmt),
    ("sizes", "no source file is too long", sizes::check),
    ("architecture", "dependencies point down; ARCHITECTURE.md lists every crate", architecture::check),
    ("licences", "licences of dependencies, and those that are not to be used", licences::check),
    ("clippy", "no lint is raised", clippy),
    ("tests", "unit, property and component tests", tests_run::run),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&Part> = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["check"] => PARTS.iter().collect(),
        [] | ["help" | "--help" | "-h"] => return usage(ExitCode::SUCCESS),
        names => match names.iter().map(|name| PARTS.iter().find(|part| part.0 == *name)).collect() {
            Some(parts) => parts,
            None => return usage(ExitCode::from(2)),
        },
    };
    let root = root();
    let mut failed = Vec::new();
    for (name, _, part) in &wanted {
        let started = Instant::now();
        println!("── {name}");
        match part(&root) {
            Ok(()) => println!("   ok, {:.1} s", started.elapsed().as_secs_f64()),
            Err(error) => {
                println!("   FAILED: {error:#}");
                failed.push(*name);
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    if wanted.len() > 1 {
        println!("failed: {}", failed.join(", "));
    }
    ExitCode::FAILURE
}

fn usage(code: ExitCode) -> ExitCode {
    println!("usage: cargo xtask check | PART…\n\nparts, in the order `check` runs them:");
    for (name, about, _) in PARTS {
        println!("  {name:<13} {about}");
    }
    code
}

fn fmt(root: &Path) -> anyhow::Result<()> {
    run(cargo(root).args(["fmt", "--all", "--check"]))
}

/// By a build with clippy's driver for our own crates. `cargo clippy` would check every dependency as well, which takes
/// longer than everything else it does, while here they are those that the program was built with; and what is built
/// here is what the tests run.
fn clippy(root: &Path) -> anyhow::Result<()> {
    let mut command = cargo(root);
    command.args(["build", "--release", "--workspace", "--all-targets"]);
    for_tests(root, &mut command)?;
    run(&mut command)
}

/// Has a build use the release profile, so that dependencies and their C code are built once for all uses, with our own
/// crates hardly optimised: that takes most of the time, and is for those who run them. Clippy's driver compiles what
/// it has looked at, so looking and compiling are one; it optimises less, and the code is the compiler's own.
fn for_tests(root: &Path, command: &mut Command) -> anyhow::Result<()> {
    command.env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver");
    // How `cargo clippy` hands arguments to its driver.
    command.env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
    for package in metadata::Metadata::load(root)?.packages {
        // The agent's tests move much data.
        let level = i32::from(package.name == "warren-guest");
        command.args(["--config", &format!("profile.release.package.{}.opt-level={level}", package.name)]);
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate is in crates/xtask")
        .to_owned()
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let line = format!("{command:?}");
    let status = command.status().with_context(|| format!("could not start {line}"))?;
    if !status.success() {
        bail!("{line} ended with {status}");
    }
    Ok(())
}
