//! Where Debian's packages come from: the setting, else the archive a Debian host itself uses, else Debian's own.

use std::path::Path;

use super::{MIRROR_ENV, TemplateError};

const DEBIAN: &str = "http://deb.debian.org/debian";
const DEBIAN_SECURITY: &str = "http://deb.debian.org/debian-security";
/// No real list of sources is longer.
const SOURCES_LIMIT: u64 = 256 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) main: String,
    pub(super) security: String,
}

impl Mirror {
    pub(super) fn detect() -> Result<Self, TemplateError> {
        let host = of_host(Path::new("/etc"));
        match std::env::var(MIRROR_ENV) {
            Ok(value) if !value.trim().is_empty() => of_setting(&value, host),
            _ => Ok(host),
        }
    }
}

/// `MAIN` or `MAIN SECURITY`.
fn of_setting(value: &str, host: Mirror) -> Result<Mirror, TemplateError> {
    let mut urls = value.split_whitespace().map(|url| url.trim_end_matches('/').to_owned());
    let refused = || TemplateError::Mirror { value: value.to_owned() };
    let main = urls.next().filter(|url| is_url(url)).ok_or_else(refused)?;
    let security = match urls.next() {
        Some(url) if is_url(&url) => url,
        Some(_) => return Err(refused()),
        None => host.security,
    };
    if urls.next().is_some() {
        return Err(refused());
    }
    Ok(Mirror { main, security })
}

/// The URL ends up in apt's configuration, so only plain characters pass.
fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:/@%+".contains(&b))
    })
}

fn of_host(etc: &Path) -> Mirror {
    let release = read(&etc.join("os-release"));
    let field = |name: &str| {
        release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    let mut mirror = Mirror { main: DEBIAN.to_owned(), security: DEBIAN_SECURITY.to_owned() };
    let (Some("debian"), Some(codename)) = (field("ID").as_deref(), field("VERSION_CODENAME")) else {
        return mirror;
    };
    let mut files = vec![etc.join("apt/sources.list")];
    if let Ok(entries) = std::fs::read_dir(etc.join("apt/sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let archives: Vec<(String, String)> = files
        .iter()
        .flat_map(|file| match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => of_lines(&read(file)),
            Some("sources") => of_stanzas(&read(file)),
            _ => Vec::new(),
        })
        .filter(|(url, _)| is_url(url))
        .collect();
    let find = |suite: &str| archives.iter().find(|(_, has)| has == suite).map(|(url, _)| url.clone());
    if let Some(url) = find(&codename) {
        mirror.main = url;
    }
    if let Some(url) = find(&format!("{codename}-security")) {
        mirror.security = url;
    }
    mirror
}

fn read(path: &Path) -> String {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() <= SOURCES_LIMIT => std::fs::read_to_string(path).unwrap_or_default(),
        _ => String::new(),
    }
}

/// `(URL, suite)` of each `deb [options] URL suite main …` line.
fn of_lines(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let rest = rest.trim_start();
        let rest =
            if rest.starts_with('[') { rest.split_once(']').map_or("", |(_, rest)| rest) } else { rest };
        let mut words = rest.split_whitespace();
        let (Some(url), Some(suite)) = (words.next(), words.next()) else { continue };
        if words.any(|component| component == "main") {
            found.push((url.trim_end_matches('/').to_owned(), suite.to_owned()));
        }
    }
    found
}

/// The same from `Field: value` stanzas.
fn of_stanzas(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |name: &str| {
            let value = stanza.iter().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then_some(value)
            });
            value.unwrap_or_default().split_whitespace()
        };
        let off = field("Enabled").any(|word| word.eq_ignore_ascii_case("no"));
        if off || !field("Types").any(|kind| kind == "deb") || !field("Components").any(|part| part == "main")
        {
            continue;
        }
        for url in field("URIs") {
            found.extend(
                field("Suites").map(|suite| (url.trim_end_matches('/').to_owned(), suite.to_owned())),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(release: &str, name: &str, sources: &str) -> Mirror {
        let etc = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(etc.path().join("apt/sources.list.d")).unwrap();
        std::fs::write(etc.path().join("os-release"), release).unwrap();
        std::fs::write(etc.path().join("apt").join(name), sources).unwrap();
        of_host(etc.path())
    }

    #[test]
    fn a_debian_host_shares_its_own_archive() {
        let lines = "# a comment\ndeb-src http://no/debian trixie main\n\
                     deb [arch=amd64 signed-by=/k] http://a.example/debian/ bookworm main contrib\n\
                     deb http://a.example/debian-security bookworm-security main\n";
        let stanzas = "Types: deb deb-src\n# why\nURIs: http://a.example/debian\nSuites: bookworm bookworm-updates\n\
                       Components: main\n\nTypes: deb\nURIs: http://a.example/debian-security\n\
                       Suites: bookworm-security\nComponents: main\n";
        let expected = Mirror {
            main: "http://a.example/debian".into(),
            security: "http://a.example/debian-security".into(),
        };
        let release = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(host(release, "sources.list", lines), expected);
        assert_eq!(host(release, "sources.list.d/debian.sources", stanzas), expected);
    }

    #[test]
    fn other_hosts_and_other_archives_do_not_count() {
        let debian = Mirror { main: DEBIAN.into(), security: DEBIAN_SECURITY.into() };
        let ubuntu =
            host("ID=ubuntu\nVERSION_CODENAME=noble\n", "sources.list", "deb http://u/ubuntu noble main\n");
        assert_eq!(ubuntu, debian);
        let release = "ID=debian\nVERSION_CODENAME=bookworm\n";
        for line in [
            "deb http://x/vendor stable main",
            "deb mirror+file:/m bookworm main",
            "deb http://$(x) bookworm main",
        ] {
            assert_eq!(host(release, "sources.list", line), debian, "{line}");
        }
    }

    #[test]
    fn the_setting_is_checked() {
        let host = Mirror { main: "http://h/d".into(), security: "http://h/s".into() };
        let one = of_setting("http://m/debian/", host.clone()).unwrap();
        assert_eq!((one.main.as_str(), one.security.as_str()), ("http://m/debian", "http://h/s"));
        assert_eq!(of_setting("https://m/d https://m/s", host.clone()).unwrap().security, "https://m/s");
        for bad in ["m/debian", "file:///etc", "http://", "http://m/d]evil", "http://a http://b http://c"] {
            assert!(of_setting(bad, host.clone()).is_err(), "{bad}");
        }
    }
}
