//! Who asks for records gets those of their organisation.

use jiff::Timestamp;
use warren_api::audit::{AuditExport, AuditHead, AuditRecord};
use warren_types::{Error, SandboxId};

use crate::app::App;
use crate::app::auth::Caller;
use crate::audit::chain::START;
use crate::audit::seal::Place;
use crate::audit::verify::record_of_row;
use crate::store::audit::AuditFilter;

/// Records of one answer.
const MAX_LIMIT: u32 = 1000;
const DEFAULT_LIMIT: u32 = 100;
/// Of an answer that is a stream.
const PAGE: i64 = 500;
const MAX_KINDS: usize = 32;
const MAX_WORD_BYTES: usize = 128;
/// Of the form of records and exports.
const VERSION: u32 = 1;

/// What a client asks for.
#[derive(Debug, Clone)]
pub(crate) struct AuditRequest {
    pub sandbox: Option<SandboxId>,
    filter: AuditFilter,
    limit: Option<u32>,
    pub follow: bool,
}

/// Records as they come.
pub(crate) struct AuditStream {
    filter: AuditFilter,
    /// How many are still wanted; all when absent.
    left: Option<i64>,
    follow: bool,
    written: tokio::sync::watch::Receiver<()>,
}

impl AuditRequest {
    /// From the query of a request; an empty value is an absent one.
    pub(crate) fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Error> {
        let given = |name| get(name).filter(|value| !value.is_empty());
        let time = |name: &'static str| {
            let parse = |text: &str| {
                text.parse::<Timestamp>().map(Timestamp::as_microsecond).map_err(|_| {
                    Error::invalid(format!("{name} must be a time such as 2026-01-31T12:00:00Z"))
                })
            };
            given(name).map(parse).transpose()
        };
        let sandbox = given("sandbox")
            .map(|id| id.parse::<SandboxId>().map_err(|_| crate::app::auth::sandbox_not_found()))
            .transpose()?;
        let follow = flag("follow", given("follow"))?;
        let newest = flag("newest", given("newest"))?;
        Ok(Self {
            filter: AuditFilter {
                after: given("after").map(parse_after).transpose()?.unwrap_or(0),
                sandbox: sandbox.as_ref().map(ToString::to_string),
                kinds: given("kind").map(parse_kinds).transpose()?.unwrap_or_default(),
                actor: given("actor").map(|actor| word("actor", actor)).transpose()?,
                since: time("since")?,
                until: time("until")?,
                newest,
                ..AuditFilter::default()
            },
            sandbox,
            limit: given("limit").map(parse_limit).transpose()?,
            follow,
        })
    }

    /// Only those of that sandbox.
    pub(crate) fn of(mut self, sandbox: SandboxId) -> Self {
        self.filter.sandbox = Some(sandbox.to_string());
        self.sandbox = Some(sandbox);
        self
    }
}

fn flag(name: &str, text: Option<&str>) -> Result<bool, Error> {
    match text {
        None | Some("0" | "false") => Ok(false),
        Some("1" | "true") => Ok(true),
        Some(_) => Err(Error::invalid(format!("{name} must be true or false"))),
    }
}

fn parse_after(text: &str) -> Result<i64, Error> {
    let after = text.parse().ok().filter(|after| *after >= 0);
    after.ok_or_else(|| Error::invalid("after must be the seq of a record: 0 or more"))
}

fn parse_limit(text: &str) -> Result<u32, Error> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| Error::invalid(format!("limit must be 1 to {MAX_LIMIT}")))
}

fn parse_kinds(text: &str) -> Result<Vec<String>, Error> {
    let kinds = text.split(',').map(str::trim).filter(|kind| !kind.is_empty());
    let kinds = kinds.map(|kind| word("kind", kind)).collect::<Result<Vec<_>, _>>()?;
    if kinds.len() > MAX_KINDS {
        return Err(Error::invalid(format!("kind may name {MAX_KINDS} kinds at most")));
    }
    Ok(kinds)
}

fn word(name: &str, text: &str) -> Result<String, Error> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte));
    match plain && text.len() <= MAX_WORD_BYTES {
        true => Ok(text.to_owned()),
        false => Err(Error::invalid(format!("{name} must be letters, digits and . _ - :"))),
    }
}

impl App {
    /// One page, and whether there may be more.
    pub(crate) async fn list_audit(
        &self,
        caller: &Caller,
        request: AuditRequest,
    ) -> Result<(Vec<AuditRecord>, bool), Error> {
        let limit = request.limit.unwrap_or(DEFAULT_LIMIT);
        let mut filter = self.audit_filter(caller, request).await?;
        filter.limit = i64::from(limit);
        let rows = self.audit.store.list(&filter).await?;
        let more = !filter.newest && rows.len() == limit as usize;
        Ok((rows.into_iter().map(record_of_row).collect(), more))
    }

    /// All of them, or as many as are asked for, and then new ones where that is asked for.
    pub(crate) async fn stream_audit(
        &self,
        caller: &Caller,
        request: AuditRequest,
    ) -> Result<AuditStream, Error> {
        let (limit, follow) = (request.limit, request.follow);
        let written = self.audit.written.clone();
        let filter = self.audit_filter(caller, request).await?;
        let left = limit.map(i64::from);
        let limit = i64::from(limit.unwrap_or(DEFAULT_LIMIT));
        Ok(AuditStream { filter: AuditFilter { limit, ..filter }, left, follow, written })
    }

    async fn audit_filter(&self, caller: &Caller, request: AuditRequest) -> Result<AuditFilter, Error> {
        if let Some(sandbox) = &request.sandbox {
            self.standing_in_any_state(caller, sandbox).await?;
        }
        // What was answered before this question is in the answer.
        self.audit.flush_order().await;
        Ok(AuditFilter { org: caller.org().to_string(), ..request.filter })
    }

    pub(crate) async fn next_audit(
        &self,
        stream: &mut AuditStream,
    ) -> Result<Option<Vec<AuditRecord>>, Error> {
        if stream.left == Some(0) {
            return Ok(None);
        }
        let newest = stream.filter.newest;
        if !newest {
            stream.filter.limit = stream.left.map_or(PAGE, |left| left.min(PAGE));
        }
        let rows = self.audit.store.list(&stream.filter).await?;
        if let Some(last) = rows.last() {
            stream.filter.after = last.seq;
        }
        if newest {
            stream.filter.newest = false;
            // After the newest come new ones, or nothing.
            stream.left = (!stream.follow).then_some(0);
        } else if let Some(left) = &mut stream.left {
            *left -= i64::try_from(rows.len()).unwrap_or(i64::MAX);
        }
        if rows.is_empty() && !stream.follow {
            return Ok(None);
        }
        Ok(Some(rows.into_iter().map(record_of_row).collect()))
    }

    /// Where the chain of the caller's organisation begins and ends now.
    pub(crate) async fn audit_export(&self, caller: &Caller) -> Result<AuditExport, Error> {
        self.audit.flush_order().await;
        let org = caller.org().as_str();
        let anchor = self.audit.store.find_anchor(org).await?;
        // Never what is merely stored: a seal is put on what this server knows to be its own.
        self.audit.ends.catch_up(&self.audit.store, &self.audit.seal, org).await?;
        let head = self.audit.ends.get(org);
        let after_mac = anchor.as_ref().map(|anchor| anchor.mac.clone());
        let (after, after_hash) = anchor.map_or((0, START.to_owned()), |anchor| (anchor.seq, anchor.hash));
        let (seq, hash) = head.map_or((after, after_hash.clone()), |head| (head.seq, head.hash));
        let sealed = self.audit.seal.seal(Place::Head, org, seq, &hash);
        Ok(AuditExport {
            version: VERSION,
            org: org.to_owned(),
            after,
            after_hash,
            after_mac,
            head: AuditHead { seq, hash, mac: sealed.mac },
        })
    }
}

impl AuditStream {
    /// Returns when there may be more.
    pub(crate) async fn more(&mut self) {
        if self.written.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
