//! The secrets of one sandbox, made ready for the hosts it speaks to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use percent_encoding::utf8_percent_encode;
use warren_node_api::{GrantedSecret, Place};

use super::forms::{MIN_SEARCHED, QUERY, forms, in_base64, in_utf16};
use super::replace::Table;

const MAX_HOSTS_KEPT: usize = 256;
/// For so long a value that was replaced, removed or kept from a host is still looked for in what that host says: it may have
/// kept it, and answer with it.
pub(crate) const GRACE: Duration = Duration::from_secs(60 * 60);
/// Values of one secret that are looked for although it has another.
const MAX_FORMER: usize = 4;

/// Shorter values are not looked for in names of fields, of which some are words.
const MIN_IN_NAMES: usize = 8;

/// All of a sandbox's secrets.
pub(crate) struct Secrets {
    granted: Vec<Arc<GrantedSecret>>,
    /// What was granted before, the newest first.
    former: Vec<Former>,
    ready: Mutex<Ready>,
}

/// A secret as it was, and until when it is looked for.
#[derive(Clone)]
pub(crate) struct Former {
    pub(crate) secret: Arc<GrantedSecret>,
    pub(crate) until: Instant,
}

/// What was made ready for hosts, and since when.
struct Ready {
    since: Instant,
    hosts: HashMap<String, Arc<HostSecrets>>,
}

/// Those that are meant for one host.
#[derive(Default)]
pub(crate) struct HostSecrets {
    pub(crate) header: Option<Substitutes>,
    pub(crate) query: Option<Substitutes>,
    pub(crate) body: Option<Arc<Substitutes>>,
    /// Tokens in place of values.
    pub(crate) seal: Option<Arc<Substitutes>>,
}

/// Values in place of tokens or the other way round, and whose they are.
pub(crate) struct Substitutes {
    pub(crate) table: Table,
    /// Names of secrets, at the places they have in the table.
    pub(crate) names: Vec<String>,
    /// What no name of a field may have in it. Names are in small letters, whatever they were.
    pub(crate) in_names: Option<Table>,
}

impl Secrets {
    /// `before` are those that were in force until now; `told` is what is known of earlier ones, the newest first.
    pub(crate) fn new(
        granted: Vec<Arc<GrantedSecret>>,
        told: &[Former],
        before: Option<&Self>,
        now: Instant,
    ) -> Self {
        let old = before.map(|before| before.granted.as_slice()).unwrap_or_default();
        let old = old.iter().map(|secret| Former { secret: secret.clone(), until: now + GRACE });
        let older = before.map(|before| before.former.as_slice()).unwrap_or_default();
        let mut former: Vec<Former> = Vec::new();
        for one in old.chain(told.iter().chain(older).cloned()).filter(|one| one.until > now) {
            let of_token = || former.iter().filter(|known| known.secret.token == one.secret.token);
            if !granted.iter().any(|new| covers(new, &one.secret))
                && !of_token().any(|known| covers(&known.secret, &one.secret))
                && of_token().count() < MAX_FORMER
            {
                former.push(one);
            }
        }
        Self { granted, former, ready: Mutex::new(Ready { since: now, hosts: HashMap::new() }) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.granted.is_empty()
    }

    /// Whether there is anything to put in or to look for where that host is spoken to.
    pub(crate) fn apply_to(&self, host: &str) -> bool {
        self.granted.iter().any(|secret| applies(secret, host))
            || self.former(Instant::now()).any(|secret| applies(secret, host))
    }

    pub(crate) fn for_host(&self, host: &str) -> Arc<HostSecrets> {
        self.for_host_at(host, Instant::now())
    }

    fn for_host_at(&self, host: &str, now: Instant) -> Arc<HostSecrets> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if self.former.iter().any(|former| former.until > ready.since && former.until <= now) {
            *ready = Ready { since: now, hosts: HashMap::new() };
        }
        if let Some(secrets) = ready.hosts.get(host) {
            return secrets.clone();
        }
        if ready.hosts.len() >= MAX_HOSTS_KEPT {
            ready.hosts.clear();
        }
        let granted: Vec<_> =
            self.granted.iter().map(Arc::as_ref).filter(|secret| applies(secret, host)).collect();
        let former: Vec<_> = self.former(now).filter(|secret| applies(secret, host)).collect();
        let secrets = Arc::new(HostSecrets::new(&granted, &former));
        ready.hosts.insert(host.to_owned(), secrets.clone());
        secrets
    }

    fn former(&self, now: Instant) -> impl Iterator<Item = &GrantedSecret> {
        self.former.iter().filter(move |former| former.until > now).map(|former| former.secret.as_ref())
    }
}

impl HostSecrets {
    fn new(granted: &[&GrantedSecret], former: &[&GrantedSecret]) -> Self {
        let plain = |secret: &GrantedSecret| secret.value.expose().clone().into_bytes();
        let encoded = |secret: &GrantedSecret| {
            utf8_percent_encode(secret.value.expose(), QUERY).to_string().into_bytes()
        };
        let (mut sealed, mut names, mut wrapped) = (Vec::new(), Vec::new(), Vec::new());
        let values = granted.iter().chain(former).map(|secret| secret.value.expose());
        let small = values
            .filter(|value| value.len() >= MIN_IN_NAMES)
            .map(|value| (value.to_ascii_lowercase().into_bytes(), Vec::new()))
            .collect();
        for secret in granted.iter().chain(former) {
            let (value, token) = (secret.value.expose(), secret.token.as_bytes());
            sealed.extend(forms(value).into_iter().map(|form| (form, token.to_vec())));
            let digits = in_base64(value);
            wrapped.extend(sealed.len()..sealed.len() + digits.len());
            sealed.extend(digits.into_iter().map(|form| (form, token.to_vec())));
            if value.len() >= MIN_SEARCHED {
                // The token in its place is written as the rest of the text is.
                sealed.extend(in_utf16(value).into_iter().zip(in_utf16(&secret.token)));
            }
            names.resize(sealed.len(), secret.name.clone());
        }
        Self {
            header: Substitutes::new(granted, Place::Header, plain),
            query: Substitutes::new(granted, Place::Query, encoded),
            body: Substitutes::new(granted, Place::Body, plain).map(Arc::new),
            seal: Table::with_wrapped(sealed, wrapped)
                .map(|table| Arc::new(Substitutes { table, names, in_names: Table::new(small) })),
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
        Some(Self { table: Table::new(pairs)?, names, in_names: None })
    }
}

/// Whether who looks for the one at all of its hosts finds the other wherever that could be.
fn covers(one: &GrantedSecret, other: &GrantedSecret) -> bool {
    let hosts = one.hosts.is_empty()
        || (!other.hosts.is_empty() && other.hosts.iter().all(|host| one.hosts.contains(host)));
    one.token == other.token && one.value.expose() == other.value.expose() && hosts
}

fn applies(secret: &GrantedSecret, host: &str) -> bool {
    secret.hosts.is_empty() || secret.hosts.iter().any(|pattern| pattern.matches(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_types::Secret;

    fn secret(value: &str, hosts: &[&str], places: &[Place]) -> GrantedSecret {
        GrantedSecret {
            name: "KEY".into(),
            token: format!("osb_sealed_{:032x}", 7),
            value: Secret::new(value.into()),
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            places: places.to_vec(),
        }
    }

    fn secrets(value: &str, hosts: &[&str], before: Option<&Secrets>) -> Secrets {
        let granted = vec![Arc::new(secret(value, hosts, &[Place::Header]))];
        Secrets::new(granted, &[], before, Instant::now())
    }

    #[test]
    fn a_secret_is_for_its_hosts_only() {
        let secrets = secrets("value", &["*.a.example"], None);
        assert!(secrets.apply_to("x.a.example") && secrets.for_host("x.a.example").header.is_some());
        assert!(!secrets.apply_to("a.example") && secrets.for_host("a.example").header.is_none());
    }

    #[test]
    fn values_that_are_too_short_are_not_looked_for() {
        assert!(secrets("abc", &[], None).for_host("a.example").seal.is_none());
    }

    #[test]
    fn a_value_in_utf_16_becomes_a_token_in_utf_16() {
        let secrets = secrets("värde", &[], None);
        let seal = secrets.for_host("a.example").seal.clone().unwrap();
        let sealed = in_utf16(&format!("<osb_sealed_{:032x}>", 7));
        for (text, sealed) in in_utf16("<värde>").into_iter().zip(sealed) {
            assert_eq!(seal.table.replace(&text, |_| {}), Some(sealed));
        }
    }

    #[test]
    fn what_was_granted_before_is_looked_for_a_while_and_not_put_in() {
        let finds = |secrets: &Secrets, host: &str, later: Duration| {
            let secrets = secrets.for_host_at(host, Instant::now() + later);
            secrets.seal.as_ref().is_some_and(|seal| seal.table.is_in(b"<the first value>"))
        };
        let first = secrets("the first value", &["a.example", "b.example"], None);
        let second = secrets("another value", &["a.example"], Some(&first));
        let gone = Secrets::new(Vec::new(), &[], Some(&second), Instant::now());
        for secrets in [&second, &gone] {
            for host in ["a.example", "b.example"] {
                assert!(secrets.apply_to(host) && finds(secrets, host, Duration::ZERO));
            }
            for host in ["a.example", "b.example"] {
                assert!(!finds(secrets, host, GRACE + Duration::from_secs(1)));
            }
        }
        assert!(gone.for_host("a.example").header.is_none());
        assert_eq!(gone.former.len(), 2);
        // The same again is nothing that was; of many only the newest are kept.
        assert!(secrets("the first value", &[], Some(&first)).former.is_empty());
        let many = (0..10).fold(first, |before, turn| secrets(&format!("value {turn}"), &[], Some(&before)));
        assert_eq!(many.former.len(), MAX_FORMER);
        assert!(!finds(&many, "a.example", Duration::ZERO));
    }

    #[test]
    fn what_was_before_this_node_started_is_looked_for_until_its_time() {
        let now = Instant::now();
        let granted = vec![Arc::new(secret("another value", &[], &[Place::Header]))];
        let told = ["the first value", "another value"].map(|value| Former {
            secret: Arc::new(secret(value, &["a.example"], &[])),
            until: now + Duration::from_secs(60),
        });
        let secrets = Secrets::new(granted, &told, None, now);
        assert_eq!(secrets.former.len(), 1, "what is in force is not looked for twice");
        let seal = |after| secrets.for_host_at("a.example", now + Duration::from_secs(after)).seal.clone();
        assert!(seal(0).is_some_and(|seal| seal.table.is_in(b"<the first value>")));
        assert!(seal(61).is_some_and(|seal| !seal.table.is_in(b"<the first value>")));
    }
}
