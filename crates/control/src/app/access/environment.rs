//! Environment variables of a sandbox that has secrets or a list of hosts: tokens, and where programs find the gateway
//! and the certificates to trust. They are a convenience: what may be reached is enforced without them.

use warren_types::tags::Tags;

const PROXY: &str = "http://169.254.169.253:3128";
const PROXIES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
const NO_PROXY: &str = "localhost,127.0.0.1,::1,169.254.169.254";
const NO_PROXIES: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// The gateway's own certificate: Node.js adds it to those it has.
const OUR_CA: &str = "/usr/local/share/ca-certificates/opensandbox-proxy.crt";
/// The system's bundle, which has that one too: these replace what their programs have.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const BUNDLES: [&str; 9] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "AWS_CA_BUNDLE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
];
const TOKEN_PREFIX: &str = "osb_sealed_";
const TOKEN_DIGITS: usize = 32;

/// What stands for a secret inside: worth nothing outside its sandbox.
pub(crate) fn new_token() -> String {
    format!("{TOKEN_PREFIX}{}", warren_types::hex(&rand::random::<[u8; TOKEN_DIGITS / 2]>()))
}

/// Adds the variables for the gateway, where nothing else was asked for.
pub(crate) fn add_gateway(envs: &mut Tags) {
    for (name, value) in gateway() {
        envs.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
}

/// Takes away what another sandbox was given: its tokens, and the variables for the gateway as we write them.
pub(crate) fn remove_given(envs: &mut Tags) {
    envs.retain(|_, value| !is_token(value));
    for (name, value) in gateway() {
        if envs.get(name).is_some_and(|set| set == value) {
            envs.remove(name);
        }
    }
}

fn gateway() -> impl Iterator<Item = (&'static str, &'static str)> {
    let to = |value: &'static str| move |name: &'static str| (name, value);
    PROXIES
        .into_iter()
        .map(to(PROXY))
        .chain(NO_PROXIES.into_iter().map(to(NO_PROXY)))
        .chain(BUNDLES.into_iter().map(to(BUNDLE)))
        .chain([("NODE_EXTRA_CA_CERTS", OUR_CA)])
}

fn is_token(value: &str) -> bool {
    value.strip_prefix(TOKEN_PREFIX).is_some_and(|digits| {
        digits.len() == TOKEN_DIGITS && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_taken_away_again_and_nothing_else() {
        let mine = Tags::from([
            ("A".to_owned(), "1".to_owned()),
            ("HTTPS_PROXY".to_owned(), "http://mine".to_owned()),
            ("B".to_owned(), "osb_sealed_short".to_owned()),
        ]);
        let mut envs = mine.clone();
        add_gateway(&mut envs);
        assert_eq!(envs["HTTPS_PROXY"], "http://mine", "what was asked for counts");
        assert_eq!(envs.len(), mine.len() + 15);
        let token = new_token();
        assert_eq!(token.len(), 43);
        assert_ne!(token, new_token());
        envs.insert("KEY".to_owned(), token);
        remove_given(&mut envs);
        assert_eq!(envs, mine);
    }
}
