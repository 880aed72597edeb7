//! What names an image in a registry.

use std::fmt;
use std::str::FromStr;

use crate::ImageError;
use crate::digest::Digest;

/// `[registry/]repository[:tag][@sha256:…]`, as container engines write it. Displayed in full: `node:22` is
/// `docker.io/library/node:22`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

const LONGEST: usize = 1024;
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;
const HUB: &str = "docker.io";

// === impl Reference ===

impl Reference {
    /// Host and perhaps port of the registry, as it is written in references.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `latest` where neither a tag nor a digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Of the manifest or index that was asked for, `sha256:…`.
    #[must_use]
    pub fn digest(&self) -> Option<String> {
        self.digest.map(|digest| digest.to_string())
    }

    /// The same image by that digest, `sha256:…`, whatever its tag stands for.
    ///
    /// # Errors
    /// When that is no digest.
    pub fn at(&self, digest: &str) -> Result<Self, ImageError> {
        let parsed = digest.parse::<Digest>();
        let parsed =
            parsed.map_err(|wrong| ImageError::Reference { text: format!("{self}@{digest}"), wrong })?;
        Ok(Self { digest: Some(parsed), ..self.clone() })
    }

    pub(crate) fn wanted_digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The host that serves the registry's API; the one of `docker.io` has another name.
    pub(crate) fn host(&self) -> &str {
        if self.registry == HUB { "registry-1.docker.io" } else { &self.registry }
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|wrong| ImageError::Reference { text: text.chars().take(200).collect(), wrong })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty; write for example node:22".to_owned());
    }
    if text.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(format!("{bad:?} cannot be in it"));
    }
    if text.contains("://") {
        return Err("leave out the scheme; write for example registry.example.com/team/image:tag".to_owned());
    }
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest.parse::<Digest>()?)),
        None => (text, None),
    };
    let (registry, rest) = match named.split_once('/') {
        Some((first, rest)) if is_host(first) => (check_host(first)?, rest),
        _ => (HUB.to_owned(), named),
    };
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(check_tag(tag)?)),
        None => (rest, None),
    };
    check_repository(repository)?;
    let repository = match repository {
        official if registry == HUB && !official.contains('/') => format!("library/{official}"),
        other => other.to_owned(),
    };
    let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
    Ok(Reference { registry, repository, tag, digest })
}

/// What engines go by: the first part is a host when it has a dot or a port in it, or is `localhost`.
fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<String, String> {
    let wrong = || format!("{host:?} is no registry's host, with or without a port");
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(wrong)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            (None, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(wrong)?) })
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(port) = port {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let number = port.parse::<u16>().ok().filter(|number| digits && *number != 0);
        number.ok_or_else(wrong)?;
    }
    if let Some(name) = name {
        let label = |label: &str| {
            let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            (1..=63).contains(&label.len())
                && label.bytes().all(inside)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(wrong());
        }
    }
    let host = host.to_ascii_lowercase();
    Ok(if host == "index.docker.io" { HUB.to_owned() } else { host })
}

fn check_tag(tag: &str) -> Result<String, String> {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let first = tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !first || tag.len() > LONGEST_TAG || !tag.bytes().all(inside) {
        return Err(format!("{tag:?} is no tag: up to {LONGEST_TAG} letters, digits, '_', '.' and '-'"));
    }
    Ok(tag.to_owned())
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("it has no repository".to_owned());
    }
    if repository.len() > LONGEST_NAME {
        return Err(format!("its repository is longer than {LONGEST_NAME} bytes"));
    }
    match repository.split('/').find(|part| !is_component(part)) {
        None => Ok(()),
        Some(part) => Err(format!(
            "{part:?} cannot be part of a repository: lower-case letters and digits, with '.', '_', '__' or '-' between"
        )),
    }
}

/// Letters and digits, and between them one of `.`, `_`, `__` or any number of `-`.
fn is_component(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = part.bytes().next().is_some_and(word) && part.bytes().last().is_some_and(word);
    ends && part
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn references_are_read_as_engines_read_them() {
        for (text, whole) in [
            ("node", "docker.io/library/node:latest".to_owned()),
            ("node:22", "docker.io/library/node:22".to_owned()),
            ("team/tool:v1.2_x-3", "docker.io/team/tool:v1.2_x-3".to_owned()),
            ("index.docker.io/node", "docker.io/library/node:latest".to_owned()),
            ("ghcr.io/a/b/c__d/e--f", "ghcr.io/a/b/c__d/e--f:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/x:y", "localhost:5000/x:y".to_owned()),
            ("Registry.Example.com/x", "registry.example.com/x:latest".to_owned()),
            ("[::1]:5000/x", "[::1]:5000/x:latest".to_owned()),
            (&format!("node@{DIGEST}"), format!("docker.io/library/node@{DIGEST}")),
            (&format!("r.io/x:1@{DIGEST}"), format!("r.io/x:1@{DIGEST}")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), whole, "{text}");
            assert_eq!(whole.parse::<Reference>().unwrap(), reference, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long = "a".repeat(300);
        for (text, wrong) in [
            ("", "empty"),
            ("https://r.io/x", "scheme"),
            ("Node", "\"Node\""),
            ("node:", "no tag"),
            ("node:-x", "no tag"),
            ("r.io/", "no repository"),
            ("r.io/a//b", "\"\""),
            ("r.io/a..b", "\"a..b\""),
            ("r.io/../b", "\"..\""),
            ("a b", "' '"),
            ("a\nb", "'\\n'"),
            ("r.io:0/x", "no registry's host"),
            ("r.io:99999/x", "no registry's host"),
            ("r.io:+1/x", "no registry's host"),
            ("-r.io/x", "no registry's host"),
            ("[::1/x", "no registry's host"),
            ("u@r.io/x", "digest"),
            ("node@sha512:00", "only sha256"),
            (long.as_str(), "longer than 255"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }
}
