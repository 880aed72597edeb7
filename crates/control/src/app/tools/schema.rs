//! Input checked against the schema that was shown: the words of JSON Schema that [`super::table`] uses, and no others.

use serde_json::{Map, Value};
use warren_types::{Error, whole};

/// Longest piece of a wrong value that is repeated.
const MAX_SHOWN: usize = 60;

/// Refuses what the schema does not allow, with a sentence about the field. JSON knows numbers alone, so a whole one that was written as
/// `1.0` or `1e0` is an integer to the schema, and is made one here.
pub(super) fn check(
    tool: &str,
    schema: &Map<String, Value>,
    input: &mut Map<String, Value>,
) -> Result<(), Error> {
    check_object(&format!("of {tool}"), schema, input)
}

fn check_object(of: &str, schema: &Map<String, Value>, input: &mut Map<String, Value>) -> Result<(), Error> {
    let empty = Map::new();
    let fields = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    for (name, value) in input.iter_mut() {
        match (fields.get(name), schema.get("additionalProperties")) {
            (Some(field), _) => check_value(name, field, value)?,
            (None, Some(Value::Object(any))) => check_value(name, &Value::Object(any.clone()), value)?,
            (None, _) => {
                let known: Vec<&str> = fields.keys().map(String::as_str).collect();
                return Err(Error::invalid(format!(
                    "{} is not a field {of}; its fields are {}",
                    shown(&Value::String(name.clone())),
                    known.join(", ")
                )));
            }
        }
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    for name in required.filter_map(Value::as_str) {
        if !input.contains_key(name) {
            return Err(Error::invalid(format!("the field {name} {of} is required")));
        }
    }
    Ok(())
}

fn check_value(name: &str, schema: &Value, value: &mut Value) -> Result<(), Error> {
    let wanted = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    if wanted == "integer"
        && let Some(whole) = whole(value)
    {
        *value = whole.into();
    }
    let number = |key: &str| schema.get(key).and_then(Value::as_u64);
    let is_right = match (wanted, &mut *value) {
        ("string", Value::String(text)) => {
            let chars = text.chars().count() as u64;
            let fits = number("minLength").is_none_or(|least| chars >= least)
                && number("maxLength").is_none_or(|most| chars <= most);
            let listed = schema
                .get("enum")
                .and_then(Value::as_array)
                .is_none_or(|words| words.iter().any(|word| word.as_str() == Some(text.as_str())));
            fits && listed
        }
        ("integer", Value::Number(found)) => found.as_u64().is_some_and(|found| {
            number("minimum").is_none_or(|least| found >= least)
                && number("maximum").is_none_or(|most| found <= most)
        }),
        ("boolean", Value::Bool(_)) => true,
        ("array", Value::Array(items)) => {
            let items_are = schema.get("items").unwrap_or(&Value::Null);
            for item in items.iter_mut() {
                check_value(&format!("each of {name}"), items_are, item)?;
            }
            number("maxItems").is_none_or(|most| items.len() as u64 <= most)
        }
        ("object", Value::Object(fields)) => {
            if let Some(schema) = schema.as_object() {
                check_object(&format!("of {name}"), schema, fields)?;
            }
            true
        }
        _ => false,
    };
    if is_right {
        return Ok(());
    }
    Err(Error::invalid(format!("{name} must be {} (got {})", in_words(wanted, schema), shown(value))))
}

/// A number that was written with a fraction or an exponent and is whole.
fn whole(value: &Value) -> Option<u64> {
    let number = value.as_f64().filter(|_| value.is_f64())?;
    whole::of_double(number).and_then(|number| u64::try_from(number).ok())
}

/// What a field takes, as one would say it.
fn in_words(wanted: &str, schema: &Value) -> String {
    let number = |key: &str| schema.get(key).and_then(Value::as_u64);
    match wanted {
        "string" => {
            match (schema.get("enum").and_then(Value::as_array), number("minLength"), number("maxLength")) {
                (Some(words), ..) => {
                    let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
                    format!("one of {}", words.join(", "))
                }
                (None, least, Some(most)) => {
                    format!("a string of {} to {most} characters", least.unwrap_or_default())
                }
                (None, Some(_), None) => "a string that is not empty".to_owned(),
                (None, None, None) => "a string".to_owned(),
            }
        }
        "integer" => match (number("minimum"), number("maximum")) {
            (least, Some(most)) => format!("a whole number from {} to {most}", least.unwrap_or_default()),
            (least, None) => format!("a whole number, {} or more", least.unwrap_or_default()),
        },
        "boolean" => "true or false".to_owned(),
        "array" => match number("maxItems") {
            Some(most) => format!("an array of at most {most} items"),
            None => "an array".to_owned(),
        },
        _ => "an object".to_owned(),
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        // Quoted, so that control characters are escaped.
        Value::String(text) => format!("{:?}", text.chars().take(MAX_SHOWN + 1).collect::<String>()),
        other => other.to_string(),
    };
    let mut cut: String = text.chars().take(MAX_SHOWN).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn says(input: &Value) -> String {
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["path"],
            "properties": {
                "path": {"type": "string", "minLength": 1},
                "limit": {"type": "integer", "minimum": 1, "maximum": 10},
                "raw": {"type": "boolean"},
                "signal": {"type": "string", "enum": ["TERM", "KILL"]},
                "env": {"type": "object", "additionalProperties": {"type": "string"}},
                "hosts": {"type": "array", "maxItems": 2, "items": {"type": "string"}},
            }
        });
        let checked = check("a_tool", schema.as_object().unwrap(), &mut input.as_object().unwrap().clone());
        checked.err().map_or_else(String::new, |error| error.message)
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(
            says(&json!({"path": "a", "limit": 10, "raw": true, "signal": "TERM", "env": {"A": ""}})),
            ""
        );
        for (input, expected) in [
            (json!({}), "the field path of a_tool is required"),
            (json!({"path": ""}), "path must be a string that is not empty (got \"\")"),
            (json!({"path": 1}), "path must be a string that is not empty (got 1)"),
            (json!({"path": "a", "limit": 0}), "limit must be a whole number from 1 to 10 (got 0)"),
            (json!({"path": "a", "limit": 1.5}), "limit must be a whole number from 1 to 10 (got 1.5)"),
            (json!({"path": "a", "limit": 11.0}), "limit must be a whole number from 1 to 10 (got 11)"),
            (json!({"path": "a", "limit": -1.0}), "limit must be a whole number from 1 to 10 (got -1.0)"),
            (json!({"path": "a", "limit": 1e300}), "limit must be a whole number from 1 to 10 (got 1e+300)"),
            (json!({"path": "a", "limit": "1"}), "limit must be a whole number from 1 to 10 (got \"1\")"),
            (json!({"path": "a", "raw": "yes"}), "raw must be true or false (got \"yes\")"),
            (json!({"path": "a", "signal": "HUP"}), "signal must be one of TERM, KILL (got \"HUP\")"),
            (json!({"path": "a", "env": {"A": 1}}), "A must be a string (got 1)"),
            (json!({"path": "a", "hosts": ["a", 1]}), "each of hosts must be a string (got 1)"),
            (
                json!({"path": "a", "hosts": ["a", "b", "c"]}),
                "hosts must be an array of at most 2 items (got an array)",
            ),
        ] {
            assert_eq!(says(&input), expected, "{input}");
        }
        let unknown = says(&json!({"path": "a", "pa\nth": "b"}));
        assert!(unknown.starts_with("\"pa\\nth\" is not a field of a_tool; its fields are "), "{unknown}");
        assert!(says(&json!({"path": "a", "limit": "x".repeat(1000)})).len() < 200);
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        let schema = json!({
            "properties": {
                "limit": {"type": "integer"},
                "more": {"type": "object", "properties": {"of": {"type": "array", "items": {"type": "integer"}}}},
            }
        });
        let input = r#"{"limit": 2.0, "more": {"of": [1e1, -0.0, 3]}}"#;
        let mut input: Map<String, Value> = serde_json::from_str(input).unwrap();
        check("a_tool", schema.as_object().unwrap(), &mut input).unwrap();
        assert_eq!(Value::Object(input), json!({"limit": 2, "more": {"of": [10, 0, 3]}}));
    }
}
