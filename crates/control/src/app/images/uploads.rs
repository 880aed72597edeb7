//! How many archives are on their way in. Each takes a thread, space and a connection for as long as its sender likes, so
//! there is an end to it: for one organisation, and for all together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use warren_types::{Error, ErrorKind, OrgId};

const OF_ONE: usize = 4;
const OF_ALL: usize = 16;

#[derive(Debug, Clone, Default)]
pub(crate) struct Uploads(Arc<Mutex<HashMap<OrgId, usize>>>);

/// Held while an archive is read.
#[derive(Debug)]
pub(crate) struct Upload {
    org: OrgId,
    uploads: Uploads,
}

// === impl Uploads ===

impl Uploads {
    fn counts(&self) -> MutexGuard<'_, HashMap<OrgId, usize>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    pub(super) fn begin(&self, org: &OrgId) -> Result<Upload, Error> {
        let mut counts = self.counts();
        if counts.get(org).is_some_and(|own| *own >= OF_ONE) {
            let text =
                format!("{OF_ONE} archives are being sent already; send this one when one of them is read");
            return Err(Error::new(ErrorKind::LimitReached, text));
        }
        if counts.values().sum::<usize>() >= OF_ALL {
            return Err(Error::unavailable(
                "the server is reading as many archives as it can; try again in a moment",
            ));
        }
        *counts.entry(org.clone()).or_default() += 1;
        Ok(Upload { org: org.clone(), uploads: self.clone() })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut counts = self.uploads.counts();
        if let Some(own) = counts.get_mut(&self.org) {
            *own -= 1;
            if *own == 0 {
                counts.remove(&self.org);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_end_to_archives_of_one_and_of_all() {
        let uploads = Uploads::default();
        let begin = |org: usize| uploads.begin(&OrgId(org.to_string()));
        let mut held: Vec<Upload> = (0..OF_ONE).map(|_| begin(0).unwrap()).collect();
        assert_eq!(begin(0).unwrap_err().kind, ErrorKind::LimitReached);
        held.extend((OF_ONE..OF_ALL).map(|number| begin(number).unwrap()));
        assert_eq!(begin(1).unwrap_err().kind, ErrorKind::Unavailable);
        held.remove(0);
        assert!(begin(1).is_ok());
        drop(held);
        assert!(uploads.counts().is_empty());
    }
}
