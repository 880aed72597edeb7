//! Folders that git would take for a repository, whatever they are called.
//!
//! Git takes a folder that has `HEAD` and both `objects` and `refs`, or a `commondir` that says where those are, and then runs
//! what its `config` names, at the next `git status`. So neither is such a folder made here nor is anything put into one. It is
//! asked of all that comes together with all that is here: what comes in pieces is still one.

use std::collections::{BTreeMap, BTreeSet};

use super::Change;
use super::names::folded;
use crate::agent::tree::Name;

/// What stands at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stands {
    Nothing,
    Folder,
    Other,
}

/// What of a repository's signs a folder has.
#[derive(Debug, Clone, Copy, Default)]
struct Signs {
    head: bool,
    objects: bool,
    refs: bool,
    common: bool,
}

impl Signs {
    fn are_enough(self) -> bool {
        self.head && (self.common || self.objects && self.refs)
    }

    /// Whether this name is one, and notes it. What is no folder counts as objects too: git only asks whether it may enter.
    fn note(&mut self, child: &str, stands: Stands) -> bool {
        let sign = match (child, stands) {
            (_, Stands::Nothing) => return false,
            ("head", Stands::Other) => &mut self.head,
            ("commondir", Stands::Other) => &mut self.common,
            ("objects", _) => &mut self.objects,
            ("refs", _) => &mut self.refs,
            _ => return false,
        };
        *sign = true;
        true
    }
}

/// Whether git takes this for a repository. `stands` tells what is at a name of it.
pub(crate) fn is_repository(stands: impl Fn(&str) -> Stands) -> bool {
    let mut signs = Signs::default();
    for child in ["HEAD", "commondir", "objects", "refs"] {
        signs.note(&child.to_ascii_lowercase(), stands(child));
    }
    signs.are_enough()
}

/// Names that are not written, and why; `stands` tells what is here already. To remove something makes no repository.
pub(crate) fn refusals(changes: &[Change], stands: impl Fn(&str) -> Stands) -> BTreeMap<Name, &'static str> {
    let mut coming: BTreeMap<&str, Signs> = BTreeMap::new();
    let written =
        || changes.iter().filter(|change| change.after.is_some()).map(|change| change.name.as_str());
    for (folder, child, stands_then) in written().flat_map(steps) {
        coming.entry(folder).or_default().note(&folded(child), stands_then);
    }
    let (mut made, mut there) = (BTreeSet::new(), BTreeSet::new());
    for (folder, mut signs) in coming {
        let at = |child: &str| stands(&below(folder, child));
        if is_repository(at) {
            there.insert(folder);
            continue;
        }
        for child in ["HEAD", "commondir", "objects", "refs"] {
            signs.note(&child.to_ascii_lowercase(), at(child));
        }
        if signs.are_enough() {
            made.insert(folder);
        }
    }
    let why = |name: &str| {
        if steps(name).any(|(folder, ..)| there.contains(folder)) {
            return Some("what it is in is a repository, and those are not written to from outside");
        }
        // Without the signs it is an ordinary folder, and what else is in it may come.
        let is_sign =
            |(folder, child, stands)| made.contains(folder) && Signs::default().note(&folded(child), stands);
        steps(name).any(is_sign).then_some("it would make a repository of the folder it is in")
    };
    written().filter_map(|name| Some((name.to_owned(), why(name)?))).collect()
}

/// Each folder above a name, what of the name is in that folder, and what that then is.
fn steps(name: &str) -> impl Iterator<Item = (&str, &str, Stands)> {
    let ends = name.match_indices('/').map(|(end, _)| end).chain([name.len()]);
    ends.scan(0, move |start, end| {
        let folder = name[..*start].trim_end_matches('/');
        let child = &name[*start..end];
        *start = (end + 1).min(name.len());
        Some((folder, child, if end == name.len() { Stands::Other } else { Stands::Folder }))
    })
}

fn below(folder: &str, child: &str) -> String {
    if folder.is_empty() { child.to_owned() } else { format!("{folder}/{child}") }
}

#[cfg(test)]
mod tests {
    use super::super::Content;
    use super::*;

    fn refused(coming: &[&str], here: &[&str]) -> Vec<String> {
        let after = Some(Content::Link { target: "x".to_owned() });
        let changes: Vec<Change> = coming
            .iter()
            .map(|name| Change { name: (*name).to_owned(), before: None, after: after.clone() })
            .collect();
        let stands = |name: &str| {
            if here.contains(&name) {
                Stands::Other
            } else if here.iter().any(|one| one.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')))
            {
                Stands::Folder
            } else {
                Stands::Nothing
            }
        };
        refusals(&changes, stands).into_keys().collect()
    }

    #[test]
    fn what_would_be_a_repository_together_with_what_is_here_does_not_come() {
        let bare = ["HEAD", "config", "objects/k", "refs/heads/x", "src/a"];
        assert_eq!(refused(&bare, &[]), ["HEAD", "objects/k", "refs/heads/x"]);
        assert_eq!(refused(&["a/b/head", "a/b/Objects", "a/b/refs./x"], &[]).len(), 3);
        assert_eq!(refused(&["a/HEAD", "a/commondir", "a/x"], &[]), ["a/HEAD", "a/commondir"]);
        // In pieces.
        assert_eq!(refused(&["a/HEAD", "a/x"], &["a/objects/k", "a/refs/k"]), ["a/HEAD"]);
        assert_eq!(refused(&["refs/k"], &["HEAD", "objects/k"]), ["refs/k"]);
        // What is one already.
        let here = ["a/HEAD", "a/objects/k", "a/refs/k"];
        assert_eq!(refused(&["a/config", "a/hooks/x", "b"], &here), ["a/config", "a/hooks/x"]);
    }

    #[test]
    fn what_only_looks_like_a_part_of_one_comes() {
        for fine in [
            &["HEAD", "objects/k"][..],
            &["refs/k", "objects/k", "HEAD/k"],
            &["a/HEAD", "objects/k", "refs/k"],
            &["commondir", "config"],
        ] {
            assert_eq!(refused(fine, &["README"]), [""; 0], "{fine:?}");
        }
    }
}
