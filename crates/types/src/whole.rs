//! Whole numbers in JSON. `1`, `1.0` and `1e0` are one number, and JSON Schema takes each of them for an integer.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error, Unexpected, Visitor};

struct Whole;

/// A number that was written with a fraction or an exponent and is whole. Those that a double cannot tell apart any more are none.
#[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
#[must_use]
pub fn of_double(number: f64) -> Option<i64> {
    const EXACT: f64 = (1_i64 << 53) as f64;
    (number.fract() == 0.0 && number.abs() < EXACT).then_some(number as i64)
}

/// For `deserialize_with` of a field that may be absent or null.
///
/// # Errors
/// When it is there and no whole number.
pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    deserializer.deserialize_option(Whole)
}

impl<'de> Visitor<'de> for Whole {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_i64(self)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        i64::try_from(number).map(Some).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        of_double(number).map(Some).ok_or_else(|| E::invalid_type(Unexpected::Float(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default, deserialize_with = "optional")]
        number: Option<i64>,
    }

    #[test]
    fn a_number_is_the_same_however_it_is_written() {
        let read = |text: &str| serde_json::from_str::<Body>(text).map(|body| body.number);
        for (text, number) in [
            ("{}", None),
            (r#"{"number": null}"#, None),
            (r#"{"number": 1024}"#, Some(1024)),
            (r#"{"number": 1024.0}"#, Some(1024)),
            (r#"{"number": 1.024e3}"#, Some(1024)),
            (r#"{"number": -1.0}"#, Some(-1)),
            (r#"{"number": -0.0}"#, Some(0)),
            (r#"{"number": 9223372036854775807}"#, Some(i64::MAX)),
        ] {
            assert_eq!(read(text).unwrap(), number, "{text}");
        }
        for text in
            ["1.5", "1e300", "9007199254740993.0", "18446744073709551615", "\"1\"", "true", "[1]", "{}"]
        {
            let error = read(&format!("{{\"number\": {text}}}")).unwrap_err().to_string();
            assert!(error.contains("expected a whole number"), "{text}: {error}");
        }
    }
}
