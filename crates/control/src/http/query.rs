//! Queries, decoded strictly: a value that is not UTF-8 is refused, not repaired, because a repaired path would name
//! another file.

use axum::extract::FromRequestParts;
use http::request::Parts;
use warren_types::Error;

use super::errors::ApiError;

/// Decoded pairs in the order they came.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(raw: Option<&str>) -> Result<Self, Error> {
        let pairs = raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let bad = || Error::invalid("the query is not percent-encoded UTF-8");
            Ok((decode(name).ok_or_else(bad)?, decode(value).ok_or_else(bad)?))
        });
        pairs.collect::<Result<_, Error>>().map(Self)
    }

    /// The first value of that name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn take(mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(found, _)| found == name)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(super) fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::parse(parts.uri.query())?)
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let byte = digit(digits[0])? * 16 + digit(digits[1])?;
                bytes.push(u8::try_from(byte).ok()?);
                rest = after;
            }
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::guest::query_value;
    use proptest::prelude::*;

    #[test]
    fn what_cannot_be_decoded_is_refused() {
        for bad in ["path=%", "path=%4", "path=%zz", "path=%ff", "%c3=1", "path=%+1"] {
            assert!(Query::parse(Some(bad)).is_err(), "{bad}");
        }
        let query = Query::parse(Some("a=1&&b=x+y%2B&a=2&c")).unwrap();
        assert_eq!((query.get("a"), query.get("b"), query.get("c")), (Some("1"), Some("x y+"), Some("")));
    }

    proptest! {
        #[test]
        fn what_is_encoded_reads_back(text in "\\PC{0,40}") {
            let raw = format!("path={}", query_value(&text));
            let query = Query::parse(Some(&raw)).unwrap();
            prop_assert_eq!(query.get("path"), Some(text.as_str()));
        }
    }
}
