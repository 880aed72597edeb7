//! What is carried instead of an organisation's key: JWTs (HS256) in the shapes clients of the hosted service know. What is
//! accepted is exactly what is made here: the header is compared, never believed.
//!
//! | token | good for | until |
//! | --- | --- | --- |
//! | of a sandbox | the data plane of that sandbox | the sandbox ends. It is the same each time it is asked for |
//! | of an identity | what the key it was made with opens | ten minutes later, or the key is revoked |

use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use warren_types::{OrgId, SandboxId, Secret};

use super::key_file::{self, KEY_BYTES};
use crate::store::now_micros;

pub(crate) const FILE_NAME: &str = "token.key";
const ISSUER: &str = "opensandbox";
const AUDIENCE: &str = "opencomputer-api";
/// How long an identity token is good, in seconds.
pub(crate) const IDENTITY_SECONDS: i64 = 600;
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

/// Stands for an API key for a while. There are no people that we know of, so the key is the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct IdentityClaims {
    iss: String,
    aud: String,
    sub: String,
    org_id: OrgId,
    user_id: String,
    /// Seconds since the Unix epoch.
    iat: i64,
    exp: i64,
}

/// What a token turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    Sandbox(TokenClaims),
    /// Of the API key with that id.
    Identity {
        org: OrgId,
        key_id: String,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Claims {
    Identity(IdentityClaims),
    Sandbox(TokenClaims),
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
        self.seal(&claims)
    }

    /// Stands for a key from now on.
    pub(crate) fn sign_identity(&self, org: &OrgId, key_id: &str) -> String {
        let now = now_seconds();
        self.seal(&IdentityClaims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: key_id.to_owned(),
            org_id: org.clone(),
            user_id: key_id.to_owned(),
            iat: now,
            exp: now + IDENTITY_SECONDS,
        })
    }

    fn seal(&self, claims: &impl Serialize) -> String {
        let claims = serde_json::to_vec(claims).expect("strings and numbers have a JSON form");
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.mac(&text).finalize().into_bytes();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// What a token is that is ours, and not over. Compares the signature in constant time.
    pub(crate) fn verify(&self, token: &str) -> Option<Token> {
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
        match serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()? {
            Claims::Sandbox(claims) => {
                (claims.iss == ISSUER && claims.sub == claims.org_id).then_some(Token::Sandbox(claims))
            }
            Claims::Identity(claims) => {
                let ours = claims.iss == ISSUER && claims.aud == AUDIENCE && claims.sub == claims.user_id;
                let (org, key_id) = (claims.org_id, claims.user_id);
                (ours && now_seconds() < claims.exp).then_some(Token::Identity { org, key_id })
            }
        }
    }
}

fn now_seconds() -> i64 {
    now_micros().div_euclid(1_000_000)
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
        let Some(Token::Sandbox(claims)) = signer.verify(&token) else { panic!("it is of a sandbox") };
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
        let identity = signer.sign_identity(&org, "key");
        assert_eq!(
            signer.verify(&identity),
            Some(Token::Identity { org: org.clone(), key_id: "key".to_owned() })
        );
        let claims = |exp: i64| IdentityClaims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: "key".to_owned(),
            org_id: org.clone(),
            user_id: "key".to_owned(),
            iat: 0,
            exp,
        };
        let (over, other) =
            (claims(now_seconds()), IdentityClaims { aud: "else".to_owned(), ..claims(i64::MAX) });
        assert!(
            signer.verify(&signer.seal(&over)).is_none() && signer.verify(&signer.seal(&other)).is_none()
        );
        for junk in ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", &"x".repeat(10_000)] {
            assert!(signer.verify(junk).is_none(), "{junk:?}");
        }
    }
}
