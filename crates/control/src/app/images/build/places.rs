//! Which builds run, and which wait for another one to end.
//!
//! [`PLACES`] are everybody's. Beyond those, an organisation of which no build runs gets one of [`RESERVED`], so that one
//! that fills all the places keeps nobody else from building. Of those who wait it is the turn of the organisation that has
//! the fewest running, and among equals of who came first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use warren_types::OrgId;

const PLACES: usize = 4;
const RESERVED: usize = 4;

#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    /// Builds that run, of those organisations that have any.
    running: HashMap<OrgId, usize>,
    waiting: VecDeque<(OrgId, oneshot::Sender<Place>)>,
}

/// Held while a build runs.
#[derive(Debug)]
pub(super) struct Place {
    org: OrgId,
    places: Places,
}

// === impl Places ===

impl Places {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    /// A place, or what brings one when it is this build's turn. Dropping that gives the turn up.
    pub(super) fn ask(&self, org: &OrgId) -> Result<Place, oneshot::Receiver<Place>> {
        let mut taken = self.taken();
        // Who may have one now does not wait: all who wait may not.
        if taken.may_run(org) {
            taken.run(org);
            return Ok(Place { org: org.clone(), places: self.clone() });
        }
        let (turn, place) = oneshot::channel();
        taken.waiting.push_back((org.clone(), turn));
        Err(place)
    }

    fn give_up(&self, org: &OrgId) {
        let mut taken = self.taken();
        if let Some(running) = taken.running.get_mut(org) {
            *running -= 1;
            if *running == 0 {
                taken.running.remove(org);
            }
        }
        let next = taken.next();
        drop(taken);
        // One that waits no more gives it up again when this is dropped.
        drop(next.map(|(org, turn)| turn.send(Place { org, places: self.clone() })));
    }
}

// === impl Taken ===

impl Taken {
    fn of(&self, org: &OrgId) -> usize {
        self.running.get(org).copied().unwrap_or(0)
    }

    fn may_run(&self, org: &OrgId) -> bool {
        let all: usize = self.running.values().sum();
        all < PLACES || (self.of(org) == 0 && all < PLACES + RESERVED)
    }

    fn run(&mut self, org: &OrgId) {
        *self.running.entry(org.clone()).or_default() += 1;
    }

    /// Whose turn it is; it runs from here on.
    fn next(&mut self) -> Option<(OrgId, oneshot::Sender<Place>)> {
        let may = self.waiting.iter().enumerate().filter(|(_, (org, _))| self.may_run(org));
        let (at, _) = may.min_by_key(|(at, (org, _))| (self.of(org), *at))?;
        let (org, turn) = self.waiting.remove(at)?;
        self.run(&org);
        Some((org, turn))
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        self.places.give_up(&self.org);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(name: &str) -> OrgId {
        OrgId(name.to_owned())
    }

    #[test]
    fn one_organisation_does_not_keep_another_from_building() {
        let places = Places::default();
        let mut held: Vec<Place> = (0..PLACES).map(|_| places.ask(&org("a")).unwrap()).collect();
        let mut a = places.ask(&org("a")).unwrap_err();
        let mut a_too = places.ask(&org("a")).unwrap_err();
        let b = places.ask(&org("b")).unwrap();
        let mut b_too = places.ask(&org("b")).unwrap_err();
        // The place beyond the four goes; the others come in turn, whoever has fewest first.
        drop(b);
        assert!(a.try_recv().is_err() && b_too.try_recv().is_ok());
        held.pop();
        let a = a.try_recv().unwrap();
        assert!(a_too.try_recv().is_err());
        drop((a, held));
        assert!(a_too.try_recv().is_ok());
        assert!(places.taken().running.is_empty() && places.taken().waiting.is_empty());
    }

    #[test]
    fn who_waits_no_more_is_passed_over() {
        let places = Places::default();
        let mut held: Vec<Place> = (0..PLACES).map(|_| places.ask(&org("a")).unwrap()).collect();
        let left = places.ask(&org("a")).unwrap_err();
        let mut stays = places.ask(&org("a")).unwrap_err();
        drop(left);
        held.pop();
        assert!(stays.try_recv().is_ok());
    }

    #[test]
    fn there_is_an_end_to_places() {
        let places = Places::default();
        let names: Vec<String> = (0..PLACES + RESERVED).map(|n| n.to_string()).collect();
        let mut held: Vec<Place> = names.iter().map(|name| places.ask(&org(name)).unwrap()).collect();
        let mut last = places.ask(&org("last")).unwrap_err();
        assert!(last.try_recv().is_err());
        held.pop();
        assert!(last.try_recv().is_ok());
    }
}
