//! Queries, decoded strictly: a value that is not UTF-8 is refused, not repaired. Only `path` may be any bytes, as the names of files
//! may be.

use axum::extract::FromRequestParts;
use http::request::Parts;
use warren_types::Error;

use super::errors::ApiError;

/// Decoded pairs in the order they came.
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    pairs: Vec<(String, String)>,
    /// The first `path`, which is among the pairs too where it is text.
    path: Option<Vec<u8>>,
}

impl Query {
    pub(super) fn parse(raw: Option<&str>) -> Result<Self, Error> {
        let mut query = Self::default();
        let bad = || Error::invalid("the query is not percent-encoded UTF-8");
        for pair in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).and_then(|name| String::from_utf8(name).ok()).ok_or_else(bad)?;
            let value = decode(value).ok_or_else(bad)?;
            if name == "path" && query.path.is_none() {
                query.path = Some(value.clone());
            }
            match String::from_utf8(value) {
                Ok(value) => query.pairs.push((name, value)),
                Err(_) if name == "path" => {}
                Err(_) => return Err(bad()),
            }
        }
        Ok(query)
    }

    /// The first value of that name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The first `path`.
    pub(super) fn into_path(self) -> Option<Vec<u8>> {
        self.path
    }

    pub(super) fn into_pairs(self) -> Vec<(String, String)> {
        self.pairs
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::parse(parts.uri.query())?)
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
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
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::guest::query_value;
    use proptest::prelude::*;

    #[test]
    fn what_cannot_be_decoded_is_refused() {
        for bad in ["path=%", "path=%4", "path=%zz", "name=%ff", "%c3=1", "path=%+1"] {
            assert!(Query::parse(Some(bad)).is_err(), "{bad}");
        }
        let query = Query::parse(Some("a=1&&b=x+y%2B&a=2&c")).unwrap();
        assert_eq!((query.get("a"), query.get("b"), query.get("c")), (Some("1"), Some("x y+"), Some("")));
    }

    #[test]
    fn a_path_may_be_any_bytes() {
        let query = Query::parse(Some("mode=644&path=/a%ff+b&path=/c")).unwrap();
        assert_eq!(query.get("mode"), Some("644"));
        assert_eq!(query.into_path().as_deref(), Some(&b"/a\xff b"[..]));
        assert_eq!(Query::parse(Some("a=1")).unwrap().into_path(), None);
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
