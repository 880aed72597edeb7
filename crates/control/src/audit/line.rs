//! A line of an export, read strictly: what the hash of a record does not cover has no place beside it. A field more, or a second one of
//! the same name, would be read by somebody, and nothing would show that it was not there.

use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use warren_api::audit::{AuditExport, AuditRecord};

pub(super) fn read(line: &[u8]) -> Result<AuditRecord, serde_json::Error> {
    let Once(value) = serde_json::from_slice(line)?;
    let record = AuditRecord::deserialize(&value)?;
    refuse_more(&value, &record, "a record")?;
    Ok(record)
}

/// The first line of an export.
pub(super) fn read_first(line: &[u8]) -> Result<AuditExport, serde_json::Error> {
    let Once(value) = serde_json::from_slice(line)?;
    let export = AuditExport::deserialize(&value)?;
    refuse_more(&value, &export, "the first line")?;
    refuse_more(&value["head"], &export.head, "the first line")?;
    Ok(export)
}

fn refuse_more(value: &Value, read: &impl Serialize, of: &str) -> Result<(), serde_json::Error> {
    let read = serde_json::to_value(read)?;
    // What is null there is left out of what was read.
    let is_more = |(name, value): &(&String, &Value)| !value.is_null() && read.get(name.as_str()).is_none();
    match value.as_object().into_iter().flatten().find(is_more) {
        Some((name, _)) => Err(serde_json::Error::custom(format!("the field {name:?} is none of {of}"))),
        None => Ok(()),
    }
}

/// JSON in which every name is there once.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor).map(Self)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some((name, Once(value))) = fields.next_entry::<String, Once>()? {
            if all.contains_key(&name) {
                return Err(A::Error::custom(format!("the field {name:?} is there twice")));
            }
            all.insert(name, value);
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_fields_of_a_record_once_and_no_others() {
        let line = |more: &str, detail: &str| {
            format!(
                r#"{{"seq":1,"at":"2026-01-31T12:00:00Z","org":"o","kind":"exec","actor":"server"{more},"detail":{detail},"hash":"x"}}"#
            )
        };
        let says = |line: String| read(line.as_bytes()).map_err(|error| error.to_string());
        let detail = r#"{"a":[1,-1,1.5,null,true,{"b":"c"}]}"#;
        for more in ["", r#","sandboxID":"sb-00000001""#, r#","requestID":null"#] {
            let record = says(line(more, detail)).unwrap();
            assert_eq!(record.detail, serde_json::from_str::<Value>(detail).unwrap());
        }
        for (more, detail, wrong) in [
            (r#","note":"x""#, "{}", "\"note\" is none of a record"),
            (r#","org":"o""#, "{}", "\"org\" is there twice"),
            ("", r#"{"cmd":"a","cmd":"b"}"#, "\"cmd\" is there twice"),
            ("", r#"{"a":[{"b":1,"b":1}]}"#, "\"b\" is there twice"),
        ] {
            let error = says(line(more, detail)).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
