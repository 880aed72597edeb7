//! Arrows point down: which crate of the workspace may know which.
//!
//! WHEN ADDING A CRATE: give it a line here and one in ARCHITECTURE.md. Programs (control, node, guest) meet only in
//! the contract crates; an arrow between two of them is wrong however convenient it looks.

use std::path::Path;

use anyhow::{Context, bail};

use crate::metadata::Metadata;

const PREFIX: &str = "warren-";

/// A crate and those it may depend on, tests and build scripts included. Lowest first.
const ALLOWED: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("api", &["types"]),
    ("guest-api", &["types"]),
    ("images", &["types", "guest-api"]),
    ("netlink", &[]),
    ("node-api", &["types", "guest-api"]),
    ("runtime", &[]),
    ("runtime-container", &["types", "guest-api", "runtime"]),
    ("runtime-vm", &["types", "guest-api", "netlink", "runtime"]),
    ("network", &["types", "guest-api", "netlink", "node-api", "runtime"]),
    ("guest", &["types", "guest-api", "netlink"]),
    (
        "node",
        &[
            "types",
            "guest-api",
            "images",
            "network",
            "node-api",
            "runtime",
            "runtime-container",
            "runtime-vm",
        ],
    ),
    ("control", &["types", "api", "guest-api", "node-api"]),
    // The one binary: it starts control plane, node and launcher in their processes, and is a client of the API.
    (
        "cli",
        &[
            "types",
            "api",
            "node-api",
            "control",
            "network",
            "node",
            "runtime",
            "runtime-container",
            "runtime-vm",
        ],
    ),
    ("xtask", &[]),
    ("bench", &["types", "api"]),
];

pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let metadata = Metadata::load(root)?;
    let page =
        std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("could not read ARCHITECTURE.md")?;
    let crates: Vec<(&str, Vec<&str>)> = metadata
        .packages
        .iter()
        .map(|package| {
            let below = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
            (short(&package.name), below.map(|dependency| short(&dependency.name)).collect())
        })
        .collect();
    let mut wrong = edges(&crates);
    wrong.extend(
        crates
            .iter()
            .filter(|(name, _)| !is_listed(&page, name))
            .map(|(name, _)| format!("ARCHITECTURE.md has no line for `{name}`")),
    );
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("\n   {}", wrong.join("\n   "))
}

fn short(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

fn edges(crates: &[(&str, Vec<&str>)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, below) in crates {
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| known == name) else {
            wrong.push(format!("`{name}` has no line in crates/xtask/src/architecture.rs"));
            continue;
        };
        for used in below.iter().filter(|used| *used != name && !allowed.contains(used)) {
            wrong.push(format!("`{name}` depends on `{used}`; it may depend on: {}", allowed.join(", ")));
        }
    }
    wrong
}

/// The page names a crate as `name`, **name**, `warren-name` or with its folder.
fn is_listed(page: &str, name: &str) -> bool {
    [format!("`{name}`"), format!("**{name}**"), format!("`{PREFIX}{name}`"), format!("crates/{name}`")]
        .iter()
        .any(|spelling| page.contains(spelling))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_that_points_up_or_across_is_found() {
        assert_eq!(edges(&[("node", vec!["types", "node-api"]), ("types", vec![])]), Vec::<String>::new());
        for (name, used) in
            [("control", "node"), ("node", "control"), ("guest", "node-api"), ("types", "api")]
        {
            let wrong = edges(&[(name, vec![used])]);
            assert!(wrong.len() == 1 && wrong[0].contains(used), "{wrong:?}");
        }
        assert_eq!(edges(&[("new", vec![])]).len(), 1);
    }

    #[test]
    fn the_table_itself_has_no_circle() {
        for (place, (name, allowed)) in ALLOWED.iter().enumerate() {
            for used in *allowed {
                let below = ALLOWED.iter().position(|(known, _)| known == used).unwrap();
                assert!(below < place, "{name} before {used}");
            }
        }
    }

    #[test]
    fn a_crate_counts_as_listed_by_its_whole_name_only() {
        let page = "| `node-api` | … |\n| `crates/guest` | … |";
        assert!(is_listed(page, "node-api") && is_listed(page, "guest"));
        assert!(!is_listed(page, "node") && !is_listed(page, "api"));
    }
}
