//! `Idempotency-Key`: creates with the same key are one create.
//!
//! In this process they queue up behind the first ([`KeyLocks`]); across processes the table's primary key lets one
//! in. A key is kept for [`KEPT_MICROS`] and is free again when its create fails.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;
use warren_types::{Error, OrgId};

const MAX_KEY_BYTES: usize = 255;
/// How long a key stands for its create: a day.
pub(crate) const KEPT_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

type Name = (OrgId, String);
type Lock = Arc<tokio::sync::Mutex<()>>;

/// One lock for each key that is in use right now.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyLocks(Arc<Mutex<HashMap<Name, Lock>>>);

/// The turn of one create. Dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Turn {
    locks: KeyLocks,
    name: Name,
    guard: Option<OwnedMutexGuard<()>>,
}

pub(crate) fn check(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(format!(
            "Idempotency-Key must be 1 to {MAX_KEY_BYTES} visible ASCII characters without blanks"
        )));
    }
    Ok(())
}

// === impl KeyLocks ===

impl KeyLocks {
    pub(crate) async fn turn(&self, org: &OrgId, key: &str) -> Turn {
        let name = (org.clone(), key.to_owned());
        let lock = {
            let mut locks = self.0.lock().expect("nothing panics while it holds this lock");
            Arc::clone(locks.entry(name.clone()).or_default())
        };
        // Made before waiting: a create that is cancelled in the queue must tidy up as well.
        let mut turn = Turn { locks: self.clone(), name, guard: None };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard.take();
        let mut locks = self.locks.0.lock().expect("nothing panics while it holds this lock");
        if locks.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_come_one_after_the_other_and_leave_nothing_behind() {
        let locks = KeyLocks::default();
        let org = OrgId("org".into());
        let first = locks.turn(&org, "k").await;
        let other = locks.turn(&org, "other").await;
        let waiting = tokio::spawn({
            let (locks, org) = (locks.clone(), org.clone());
            async move { locks.turn(&org, "k").await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        drop(waiting.await.unwrap());
        drop(other);
        assert!(locks.0.lock().unwrap().is_empty());
    }

    #[test]
    fn keys_are_short_and_visible() {
        assert!(check(&"k".repeat(255)).is_ok());
        for bad in ["", " ", "a b", "a\n", "é", &"k".repeat(256)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
