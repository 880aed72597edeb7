//! The first message of a TLS client, as far as it has to be understood before the connection is let anywhere.
//!
//! Strict: every length has to be used up exactly, a name may be there once, and nothing is taken from a message that
//! is wrong elsewhere. Records may cut the message anywhere. Bytes of a sandbox come in here, so nothing here allocates
//! beyond [`MAX_BYTES`].

use warren_types::egress::normal_host;

/// Bytes of the records that one message may take; more is refused.
pub const MAX_BYTES: usize = 16 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
const MAX_RECORD: usize = 16 * 1024;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
const MAX_PROTOCOLS: usize = 16;

/// What a client says of itself before anything is encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Whom it wants to speak to, as [`normal_host`] makes it.
    pub server_name: Option<String>,
    /// What it can speak, in its order.
    pub protocols: Vec<Vec<u8>>,
    /// It has sent an encrypted one inside, or what looks like it.
    pub encrypted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    Complete(ClientHello),
    /// More bytes are needed to tell.
    Partial,
    /// It never will be one; why.
    Malformed(&'static str),
}

impl ClientHello {
    /// Whether it can speak HTTP, or does not say.
    #[must_use]
    pub fn may_speak_http(&self) -> bool {
        self.protocols.is_empty()
            || self.protocols.iter().any(|protocol| protocol == b"h2" || protocol == b"http/1.1")
    }
}

/// Reads the message at the beginning of a connection. `bytes` is all that has arrived so far.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    match reassemble(bytes) {
        Ok(Some(message)) => match hello(&message) {
            Ok(hello) => Parsed::Complete(hello),
            Err(why) => Parsed::Malformed(why),
        },
        Ok(None) if bytes.len() >= MAX_BYTES => Parsed::Malformed("the client hello is too long"),
        Ok(None) => Parsed::Partial,
        Err(why) => Parsed::Malformed(why),
    }
}

/// The body of the handshake message, out of as many records as it takes.
fn reassemble(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    let mut message = Vec::new();
    let mut used = 0;
    loop {
        if bytes.first().is_some_and(|kind| *kind != HANDSHAKE) {
            return Err("not a TLS handshake");
        }
        if bytes.get(1).is_some_and(|major| *major != 3) {
            return Err("not a version of TLS");
        }
        let Some((header, rest)) = bytes.split_at_checked(RECORD_HEADER) else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > MAX_RECORD {
            return Err("a record of a length that TLS does not have");
        }
        used += RECORD_HEADER + length;
        if used > MAX_BYTES {
            return Err("the client hello is too long");
        }
        message.extend_from_slice(&rest[..length.min(rest.len())]);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err("not a client hello");
        }
        if let Some(&[_, a, b, c]) = message.first_chunk::<4>() {
            let whole = 4 + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
            if whole > MAX_BYTES {
                return Err("the client hello is too long");
            }
            if message.len() >= whole {
                message.truncate(whole);
                message.drain(..4);
                return Ok(Some(message));
            }
        }
        let Some(next) = rest.get(length..) else { return Ok(None) };
        bytes = next;
    }
}

fn hello(message: &[u8]) -> Result<ClientHello, &'static str> {
    let mut reader = Reader(message);
    // Version and random.
    reader.take(2 + 32)?;
    reader.vector8()?;
    reader.vector16()?;
    reader.vector8()?;
    let mut hello = ClientHello::default();
    if reader.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = Reader(reader.vector16()?);
    reader.end()?;
    let mut seen = Vec::new();
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.vector16()?;
        if seen.contains(&kind) {
            return Err("an extension twice");
        }
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.server_name = Some(server_name(content)?),
            ALPN => hello.protocols = protocols(content)?,
            ENCRYPTED_CLIENT_HELLO => hello.encrypted = true,
            _ => {}
        }
    }
    Ok(hello)
}

fn server_name(content: &[u8]) -> Result<String, &'static str> {
    let mut content = Reader(content);
    let mut list = Reader(content.vector16()?);
    content.end()?;
    if list.take(1)? != [0] {
        return Err("a server name that is no host name");
    }
    let name = list.vector16()?;
    list.end()?;
    let name = std::str::from_utf8(name).map_err(|_| "a server name that is not ASCII")?;
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Err("an address for a server name");
    }
    normal_host(name).ok_or("a server name that is none")
}

fn protocols(content: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    let mut content = Reader(content);
    let mut list = Reader(content.vector16()?);
    content.end()?;
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.vector8()?;
        if protocol.is_empty() || protocols.len() == MAX_PROTOCOLS {
            return Err("a list of protocols that is none");
        }
        protocols.push(protocol.to_vec());
    }
    if protocols.is_empty() {
        return Err("an empty list of protocols");
    }
    Ok(protocols)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("a length that leads past the end")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, &'static str> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.number()?;
        self.take(usize::from(length))
    }

    fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err("bytes that nothing accounts for") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// What rustls really sends, with these protocols.
    fn real(host: &str, protocols: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = host.to_owned().try_into().unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of `size` bytes.
    fn in_records(bytes: &[u8], size: usize) -> Vec<u8> {
        let message = &bytes[RECORD_HEADER..];
        message
            .chunks(size)
            .flat_map(|piece| {
                let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
                [&[HANDSHAKE, 3, 1], &length[..], piece].concat()
            })
            .collect()
    }

    fn complete(bytes: &[u8]) -> ClientHello {
        match parse(bytes) {
            Parsed::Complete(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_real_one_is_read() {
        let hello = complete(&real("API.Example.com", &[b"h2", b"http/1.1"]));
        assert_eq!(hello.server_name.as_deref(), Some("api.example.com"));
        assert_eq!(hello.protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert!(!hello.encrypted && hello.may_speak_http());
        let hello = complete(&real("127.0.0.1", &[b"imap"]));
        assert_eq!(hello.server_name, None);
        assert!(!hello.may_speak_http());
    }

    #[test]
    fn names_that_programs_read_in_several_ways_are_refused() {
        let whole = real("aaaaaaaaaaa", &[]);
        for name in [
            &b"1.2.3.4\0\0\0\0"[..],
            b"a.b.c.d\0e.f",
            b"a..........",
            b"2130706433.",
            b"a b.c.d.e.f",
            b"\xc3\xa4.example.",
        ] {
            let at = whole.windows(11).position(|window| window == b"aaaaaaaaaaa").unwrap();
            let mut bytes = whole.clone();
            bytes[at..at + name.len()].copy_from_slice(name);
            assert!(matches!(parse(&bytes), Parsed::Malformed(_)), "{name:?}");
        }
    }

    #[test]
    fn other_things_are_told_at_once() {
        for other in
            [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0", &[22, 2], &[22, 3, 1, 0, 0], &[22, 3, 1, 0, 5, 2]]
        {
            assert!(matches!(parse(other), Parsed::Malformed(_)), "{other:?}");
        }
        assert_eq!(parse(&[]), Parsed::Partial);
        // A message that says it is larger than we read is not waited for.
        assert!(matches!(parse(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), Parsed::Malformed(_)));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
            let _ = parse(&[&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc], &bytes[..]].concat());
        }

        #[test]
        fn changed_ones_do_not_make_it_panic(at in 0_usize..200, to in any::<u8>()) {
            let mut bytes = real("api.example.com", &[b"h2"]);
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = parse(&bytes);
        }

        #[test]
        fn however_it_is_cut_it_is_the_same(size in 1_usize..600, arrived in 0_usize..2000) {
            let whole = real("api.example.com", &[b"h2", b"http/1.1"]);
            let bytes = in_records(&whole, size);
            prop_assert_eq!(parse(&bytes), parse(&whole));
            let arrived = arrived % bytes.len();
            prop_assert_eq!(parse(&bytes[..arrived]), Parsed::Partial);
        }
    }
}
