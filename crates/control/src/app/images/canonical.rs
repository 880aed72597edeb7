//! One text for one value: keys sorted, no blanks, ASCII alone. It is what Python writes with sorted keys, so that the
//! hash of an image is the one its SDK tells.

use std::fmt::{self, Write};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// A hash that is written to, so that what it is of need not be in memory as a whole.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Write for Hasher {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

impl Hasher {
    /// In hexadecimal digits.
    pub(crate) fn finish(self) -> String {
        warren_types::hex(&self.0.finalize())
    }
}

pub(crate) fn write(value: &Value, out: &mut impl Write) -> fmt::Result {
    match value {
        Value::Object(fields) => {
            // Maps are sorted by key here.
            out.write_char('{')?;
            for (at, (key, value)) in fields.iter().enumerate() {
                if at > 0 {
                    out.write_char(',')?;
                }
                write_text(key, out)?;
                out.write_char(':')?;
                write(value, out)?;
            }
            out.write_char('}')
        }
        Value::Array(items) => {
            out.write_char('[')?;
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.write_char(',')?;
                }
                write(item, out)?;
            }
            out.write_char(']')
        }
        Value::String(text) => write_text(text, out),
        Value::Null | Value::Bool(_) | Value::Number(_) => write!(out, "{value}"),
    }
}

fn write_text(text: &str, out: &mut impl Write) -> fmt::Result {
    let is_plain = |character: char| matches!(character, ' '..='~') && character != '"' && character != '\\';
    out.write_char('"')?;
    let mut rest = text;
    while let Some(at) = rest.find(|character| !is_plain(character)) {
        out.write_str(&rest[..at])?;
        let mut characters = rest[at..].chars();
        if let Some(character) = characters.next() {
            write_escaped(character, out)?;
        }
        rest = characters.as_str();
    }
    out.write_str(rest)?;
    out.write_char('"')
}

fn write_escaped(character: char, out: &mut impl Write) -> fmt::Result {
    match character {
        '"' => out.write_str("\\\""),
        '\\' => out.write_str("\\\\"),
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        '\u{8}' => out.write_str("\\b"),
        '\u{c}' => out.write_str("\\f"),
        _ => {
            let mut units = [0; 2];
            character.encode_utf16(&mut units).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_what_python_writes() {
        let value = serde_json::json!({"b": [1, true, null], "a": "é\u{7f}\u{1f980}\"\\\n\u{1}/<&>"});
        let mut text = String::new();
        write(&value, &mut text).unwrap();
        assert_eq!(text, r#"{"a":"\u00e9\u007f\ud83e\udd80\"\\\n\u0001/<&>","b":[1,true,null]}"#);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(text in any::<String>()) {
            let mut written = String::new();
            write(&Value::String(text.clone()), &mut written).unwrap();
            prop_assert!(written.is_ascii());
            prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }
}
