//! Tags: labels an owner puts on a sandbox, replaced as a whole.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

pub type Tags = BTreeMap<String, String>;

pub const MAX_TAGS: usize = 50;
pub const MAX_KEY_BYTES: usize = 128;
pub const MAX_VALUE_BYTES: usize = 256;
/// Keys with this prefix belong to the platform.
pub const RESERVED_PREFIX: &str = "oc:";

/// Checks a complete set of tags.
pub fn check(tags: &Tags) -> Result<()> {
    if tags.len() > MAX_TAGS {
        return Err(Error::invalid(format!("at most {MAX_TAGS} tags are allowed (got {})", tags.len())));
    }
    for (key, value) in tags {
        check_key(key)?;
        if key.starts_with(RESERVED_PREFIX) {
            return Err(Error::invalid(format!("tag keys starting with {RESERVED_PREFIX:?} are reserved")));
        }
        if value.len() > MAX_VALUE_BYTES || value.contains('\0') {
            return Err(Error::invalid(format!(
                "the value of tag {key:?} must be at most {MAX_VALUE_BYTES} bytes without NUL characters"
            )));
        }
    }
    Ok(())
}

/// Checks that something can be the key of a tag, of the platform's too.
pub fn check_key(key: &str) -> Result<()> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b':');
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(legal) {
        return Err(Error::invalid(format!(
            "tag key {key:?} must be 1 to {MAX_KEY_BYTES} characters of A-Z a-z 0-9 _ . - :"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> Result<()> {
        check(&Tags::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn limits_hold_at_their_edges() {
        assert!(one(&"k".repeat(128), &"v".repeat(256)).is_ok());
        assert!(one(&"k".repeat(129), "").is_err());
        assert!(one("k", &"v".repeat(257)).is_err());
        assert!(one("k", "a\0b").is_err());
        assert!(one("", "v").is_err());
        assert!(one("oc:owner", "v").is_err());
        assert!(one("crabbox.claim", "v").is_ok());
        assert!(one("sp ace", "v").is_err());
        let many = |count: usize| (0..count).map(|n| (format!("k{n}"), String::new())).collect::<Tags>();
        assert!(check(&many(50)).is_ok());
        assert!(check(&many(51)).is_err());
    }
}
