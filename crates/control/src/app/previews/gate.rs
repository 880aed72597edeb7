//! Who may open a preview.
//!
//! ```text
//!   open sandbox ──────────────────────────────────────────────▶ in
//!   X-OC-Preview-Token ── of this sandbox? ── no ──▶ 401        yes ─▶ in
//!   link ─────────────────▶ in, and a cookie to come back with
//!   cookie of ours ───────▶ in
//!   Authorization: Bearer ─ of this sandbox? ── no ──▶ 401      yes ─▶ in
//!   nothing ──▶ 401
//! ```
//!
//! A cookie goes before `Authorization` because a page that was opened with a link may carry tokens of its own there. All of
//! this is decided before the sandbox is woken.

use http::Method;
use subtle::ConstantTimeEq;
use warren_guest_api::Status;
use warren_types::{Error, ErrorKind, SandboxId, SandboxState};

use super::no_such_sandbox;
use crate::app::App;
use crate::app::audit::{Kind, Who};
use crate::app::auth::{Live, hash_key};
use crate::app::signed::{ShareKind, Shared};
use crate::store::sandboxes::SandboxStanding;

/// Longest token that is looked at.
const MAX_SHOWN_BYTES: usize = 4096;

/// What a request shows.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// Of the header for it; more than one counts as a wrong one.
    pub token: Option<String>,
    pub bearer: Option<String>,
    /// Values of cookies with our name.
    pub cookies: Vec<String>,
    /// The signature of a link.
    pub link: Option<String>,
}

/// How somebody was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// Anybody is.
    Open,
    Token,
    /// The token stood in `Authorization`, which is not the guest's to see.
    Bearer,
    Cookie {
        expires: i64,
    },
    /// With the value of a cookie that opens the same, until then.
    Link {
        cookie: String,
        expires: i64,
    },
}

impl Admitted {
    /// What let them in, in a word.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Token | Self::Bearer => "token",
            Self::Cookie { .. } => "cookie",
            Self::Link { .. } => "link",
        }
    }

    /// Until when, if that is settled already.
    pub(crate) fn expires(&self) -> Option<i64> {
        match self {
            Self::Open | Self::Token | Self::Bearer => None,
            Self::Cookie { expires } | Self::Link { expires, .. } => Some(*expires),
        }
    }
}

impl App {
    /// Where a sandbox stands whose preview somebody asks for, whoever owns it.
    pub(crate) async fn preview_standing(&self, id: &SandboxId) -> Result<SandboxStanding, Error> {
        self.store.find_standing(id).await?.ok_or_else(|| no_such_sandbox(id))
    }

    pub(crate) fn admit(
        &self,
        standing: &SandboxStanding,
        port: u16,
        shown: &Shown,
    ) -> Result<Admitted, Error> {
        let Some(preview_hash) = standing.preview_hash.as_deref() else { return Ok(Admitted::Open) };
        let shared = Shared { id: &standing.id, port, preview_hash };
        if let Some(token) = &shown.token {
            return is_token(token, preview_hash).then_some(Admitted::Token).ok_or_else(invalid_token);
        }
        if let Some(link) = &shown.link {
            let Some(expires) = self.urls.check_share(ShareKind::Link, shared, link) else {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    "this link has expired or was taken back; ask for a new one",
                ));
            };
            let cookie = self.urls.sign_share(ShareKind::Cookie, shared, expires);
            return Ok(Admitted::Link { cookie, expires });
        }
        let until = |cookie: &String| self.urls.check_share(ShareKind::Cookie, shared, cookie);
        if let Some(expires) = shown.cookies.iter().filter_map(until).max() {
            return Ok(Admitted::Cookie { expires });
        }
        match &shown.bearer {
            Some(bearer) => {
                is_token(bearer, preview_hash).then_some(Admitted::Bearer).ok_or_else(invalid_token)
            }
            None => Err(Error::new(ErrorKind::Unauthenticated, "preview URL requires authentication")),
        }
    }

    /// The same; who is refused is recorded.
    pub(crate) fn admit_and_note(
        &self,
        standing: &SandboxStanding,
        port: u16,
        shown: &Shown,
    ) -> Result<Admitted, Error> {
        self.admit(standing, port, shown).inspect_err(|error| {
            let note = Who::preview(standing.org.clone(), "refused").note(Kind::Access).of(&standing.id);
            let note = note.with("port", port).with("outcome", "refused");
            self.audit.tell_folded(note.with("why", error.message.as_str()));
        })
    }

    /// Whether a token is the one of that sandbox, so that it is not passed on to its programs.
    pub(crate) fn is_preview_token(standing: &SandboxStanding, token: &str) -> bool {
        standing.preview_hash.as_deref().is_some_and(|hash| is_token(token, hash))
    }

    /// Counts as use of a sandbox that runs and does nothing else. What becomes of it does not matter.
    pub(crate) async fn keep_awake(&self, id: &SandboxId) {
        let found = self.store.find_standing(id).await;
        if !found.is_ok_and(|found| found.is_some_and(|found| found.observed == SandboxState::Running)) {
            return;
        }
        let _ = self.node.guest_json::<Status>(id, Method::GET, "status", None::<&()>).await;
    }

    /// Wakes it if it sleeps.
    pub(crate) async fn wake_preview(&self, live: &Live) -> Result<(), Error> {
        self.wake_for(live).await.map_err(|error| match error.kind {
            ErrorKind::Gone | ErrorKind::NotFound => error,
            _ => Error {
                kind: ErrorKind::SandboxFailed,
                message: format!("sandbox {} could not be woken: {}", live.id(), error.message),
                ..error
            },
        })
    }
}

fn is_token(shown: &str, hash: &str) -> bool {
    shown.len() <= MAX_SHOWN_BYTES && bool::from(hash_key(shown).as_bytes().ct_eq(hash.as_bytes()))
}

fn invalid_token() -> Error {
    Error::new(ErrorKind::Unauthenticated, "invalid preview token")
}
