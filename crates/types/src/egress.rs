//! What a sandbox may reach outside of itself.
//!
//! The words of a rule are checked when they are read, so whoever holds an [`EgressPolicy`] holds one that can be
//! applied. Which address a name stands for is decided elsewhere; nothing here does I/O.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Rules of one policy.
pub const MAX_RULES: usize = 1000;
/// Bytes of a host name, as DNS has it.
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;
const MAX_PORTS: usize = 32;
const MAX_METHODS: usize = 16;
const MAX_PATHS: usize = 64;
const MAX_PATH_BYTES: usize = 1024;
/// Where a rule that names no port applies.
const WEB_PORTS: [u16; 2] = [80, 443];

/// Written as `open`, `allowlist` and `none` everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EgressMode {
    /// Everything but what no sandbox may reach: private ranges, the host, other sandboxes.
    #[default]
    Open,
    /// What the rules name, over TCP, and nothing else.
    Allowlist,
    /// Nothing, names included.
    None,
}

/// What a sandbox may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressPolicy {
    #[serde(default)]
    pub mode: EgressMode,
    /// Of [`EgressMode::Allowlist`]; none of them allows nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<EgressRule>,
}

/// One host, or the hosts of a pattern, and what may be done there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    pub host: HostPattern,
    /// Empty stands for 80 and 443.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// HTTP methods in capitals; empty stands for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// What the path of a request has to begin with; empty stands for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// `example.com`, that name alone; `*.example.com`, everything below it at any depth and not itself; `*`, everything.
/// In lower case and without a dot at the end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern(Pattern);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Pattern {
    Exact(String),
    /// Without the `*`, with the dot.
    Below(String),
    All,
}

/// Why a text is no host, pattern or policy, in words for who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EgressError(String);

// === impl EgressPolicy ===

impl EgressPolicy {
    #[must_use]
    pub fn none() -> Self {
        Self { mode: EgressMode::None, allow: Vec::new() }
    }

    /// Checks what reading it did not: sizes, ports, methods and paths.
    pub fn check(&self) -> Result<(), EgressError> {
        if self.mode != EgressMode::Allowlist && !self.allow.is_empty() {
            return Err(EgressError("rules in `allow` need the mode `allowlist`".into()));
        }
        if self.allow.len() > MAX_RULES {
            return Err(EgressError(format!("a policy has at most {MAX_RULES} rules")));
        }
        self.allow.iter().try_for_each(EgressRule::check)
    }

    /// Whether anything at that host may be spoken to on that port. `host` is as [`normal_host`] makes it.
    #[must_use]
    pub fn allows(&self, host: &str, port: u16) -> bool {
        match self.mode {
            EgressMode::Open => true,
            EgressMode::None => false,
            EgressMode::Allowlist => self.rules_for(host, port).next().is_some(),
        }
    }

    /// Whether any port of that host may be spoken to: whether its name may be asked for.
    #[must_use]
    pub fn allows_name(&self, host: &str) -> bool {
        match self.mode {
            EgressMode::Open => true,
            EgressMode::None => false,
            EgressMode::Allowlist => self.allow.iter().any(|rule| rule.host.matches(host)),
        }
    }

    /// Whether that HTTP request may be made. `path` is without its query.
    #[must_use]
    pub fn allows_request(&self, host: &str, port: u16, method: &str, path: &str) -> bool {
        match self.mode {
            EgressMode::Open => true,
            EgressMode::None => false,
            EgressMode::Allowlist => self.rules_for(host, port).any(|rule| rule.allows_request(method, path)),
        }
    }

    fn rules_for<'a>(&'a self, host: &'a str, port: u16) -> impl Iterator<Item = &'a EgressRule> {
        self.allow.iter().filter(move |rule| rule.applies(host, port))
    }
}

// === impl EgressRule ===

impl EgressRule {
    /// A rule for all of a host's web ports.
    #[must_use]
    pub fn host(host: HostPattern) -> Self {
        Self { host, ports: Vec::new(), methods: Vec::new(), paths: Vec::new() }
    }

    #[must_use]
    pub fn applies(&self, host: &str, port: u16) -> bool {
        let ports = if self.ports.is_empty() { &WEB_PORTS[..] } else { &self.ports };
        ports.contains(&port) && self.host.matches(host)
    }

    /// Whether it says anything about HTTP, so that what is not HTTP cannot be let through.
    #[must_use]
    pub fn is_about_requests(&self) -> bool {
        !self.methods.is_empty() || !self.paths.is_empty()
    }

    #[must_use]
    pub fn allows_request(&self, method: &str, path: &str) -> bool {
        let method = self.methods.is_empty() || self.methods.iter().any(|allowed| allowed == method);
        let path = self.paths.is_empty() || self.paths.iter().any(|prefix| below(path, prefix));
        method && path
    }

    fn check(&self) -> Result<(), EgressError> {
        let too_many = self.ports.len() > MAX_PORTS
            || self.methods.len() > MAX_METHODS
            || self.paths.len() > MAX_PATHS
            || self.paths.iter().any(|path| path.len() > MAX_PATH_BYTES);
        if too_many {
            return Err(EgressError(format!(
                "the rule for {} is too long: {MAX_PORTS} ports, {MAX_METHODS} methods and {MAX_PATHS} paths of \
                 {MAX_PATH_BYTES} bytes are the most",
                self.host
            )));
        }
        if self.ports.contains(&0) {
            return Err(EgressError(format!("the rule for {} has port 0; ports are 1 to 65535", self.host)));
        }
        let is_method = |method: &&String| {
            !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-')
        };
        if let Some(method) = self.methods.iter().find(|method| !is_method(method)) {
            return Err(EgressError(format!("{method:?} is no HTTP method; write it in capitals, like GET")));
        }
        if let Some(path) = self.paths.iter().find(|path| !path.starts_with('/')) {
            return Err(EgressError(format!("the path {path:?} has to begin with /")));
        }
        Ok(())
    }
}

/// Whether `path` is `prefix` or below it. What a server might read as a way out of it is not: dot segments, also in
/// percent signs, and backslashes.
fn below(path: &str, prefix: &str) -> bool {
    let Some(rest) = path.strip_prefix(prefix) else { return false };
    let ends_there = rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/');
    let plain = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    let climbs = plain.contains('\\') || plain.split('/').any(|segment| segment == ".." || segment == ".");
    ends_there && !climbs && !plain.contains("//")
}

// === impl HostPattern ===

impl HostPattern {
    /// `host` is as [`normal_host`] makes it.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match &self.0 {
            Pattern::Exact(name) => name == host,
            Pattern::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
            Pattern::All => true,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Pattern::Exact(name) => f.write_str(name),
            Pattern::Below(suffix) => write!(f, "*{suffix}"),
            Pattern::All => f.write_str("*"),
        }
    }
}

impl FromStr for HostPattern {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        if text == "*" {
            return Ok(Self(Pattern::All));
        }
        let bad = || {
            EgressError(format!(
                "{text:?} is no host; write example.com, *.example.com for everything below it, or *"
            ))
        };
        match text.strip_prefix("*.") {
            Some(name) => Ok(Self(Pattern::Below(format!(".{}", normal_host(name).ok_or_else(bad)?)))),
            None => Ok(Self(Pattern::Exact(normal_host(text).ok_or_else(bad)?))),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = EgressError;

    fn try_from(text: String) -> Result<Self, EgressError> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

/// A host name or an IPv4 address in the one spelling used everywhere: lower case, no dot at the end. `None` for what
/// is neither: no port, no blanks, ASCII only.
#[must_use]
pub fn normal_host(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_LABEL_BYTES
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let fits = text.len() <= MAX_NAME_BYTES && text.split('.').all(is_label);
    // A name whose last label is a number is an address to many programs; only the plain spelling of one is taken.
    let last = text.rsplit('.').next().unwrap_or_default();
    let numeric =
        last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") || last.starts_with("0X");
    let plain = !numeric || text.parse::<std::net::Ipv4Addr>().is_ok();
    (fits && plain).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_match_as_the_contract_says() {
        assert!(pattern("api.example.com").matches("api.example.com"));
        assert!(!pattern("api.example.com").matches("x.api.example.com"));
        assert!(!pattern("api.example.com").matches("example.com"));
        assert!(pattern("*.example.com").matches("api.example.com"));
        assert!(pattern("*.example.com").matches("a.b.example.com"));
        assert!(!pattern("*.example.com").matches("example.com"));
        assert!(!pattern("*.example.com").matches("badexample.com"));
        assert!(pattern("*").matches("anything.at.all"));
    }

    #[test]
    fn spelling_does_not_matter_and_nonsense_is_refused() {
        assert_eq!(pattern("API.Example.COM.").to_string(), "api.example.com");
        assert_eq!(pattern("*.Example.com").to_string(), "*.example.com");
        for bad in [
            "",
            ".",
            "*.",
            "*x.com",
            "a..b",
            "a b",
            "a:443",
            "ex\u{e4}mple.com",
            "a/b",
            "-a.com",
            "a\0.com",
            "[::1]",
        ] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad:?}");
        }
        for address in ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "1.2.3.256"] {
            assert!(normal_host(address).is_none(), "{address}");
        }
        assert_eq!(normal_host("198.51.100.7").as_deref(), Some("198.51.100.7"));
    }

    #[test]
    fn a_rule_without_ports_is_for_the_web() {
        let rule = EgressRule::host(pattern("a.com"));
        assert!(rule.applies("a.com", 443) && rule.applies("a.com", 80));
        assert!(!rule.applies("a.com", 22));
    }

    #[test]
    fn a_path_cannot_climb_out_of_its_prefix() {
        let rule =
            EgressRule { paths: vec!["/v1/models".into(), "/up/".into()], ..EgressRule::host(pattern("*")) };
        for path in ["/v1/models", "/v1/models/", "/v1/models/a", "/up/", "/up/x"] {
            assert!(rule.allows_request("GET", path), "{path}");
        }
        for path in [
            "/",
            "/v1/modelsx",
            "/v1/models/../keys",
            "/v1/models/%2e%2E/keys",
            "/v1/models/..%2fkeys",
            "/up/..\\x",
            "/up/%5c..",
            "/up//x",
            "/v1",
            "",
        ] {
            assert!(!rule.allows_request("GET", path), "{path}");
        }
    }

    #[test]
    fn policies_are_checked() {
        let policy = |text: &str| serde_json::from_str::<EgressPolicy>(text);
        assert!(
            policy(r#"{"mode":"allowlist","allow":[{"host":"a.com","methods":["GET"]}]}"#)
                .unwrap()
                .check()
                .is_ok()
        );
        assert!(policy(r#"{"mode":"open","allow":[{"host":"a.com"}]}"#).unwrap().check().is_err());
        assert!(
            policy(r#"{"mode":"allowlist","allow":[{"host":"a.com","methods":["get"]}]}"#)
                .unwrap()
                .check()
                .is_err()
        );
        assert!(
            policy(r#"{"mode":"allowlist","allow":[{"host":"a.com","paths":["v1"]}]}"#)
                .unwrap()
                .check()
                .is_err()
        );
        assert!(
            policy(r#"{"mode":"allowlist","allow":[{"host":"a.com","ports":[0]}]}"#)
                .unwrap()
                .check()
                .is_err()
        );
        assert!(policy(r#"{"mode":"some"}"#).is_err());
        assert!(policy(r#"{"mode":"open","extra":1}"#).is_err());
    }
}
