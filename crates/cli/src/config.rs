//! Which server, and with which key. Read in one place, once.
//!
//! Precedence: flags, then the environment, then one file, then the defaults. The environment names are those of the
//! OpenComputer SDKs, so that a shell set up for them works for `warren` too.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use warren_types::Secret;

use crate::failure::{hinted, usage};
use crate::output::Output;

/// The API key.
pub(crate) const ENV_API_KEY: &str = "OPENCOMPUTER_API_KEY";
/// The server's address, with or without `/api` at its end.
pub(crate) const ENV_API_URL: &str = "OPENCOMPUTER_API_URL";
/// Where `warren serve` listens unless told otherwise.
pub(crate) const DEFAULT_API_URL: &str = "http://127.0.0.1:7070";

/// Keys of the file.
const FILE_KEYS: [&str; 2] = ["api_key", "api_url"];
/// A configuration file is a few lines; more than this is not one.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Where a setting came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Environment(&'static str),
    File,
    Default,
}

/// A setting and where it came from.
#[derive(Debug)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) source: Source,
}

#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) api_url: Setting<String>,
    pub(crate) api_key: Option<Setting<Secret<String>>>,
    /// The file, whether it exists or not; none when there is no home directory.
    pub(crate) file: Option<PathBuf>,
}

/// What the command line says.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    pub(crate) api_key: Option<String>,
    pub(crate) api_url: Option<String>,
}

// === impl Config ===

impl Config {
    pub(crate) fn load(flags: Flags, output: Output) -> anyhow::Result<Self> {
        let file = file_path();
        let mut stored = match &file {
            Some(path) => read_file(path, output)?,
            None => toml::Table::new(),
        };
        let api_url = pick(flags.api_url, ENV_API_URL, text_of(&mut stored, "api_url", file.as_deref())?)?
            .unwrap_or_else(|| Setting { value: DEFAULT_API_URL.to_owned(), source: Source::Default });
        let api_key = pick(flags.api_key, ENV_API_KEY, text_of(&mut stored, "api_key", file.as_deref())?)?
            .map(|Setting { value, source }| Setting { value: Secret::new(value), source });
        Ok(Self { api_url, api_key, file })
    }

    /// The address requests go to; it ends in `/api`.
    pub(crate) fn base_url(&self) -> anyhow::Result<reqwest::Url> {
        base_url(&self.api_url.value)
            .with_context(|| format!("the API URL from {} cannot be used", self.api_url.source))
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag => f.write_str("the command line"),
            Self::Environment(name) => f.write_str(name),
            Self::File => f.write_str("the configuration file"),
            Self::Default => f.write_str("the default"),
        }
    }
}

/// As the SDKs do it: `/` at the end goes, `/api` is added unless it is there.
fn base_url(text: &str) -> anyhow::Result<reqwest::Url> {
    let trimmed = text.trim().trim_end_matches('/');
    let full = if trimmed.ends_with("/api") { trimmed.to_owned() } else { format!("{trimmed}/api") };
    let example = format!("write it like {DEFAULT_API_URL}");
    let url = reqwest::Url::parse(&full)
        .map_err(|error| hinted(format!("{text:?} is not a URL: {error}"), example.as_str()))?;
    // Of an address without a host, what was added to it would become the host.
    let hostless =
        trimmed.split_once("://").is_none_or(|(_, rest)| rest.is_empty()) || trimmed.ends_with(":");
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || hostless {
        return Err(hinted(format!("{text:?} is not an http or https URL"), example));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(hinted(
            "the API URL holds credentials, a query or a fragment".to_owned(),
            "give the key with --api-key or OPENCOMPUTER_API_KEY, not in the URL",
        ));
    }
    Ok(url)
}

/// The key as it may be shown: enough to tell keys apart, not enough to use one.
pub(crate) fn masked(key: &Secret<String>) -> String {
    let shown: String = key.expose().chars().take(8).collect();
    if key.expose().chars().count() > 16 { format!("{shown}…") } else { "…".to_owned() }
}

fn pick(
    flag: Option<String>,
    env: &'static str,
    file: Option<String>,
) -> anyhow::Result<Option<Setting<String>>> {
    if let Some(value) = flag {
        return Ok(Some(Setting { value, source: Source::Flag }));
    }
    match std::env::var(env) {
        Ok(value) if !value.is_empty() => {
            return Ok(Some(Setting { value, source: Source::Environment(env) }));
        }
        Ok(_) | Err(std::env::VarError::NotPresent) => {}
        Err(std::env::VarError::NotUnicode(_)) => return Err(usage(format!("{env} is not UTF-8"))),
    }
    Ok(file.map(|value| Setting { value, source: Source::File }))
}

// The file.

/// `$XDG_CONFIG_HOME/warren/config.toml`, in most places `~/.config/warren/config.toml`.
pub(crate) fn file_path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(base.join("warren").join("config.toml"))
}

fn read_file(path: &Path, output: Output) -> anyhow::Result<toml::Table> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(toml::Table::new()),
        Err(error) => return Err(error).with_context(|| format!("could not read {}", path.display())),
    };
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(hinted(
            format!("{} is not a configuration file", path.display()),
            "move it away, then use `warren config set`",
        ));
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // Only the message: the error's own text quotes the line, which may be the key.
        hinted(
            format!("{} is not valid TOML: {}", path.display(), error.message()),
            "lines look like api_url = \"http://127.0.0.1:7070\"; or delete the file and use `warren config set`",
        )
    })?;
    for key in table.keys().filter(|key| !FILE_KEYS.contains(&key.as_str())) {
        output.warn(&format!("{}: unknown key {key:?} is ignored", path.display()));
    }
    if table.contains_key("api_key") && metadata.permissions().mode() & 0o077 != 0 {
        output.warn(&format!("{} holds a key and others may read it; `chmod 600` it", path.display()));
    }
    Ok(table)
}

fn text_of(table: &mut toml::Table, key: &str, path: Option<&Path>) -> anyhow::Result<Option<String>> {
    match table.remove(key) {
        None => Ok(None),
        Some(toml::Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(_) => Err(hinted(
            format!(
                "{}: {key} must be text in quotes",
                path.unwrap_or(Path::new("the configuration file")).display()
            ),
            format!("`warren config set {} …` writes it", key.replace('_', "-")),
        )),
    }
}

/// Stores one setting, leaving the others as they are. The file changes as a whole or not at all.
pub(crate) fn store(path: &Path, key: &str, value: &str, output: Output) -> anyhow::Result<()> {
    if key == "api_url" {
        base_url(value)?;
    }
    let mut table = read_file(path, output)?;
    table.insert(key.to_owned(), toml::Value::String(value.to_owned()));
    let folder = path.parent().context("the configuration file has no folder")?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("could not create {}", folder.display()))?;
    let failed = || format!("could not write {}", path.display());
    // A temporary file of this kind is readable by its owner only, from its first byte.
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    file.write_all(table.to_string().as_bytes()).with_context(failed)?;
    file.as_file().sync_all().with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_url_ends_in_api_once() {
        for given in ["http://h:1", "http://h:1/", "http://h:1/api", "http://h:1/api//", " http://h:1 "] {
            assert_eq!(base_url(given).unwrap().as_str(), "http://h:1/api", "{given}");
        }
        for given in ["", "h:1", "ftp://h", "http://", "http://user:pass@h", "http://h?x=1"] {
            assert!(base_url(given).is_err(), "{given}");
        }
    }

    #[test]
    fn a_masked_key_cannot_be_used() {
        let key = format!("osb_{}", "a".repeat(64));
        assert_eq!(masked(&Secret::new(key)), "osb_aaaa…");
        assert_eq!(masked(&Secret::new("short".to_owned())), "…");
    }
}
