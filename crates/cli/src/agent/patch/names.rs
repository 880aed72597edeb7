//! Which names and links of a sandbox may exist here.

use super::super::tree::rules::Rules;

const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4000;
const MAX_DEPTH: usize = 128;

/// Why a name is not written here.
pub(crate) fn refusal(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.starts_with('/') || name.len() > MAX_PATH {
        return Some("it is no name below the folder");
    }
    if name.chars().any(char::is_control) {
        return Some("its name has control characters");
    }
    if name.split('/').count() > MAX_DEPTH {
        return Some("it is in too many folders");
    }
    for part in name.split('/') {
        if matches!(part, "" | "." | "..") || part.len() > MAX_NAME {
            return Some("it leads out of the folder");
        }
        if is_git(part) {
            return Some("a repository is not written to from outside");
        }
    }
    None
}

/// `.git`, also as file systems that forgive spelling understand it.
fn is_git(part: &str) -> bool {
    matches!(folded(part).as_str(), ".git" | "git~1")
}

/// One part of a name as the most forgiving of file systems understands it.
pub(super) fn folded(part: &str) -> String {
    let visible: String = part.chars().filter(|c| !is_invisible(*c)).collect();
    let trimmed = visible.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    trimmed.to_ascii_lowercase()
}

/// What HFS+ passes over in names.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

/// Why a link is not made here. It may only lead to a name below the folder, and climb at its beginning: a `..` after a name may
/// stand behind another link and then mean something else.
pub(crate) fn link_refusal(name: &str, target: &str) -> Option<&'static str> {
    if target.is_empty() || target.starts_with('/') || target.len() > MAX_PATH {
        return Some("the link leads out of the folder");
    }
    if target.chars().any(char::is_control) {
        return Some("the link's target has control characters");
    }
    let depth = name.split('/').count() - 1;
    let (mut climbed, mut has_name) = (0, false);
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if has_name || climbed == depth => return Some("the link leads out of the folder"),
            ".." => climbed += 1,
            part if is_git(part) => return Some("the link leads into a repository"),
            _ => has_name = true,
        }
    }
    None
}

/// The folder that a file of rules is in.
pub(crate) fn folder_of_rules(name: &str) -> Option<&str> {
    match name.rsplit_once('/') {
        Some((folder, last)) => (last == super::super::tree::rules::RULES).then_some(folder),
        None => (name == super::super::tree::rules::RULES).then_some(""),
    }
}

/// Whether a file that did not go in stays there.
pub(crate) fn is_left_there(rules: Option<&Rules>, name: &str) -> bool {
    rules.is_some_and(|rules| rules.ignores(name, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_or_into_a_repository_are_refused() {
        for name in ["a", "a/b.c", ".gitignore", ".github/x", "a b", "git", "é"] {
            assert_eq!(refusal(name), None, "{name}");
        }
        for name in [
            "",
            "/a",
            "..",
            "a/../b",
            "a//b",
            "./a",
            "a/.",
            ".git",
            ".git/config",
            "a/.GIT/x",
            ".git./x",
            ".git /x",
            "GIT~1/x",
            ".g\u{200c}it/x",
            ".git::$INDEX/x",
            "a\nb",
            "a\x1b[2Jb",
        ] {
            assert!(refusal(name).is_some(), "{name:?}");
        }
        assert!(refusal(&"a/".repeat(300)).is_some() && refusal(&"a".repeat(300)).is_some());
    }

    #[test]
    fn links_stay_inside() {
        for (name, target) in [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/e"), ("a", "./b/c")] {
            assert_eq!(link_refusal(name, target), None, "{name} {target}");
        }
        for (name, target) in [
            ("a", "/etc/passwd"),
            ("a", "../b"),
            ("a/b", "../../c"),
            ("a", "b/../../c"),
            ("a", "b/c/../d"),
            ("a", ".git/hooks"),
            ("a/b", "../.git"),
            ("a", ""),
            ("a", ".."),
            ("a", "b\nc"),
        ] {
            assert!(link_refusal(name, target).is_some(), "{name} {target}");
        }
    }
}
