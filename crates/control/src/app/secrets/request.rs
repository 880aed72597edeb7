//! What a request says of a secret, checked.

use std::str::FromStr;

use warren_api::secrets::SecretSet;
use warren_node_api::Place;
use warren_types::{Error, HostPattern, Secret};

use crate::app::access::request::hosts;

pub(super) const MAX_NAME_BYTES: usize = 128;
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Of a secret: it becomes an environment variable.
#[derive(Debug, Clone)]
pub(super) struct SecretName(String);

/// A secret as it is to be; what is absent stays.
#[derive(Debug)]
pub(super) struct SetSecret {
    pub value: Secret<String>,
    pub allowed_hosts: Option<Vec<HostPattern>>,
    pub places: Option<Vec<Place>>,
}

impl SecretName {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Variables that no program can do with a token in.
fn decides_what_runs(name: &str) -> bool {
    const NAMES: [&str; 22] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "PWD",
        "OLDPWD",
        "TERM",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "IFS",
        "ENV",
        "BASH_ENV",
        "SHELLOPTS",
        "BASHOPTS",
        "PYTHONHOME",
        "PYTHONPATH",
        "NODE_OPTIONS",
        "GCONV_PATH",
        "LOCPATH",
    ];
    NAMES.contains(&name) || name.starts_with("LD_") || name.starts_with("LC_")
}

impl FromStr for SecretName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let begins = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if letters && begins && name.len() <= MAX_NAME_BYTES {
            if decides_what_runs(name) {
                return Err(Error::invalid(format!(
                    "a secret cannot be named {name}: it becomes an environment variable, and with a token in that one programs \
                     in a sandbox would not start, or not as they should; choose another name, such as MY_{name}"
                )));
            }
            return Ok(Self(name.to_owned()));
        }
        Err(Error::invalid(format!(
            "the name of a secret has letters, digits and _, does not begin with a digit, and is at most \
             {MAX_NAME_BYTES} long: it becomes an environment variable"
        )))
    }
}

impl TryFrom<SecretSet> for SetSecret {
    type Error = Error;

    fn try_from(body: SecretSet) -> Result<Self, Error> {
        let value = body.value.filter(|value| !value.expose().is_empty());
        let value = value.ok_or_else(|| Error::invalid("value is required and cannot be empty"))?;
        if value.expose().len() > MAX_VALUE_BYTES {
            return Err(Error::invalid(format!("value may have {MAX_VALUE_BYTES} bytes")));
        }
        if value.expose().contains('\0') {
            return Err(Error::invalid("value must not contain NUL"));
        }
        Ok(Self {
            value,
            allowed_hosts: body.allowed_hosts.map(|texts| hosts("allowedHosts", texts)).transpose()?,
            places: body.places.map(places).transpose()?,
        })
    }
}

fn places(words: Vec<String>) -> Result<Vec<Place>, Error> {
    let mut places = Vec::new();
    for word in words {
        let place = place_of(&word)
            .ok_or_else(|| Error::invalid("places may have the words header, query and body"))?;
        if !places.contains(&place) {
            places.push(place);
        }
    }
    if places.is_empty() {
        return Err(Error::invalid("places must name one of header, query and body, or be left out"));
    }
    Ok(places)
}

fn place_of(word: &str) -> Option<Place> {
    [Place::Header, Place::Query, Place::Body].into_iter().find(|place| word_of(*place) == word)
}

pub(super) fn word_of(place: Place) -> &'static str {
    match place {
        Place::Header => "header",
        Place::Query => "query",
        Place::Body => "body",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_variables() {
        for good in ["A", "_", "api_KEY_2", &"a".repeat(128)] {
            assert!(good.parse::<SecretName>().is_ok(), "{good}");
        }
        for bad in
            ["", "2A", "A-B", "A B", "A=B", "é", "A\0", "A.B", "../x", "PATH", "LD_PRELOAD", &"a".repeat(129)]
        {
            assert!(bad.parse::<SecretName>().is_err(), "{bad:?}");
        }
    }
}
