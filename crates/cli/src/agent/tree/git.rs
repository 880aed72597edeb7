//! What of a repository goes in: enough to read history, to diff and to commit.
//!
//! Hooks stay here, and so does every setting that runs a program or holds a credential. Of the configuration only what is
//! named below is written anew.

use std::path::Path;
use std::process::{Command, Stdio};

/// The largest configuration that is read.
const MAX_CONFIG: u64 = 256 * 1024;
/// Sections and the keys of them that go in.
const KEPT: [(&str, &[&str]); 5] = [
    (
        "core",
        &[
            "repositoryformatversion",
            "filemode",
            "bare",
            "ignorecase",
            "symlinks",
            "precomposeunicode",
            "autocrlf",
            "eol",
        ],
    ),
    ("remote", &["url", "fetch"]),
    ("branch", &["remote", "merge", "rebase"]),
    ("user", &["name", "email"]),
    ("extensions", &["objectformat", "refstorage"]),
];

/// Whether a file below `.git` goes in; `name` is relative to that folder.
pub(super) fn goes_in(name: &str) -> bool {
    if name.ends_with(".lock") {
        return false;
    }
    match name.split_once('/') {
        None => {
            matches!(
                name,
                "HEAD"
                    | "ORIG_HEAD"
                    | "packed-refs"
                    | "shallow"
                    | "index"
                    | "refs"
                    | "reftable"
                    | "objects"
                    | "info"
            ) || name.starts_with("sharedindex.")
        }
        Some(("refs" | "reftable", _)) => true,
        Some(("objects", rest)) => rest != "info/alternates" && !rest.contains("tmp_obj_"),
        Some(("info", rest)) => matches!(rest, "exclude" | "sparse-checkout" | "attributes"),
        Some(_) => false,
    }
}

/// The configuration of a repository without what must not go in.
pub(super) fn config(git: &Path) -> String {
    let path = git.join("config");
    let is_small = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_CONFIG);
    let text = if is_small { std::fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    cleaned(&text)
}

fn cleaned(text: &str) -> String {
    let mut clean = String::new();
    let mut keys: &[&str] = &[];
    let mut heading = None;
    let mut continues = false;
    for line in text.lines() {
        // A line that goes on in the next is a kind of setting that is not kept.
        let is_rest = std::mem::replace(&mut continues, line.ends_with('\\'));
        let line = line.trim();
        if is_rest || continues {
            continue;
        }
        if line.starts_with('[') {
            let name = line.trim_matches(['[', ']']).split([' ', '"', '.']).next().unwrap_or_default();
            let kept = KEPT.iter().find(|(section, _)| section.eq_ignore_ascii_case(name));
            // What follows the heading in its line would be a setting; such a section is left out.
            let kept = kept.filter(|_| line.ends_with(']'));
            keys = kept.map_or(&[], |(_, keys)| keys);
            heading = kept.map(|_| line.to_owned());
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let key = key.trim();
        if !keys.iter().any(|kept| kept.eq_ignore_ascii_case(key)) {
            continue;
        }
        if let Some(heading) = heading.take() {
            clean.push_str(&heading);
            clean.push('\n');
        }
        let value = value.trim();
        let value =
            if key.eq_ignore_ascii_case("url") { without_credentials(value) } else { value.to_owned() };
        clean.push_str(&format!("\t{key} = {value}\n"));
    }
    clean
}

/// The address without user, password, query and fragment.
fn without_credentials(url: &str) -> String {
    let url = url.trim_matches('"');
    // `ext::` and its like run programs.
    if url.contains("::") {
        return String::new();
    }
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}/{path}")
}

/// Files that are tracked although a rule ignores them, or why that is not known. Nothing of the repository's settings is run, so it may be
/// another user's.
pub(super) fn tracked_but_ignored(folder: &Path) -> Result<Vec<String>, String> {
    let mut command = Command::new("git");
    command
        .args(["-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*", "-C"])
        .arg(folder)
        .args(["ls-files", "--cached", "--ignored", "--exclude-standard", "-z"])
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    // Without git there is nothing to know.
    let Ok(output) = command.output() else { return Ok(Vec::new()) };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.lines().next().unwrap_or("git failed").to_owned());
    }
    let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| String::from_utf8(name.to_vec()).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_loses_what_runs_and_what_is_secret() {
        let text = "[core]\n\tbare = false\n\thooksPath = /evil\n\tsshCommand = evil\n\tfsmonitor = evil\n\
            [remote \"origin\"]\n\turl = https://user:secret@example.com/a/b.git?token=secret\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
            [credential]\n\thelper = store\n[http \"https://example.com/\"]\n\textraheader = AUTHORIZATION: basic secret\n\
            [url \"https://secret@example.com\"]\n\tinsteadOf = x\n[alias]\n\tx = !evil\n[include]\n\tpath = evil\n\
            [user]\n\tname = A \\\n\tfsmonitor = evil\n\temail = a@b\n[remote \"x\"]\n\turl = ext::evil\n";
        let clean = cleaned(text);
        assert!(!clean.contains("secret") && !clean.contains("evil") && !clean.contains("helper"), "{clean}");
        assert!(
            clean.contains("[remote \"origin\"]\n\turl = https://example.com/a/b.git\n\tfetch = +refs"),
            "{clean}"
        );
        assert!(clean.contains("email = a@b"), "{clean}");
        assert_eq!(without_credentials("git@example.com:a/b"), "git@example.com:a/b");
    }

    #[test]
    fn hooks_logs_and_other_repositories_stay_here() {
        for name in
            ["HEAD", "index", "refs/heads/main", "objects/ab/cd", "objects/pack/x.pack", "info/exclude"]
        {
            assert!(goes_in(name), "{name}");
        }
        for name in [
            "hooks",
            "hooks/pre-commit",
            "config",
            "config.worktree",
            "logs/HEAD",
            "FETCH_HEAD",
            "modules/x/config",
            "index.lock",
            "objects/info/alternates",
        ] {
            assert!(!goes_in(name), "{name}");
        }
    }
}
