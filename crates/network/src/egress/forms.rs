//! How servers write a value in what they say.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Shorter values are not looked for in replies: they would be found where they are not meant.
pub(crate) const MIN_SEARCHED: usize = 4;
/// Below this a value in base64 or in hexadecimal digits is too short to be told from other text.
const MIN_SEARCHED_IN_DIGITS: usize = 8;
/// Everything but what RFC 3986 calls unreserved.
pub(crate) const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// What `encodeURIComponent` leaves besides.
const COMPONENT: &AsciiSet = &QUERY.remove(b'!').remove(b'\'').remove(b'(').remove(b')').remove(b'*');

/// As it is, in percent signs, inside a text of JSON or HTML, in hexadecimal digits. Most values have nothing that is
/// written in more than one way, which leaves few forms of these.
pub(crate) fn forms(value: &str) -> Vec<Vec<u8>> {
    if value.len() < MIN_SEARCHED {
        return Vec::new();
    }
    let mut texts = in_text(value);
    if !value.is_ascii() {
        // As a server says it again that takes the bytes of a header for Latin-1.
        texts.extend(in_text(&value.bytes().map(char::from).collect::<String>()));
    }
    let mut forms: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
    if value.len() >= MIN_SEARCHED_IN_DIGITS {
        forms.extend([hexadecimal(value).into_bytes(), hexadecimal(value).to_uppercase().into_bytes()]);
    }
    forms.sort();
    forms.dedup();
    forms
}

/// In UTF-16, little endian and big.
pub(crate) fn in_utf16(text: &str) -> [Vec<u8>; 2] {
    let bytes = |of: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(of).collect();
    [bytes(u16::to_le_bytes), bytes(u16::to_be_bytes)]
}

/// In base64, wherever it stands in a text.
pub(crate) fn in_base64(value: &str) -> Vec<Vec<u8>> {
    if value.len() < MIN_SEARCHED_IN_DIGITS {
        return Vec::new();
    }
    let both = |offset| {
        [within_base64(&STANDARD_NO_PAD, value, offset), within_base64(&URL_SAFE_NO_PAD, value, offset)]
    };
    let mut forms: Vec<_> = (0..3).flat_map(both).collect();
    forms.sort();
    forms.dedup();
    forms
}

fn in_text(value: &str) -> Vec<String> {
    let upper = utf8_percent_encode(value, QUERY).to_string();
    let component = utf8_percent_encode(value, COMPONENT).to_string();
    let json = json(value);
    let ascii = escaped(&json, |letter| !letter.is_ascii());
    // What Go does not leave as it is, and .NET.
    let go = escaped(&json, |letter| "&<>\u{2028}\u{2029}".contains(letter));
    let net =
        escaped(&json.replace("\\\"", "\\u0022"), |letter| !letter.is_ascii() || "&<>'+`".contains(letter));
    let html = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let quoted = |double: &str, single: &str| html.replace('"', double).replace('\'', single);
    vec![
        value.to_owned(),
        lower_escapes(&upper),
        lower_escapes(&component),
        upper.replace("%20", "+"),
        upper,
        component,
        json.replace('/', "\\/"),
        ascii.replace('/', "\\/"),
        self::json(&json),
        upper_escapes(&net),
        net,
        ascii,
        go,
        json,
        quoted("\"", "'"),
        quoted("&quot;", "'"),
        quoted("&quot;", "&#39;"),
        quoted("&quot;", "&#039;"),
        quoted("&quot;", "&#x27;"),
        quoted("&#34;", "&#39;"),
    ]
}

/// Inside the quotes.
fn json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// A text of JSON with such letters by their numbers.
fn escaped(json: &str, is_escaped: impl Fn(char) -> bool) -> String {
    json.chars().fold(String::new(), |mut out, letter| {
        if is_escaped(letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(letter);
        }
        out
    })
}

/// `\u00fc` as `\u00FC`.
fn upper_escapes(json: &str) -> String {
    let mut parts = json.split("\\u");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut out, part| {
        let (digits, rest) = part.split_at_checked(4).unwrap_or((part, ""));
        let _ = write!(out, "\\u{}{rest}", digits.to_ascii_uppercase());
        out
    })
}

fn hexadecimal(value: &str) -> String {
    value.bytes().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// `%2F` as `%2f`.
fn lower_escapes(text: &str) -> String {
    let mut escape = 0;
    text.chars()
        .map(|letter| {
            escape = if letter == '%' { 2 } else { escape };
            let lower = if escape > 0 { letter.to_ascii_lowercase() } else { letter };
            if letter != '%' && escape > 0 {
                escape -= 1;
            }
            lower
        })
        .collect()
}

/// The digits that a value has in the base64 of any text it stands in, `offset` bytes (modulo 3) after its beginning.
/// The digits at its ends that it shares with its neighbours are left out.
fn within_base64(engine: &impl Engine, value: &str, offset: usize) -> Vec<u8> {
    let text = [&[0; 2][..offset], value.as_bytes()].concat();
    let mut digits = engine.encode(&text).into_bytes();
    if text.len() % 3 != 0 {
        digits.pop();
    }
    digits.drain(..[0, 2, 3][offset]);
    digits
}

#[cfg(test)]
mod tests {
    use super::super::replace::Table;
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::prelude::*;

    fn sealer(value: &str) -> Table {
        let forms = forms(value).into_iter().chain(in_base64(value));
        Table::new(forms.map(|form| (form, b"token".to_vec())).collect()).unwrap()
    }

    #[test]
    fn values_are_found_however_they_are_written() {
        let value = "p/q+r s\"t\\u=v!(w)";
        let table = sealer(value);
        for written in [
            value,
            "p%2Fq%2Br%20s%22t%5Cu%3Dv%21%28w%29",
            "p%2fq%2br%20s%22t%5cu%3dv%21%28w%29",
            "p%2Fq%2Br%20s%22t%5Cu%3Dv!(w)",
            "p%2Fq%2Br+s%22t%5Cu%3Dv%21%28w%29",
            "p/q+r s\\\"t\\\\u=v!(w)",
            "p\\/q+r s\\\"t\\\\u=v!(w)",
        ] {
            assert!(table.is_in(format!("<{written}>").as_bytes()), "{written}");
        }
    }

    #[test]
    fn values_are_found_as_libraries_write_them() {
        let value = "V&x<9>z'\"Ü+/ü😀";
        let table = sealer(value);
        for written in [
            // Python, JavaScript, Go, PHP, .NET; and JSON in JSON.
            r#"V&x<9>z'\"\u00dc+/\u00fc\ud83d\ude00"#,
            r#"V&x<9>z'\"Ü+/ü😀"#,
            r#"V\u0026x\u003c9\u003ez'\"Ü+/ü😀"#,
            r#"V&x<9>z'\"\u00dc+\/\u00fc\ud83d\ude00"#,
            r"V\u0026x\u003C9\u003Ez\u0027\u0022\u00DC\u002B/\u00FC\uD83D\uDE00",
            r#"V&x<9>z'\\\"Ü+/ü😀"#,
            // HTML of Python, Go, PHP, and where only what has to be is escaped.
            "V&amp;x&lt;9&gt;z&#x27;&quot;Ü+/ü😀",
            "V&amp;x&lt;9&gt;z&#39;&#34;Ü+/ü😀",
            "V&amp;x&lt;9&gt;z&#039;&quot;Ü+/ü😀",
            "V&amp;x&lt;9&gt;z'\"Ü+/ü😀",
            // Of bytes that were taken for Latin-1.
            "V&x<9>z'\"Ã\u{9c}+/Ã¼ð\u{9f}\u{98}\u{80}",
            r#"V&x<9>z'\"\u00c3\u009c+/\u00c3\u00bc\u00f0\u009f\u0098\u0080"#,
        ] {
            assert!(table.is_in(written.as_bytes()), "{written}");
        }
        for digits in [hexadecimal(value), hexadecimal(value).to_uppercase()] {
            assert!(table.is_in(digits.as_bytes()));
        }
        // What most secrets look like takes few patterns: the search for candidates is for 64.
        let plain = "sk-live-0123456789abcdef";
        assert_eq!((forms(plain).len(), in_base64(plain).len()), (3, 3));
    }

    proptest! {
        #[test]
        fn a_value_is_found_in_base64_wherever_it_stands(
            value in "[ -~]{8,40}", before in "[ -~]{0,10}", after in "[ -~]{0,10}",
        ) {
            let table = sealer(&value);
            let text = format!("{before}{value}{after}");
            prop_assert!(table.is_in(STANDARD.encode(&text).as_bytes()));
            prop_assert!(table.is_in(URL_SAFE.encode(&text).as_bytes()));
        }
    }
}
