//! Typed ids. Each kind has one spelling, checked wherever text becomes an id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text that is not an id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind} id: expected {expected}")]
pub struct ParseIdError {
    kind: &'static str,
    expected: &'static str,
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            #[must_use]
            pub fn generate() -> Self {
                Self(format!("{}{:08x}", $prefix, rand::random::<u32>()))
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                match text.strip_prefix($prefix) {
                    Some(digits) if digits.len() == 8 && is_lower_hex(digits) => Ok(Self(text.to_owned())),
                    _ => Err(ParseIdError { kind: $kind, expected: $expected }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// A sandbox: `sb-` and eight lowercase hex digits. Preview host names are parsed by this shape.
    SandboxId, "sandbox", "sb-", "`sb-` followed by 8 lowercase hex digits"
);
hex_id!(
    /// A command started in a sandbox: eight lowercase hex digits.
    ExecId, "exec", "", "8 lowercase hex digits"
);
hex_id!(
    /// A terminal opened in a sandbox: eight lowercase hex digits.
    PtyId, "terminal", "", "8 lowercase hex digits"
);

/// A checkpoint: a UUID in lowercase.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckpointId(String);

impl CheckpointId {
    /// A random one (version 4).
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes: [u8; 16] = rand::random();
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = crate::hex(&bytes);
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        Self(parts.join("-"))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CheckpointId {
    type Err = ParseIdError;

    /// Capitals are accepted, as in any UUID, and become small.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let lower = text.to_ascii_lowercase();
        let mut parts = lower.split('-');
        let whole = [8, 4, 4, 4, 12]
            .into_iter()
            .all(|length| parts.next().is_some_and(|part| part.len() == length && is_lower_hex(part)));
        if whole && parts.next().is_none() {
            return Ok(Self(lower));
        }
        Err(ParseIdError { kind: "checkpoint", expected: "a UUID" })
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for CheckpointId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CheckpointId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An organisation, the owner of keys and sandboxes. A UUID, made by the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrgId(pub String);

impl OrgId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OrgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn generated_ids_parse_back() {
        for _ in 0..100 {
            let id = SandboxId::generate();
            assert_eq!(id.as_str().parse::<SandboxId>().unwrap(), id);
            let id = CheckpointId::generate();
            assert_eq!(id.as_str().to_uppercase().parse::<CheckpointId>().unwrap(), id);
            assert_eq!((&id.as_str()[14..15], id.as_str().len()), ("4", 36));
        }
    }

    #[test]
    fn near_misses_are_refused() {
        for text in [
            "",
            "sb-",
            "sb-1234567",
            "sb-123456789",
            "sb-1234567G",
            "sb-ABCDEF01",
            "SB-12345678",
            "12345678",
            "sb-../../.",
            "sb-1234567\0",
        ] {
            assert!(text.parse::<SandboxId>().is_err(), "{text:?}");
        }
        let uuid = "01234567-89ab-4def-8123-456789abcdef";
        assert!(uuid.parse::<CheckpointId>().is_ok());
        for text in
            ["", "-", &uuid[1..], &uuid[..35], &format!("{uuid}-"), &uuid.replace('-', ""), "../../../../etc"]
        {
            assert!(text.parse::<CheckpointId>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn anything_that_parses_prints_itself(text in "\\PC{0,16}") {
            if let Ok(id) = text.parse::<SandboxId>() {
                prop_assert_eq!(id.to_string(), &*text);
            }
            if let Ok(id) = text.parse::<CheckpointId>() {
                prop_assert_eq!(id.to_string(), text.to_ascii_lowercase());
            }
        }
    }
}
