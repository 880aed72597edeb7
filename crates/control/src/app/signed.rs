//! What a signature opens: URLs of files, links to previews, and the cookies those links leave.
//!
//! All are made with one key, kept apart from the key of tokens: HMAC-SHA256 over lines of text of which the first says
//! what is signed, so that nothing signed as one thing passes as another. Expiry is looked at before the signature, which
//! is compared in constant time. A signature is good for as many uses as are made of it until then.

use std::io;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;
use warren_types::{Error, ErrorKind, SandboxId, Secret};

use super::key_file;

pub(crate) const FILE_NAME: &str = "urls.key";
/// How long a signature is good for when nothing else is asked for, in seconds.
const DEFAULT_SECONDS: i64 = 3600;

/// Makes and checks signatures.
pub(crate) struct UrlSigner {
    key: Secret<Vec<u8>>,
}

/// What a URL of a file may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileUse {
    Download,
    Upload,
}

/// Which preview a link or a cookie opens. The hash is that of the token at the time: another token ends it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub id: &'a SandboxId,
    pub port: u16,
    pub preview_hash: &'a str,
}

/// What stands for access to a preview.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShareKind {
    Link,
    Cookie,
}

impl FileUse {
    /// Its name in URLs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
        }
    }
}

/// When something that is signed now ends: seconds since the epoch, at most `max` from now.
pub(crate) fn expiry(expires_in: Option<i64>, max: i64) -> i64 {
    let seconds = expires_in.filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_SECONDS).min(max);
    Timestamp::now().as_second() + seconds
}

/// A time of that kind as clients read it.
pub(crate) fn expires_at(expires: i64) -> String {
    Timestamp::from_second(expires).map(|at| at.to_string()).unwrap_or_default()
}

// === impl UrlSigner ===

impl UrlSigner {
    /// Reads the key from `data_dir`, or makes one when there is none.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Self> {
        key_file::open(data_dir, FILE_NAME).map(|key| Self::new(&key))
    }

    fn new(key: &[u8]) -> Self {
        Self { key: Secret::new(key.to_vec()) }
    }

    fn mac(&self, text: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(self.key.expose()).expect("HMAC takes a key of any length");
        mac.update(text.as_bytes());
        mac
    }

    /// The signature of a URL of a file, in hex.
    pub(crate) fn sign_file(&self, id: &SandboxId, path: &str, use_: FileUse, expires: i64) -> String {
        warren_types::hex(&self.mac(&file_text(id, path, use_, expires)).finalize().into_bytes())
    }

    pub(crate) fn check_file(
        &self,
        id: &SandboxId,
        path: &str,
        use_: FileUse,
        expires: i64,
        signature: &str,
    ) -> Result<(), Error> {
        let refused = |message: &str| Error::new(ErrorKind::Forbidden, message);
        if Timestamp::now().as_second() >= expires {
            return Err(refused("signed URL expired"));
        }
        let signature = from_hex(signature).ok_or_else(|| refused("invalid signature encoding"))?;
        self.mac(&file_text(id, path, use_, expires))
            .verify_slice(&signature)
            .map_err(|_| refused("invalid signature"))
    }

    /// What a link or a cookie carries: when it ends, and the proof.
    pub(crate) fn sign_share(&self, kind: ShareKind, shared: Shared<'_>, expires: i64) -> String {
        format!(
            "{expires}.{}",
            warren_types::hex(&self.mac(&share_text(kind, shared, expires)).finalize().into_bytes())
        )
    }

    /// When it ends, if it is ours and has not.
    pub(crate) fn check_share(&self, kind: ShareKind, shared: Shared<'_>, value: &str) -> Option<i64> {
        let (digits, signature) = value.split_once('.')?;
        let expires = whole_number(digits).filter(|expires| Timestamp::now().as_second() < *expires)?;
        self.mac(&share_text(kind, shared, expires)).verify_slice(&from_hex(signature)?).ok()?;
        Some(expires)
    }
}

fn file_text(id: &SandboxId, path: &str, use_: FileUse, expires: i64) -> String {
    format!("opensandbox-signed-url\n{id}\n{path}\n{}\n{expires}", use_.as_str())
}

fn share_text(kind: ShareKind, shared: Shared<'_>, expires: i64) -> String {
    let what = match kind {
        ShareKind::Link => "warren-preview-link",
        ShareKind::Cookie => "warren-preview-cookie",
    };
    format!("{what}\n{}\n{}\n{}\n{expires}", shared.id, shared.port, shared.preview_hash)
}

/// Digits alone: a number that is spelled in one way.
pub(crate) fn whole_number(text: &str) -> Option<i64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    // A signature has 64 of them; what is longer is not worth decoding.
    if text.len() != 64 {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: i64 = 4_000_000_000;

    fn id() -> SandboxId {
        "sb-0a1b2c3d".parse().unwrap()
    }

    #[test]
    fn a_file_url_is_signed_as_others_sign_it() {
        let signer = UrlSigner::new(b"test-secret");
        let signature = signer.sign_file(&id(), "/home/sandbox/a b.txt", FileUse::Download, 1_760_000_000);
        assert_eq!(signature, "6d6185beb6913a62befc53ab024815e04daf235715b886ab66eb39a5f3a78d5f");
    }

    #[test]
    fn nothing_but_what_was_signed_passes() {
        let signer = UrlSigner::new(b"key");
        let signature = signer.sign_file(&id(), "/a", FileUse::Download, LATER);
        let check = |id: &SandboxId, path: &str, use_, expires, signature: &str| {
            signer.check_file(id, path, use_, expires, signature).map_err(|error| error.message)
        };
        assert_eq!(check(&id(), "/a", FileUse::Download, LATER, &signature), Ok(()));
        let other: SandboxId = "sb-0a1b2c3e".parse().unwrap();
        let invalid = Err("invalid signature".to_owned());
        assert_eq!(check(&other, "/a", FileUse::Download, LATER, &signature), invalid);
        assert_eq!(check(&id(), "/b", FileUse::Download, LATER, &signature), invalid);
        assert_eq!(check(&id(), "/a", FileUse::Upload, LATER, &signature), invalid);
        assert_eq!(check(&id(), "/a", FileUse::Download, LATER + 1, &signature), invalid);
        // A line break in a path cannot move the fields.
        let moved = signer.sign_file(&id(), "/a\ndownload\n4000000000", FileUse::Upload, LATER);
        assert_eq!(check(&id(), "/a", FileUse::Download, LATER, &moved), invalid);
        let encoding = Err("invalid signature encoding".to_owned());
        for bad in ["", "zz", &signature[..63], &signature.to_uppercase(), &format!("{signature}00")] {
            assert_eq!(check(&id(), "/a", FileUse::Download, LATER, bad), encoding, "{bad}");
        }
        let expired = Err("signed URL expired".to_owned());
        assert_eq!(check(&id(), "/a", FileUse::Download, 1, "zz"), expired, "which is looked at first");
        assert!(
            UrlSigner::new(b"another").check_file(&id(), "/a", FileUse::Download, LATER, &signature).is_err()
        );
    }

    #[test]
    fn a_share_opens_one_port_of_one_sandbox_while_its_token_is_the_same() {
        let signer = UrlSigner::new(b"key");
        let sandbox = id();
        let shared = Shared { id: &sandbox, port: 3000, preview_hash: "h" };
        let link = signer.sign_share(ShareKind::Link, shared, LATER);
        assert_eq!(signer.check_share(ShareKind::Link, shared, &link), Some(LATER));
        assert_eq!(signer.check_share(ShareKind::Cookie, shared, &link), None, "a link is no cookie");
        for other in [Shared { port: 3001, ..shared }, Shared { preview_hash: "i", ..shared }] {
            assert_eq!(signer.check_share(ShareKind::Link, other, &link), None);
        }
        let past = signer.sign_share(ShareKind::Link, shared, 1);
        assert_eq!(signer.check_share(ShareKind::Link, shared, &past), None);
        let signature = link.split_once('.').unwrap().1;
        for bad in
            ["", ".", &format!("+{link}"), &format!("{}.{signature}", LATER + 1), &link[..link.len() - 1]]
        {
            assert_eq!(signer.check_share(ShareKind::Link, shared, bad), None, "{bad}");
        }
    }

    #[test]
    fn how_long_is_bounded() {
        let now = Timestamp::now().as_second();
        for (asked, given) in
            [(None, 3600), (Some(0), 3600), (Some(-5), 3600), (Some(7), 7), (Some(i64::MAX), 86400)]
        {
            assert!((given..given + 3).contains(&(expiry(asked, 86400) - now)), "{asked:?}");
        }
        assert_eq!(expires_at(1_760_000_000), "2025-10-09T08:53:20Z");
    }
}
