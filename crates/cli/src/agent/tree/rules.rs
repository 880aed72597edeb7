//! Which files are ignored: by the rules of the folder here, and by those that were added in the sandbox.
//!
//! As git reads them: the rule nearest to a file counts, and nothing below an ignored folder is looked at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// The largest file of rules that is read, from here or from there.
pub(crate) const MAX_RULES: u64 = 256 * 1024;
pub(crate) const RULES: &str = ".gitignore";

pub(crate) struct Rules {
    root: PathBuf,
    /// By folder.
    own: BTreeMap<String, Gitignore>,
    /// Of folders above, of the repository, of the user.
    outer: Vec<Gitignore>,
}

impl Rules {
    /// Of a folder here; `folders` are those that have rules.
    pub(crate) fn of<'f>(root: &Path, folders: impl IntoIterator<Item = &'f str>) -> Self {
        let mut rules = Self { root: root.to_owned(), own: BTreeMap::new(), outer: Vec::new() };
        for folder in folders {
            let path = root.join(folder).join(RULES);
            let is_small = std::fs::symlink_metadata(&path)
                .is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_RULES);
            if is_small && let Ok(text) = std::fs::read_to_string(&path) {
                rules.set(folder, &text);
            }
        }
        let mut add = |path: PathBuf, at: &Path| {
            let mut builder = GitignoreBuilder::new(at);
            if path.is_file() && builder.add(&path).is_none() {
                rules.outer.extend(builder.build());
            }
        };
        let mut at = root;
        loop {
            if at != root {
                add(at.join(RULES), at);
            }
            if at.join(".git").exists() {
                add(at.join(".git/info/exclude"), at);
                break;
            }
            match at.parent() {
                Some(parent) => at = parent,
                None => break,
            }
        }
        let (global, _) = GitignoreBuilder::new(root).build_global();
        rules.outer.push(global);
        rules
    }

    /// Replaces the rules of one folder. Lines that are no rules are passed over.
    pub(crate) fn set(&mut self, folder: &str, text: &str) {
        let mut builder = GitignoreBuilder::new(self.root.join(folder));
        for line in text.lines() {
            let _ = builder.add_line(None, line);
        }
        if let Ok(rules) = builder.build() {
            self.own.insert(folder.to_owned(), rules);
        }
    }

    pub(crate) fn knows(&self, folder: &str) -> bool {
        self.own.contains_key(folder)
    }

    pub(crate) fn ignores(&self, name: &str, is_folder: bool) -> bool {
        let above = name.match_indices('/').map(|(end, _)| &name[..end]);
        above.clone().any(|folder| self.says(folder, true)) || self.says(name, is_folder)
    }

    fn says(&self, name: &str, is_folder: bool) -> bool {
        let path = self.root.join(name);
        let above = name.rmatch_indices('/').map(|(end, _)| &name[..end]).chain([""]);
        let own = above.filter_map(|folder| self.own.get(folder));
        for rules in own.chain(&self.outer) {
            match rules.matched(&path, is_folder) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rule_counts_and_folders_hide_what_is_in_them() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(RULES), "/target\n*.log\n").unwrap();
        let mut rules = Rules::of(home.path(), [""]);
        assert!(rules.ignores("target/debug/x", false) && rules.ignores("a/b.log", false));
        assert!(!rules.ignores("src/target", true) && !rules.ignores("src/a", false));
        rules.set("a", "!b.log\nnode_modules/\n");
        assert!(!rules.ignores("a/b.log", false) && rules.ignores("c/b.log", false));
        assert!(rules.ignores("a/node_modules/x/y", false) && !rules.ignores("node_modules/x", false));
    }
}
