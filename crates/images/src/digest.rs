//! SHA-256, the only digest that is taken.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest([u8; 32]);

/// A digest in the making.
pub(crate) struct Hasher(Context);

// === impl Digest ===

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The part after `sha256:`.
    pub(crate) fn hex(&self) -> String {
        self.to_string().split_off("sha256:".len())
    }

    /// From the part after `sha256:`.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return None;
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut digest = [0; 32];
        for (place, pair) in digest.iter_mut().zip(bytes.chunks_exact(2)) {
            *place = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(digest))
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err("a digest is sha256: and 64 hexadecimal digits".to_owned());
        };
        if algorithm != "sha256" {
            let algorithm: String = algorithm.chars().take(32).collect();
            return Err(format!("only sha256 digests are known, this one is {algorithm:?}"));
        }
        Self::from_hex(hex)
            .ok_or_else(|| "a digest is sha256: and 64 hexadecimal digits in lower case".to_owned())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Hasher ===

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.0.finish().as_ref());
        Digest(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_as_it_prints() {
        let digest = Digest::of(b"abc");
        assert_eq!(
            digest.to_string(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(Digest::from_hex(&digest.hex()), Some(digest));
    }

    #[test]
    fn anything_but_sha256_in_lower_case_is_refused() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for text in
            [hex, &format!("sha512:{hex}"), &format!("sha256:{}", hex.to_uppercase()), "sha256:ba", "sha256:"]
        {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
