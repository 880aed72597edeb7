//! No source file grows past what one can keep in mind. Split by subject, not by line count.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

const LINES: usize = 700;
const SKIPPED: [&str; 4] = ["target", "node_modules", "corpus", "artifacts"];

pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let mut long = Vec::new();
    for path in sources(root)? {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
        let lines = text.lines().count();
        if lines > LINES {
            let path = path.strip_prefix(root).unwrap_or(&path);
            long.push(format!("{}: {lines} lines, {LINES} at most", path.display()));
        }
    }
    if long.is_empty() {
        return Ok(());
    }
    bail!("\n   {}", long.join("\n   "))
}

pub(crate) fn sources(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("could not list {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("could not list {}", folder.display()))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let kind = entry.file_type().with_context(|| format!("could not look at {name}"))?;
            if kind.is_dir() && !name.starts_with('.') && !SKIPPED.contains(&name.as_ref()) {
                folders.push(entry.path());
            } else if kind.is_file() && name.ends_with(".rs") {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
