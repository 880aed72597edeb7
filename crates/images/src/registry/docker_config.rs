//! Logins of the operator's: the `config.json` that `docker login` writes.
//!
//! Only what stands in the file itself is used; programs that keep passwords elsewhere are not started.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use warren_types::Secret;

use super::Login;
use crate::ImageError;

const LARGEST: u64 = 1 << 20;

#[derive(Deserialize)]
pub(super) struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
}

// === impl DockerConfig ===

impl DockerConfig {
    /// Empty where there is no file.
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        let failed = |error: std::io::Error| ImageError::file("read", path, error);
        let mut json = Vec::new();
        match std::fs::File::open(path) {
            Ok(file) => file.take(LARGEST).read_to_end(&mut json).map_err(failed)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { auths: BTreeMap::new() });
            }
            Err(error) => return Err(failed(error)),
        };
        // The parser's own words could hold a piece of the file.
        let parsed = serde_json::from_slice(&json);
        parsed.map_err(|error| {
            let place = format!("it is no JSON as expected, line {}", error.line());
            failed(std::io::Error::new(std::io::ErrorKind::InvalidData, place))
        })
    }

    pub(super) fn login(&self, registry: &str) -> Option<Login> {
        self.auths.iter().filter(|(key, _)| host(key) == registry).find_map(|(_, auth)| auth.login())
    }
}

impl Auth {
    fn login(&self) -> Option<Login> {
        let (username, password) = match (&self.auth, &self.username, &self.password) {
            (Some(auth), _, _) if !auth.is_empty() => {
                let text = String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok()?;
                let (username, password) = text.split_once(':')?;
                (username.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            (_, Some(username), Some(password)) => (username.clone(), password.clone()),
            _ => return None,
        };
        Some(Login { username, password: Secret::new(password) }).filter(|login| !login.username.is_empty())
    }
}

/// Keys are hosts, or addresses with a path after them.
fn host(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = key.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_found_by_their_registry() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6c2VjOnJldA=="},"r.example:5000":{"username":"u",
            "password":"p"},"empty.example":{},"odd.example":{"auth":"!"}},"credsStore":"pass"}"#;
        std::fs::write(file.path(), json).unwrap();
        let config = DockerConfig::read(file.path()).unwrap();
        let login = |registry: &str| {
            config.login(registry).map(|login| (login.username.clone(), login.password.expose().clone()))
        };
        assert_eq!(login("docker.io"), Some(("me".to_owned(), "sec:ret".to_owned())));
        assert_eq!(login("r.example:5000"), Some(("u".to_owned(), "p".to_owned())));
        for registry in ["r.example", "empty.example", "odd.example", "other"] {
            assert_eq!(login(registry), None, "{registry}");
        }
    }

    #[test]
    fn a_broken_file_does_not_tell_what_is_in_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"auths":{"a":"hunter2"}}"#).unwrap();
        let error = DockerConfig::read(file.path()).err().unwrap();
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        assert!(DockerConfig::read(Path::new("/nowhere/config.json")).is_ok());
    }
}
