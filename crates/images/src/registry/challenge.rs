//! What a registry wants from who asks: `WWW-Authenticate`.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token of a service.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// Name and password themselves.
    Basic,
}

const LONGEST: usize = 4096;

/// The one we go by: tokens before passwords.
pub(super) fn read(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let challenges: Vec<_> = values.filter(|value| value.len() <= LONGEST).flat_map(split).collect();
    let bearer = challenges.iter().find_map(|(scheme, pairs)| {
        let get = |name: &str| {
            pairs.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        let realm = get("realm").filter(|_| scheme.eq_ignore_ascii_case("bearer"))?;
        Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") })
    });
    let basic = || {
        challenges.iter().any(|(scheme, _)| scheme.eq_ignore_ascii_case("basic")).then_some(Challenge::Basic)
    };
    bearer.or_else(basic)
}

type Pairs = Vec<(String, String)>;

/// `Scheme key="value", key=value, Other key=…`.
fn split(header: &str) -> Vec<(String, Pairs)> {
    let mut challenges: Vec<(String, Pairs)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return challenges;
        }
        match (after.strip_prefix('='), challenges.last_mut()) {
            (Some(after), Some((_, pairs))) => {
                let (value, after) = value(after);
                pairs.push((word.to_owned(), value));
                rest = after;
            }
            (Some(_), None) => return challenges,
            (None, _) => {
                challenges.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
    }
}

/// A word, or whatever is between quotes.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((place, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[place + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(headers: &[&str]) -> Option<Challenge> {
        read(&headers.iter().map(|value| (WWW_AUTHENTICATE, value.parse().unwrap())).collect())
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let owned = |text: Option<&str>| text.map(ToOwned::to_owned);
            Some(Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) })
        };
        for (headers, expected) in [
            (
                &[r#"Bearer realm="https://a/t",service="r",scope="repository:x:pull,push""#][..],
                bearer("https://a/t", Some("r"), Some("repository:x:pull,push")),
            ),
            (&["Basic realm=\"x\"", "bearer realm=https://a/t"], bearer("https://a/t", None, None)),
            (&[r#"Basic realm="a, b", Bearer realm="h\"i""#], bearer("h\"i", None, None)),
            (&["Basic"], Some(Challenge::Basic)),
            (&["Bearer service=x"], None),
            (&["Negotiate"], None),
            (&["=", ",,,", "realm=x", "Bearer realm=\"unended"], bearer("unended", None, None)),
            (&[], None),
        ] {
            assert_eq!(challenge(headers), expected, "{headers:?}");
        }
    }
}
