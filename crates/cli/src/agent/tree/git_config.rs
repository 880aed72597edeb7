//! A repository's configuration without what must not go in: only settings that are named here, and of those only values that
//! look like what they should be. What was not thought of stays here.

use std::fmt::Write as _;

/// What a value has to be to go in.
#[derive(Clone, Copy)]
enum Value {
    /// A number, a truth value, the name of a format.
    Word,
    /// Of a person, as commits have it.
    Person,
    Address,
    /// What is fetched to where.
    Refspec,
    /// A remote by its name; it may as well be an address.
    Remote,
    Reference,
}

const KEPT: [(&str, &str, Value); 17] = [
    ("core", "repositoryformatversion", Value::Word),
    ("core", "filemode", Value::Word),
    ("core", "bare", Value::Word),
    ("core", "ignorecase", Value::Word),
    ("core", "symlinks", Value::Word),
    ("core", "precomposeunicode", Value::Word),
    ("core", "autocrlf", Value::Word),
    ("core", "eol", Value::Word),
    ("remote", "url", Value::Address),
    ("remote", "fetch", Value::Refspec),
    ("branch", "remote", Value::Remote),
    ("branch", "merge", Value::Reference),
    ("branch", "rebase", Value::Word),
    ("user", "name", Value::Person),
    ("user", "email", Value::Person),
    ("extensions", "objectformat", Value::Word),
    ("extensions", "refstorage", Value::Word),
];
/// Others run a program, or are not known to be harmless.
const SCHEMES: [&str; 7] = ["https", "http", "ssh", "git", "file", "ftps", "ftp"];

/// One setting as git reads it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Setting {
    section: String,
    /// What is in quotes in the heading.
    of: Option<String>,
    key: String,
    value: String,
}

pub(super) fn cleaned(text: &str) -> String {
    let mut clean = String::new();
    let mut heading = None;
    for Setting { section, of, key, value } in settings(text) {
        let Some((.., sort)) = KEPT.iter().find(|(kept, name, _)| *kept == section && *name == key) else {
            continue;
        };
        // Anybody can write an address with a password where a name should be.
        let is_named = match (section.as_str(), &of) {
            ("remote", Some(of)) => is_remote(of),
            ("branch", Some(of)) => is_reference(of),
            (_, of) => of.is_none(),
        };
        let Some(value) = is_named.then(|| harmless(*sort, &value)).flatten() else { continue };
        let under = (section, of);
        if heading.as_ref() != Some(&under) {
            let _ = match &under {
                (section, None) => writeln!(clean, "[{section}]"),
                (section, Some(of)) => writeln!(clean, "[{section} \"{of}\"]"),
            };
            heading = Some(under);
        }
        let _ = match sort {
            Value::Person => {
                writeln!(clean, "\t{key} = \"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
            }
            _ => writeln!(clean, "\t{key} = {value}"),
        };
    }
    clean
}

/// The value as it goes in, if it does.
fn harmless(sort: Value, value: &str) -> Option<String> {
    let is_fine = match sort {
        Value::Word => !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric()),
        Value::Person => !value.chars().any(char::is_control),
        Value::Address => return address(value),
        Value::Refspec => {
            let value = value.strip_prefix(['+', '^']).unwrap_or(value);
            let (from, to) = value.split_once(':').unwrap_or((value, "refs"));
            [from, to].iter().all(|side| is_reference(&side.replacen('*', "x", 1)))
        }
        Value::Remote => value == "." || is_remote(value),
        Value::Reference => is_reference(value),
    };
    is_fine.then(|| value.to_owned())
}

/// As branches are called; an address has a colon.
fn is_reference(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_control() || " ~^:?*[\\\"'#;=&<>|$`".contains(c))
}

fn is_remote(name: &str) -> bool {
    is_reference(name) && !name.contains('@')
}

/// The address without user, password, query and fragment; none of one that is not understood.
fn address(url: &str) -> Option<String> {
    let url = url.split(['?', '#', ';']).next().unwrap_or_default();
    if let Some((scheme, rest)) = url.split_once("://") {
        let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let scheme = scheme.to_ascii_lowercase();
        let is_fine = SCHEMES.contains(&scheme.as_str()) && is_host(host, &scheme) && is_path(path);
        return is_fine.then(|| format!("{scheme}://{host}/{path}"));
    }
    // What is before the first colon is a host, unless a slash is before it.
    if let Some((host, path)) = url.split_once(':').filter(|(host, _)| !host.contains('/')) {
        let (user, host) = host.rsplit_once('@').map_or(("", host), |(user, host)| (user, host));
        // All have this one; it is nobody's.
        let user = if user == "git" { "git@" } else { "" };
        return (is_host(host, "ssh") && !host.is_empty() && is_path(path))
            .then(|| format!("{user}{host}:{path}"));
    }
    (!url.is_empty() && is_path(url)).then(|| url.to_owned())
}

/// A password with a slash in it would make its beginning look like a port.
fn is_host(host: &str, scheme: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, ""),
    };
    let is_name = |name: &str| name.chars().all(|c| c.is_alphanumeric() || ".-_".contains(c));
    let is_number = |name: &str| name.chars().all(|c| c.is_ascii_hexdigit() || c == ':');
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    port.chars().all(|c| c.is_ascii_digit())
        && (!name.is_empty() || scheme == "file")
        && bare.map_or_else(|| is_name(name), is_number)
}

/// Of letters that a path needs: an `@` is behind a password more often than in a name.
fn is_path(path: &str) -> bool {
    path.chars().all(|c| c.is_alphanumeric() || "/._-~+,% ()".contains(c)) && !path.ends_with(' ')
}

/// All settings in their order; what cannot be read ends it, as it does for git.
fn settings(text: &str) -> Vec<Setting> {
    let mut found = Vec::new();
    let mut under: Option<(String, Option<String>)> = None;
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            _ if c.is_whitespace() => {}
            '#' | ';' => while rest.next_if(|c| *c != '\n').is_some() {},
            '[' => match heading(&mut rest) {
                Some(heading) => under = Some(heading),
                None => return found,
            },
            _ if c.is_ascii_alphabetic() => {
                let mut key = String::from(c);
                while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '-') {
                    key.push(c);
                }
                while rest.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
                let value = match rest.next() {
                    // Alone it is as good as true.
                    None | Some('\n') => Some("true".to_owned()),
                    Some('=') => value(&mut rest),
                    Some(_) => None,
                };
                let (Some(value), Some((section, of))) = (value, under.clone()) else { return found };
                found.push(Setting { section, of, key: key.to_ascii_lowercase(), value });
            }
            _ => return found,
        }
    }
    found
}

type Rest<'t> = std::iter::Peekable<std::str::Chars<'t>>;

/// What follows `[`.
fn heading(rest: &mut Rest<'_>) -> Option<(String, Option<String>)> {
    let mut section = String::new();
    while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')) {
        section.push(c.to_ascii_lowercase());
    }
    // The old way to write it.
    let (section, dotted) = match section.split_once('.') {
        Some((section, of)) => (section.to_owned(), Some(of.to_owned())),
        None => (section, None),
    };
    while rest.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
    match rest.next()? {
        ']' => Some((section, dotted)),
        '"' => {
            let mut of = String::new();
            loop {
                match rest.next()? {
                    '"' => break,
                    '\n' => return None,
                    '\\' => of.push(rest.next()?),
                    c => of.push(c),
                }
            }
            (rest.next()? == ']').then_some((section, Some(of)))
        }
        _ => None,
    }
}

/// What follows `=`, to the end of the line.
fn value(rest: &mut Rest<'_>) -> Option<String> {
    let (mut value, mut length, mut in_quotes) = (String::new(), 0, false);
    loop {
        match rest.next() {
            None | Some('\n') if in_quotes => return None,
            None | Some('\n') => break,
            Some('#' | ';') if !in_quotes => {
                while rest.next_if(|c| *c != '\n').is_some() {}
                continue;
            }
            Some(c) if !in_quotes && c.is_whitespace() => {
                if !value.is_empty() {
                    value.push(c);
                }
                continue;
            }
            Some('"') => in_quotes = !in_quotes,
            Some('\\') => match rest.next()? {
                '\n' => continue,
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'b' => value.push('\u{8}'),
                c @ ('"' | '\\') => value.push(c),
                _ => return None,
            },
            Some(c) => value.push(c),
        }
        // Blanks at the end count only in quotes.
        length = value.len();
    }
    value.truncate(length);
    Some(value)
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
            [submodule \"s\"]\n\turl = https://u:secret@example.com/s\n\
            [user]\n\tname = A \\\n\tfsmonitor = evil\n\temail = a@b\n[remote \"x\"]\n\turl = ext::evil\n";
        let clean = cleaned(text);
        assert_eq!(
            clean,
            "[core]\n\tbare = false\n[remote \"origin\"]\n\turl = https://example.com/a/b.git\n\
             \tfetch = +refs/heads/*:refs/remotes/origin/*\n[user]\n\temail = \"a@b\"\n"
        );
    }

    #[test]
    fn no_address_hides_a_password_where_a_name_is_expected() {
        let text = "[branch \"main\"]\n\tremote = https://user:SECRET@example.com/x\n\tmerge = refs/heads/main\n\tpushRemote = https://u:SECRET@h/x\n\
            [branch \"dependabot/@types/node\"]\n\tremote = origin\n\
            [remote \"https://user:SECRET@example.com/x\"]\n\tfetch = +refs/heads/*:refs/remotes/x/*\n\turl = x\n\
            [remote \"p\"] url = user:SECRET@example.com:x\n\
            [remote \"s\"]\n\turl = '/srv/x?token=SECRET'\n\turl = /srv/x?token=SECRET\n\turl = \"/srv/y\" ; SECRET\n\
            [remote.q]\n\turl = SECRET@example.com:a/b\n\turl = https://user:SEC/RET@example.com/a\n\turl = https://user:12/SECRET@example.com/a\n\
            \turl = \"https://user:SECRET@\\\nexample.com/b\"\n\tfetch = https://u:SECRET@h/x\n\
            [extensions]\n\tobjectformat = sha256\n\trefstorage = reftable://SECRET\n[core]\n\tbare\n\teol = SECRET@x\n";
        assert_eq!(
            cleaned(text),
            "[branch \"main\"]\n\tmerge = refs/heads/main\n[branch \"dependabot/@types/node\"]\n\tremote = origin\n\
             [remote \"s\"]\n\turl = /srv/x\n\turl = /srv/y\n[remote \"q\"]\n\turl = example.com:a/b\n\turl = https://example.com/b\n\
             [extensions]\n\tobjectformat = sha256\n[core]\n\tbare = true\n"
        );
    }

    #[test]
    fn addresses_lose_only_what_is_nobody_elses() {
        for (given, goes_in) in [
            ("git@example.com:a/b", Some("git@example.com:a/b")),
            ("me@example.com:a/b", Some("example.com:a/b")),
            ("ssh://git@example.com:2222/a/b.git", Some("ssh://example.com:2222/a/b.git")),
            ("https://[::1]:8080/a", Some("https://[::1]:8080/a")),
            ("https://example.com", Some("https://example.com/")),
            ("file:///srv/a", Some("file:///srv/a")),
            ("../a b", Some("../a b")),
            ("ext::sh -c evil", None),
            ("user:secret@example.com:x", None),
            ("https://example.com/a@b", None),
            ("other://example.com/a", None),
            ("", None),
        ] {
            assert_eq!(address(given).as_deref(), goes_in, "{given}");
        }
    }
}
