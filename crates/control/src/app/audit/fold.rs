//! Things that may happen very often, and by people who are nobody yet: the first of a minute is recorded at once, what repeats
//! in it is counted and recorded when it is over. What is too much for that is counted together.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Audit, Note};

const MINUTE: Duration = Duration::from_secs(60);
/// Kinds that are counted apart in a minute.
const MAX_KINDS: usize = 2000;

#[derive(Default)]
pub(super) struct Folds(Mutex<HashMap<String, Fold>>);

struct Fold {
    note: Note,
    since: Instant,
    /// After the first.
    repeated: u64,
}

impl Folds {
    /// The note again when it is to be recorded now.
    fn add(&self, note: Note) -> Option<Note> {
        let mut folds = self.0.lock().expect("nothing panics while it holds this lock");
        let mut key = format!(
            "{note:?}",
            note = (note.kind.as_str(), &note.who.org, &note.who.actor, &note.sandbox, &note.detail)
        );
        let mut note = note;
        if folds.len() >= MAX_KINDS && !folds.contains_key(&key) {
            // All others of the organisation, whatever they are about.
            note.detail = serde_json::Map::new();
            note.sandbox = None;
            note = note.with("folded", true);
            key = format!("{} {} {}", note.kind.as_str(), note.who.org, note.who.actor);
        }
        match folds.get_mut(&key) {
            Some(fold) => {
                fold.repeated += 1;
                None
            }
            None => {
                // What is recorded later has no one request.
                let kept = Note { who: note.who.clone().in_request(None), ..note.clone() };
                folds.insert(key, Fold { note: kept, since: Instant::now(), repeated: 0 });
                Some(note)
            }
        }
    }

    /// What was repeated in minutes that are over.
    fn take_due(&self) -> Vec<(Note, u64)> {
        self.take(|fold| fold.since.elapsed() >= MINUTE)
    }

    pub(super) fn take_all(&self) -> Vec<(Note, u64)> {
        let mut folds = self.0.lock().expect("nothing panics while it holds this lock");
        let repeated = folds.values_mut().filter(|fold| fold.repeated > 0);
        repeated.map(|fold| (fold.note.clone(), std::mem::take(&mut fold.repeated))).collect()
    }

    fn take(&self, is_due: impl Fn(&Fold) -> bool) -> Vec<(Note, u64)> {
        let mut folds = self.0.lock().expect("nothing panics while it holds this lock");
        let due = folds.extract_if(|_, fold| is_due(fold));
        due.filter(|(_, fold)| fold.repeated > 0).map(|(_, fold)| (fold.note, fold.repeated)).collect()
    }
}

impl Audit {
    /// Records the first of its kind in a minute now and counts the others.
    pub(crate) fn tell_folded(&self, note: Note) {
        if let Some(note) = self.folds.add(note) {
            self.tell_now(note);
        }
    }

    /// Records what was counted.
    pub(crate) async fn tell_counted(&self) {
        for (note, count) in self.folds.take_due() {
            self.tell(note.with("count", count)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use warren_types::OrgId;

    use super::super::{Kind, Who};
    use super::*;

    #[test]
    fn the_first_is_told_and_the_rest_counted_within_bounds() {
        let folds = Folds::default();
        let who = Who::server(OrgId("o".into()));
        let note = |host: u32| who.note(Kind::Access).with("why", host);
        assert!(folds.add(note(0)).is_some());
        assert!(folds.add(note(0)).is_none());
        assert!(folds.add(note(0)).is_none());
        assert!(folds.add(note(1)).is_some());
        assert!(folds.take_due().is_empty(), "the minute is not over");
        let counted = folds.take_all();
        assert_eq!((counted.len(), counted[0].1), (1, 2));
        for host in 0..10_000 {
            folds.add(note(host));
        }
        assert!(folds.0.lock().unwrap().len() <= MAX_KINDS + 1);
        let folded =
            folds.take_all().into_iter().find(|(note, _)| note.detail.contains_key("folded")).unwrap();
        assert_eq!(folded.1, 10_000 - MAX_KINDS as u64 - 1);
    }
}
