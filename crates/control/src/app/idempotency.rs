//! `Idempotency-Key`: creates with the same key are one create.
//!
//! In this process they queue up behind the first ([`super::turns`]); across processes the table's primary key lets one
//! in. A key is kept for [`KEPT_MICROS`] and is free again when its create fails.

use warren_types::Error;

const MAX_KEY_BYTES: usize = 255;
/// How long a key stands for its create: a day.
pub(crate) const KEPT_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

pub(crate) fn check(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(format!(
            "Idempotency-Key must be 1 to {MAX_KEY_BYTES} visible ASCII characters without blanks"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_short_and_visible() {
        assert!(check(&"k".repeat(255)).is_ok());
        for bad in ["", " ", "a b", "a\n", "é", &"k".repeat(256)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
