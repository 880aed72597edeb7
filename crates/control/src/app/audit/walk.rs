//! Whether records that are to be gone on with, or removed, are what this installation wrote. Whoever goes on with a chain vouches
//! for it: what was not looked at before would be as good as any from then on.

use serde_json::{Value, json};
use warren_types::OrgId;

use super::{Kind, Note, Who};
use crate::audit::chain::{START, hash_of_row};
use crate::audit::seal::{Place, Seal};
use crate::store::StoreError;
use crate::store::audit::{AuditFilter, AuditStore, Head};
use crate::store::audit_heads::SealedHead;

const PAGE: i64 = 500;

/// Where a chain is not what this installation wrote.
#[derive(Debug, Clone)]
pub(super) struct Break {
    pub(super) why: &'static str,
    expected: Value,
    found: Value,
}

impl Break {
    fn new(why: &'static str, expected: Option<&Head>, found: Option<&Head>) -> Self {
        let place = |head: Option<&Head>| {
            head.map_or(Value::Null, |head| json!({"seq": head.seq, "hash": head.hash}))
        };
        Self { why, expected: place(expected), found: place(found) }
    }

    /// The record that keeps it, which `warren audit verify` reports for as long as it is there. Said in the log once, here.
    pub(super) fn note(self, org: &str) -> Note {
        tracing::error!(
            org,
            why = self.why,
            expected = %self.expected,
            found = %self.found,
            "the audit records are not as this installation has left them; `warren audit verify` says where"
        );
        let note = Who::server(OrgId(org.to_owned())).note(Kind::AuditBreak).with("why", self.why);
        note.with("expected", self.expected).with("found", self.found)
    }
}

/// Which records a walk takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    /// Up to the end, each with its seal.
    ToEnd,
    /// That are to be removed: up to there, and also those from before records were sealed one by one. A break among them
    /// is found again, so that it outlasts them.
    Removed(i64),
}

pub(super) fn start() -> Head {
    Head { seq: 0, hash: START.to_owned() }
}

/// Follows a chain from a place that is known. Gives its last record, whatever is in between, and the first break.
pub(super) async fn walk(
    store: &AuditStore,
    seal: &Seal,
    org: &str,
    from: Head,
    span: Span,
) -> Result<(Head, Option<Break>), StoreError> {
    let mut filter =
        AuditFilter { org: org.to_owned(), after: from.seq, limit: PAGE, ..AuditFilter::default() };
    let (mut end, mut found, mut is_old) = (from, None, matches!(span, Span::Removed(_)));
    loop {
        let rows = store.list(&filter).await?;
        if rows.is_empty() {
            return Ok((end, found));
        }
        for row in rows {
            if matches!(span, Span::Removed(last) if row.seq > last) {
                return Ok((end, found));
            }
            is_old &= row.mac.is_none();
            let here = Head { seq: row.seq, hash: row.hash.clone() };
            let why = if end.seq.checked_add(1) != Some(row.seq) || row.hash != hash_of_row(&row, &end.hash) {
                Some("a record does not follow the one before it")
            } else if !is_old && !seal.is_record(&row) {
                Some("a record was not written by this installation")
            } else if span != Span::ToEnd && row.kind == Kind::AuditBreak.as_str() {
                Some("the record of a break was removed for its age")
            } else {
                None
            };
            if found.is_none() {
                found = why.map(|why| Break::new(why, Some(&end), Some(&here)));
            }
            filter.after = row.seq;
            end = here;
        }
    }
}

/// Where a chain ends that nobody has looked at yet. `sealed` was read before the records are: they may be further on, never behind.
/// A crash leaves records behind the seal, each with a seal of its own; what else is there is a break.
pub(super) async fn find_end(
    store: &AuditStore,
    seal: &Seal,
    org: &str,
    sealed: Option<&SealedHead>,
) -> Result<(Head, Option<Break>), StoreError> {
    let stored = store.find_head(org).await?;
    let known = sealed.filter(|sealed| seal.holds(Place::Head, sealed));
    let Some(known) = known.map(SealedHead::head) else {
        let why = match sealed {
            None => "the seal of the newest record is missing",
            Some(_) => "the seal of the newest record was not made by this installation",
        };
        let found = Break::new(why, None, stored.as_ref());
        return Ok((stored.unwrap_or_else(start), Some(found)));
    };
    // It goes on behind what is missing, so that the gap stays as well.
    let last = stored.clone().filter(|stored| stored.seq >= known.seq).unwrap_or_else(|| known.clone());
    let anchor = store.find_anchor(org).await?.filter(|anchor| seal.holds(Place::Anchor, anchor));
    let from = match anchor.map(|anchor| anchor.head()) {
        // Old records were removed since the seal was read.
        Some(anchor) if anchor.seq > known.seq => anchor,
        Some(anchor) if anchor == known => known,
        _ if known == start() => known,
        _ => match store.find_at(org, known.seq).await? {
            Some(there) if there == known => known,
            there => {
                let why = match there {
                    None => "the record that was sealed as the newest is missing",
                    Some(_) => "the record that was sealed as the newest is another",
                };
                return Ok((last, Some(Break::new(why, Some(&known), there.or(stored).as_ref()))));
            }
        },
    };
    walk(store, seal, org, from, Span::ToEnd).await
}

/// Whether what is to be removed up to a record is whole.
pub(super) async fn find_break_until(
    store: &AuditStore,
    seal: &Seal,
    org: &str,
    last: i64,
) -> Result<Option<Break>, StoreError> {
    let anchor = store.find_anchor(org).await?;
    if let Some(anchor) = anchor.as_ref().filter(|anchor| !seal.holds(Place::Anchor, anchor)) {
        let why = "the seal of the oldest record was not made by this installation";
        return Ok(Some(Break::new(why, None, Some(&anchor.head()))));
    }
    let from = anchor.map_or_else(start, |anchor| anchor.head());
    Ok(walk(store, seal, org, from, Span::Removed(last)).await?.1)
}
