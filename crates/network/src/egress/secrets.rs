//! The secrets of one sandbox, made ready for the hosts it speaks to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use warren_node_api::{GrantedSecret, Place, SecretGrant};

use super::replace::Table;

/// How what stands for a secret begins; 32 hexadecimal digits follow.
pub(crate) const TOKEN_PREFIX: &str = "osb_sealed_";
/// Shorter values are not looked for in replies: they would be found where they are not meant.
const MIN_SEARCHED: usize = 4;
/// Below this a value in base64 is too short to be told from other text.
const MIN_SEARCHED_IN_BASE64: usize = 8;
const MAX_HOSTS_KEPT: usize = 256;
/// Everything but what RFC 3986 calls unreserved.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// What `encodeURIComponent` leaves besides.
const COMPONENT: &AsciiSet = &QUERY.remove(b'!').remove(b'\'').remove(b'(').remove(b')').remove(b'*');

/// All of a sandbox's secrets.
pub(crate) struct Secrets {
    granted: Vec<GrantedSecret>,
    hosts: Mutex<HashMap<String, Arc<HostSecrets>>>,
}

/// Those that are meant for one host.
#[derive(Default)]
pub(crate) struct HostSecrets {
    pub(crate) header: Option<Substitutes>,
    pub(crate) query: Option<Substitutes>,
    pub(crate) body: Option<Substitutes>,
    /// Finds the values, and puts the tokens back.
    pub(crate) seal: Option<Arc<Table>>,
}

/// Values in place of tokens, and whose they are.
pub(crate) struct Substitutes {
    pub(crate) table: Arc<Table>,
    /// Names of secrets, at the places they have in the table.
    pub(crate) names: Arc<[String]>,
}

impl Secrets {
    pub(crate) fn new(grant: SecretGrant) -> Self {
        Self { granted: grant.secrets, hosts: Mutex::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.granted.is_empty()
    }

    pub(crate) fn apply_to(&self, host: &str) -> bool {
        self.granted.iter().any(|secret| applies(secret, host))
    }

    pub(crate) fn for_host(&self, host: &str) -> Arc<HostSecrets> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(secrets) = hosts.get(host) {
            return secrets.clone();
        }
        if hosts.len() >= MAX_HOSTS_KEPT {
            hosts.clear();
        }
        let applicable: Vec<_> = self.granted.iter().filter(|secret| applies(secret, host)).collect();
        let secrets = Arc::new(HostSecrets::new(&applicable));
        hosts.insert(host.to_owned(), secrets.clone());
        secrets
    }
}

impl HostSecrets {
    fn new(secrets: &[&GrantedSecret]) -> Self {
        let plain = |secret: &GrantedSecret| secret.value.expose().clone().into_bytes();
        let encoded = |secret: &GrantedSecret| {
            utf8_percent_encode(secret.value.expose(), QUERY).to_string().into_bytes()
        };
        let sealed = secrets.iter().flat_map(|secret| {
            forms(secret.value.expose()).into_iter().map(|form| (form, secret.token.clone().into_bytes()))
        });
        Self {
            header: Substitutes::new(secrets, Place::Header, plain),
            query: Substitutes::new(secrets, Place::Query, encoded),
            body: Substitutes::new(secrets, Place::Body, plain),
            seal: Table::new(sealed.collect()).map(Arc::new),
        }
    }
}

impl Substitutes {
    fn new(
        secrets: &[&GrantedSecret],
        place: Place,
        value: impl Fn(&GrantedSecret) -> Vec<u8>,
    ) -> Option<Self> {
        let secrets: Vec<_> = secrets.iter().filter(|secret| secret.places.contains(&place)).collect();
        let pairs = secrets.iter().map(|secret| (secret.token.clone().into_bytes(), value(secret))).collect();
        let names = secrets.iter().map(|secret| secret.name.clone()).collect();
        Some(Self { table: Arc::new(Table::new(pairs)?), names })
    }
}

fn applies(secret: &GrantedSecret, host: &str) -> bool {
    secret.hosts.is_empty() || secret.hosts.iter().any(|pattern| pattern.matches(host))
}

/// How a value may be written in a reply: as it is, in percent signs, inside a JSON text, in base64.
fn forms(value: &str) -> Vec<Vec<u8>> {
    if value.len() < MIN_SEARCHED {
        return Vec::new();
    }
    let upper = utf8_percent_encode(value, QUERY).to_string();
    let component = utf8_percent_encode(value, COMPONENT).to_string();
    let json = serde_json::Value::from(value).to_string();
    let mut forms: Vec<Vec<u8>> = [
        value.to_owned(),
        lower_escapes(&upper),
        lower_escapes(&component),
        upper.replace("%20", "+"),
        upper,
        component,
        json.replace('/', "\\/")[1..].trim_end_matches('"').to_owned(),
        json[1..json.len() - 1].to_owned(),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect();
    if value.len() >= MIN_SEARCHED_IN_BASE64 {
        forms.extend((0..3).flat_map(|offset| {
            [within_base64(&STANDARD_NO_PAD, value, offset), within_base64(&URL_SAFE_NO_PAD, value, offset)]
        }));
    }
    forms.retain(|form| form.len() >= MIN_SEARCHED);
    forms.sort();
    forms.dedup();
    forms
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
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::prelude::*;
    use warren_types::Secret;

    fn secret(value: &str, hosts: &[&str], places: &[Place]) -> GrantedSecret {
        GrantedSecret {
            name: "KEY".into(),
            token: format!("{TOKEN_PREFIX}{:032x}", 7),
            value: Secret::new(value.into()),
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            places: places.to_vec(),
        }
    }

    fn sealer(value: &str) -> Arc<Table> {
        let secrets = Secrets::new(SecretGrant { secrets: vec![secret(value, &[], &[Place::Header])] });
        secrets.for_host("a.example").seal.clone().unwrap()
    }

    #[test]
    fn a_secret_is_for_its_hosts_only() {
        let secrets =
            Secrets::new(SecretGrant { secrets: vec![secret("value", &["*.a.example"], &[Place::Header])] });
        assert!(secrets.apply_to("x.a.example") && secrets.for_host("x.a.example").header.is_some());
        assert!(!secrets.apply_to("a.example") && secrets.for_host("a.example").header.is_none());
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
    fn values_that_are_too_short_are_not_looked_for() {
        let secrets = Secrets::new(SecretGrant { secrets: vec![secret("abc", &[], &[Place::Header])] });
        assert!(secrets.for_host("a.example").seal.is_none());
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
