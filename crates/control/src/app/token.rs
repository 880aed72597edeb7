//! Sandbox tokens: what a sandbox's own clients carry instead of an organisation's key.
//!
//! A token is a JWT (HS256) in the shape clients of the hosted service know. It has no expiry: it is good for the
//! data plane of one sandbox, and that ends with the sandbox. It is the same each time it is asked for. What is
//! accepted is exactly what [`TokenSigner::sign`] makes: the header is compared, never believed.

use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use warren_types::{OrgId, SandboxId, Secret};

use super::key_file::{self, KEY_BYTES};

pub(crate) const FILE_NAME: &str = "token.key";
const ISSUER: &str = "opensandbox";
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
/// Far above any token of ours.
const MAX_TOKEN_BYTES: usize = 2048;

/// Makes and checks tokens.
pub(crate) struct TokenSigner {
    key: Secret<[u8; KEY_BYTES]>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenClaims {
    iss: String,
    sub: OrgId,
    pub org_id: OrgId,
    pub sandbox_id: SandboxId,
    worker_id: String,
}

// === impl TokenSigner ===

impl TokenSigner {
    /// Reads the key from `data_dir`, or makes one when there is none.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Self> {
        key_file::open(data_dir, FILE_NAME).map(Self::new)
    }

    fn new(key: [u8; KEY_BYTES]) -> Self {
        Self { key: Secret::new(key) }
    }

    fn mac(&self, text: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(self.key.expose()).expect("HMAC takes a key of any length");
        mac.update(text.as_bytes());
        mac
    }

    pub(crate) fn sign(&self, org: &OrgId, sandbox: &SandboxId, worker: &str) -> String {
        let claims = TokenClaims {
            iss: ISSUER.to_owned(),
            sub: org.clone(),
            org_id: org.clone(),
            sandbox_id: sandbox.clone(),
            worker_id: worker.to_owned(),
        };
        let claims = serde_json::to_vec(&claims).expect("a struct of strings has a JSON form");
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.mac(&text).finalize().into_bytes();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The claims of a token that is ours. Compares the signature in constant time.
    pub(crate) fn verify(&self, token: &str) -> Option<TokenClaims> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (text, signature) = token.rsplit_once('.')?;
        let (header, claims) = text.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        self.mac(text).verify_slice(&signature).ok()?;
        if header != URL_SAFE_NO_PAD.encode(HEADER) {
            return None;
        }
        let claims: TokenClaims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        (claims.iss == ISSUER && claims.sub == claims.org_id).then_some(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (OrgId, SandboxId) {
        (OrgId("org".into()), "sb-0123abcd".parse().unwrap())
    }

    #[test]
    fn a_token_says_what_was_signed_and_nothing_else_passes() {
        let signer = TokenSigner::new([7; KEY_BYTES]);
        let (org, id) = ids();
        let token = signer.sign(&org, &id, "node-1");
        let claims = signer.verify(&token).unwrap();
        assert_eq!((claims.org_id, claims.sandbox_id), (org.clone(), id.clone()));
        assert_eq!(token, signer.sign(&org, &id, "node-1"), "asking again gives the same token");

        assert!(TokenSigner::new([8; KEY_BYTES]).verify(&token).is_none(), "another server's key");
        for position in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
            assert!(signer.verify(&String::from_utf8(bytes).unwrap()).is_none(), "changed at {position}");
        }
        let (_, rest) = token.split_once('.').unwrap();
        let unsigned = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        assert!(signer.verify(&format!("{unsigned}.{rest}")).is_none());
        for junk in ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", &"x".repeat(10_000)] {
            assert!(signer.verify(junk).is_none(), "{junk:?}");
        }
    }
}
