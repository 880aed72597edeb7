//! Certificate authorities that the owner of this host added to it.
//!
//! Those are the files in `/usr/local/share/ca-certificates`, and what the host's bundle holds beyond the public
//! authorities its distribution ships. The latter stay out: where the template's newer Debian has dropped a public
//! authority, it did so on purpose.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

const LOCAL: &str = "/usr/local/share/ca-certificates";
const DISTRIBUTION: &str = "/usr/share/ca-certificates";
pub(super) const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

const FILE_LIMIT: u64 = 8 * 1024 * 1024;
const FILES_LIMIT: usize = 2000;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Certificates by a name made from their content, so that the same one is never there twice.
pub(super) type Certificates = BTreeMap<String, String>;

pub(super) fn of_host() -> Certificates {
    let mut found = in_file(&Path::new("/").join(BUNDLE));
    for file in files_in(Path::new(DISTRIBUTION)) {
        for name in in_file(&file).into_keys() {
            found.remove(&name);
        }
    }
    for file in files_in(Path::new(LOCAL)) {
        found.extend(in_file(&file));
    }
    found
}

/// All certificates of a PEM file; none of one that is missing, too long or something else.
pub(super) fn in_file(path: &Path) -> Certificates {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= FILE_LIMIT => {
            std::fs::read(path).map(|bytes| parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default()
        }
        _ => Certificates::new(),
    }
}

fn parse(text: &str) -> Certificates {
    text.split(BEGIN)
        .skip(1)
        .filter_map(|part| part.split_once(END))
        .map(|(body, _)| body.split_whitespace().collect::<String>())
        .filter(|body| {
            !body.is_empty()
                && body.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
        })
        .map(|body| (name_of(&body), pem(&body)))
        .collect()
}

fn name_of(body: &str) -> String {
    let digest = warren_types::hex(&Sha256::digest(body.as_bytes())[..8]);
    format!("host-{digest}.crt")
}

fn pem(body: &str) -> String {
    let mut text = format!("{BEGIN}\n");
    let mut rest = body;
    while !rest.is_empty() {
        let (line, left) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = left;
    }
    text + END + "\n"
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            match entry.file_type() {
                // A link to a directory is not followed, so there is no way round in circles.
                Ok(kind) if kind.is_dir() => directories.push(path),
                Ok(_) if path.extension().is_some_and(|extension| extension == "crt") => files.push(path),
                _ => {}
            }
            if files.len() + directories.len() > FILES_LIMIT {
                return files;
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_certificate_is_one_however_it_is_wrapped() {
        let long = "A".repeat(100);
        let one = format!("# name\r\n{BEGIN}\r\n{}\r\n{}\r\n{END}\r\ntrailing", &long[..30], &long[30..]);
        let twice = format!("{one}{BEGIN}\n{long}\n{END}\n");
        let found = parse(&twice);
        assert_eq!(found.len(), 1);
        let text = found.values().next().unwrap();
        assert_eq!(parse(text), found);
        assert!(text.lines().all(|line| line.len() <= 64));
    }

    #[test]
    fn what_is_no_certificate_is_left_out() {
        for text in [
            "",
            BEGIN,
            &format!("{BEGIN}{END}"),
            &format!("{BEGIN}\nnot base64!\n{END}"),
            &format!("{END}{BEGIN}"),
        ] {
            assert!(parse(text).is_empty(), "{text}");
        }
    }
}
