//! Whether a connection begins like HTTP.

use std::cmp::Ordering;

const MAX_METHOD: usize = 24;
/// A request line that has not ended by then is taken for one all the same, and refused as too long later.
const MAX_LINE: usize = 8 * 1024;
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    /// HTTP/1.0 or 1.1, or what claims to be.
    Http,
    /// HTTP/2 without TLS.
    Http2,
    Other,
    /// More bytes are needed to tell.
    Partial,
}

/// `bytes` is all that has arrived so far.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Sniffed {
    let shared = bytes.len().min(HTTP_2.len());
    if bytes[..shared] == HTTP_2[..shared] {
        return if shared == HTTP_2.len() { Sniffed::Http2 } else { Sniffed::Partial };
    }
    // Servers are known to skip empty lines before a request.
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = &bytes[start..];
    let letters =
        line.iter().take_while(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_')).count();
    match (letters.cmp(&line.len()), line.get(letters)) {
        _ if letters > MAX_METHOD || start > MAX_METHOD => return Sniffed::Other,
        (Ordering::Equal, _) => return Sniffed::Partial,
        (_, Some(b' ' | b'\t')) if letters > 0 => {}
        _ => return Sniffed::Other,
    }
    match line.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            let line = line[..end].to_ascii_uppercase();
            let is_http =
                line.windows(6).any(|window| window[0].is_ascii_whitespace() && window[1..] == *b"HTTP/");
            if is_http { Sniffed::Http } else { Sniffed::Other }
        }
        None if line.len() > MAX_LINE => Sniffed::Http,
        None => Sniffed::Partial,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_told_from_other_protocols() {
        for http in [
            "GET / HTTP/1.1\r\n",
            "get /x HTTP/1.0\n",
            "\r\nPOST /a b HTTP/1.1\r\nHost",
            "M-SEARCH * HTTP/1.1\r\n",
            "GET\t/\tHTTP/1.1\r\n",
        ] {
            assert_eq!(sniff(http.as_bytes()), Sniffed::Http, "{http:?}");
        }
        for other in [
            "SSH-2.0-x\r\n",
            "EHLO me\r\n",
            "USER x y\r\n",
            "\x16\x03\x01",
            "\0\0\0\x08",
            "GET /\r\n",
            " GET / HTTP/1.1\r\n",
        ] {
            assert_eq!(sniff(other.as_bytes()), Sniffed::Other, "{other:?}");
        }
        for partial in ["", "G", "GET", "GET / HTTP/1.1", "PRI * HTTP/2.0", "\r\n"] {
            assert_eq!(sniff(partial.as_bytes()), Sniffed::Partial, "{partial:?}");
        }
        assert_eq!(sniff(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Sniffed::Http2);
    }

    proptest! {
        #[test]
        fn what_is_decided_stays_decided(text in "(GET|PRI|x|\r\n)?[ /*A-Z0-9.\r\n\t]{0,40}", more in "[ /A-Z0-9.\r\n]{0,20}") {
            let early = sniff(text.as_bytes());
            if early != Sniffed::Partial {
                prop_assert_eq!(sniff(format!("{text}{more}").as_bytes()), early);
            }
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = sniff(&bytes);
        }
    }
}
