//! The key that ends of chains are sealed with, `audit.key` in the data directory.

use std::io;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use warren_types::Secret;

use crate::app::key_file::{self, KEY_BYTES};
use crate::store::audit::AuditRow;
use crate::store::audit_heads::SealedHead;

pub(crate) const FILE_NAME: &str = "audit.key";

/// What a place in a chain is sealed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The newest record there was.
    Head,
    /// The last that was removed for its age.
    Anchor,
    /// Any record.
    Record,
}

#[derive(Debug, Clone)]
pub(crate) struct Seal {
    key: Secret<[u8; KEY_BYTES]>,
}

impl Seal {
    /// Reads the key from `data_dir`, or makes one when there is none.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Self> {
        key_file::open(data_dir, FILE_NAME).map(|key| Self { key: Secret::new(key) })
    }

    /// Each part has its own line, and none of them has line ends.
    fn mac(&self, place: Place, org: &str, seq: i64, hash: &str) -> Hmac<Sha256> {
        let what = match place {
            Place::Head => "warren audit head 1",
            Place::Anchor => "warren audit anchor 1",
            Place::Record => "warren audit record 1",
        };
        let mut mac = Hmac::new_from_slice(self.key.expose()).expect("HMAC takes a key of any length");
        mac.update(format!("{what}\n{org}\n{seq}\n{hash}").as_bytes());
        mac
    }

    pub(crate) fn seal(&self, place: Place, org: &str, seq: i64, hash: &str) -> SealedHead {
        let mac = warren_types::hex(&self.mac(place, org, seq, hash).finalize().into_bytes());
        SealedHead { org: org.to_owned(), seq, hash: hash.to_owned(), mac }
    }

    pub(crate) fn holds(&self, place: Place, head: &SealedHead) -> bool {
        is_mac(self.mac(place, &head.org, head.seq, &head.hash), &head.mac)
    }

    /// What a record is stored with: that this installation wrote it.
    pub(crate) fn of_record(&self, row: &AuditRow) -> String {
        warren_types::hex(&self.mac(Place::Record, &row.org, row.seq, &row.hash).finalize().into_bytes())
    }

    pub(crate) fn is_record(&self, row: &AuditRow) -> bool {
        let shown = row.mac.as_deref();
        shown.is_some_and(|shown| is_mac(self.mac(Place::Record, &row.org, row.seq, &row.hash), shown))
    }
}

fn is_mac(mac: Hmac<Sha256>, shown: &str) -> bool {
    let shown = (0..shown.len() / 2)
        .map(|at| shown.get(2 * at..2 * at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
        .collect::<Option<Vec<u8>>>();
    shown.is_some_and(|shown| mac.verify_slice(&shown).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_for_one_place_and_one_installation() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let seal = Seal::open(dir.path()).unwrap();
        let head = seal.seal(Place::Head, "org", 7, "abc");
        assert!(seal.holds(Place::Head, &head));
        assert!(Seal::open(dir.path()).unwrap().holds(Place::Head, &head), "the key is kept");
        assert!(!seal.holds(Place::Anchor, &head));
        assert!(!seal.holds(Place::Head, &SealedHead { seq: 6, ..head.clone() }));
        assert!(!seal.holds(Place::Head, &SealedHead { mac: "zz".into(), ..head.clone() }));
        assert!(!Seal::open(other.path()).unwrap().holds(Place::Head, &head));
    }
}
