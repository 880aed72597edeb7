//! Whether chains are whole: of a data directory, beside a server that runs or not, and of an exported file.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;
use warren_api::audit::AuditRecord;

use super::chain::{self, BREAK, Record, START, hash_of_row};
use super::line;
use super::seal::{Place, Seal};
use crate::store::audit::{AuditFilter, AuditRow, AuditStore};
use crate::store::audit_heads::SealedHead;
use crate::store::{Store, StoreError};

const PAGE: i64 = 1000;
/// Longest line of an export that is read.
const MAX_LINE_BYTES: u64 = 1024 * 1024;
/// Findings of one chain that are told; more are counted.
const MAX_FINDINGS: usize = 100;

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A record, or the hash of it, is not what was written.
    Changed { seq: i64 },
    /// Records are not there that others follow.
    Missing { from: i64, to: i64 },
    /// A record stands behind one that is newer.
    OutOfOrder { seq: i64, after: i64 },
    /// Records at the end are not there that are known to have been.
    CutOff { from: i64, to: i64 },
    /// The record that was sealed as the newest is another.
    NotTheSealed { seq: i64 },
    /// There are records, and nothing that says which is the newest.
    Unsealed,
    /// A seal was not made by this installation.
    FalseSeal { what: &'static str },
    /// A record has no seal of this installation.
    Forged { seq: i64 },
    /// This record says that those before it were not as they had been left.
    Broken { seq: i64, why: String },
    /// A line that is no record of this chain.
    Unreadable { line: u64, reason: String },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |from: &i64, to: &i64| match from == to {
            true => format!("record {from}"),
            false => format!("records {from} to {to}"),
        };
        match self {
            Self::Changed { seq } => write!(f, "record {seq} was changed"),
            Self::Missing { from, to } => write!(f, "{} missing", range(from, to)),
            Self::OutOfOrder { seq, after } => write!(f, "record {seq} stands after record {after}"),
            Self::CutOff { from, to } => write!(f, "{} cut off at the end", range(from, to)),
            Self::NotTheSealed { seq } => {
                write!(f, "record {seq} is not the one that was sealed; the chain was written anew")
            }
            Self::Unsealed => write!(f, "the seal of the newest record is missing"),
            Self::FalseSeal { what } => {
                write!(f, "the seal of the {what} record was not made by this installation")
            }
            Self::Forged { seq } => write!(f, "record {seq} was not written by this installation"),
            Self::Broken { seq, why } => {
                write!(
                    f,
                    "before record {seq} the chain was found to be broken: {why}; the record says where"
                )
            }
            Self::Unreadable { line, reason } => write!(f, "line {line} is no record: {reason}"),
        }
    }
}

/// What came of looking at one chain.
#[derive(Debug, Clone)]
pub struct Verified {
    pub org: String,
    /// Records that are there.
    pub records: u64,
    /// First and last of them.
    pub first: Option<i64>,
    pub last: Option<i64>,
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more: u64,
}

impl Verified {
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{} has no audit records", path.display())]
    Absent { path: PathBuf },
    #[error("the key of the audit records in {} cannot be used", path.display())]
    Key { path: PathBuf, source: io::Error },
    #[error("{} could not be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} does not begin with the line that `warren audit export` writes first: {reason}", path.display())]
    NoExport { path: PathBuf, reason: String },
}

/// Takes the records of one chain in the order they stand in.
struct Checker {
    found: Verified,
    /// What the next record follows.
    seq: i64,
    /// Unknown behind a gap.
    hash: Option<String>,
    /// Sequence numbers that were passed over: from, to.
    gaps: BTreeMap<i64, i64>,
    head: Option<(i64, String)>,
    head_seen: Option<bool>,
}

impl Checker {
    /// `from`: what was removed last for its age.
    fn new(org: &str, from: Option<(i64, String)>, head: Option<(i64, String)>) -> Self {
        let (seq, hash) = from.unwrap_or((0, START.to_owned()));
        let head_seen = head.as_ref().filter(|head| head.0 == seq).map(|head| head.1 == hash);
        Self {
            found: Verified {
                org: org.to_owned(),
                records: 0,
                first: None,
                last: None,
                findings: Vec::new(),
                more: 0,
            },
            seq,
            hash: Some(hash),
            gaps: BTreeMap::new(),
            head,
            head_seen,
        }
    }

    fn find(&mut self, finding: Finding) {
        if self.found.findings.len() < MAX_FINDINGS {
            self.found.findings.push(finding);
        } else {
            self.found.more += 1;
        }
    }

    /// The detail of a record that says that something is wrong before it.
    fn find_break(&mut self, seq: i64, detail: Option<&Value>) {
        if let Some(detail) = detail {
            let why = detail.get("why").and_then(Value::as_str).unwrap_or("it does not say why").to_owned();
            self.find(Finding::Broken { seq, why });
        }
    }

    /// `shown` is the hash that stands with the record, `hash_after` what it is after a given one.
    fn push(&mut self, seq: i64, shown: &str, hash_after: impl FnOnce(&str) -> String) {
        self.found.records += 1;
        if seq <= self.seq {
            self.find(Finding::OutOfOrder { seq, after: self.seq });
            self.fill(seq);
            return;
        }
        if seq > self.seq + 1 {
            self.gaps.insert(self.seq + 1, seq - 1);
            self.hash = None;
        }
        if self.hash.take().is_some_and(|previous| hash_after(&previous) != shown) {
            self.find(Finding::Changed { seq });
        }
        if self.head.as_ref().is_some_and(|head| head.0 == seq) {
            self.head_seen = Some(self.head.as_ref().is_some_and(|head| head.1 == shown));
        }
        self.seq = seq;
        self.hash = Some(shown.to_owned());
        self.found.first.get_or_insert(seq);
        self.found.last = Some(seq);
    }

    /// A record that was thought to be missing.
    fn fill(&mut self, seq: i64) {
        let Some((&from, &to)) = self.gaps.range(..=seq).next_back().filter(|(_, to)| **to >= seq) else {
            return;
        };
        self.gaps.remove(&from);
        if from < seq {
            self.gaps.insert(from, seq - 1);
        }
        if seq < to {
            self.gaps.insert(seq + 1, to);
        }
    }

    fn end(mut self) -> Verified {
        for (from, to) in std::mem::take(&mut self.gaps) {
            self.find(Finding::Missing { from, to });
        }
        if let Some((seq, _)) = self.head {
            match self.head_seen {
                Some(true) => {}
                Some(false) => self.find(Finding::NotTheSealed { seq }),
                None if seq > self.seq => self.find(Finding::CutOff { from: self.seq + 1, to: seq }),
                // It is in a gap, which is told.
                None => {}
            }
        }
        self.found
    }
}

/// Checks every chain of a data directory. What a server writes meanwhile is not missed and not expected.
pub async fn verify_data_dir(data_dir: &Path) -> Result<Vec<Verified>, VerifyError> {
    if !AuditStore::exists(data_dir) || !Store::exists(data_dir) {
        return Err(VerifyError::Absent { path: data_dir.to_owned() });
    }
    let seal =
        Seal::open(data_dir).map_err(|source| VerifyError::Key { path: data_dir.to_owned(), source })?;
    let store = Store::open(data_dir).await?;
    let audit = AuditStore::open(data_dir).await?;
    // Whose, before the seals: who comes meanwhile has one.
    let mut orgs = audit.list_orgs().await?;
    orgs.extend(store.list_org_ids().await?);
    // Before the records: those that come later may be newer, never older.
    let mut heads: HashMap<String, SealedHead> =
        store.list_audit_heads().await?.into_iter().map(|head| (head.org.clone(), head)).collect();
    orgs.extend(heads.keys().cloned());
    orgs.sort();
    orgs.dedup();
    let mut all = Vec::new();
    for org in orgs {
        let head = heads.remove(&org);
        all.push(verify_org(&audit, &seal, &org, head).await?);
    }
    Ok(all)
}

async fn verify_org(
    audit: &AuditStore,
    seal: &Seal,
    org: &str,
    head: Option<SealedHead>,
) -> Result<Verified, VerifyError> {
    let anchor = audit.find_anchor(org).await?;
    let place = |sealed: &Option<SealedHead>| sealed.as_ref().map(|one| (one.seq, one.hash.clone()));
    let mut checker = Checker::new(org, place(&anchor), place(&head));
    if anchor.as_ref().is_some_and(|anchor| !seal.holds(Place::Anchor, anchor)) {
        checker.find(Finding::FalseSeal { what: "oldest" });
    }
    match &head {
        None => checker.find(Finding::Unsealed),
        Some(head) if !seal.holds(Place::Head, head) => checker.find(Finding::FalseSeal { what: "newest" }),
        Some(_) => {}
    }
    // All of them from 0 on: what stands before an anchor has no business there.
    let mut filter =
        AuditFilter { org: org.to_owned(), after: i64::MIN, limit: PAGE, ..AuditFilter::default() };
    let mut is_old = true;
    loop {
        let rows = audit.list(&filter).await?;
        let Some(last) = rows.last() else { break };
        filter.after = last.seq;
        for row in &rows {
            checker.push(row.seq, &row.hash, |previous| hash_of_row(row, previous));
            // The first that has a seal covers those from before there were any.
            is_old &= row.mac.is_none();
            if !is_old && !seal.is_record(row) {
                checker.find(Finding::Forged { seq: row.seq });
            }
            let detail = (row.kind == BREAK).then(|| serde_json::from_str(&row.detail).unwrap_or_default());
            checker.find_break(row.seq, detail.as_ref());
        }
    }
    Ok(checker.end())
}

/// Checks an exported file; with the data directory of the server it came from, also that its end was sealed there.
pub fn verify_file(path: &Path, data_dir: Option<&Path>) -> Result<Verified, VerifyError> {
    let read = |source| VerifyError::Read { path: path.to_owned(), source };
    let mut lines = BufReader::new(File::open(path).map_err(read)?);
    let no_export = |reason: String| VerifyError::NoExport { path: path.to_owned(), reason };
    let first = next_line(&mut lines).map_err(read)?.ok_or_else(|| no_export("it is empty".to_owned()))?;
    let export = line::read_first(&first).map_err(|error| no_export(error.to_string()))?;
    let from = (export.after != 0).then(|| (export.after, export.after_hash.clone()));
    let mut checker = Checker::new(&export.org, from, Some((export.head.seq, export.head.hash.clone())));
    if let Some(data_dir) = data_dir {
        let seal =
            Seal::open(data_dir).map_err(|source| VerifyError::Key { path: data_dir.to_owned(), source })?;
        let head = SealedHead {
            org: export.org.clone(),
            seq: export.head.seq,
            hash: export.head.hash.clone(),
            mac: export.head.mac.clone(),
        };
        let anchor = SealedHead {
            seq: export.after,
            hash: export.after_hash.clone(),
            mac: export.after_mac.clone().unwrap_or_default(),
            ..head.clone()
        };
        if export.after != 0 && !seal.holds(Place::Anchor, &anchor) {
            checker.find(Finding::FalseSeal { what: "oldest" });
        }
        if !seal.holds(Place::Head, &head) {
            checker.find(Finding::FalseSeal { what: "newest" });
        }
    }
    let mut number = 1;
    while let Some(line) = next_line(&mut lines).map_err(read)? {
        number += 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        match line::read(&line) {
            Ok(record) if record.org == export.org => {
                checker.push(record.seq, &record.hash, |previous| hash_of_record(&record, previous));
                checker.find_break(record.seq, (record.kind == BREAK).then_some(&record.detail));
            }
            Ok(_) => {
                let reason = "it is of another organisation".to_owned();
                checker.find(Finding::Unreadable { line: number, reason });
            }
            Err(error) => checker.find(Finding::Unreadable { line: number, reason: error.to_string() }),
        }
    }
    Ok(checker.end())
}

fn next_line(lines: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    Ok((read > 0).then_some(line))
}

/// A record as clients see it.
pub(crate) fn record_of_row(row: AuditRow) -> AuditRecord {
    AuditRecord {
        seq: row.seq,
        at: chain::time_text(row.at),
        org: row.org,
        sandbox_id: row.sandbox,
        kind: row.kind,
        actor: row.actor,
        request_id: row.request,
        // What is stored is JSON of ours; if it is no more, the text itself shows that.
        detail: serde_json::from_str(&row.detail).unwrap_or(Value::String(row.detail)),
        hash: row.hash,
    }
}

fn hash_of_record(record: &AuditRecord, previous: &str) -> String {
    let detail = chain::canonical(&record.detail);
    let record = Record {
        org: &record.org,
        seq: record.seq,
        at: &record.at,
        sandbox: record.sandbox_id.as_deref(),
        kind: &record.kind,
        actor: &record.actor,
        request: record.request_id.as_deref(),
        detail: &detail,
    };
    record.hash(previous)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of five, with what is done to it before it is checked.
    fn check(change: impl FnOnce(&mut Vec<AuditRow>)) -> Vec<Finding> {
        let mut rows: Vec<AuditRow> = Vec::new();
        for seq in 1..=5 {
            let mut row = AuditRow {
                id: seq,
                org: "o".into(),
                seq,
                at: 1_000_000 * seq,
                sandbox: None,
                kind: "exec".into(),
                actor: "server".into(),
                request: None,
                detail: format!("{{\"n\":{seq}}}"),
                hash: String::new(),
                mac: None,
            };
            row.hash = hash_of_row(&row, rows.last().map_or(START, |last| &last.hash));
            rows.push(row);
        }
        let head = (5, rows[4].hash.clone());
        change(&mut rows);
        let mut checker = Checker::new("o", None, Some(head));
        for row in &rows {
            checker.push(row.seq, &row.hash, |previous| hash_of_row(row, previous));
        }
        checker.end().findings
    }

    #[test]
    fn every_kind_of_tampering_is_named() {
        assert_eq!(check(|_| {}), []);
        assert_eq!(check(|rows| rows[2].detail = "{}".into()), [Finding::Changed { seq: 3 }]);
        assert_eq!(check(|rows| rows[2].at += 1), [Finding::Changed { seq: 3 }]);
        assert_eq!(check(|rows| rows[2].sandbox = Some("sb".into())), [Finding::Changed { seq: 3 }]);
        assert_eq!(check(|rows| drop(rows.remove(1))), [Finding::Missing { from: 2, to: 2 }]);
        assert_eq!(check(|rows| drop(rows.drain(..3))), [Finding::Missing { from: 1, to: 3 }]);
        assert_eq!(check(|rows| rows.truncate(3)), [Finding::CutOff { from: 4, to: 5 }]);
        assert_eq!(check(Vec::clear), [Finding::CutOff { from: 1, to: 5 }]);
        assert_eq!(check(|rows| rows.swap(1, 2)), [Finding::OutOfOrder { seq: 2, after: 3 }]);
        let renumbered = check(|rows| {
            rows[1].seq = 3;
            rows[2].seq = 2;
            rows.swap(1, 2);
        });
        assert!(renumbered.contains(&Finding::Changed { seq: 2 }), "{renumbered:?}");
        // Written anew from the third on, hashes and all: only the seal of the end tells.
        let forged = check(|rows| {
            rows[2].detail = "{\"n\":0}".into();
            for at in 2..5 {
                rows[at].hash = hash_of_row(&rows[at], &rows[at - 1].hash.clone());
            }
        });
        assert_eq!(forged, [Finding::NotTheSealed { seq: 5 }]);
    }
}
