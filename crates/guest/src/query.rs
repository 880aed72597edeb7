//! The query of a request: form rules, bytes rather than text, since a file name is bytes.

/// Decoded parameters in the order in which they came.
#[derive(Debug, Default)]
pub struct Query(Vec<(Vec<u8>, Vec<u8>)>);

impl Query {
    /// Never fails: what is not an escape stands for itself.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name.as_bytes()), decode(value.as_bytes()))
        });
        Self(pairs.collect())
    }

    /// The first value of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(key, _)| key == name.as_bytes()).map(|(_, value)| &value[..])
    }
}

fn decode(mut text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    while let Some((&first, rest)) = text.split_first() {
        text = rest;
        decoded.push(match (first, rest) {
            (b'+', _) => b' ',
            (b'%', &[high, low, ..]) => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => {
                    text = &rest[2..];
                    high << 4 | low
                }
                _ => b'%',
            },
            _ => first,
        });
    }
    decoded
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms_are_decoded_to_bytes() {
        let query = Query::parse("a=1&path=%2Ftmp%2Fa+b%00%ff&a=2&&flag&bad=%zz%4&=x");
        assert_eq!(query.get("path"), Some(&b"/tmp/a b\0\xff"[..]));
        assert_eq!(query.get("a"), Some(&b"1"[..]), "the first one counts");
        assert_eq!(query.get("flag"), Some(&b""[..]));
        assert_eq!(query.get("bad"), Some(&b"%zz%4"[..]));
        assert_eq!(query.get("none"), None);
    }

    proptest! {
        #[test]
        fn what_was_escaped_comes_back(value in prop::collection::vec(any::<u8>(), 0..50)) {
            let escaped: String = value.iter().map(|byte| format!("%{byte:02X}")).collect();
            let query = Query::parse(&format!("p={escaped}"));
            prop_assert_eq!(query.get("p"), Some(&value[..]));
        }

        #[test]
        fn any_text_is_taken(text in "\\PC{0,80}") {
            let _ = Query::parse(&text);
        }
    }
}
