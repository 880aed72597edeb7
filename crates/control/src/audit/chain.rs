//! One record and the next: the canonical form of a record, and its hash.
//!
//! The canonical form is JSON as RFC 8785 has it (keys sorted, no blanks, whole numbers). The hash is SHA-256 over the hash
//! before it in hexadecimal digits, a line feed, and that form; before the first record stand 64 zeros. So
//! `printf '%s\n%s' "$previous" "$record" | sha256sum` says the same.

use jiff::Timestamp;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::store::audit::AuditRow;

/// Stands before the first record.
pub(crate) const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The kind of the record that says that the chain before it was not as it had been left.
pub(crate) const BREAK: &str = "audit.break";
/// Of the form of records.
const VERSION: u32 = 1;

/// What a hash is over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub org: &'a str,
    pub seq: i64,
    /// RFC 3339.
    pub at: &'a str,
    pub sandbox: Option<&'a str>,
    pub kind: &'a str,
    pub actor: &'a str,
    pub request: Option<&'a str>,
    /// Canonical already.
    pub detail: &'a str,
}

impl Record<'_> {
    pub(crate) fn canonical(&self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let maybe = |text: Option<&str>| text.map_or_else(|| "null".to_owned(), quoted);
        format!(
            r#"{{"actor":{},"at":{},"detail":{},"kind":{},"org":{},"request":{},"sandbox":{},"seq":{},"v":{VERSION}}}"#,
            quoted(self.actor),
            quoted(self.at),
            self.detail,
            quoted(self.kind),
            quoted(self.org),
            maybe(self.request),
            maybe(self.sandbox),
            self.seq,
        )
    }

    /// The hash of this record after one with the hash `previous`.
    pub(crate) fn hash(&self, previous: &str) -> String {
        let digest = Sha256::new()
            .chain_update(previous.as_bytes())
            .chain_update(b"\n")
            .chain_update(self.canonical().as_bytes())
            .finalize();
        warren_types::hex(&digest)
    }
}

/// The hash of a row that is (to be) stored.
pub(crate) fn hash_of_row(row: &AuditRow, previous: &str) -> String {
    let at = time_text(row.at);
    let record = Record {
        org: &row.org,
        seq: row.seq,
        at: &at,
        sandbox: row.sandbox.as_deref(),
        kind: &row.kind,
        actor: &row.actor,
        request: row.request.as_deref(),
        detail: &row.detail,
    };
    record.hash(previous)
}

/// A time as records show it: to the microsecond. What is no time is shown as it is, and changes the hash like any change.
pub(crate) fn time_text(micros: i64) -> String {
    Timestamp::from_microsecond(micros).map_or_else(|_| micros.to_string(), |at| at.to_string())
}

/// A JSON value in its canonical form.
pub(crate) fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => write_object(fields, text),
        Value::Array(values) => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_canonical(value, text);
            }
            text.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&value.to_string());
        }
    }
}

/// Sorted here, whatever order the map keeps.
fn write_object(fields: &Map<String, Value>, text: &mut String) {
    let mut sorted: Vec<_> = fields.iter().collect();
    sorted.sort_by_key(|(name, _)| name.as_str());
    text.push('{');
    for (index, (name, value)) in sorted.into_iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&Value::from(name.as_str()).to_string());
        text.push(':');
        write_canonical(value, text);
    }
    text.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_and_the_hash_are_those_of_the_documentation() {
        let detail = canonical(&serde_json::json!({"b": [1, "é\n\u{1f}"], "a": {"z": null, "y": true}}));
        assert_eq!(detail, r#"{"a":{"y":true,"z":null},"b":[1,"é\n\u001f"]}"#);
        let record = Record {
            org: "o",
            seq: 1,
            at: "2026-01-31T12:00:00Z",
            sandbox: None,
            kind: "exec",
            actor: "key:k",
            request: Some("r"),
            detail: "{}",
        };
        let text = r#"{"actor":"key:k","at":"2026-01-31T12:00:00Z","detail":{},"kind":"exec","org":"o","request":"r","sandbox":null,"seq":1,"v":1}"#;
        assert_eq!(record.canonical(), text);
        let by_hand = warren_types::hex(&Sha256::digest(format!("{START}\n{text}").as_bytes()));
        assert_eq!(record.hash(START), by_hand);
        assert_ne!(record.hash(&by_hand), by_hand);
    }
}
