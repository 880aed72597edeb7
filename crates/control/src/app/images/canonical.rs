//! One text for one value: keys sorted, no blanks, ASCII alone. It is what Python writes with sorted keys, so that the
//! hash of an image is the one its SDK tells.

use std::fmt::Write as _;

use serde_json::Value;

pub(crate) fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            // Maps are sorted by key here; two keys of one text cannot be told apart.
            out.push('{');
            for (at, (key, value)) in fields.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_text(key, out);
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::String(text) => write_text(text, out),
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            write!(out, "{value}").expect("a String takes everything");
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(character),
            _ => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    write!(out, "\\u{unit:04x}").expect("a String takes everything");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_what_python_writes() {
        let value = serde_json::json!({"b": [1, true, null], "a": "é\u{7f}\u{1f980}\"\\\n\u{1}/<&>"});
        let mut text = String::new();
        write(&value, &mut text);
        assert_eq!(text, r#"{"a":"\u00e9\u007f\ud83e\udd80\"\\\n\u0001/<&>","b":[1,true,null]}"#);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(text in any::<String>()) {
            let mut written = String::new();
            write(&Value::String(text.clone()), &mut written);
            prop_assert!(written.is_ascii());
            prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }
}
