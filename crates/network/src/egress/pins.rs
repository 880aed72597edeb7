//! Which addresses a sandbox was told that names stand for.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Programs keep addresses for longer than they are told to.
const AT_LEAST: Duration = Duration::from_secs(10 * 60);
const AT_MOST: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_NAMES: usize = 4096;
const MAX_ADDRESSES: usize = 64;

#[derive(Default)]
pub(crate) struct Pins(Mutex<HashMap<String, Vec<(Ipv4Addr, Instant)>>>);

impl Pins {
    /// When it is full, the name whose addresses are the oldest makes room.
    pub(crate) fn add(&self, name: &str, addresses: &[Ipv4Addr], ttl: Duration) {
        let now = Instant::now();
        let until = now + ttl.clamp(AT_LEAST, AT_MOST);
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MAX_NAMES && !names.contains_key(name) {
            names.retain(|_, pins| pins.iter().any(|(_, until)| *until > now));
            if names.len() >= MAX_NAMES {
                let newest = |pins: &Vec<(Ipv4Addr, Instant)>| pins.iter().map(|(_, until)| *until).max();
                let oldest = names.iter().min_by_key(|(_, pins)| newest(pins)).map(|(name, _)| name.clone());
                oldest.and_then(|name| names.remove(&name));
            }
        }
        let pins = names.entry(name.to_owned()).or_default();
        pins.retain(|(address, until)| *until > now && !addresses.contains(address));
        pins.extend(addresses.iter().take(MAX_ADDRESSES).map(|address| (*address, until)));
        let surplus = pins.len().saturating_sub(MAX_ADDRESSES);
        pins.drain(..surplus);
    }

    pub(crate) fn has(&self, name: &str, address: Ipv4Addr) -> bool {
        let now = Instant::now();
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(name).is_some_and(|pins| pins.contains_live(address, now))
    }

    pub(crate) fn names_of(&self, address: Ipv4Addr) -> Vec<String> {
        let now = Instant::now();
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names
            .iter()
            .filter(|(_, pins)| pins.contains_live(address, now))
            .map(|(name, _)| name.clone())
            .collect()
    }
}

trait Live {
    fn contains_live(&self, address: Ipv4Addr, now: Instant) -> bool;
}

impl Live for Vec<(Ipv4Addr, Instant)> {
    fn contains_live(&self, address: Ipv4Addr, now: Instant) -> bool {
        self.iter().any(|(pinned, until)| *pinned == address && *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_bounded_and_the_oldest_go_first() {
        let pins = Pins::default();
        for name in 0..=u32::try_from(MAX_NAMES).unwrap() {
            pins.add(&format!("n{name}"), &[Ipv4Addr::from_bits(name)], Duration::ZERO);
        }
        assert_eq!(pins.0.lock().unwrap().len(), MAX_NAMES);
        assert!(!pins.has("n0", Ipv4Addr::from_bits(0)) && pins.has("n4096", Ipv4Addr::from_bits(4096)));
        for address in 0..100 {
            pins.add("n1", &[Ipv4Addr::from_bits(1000 + address)], Duration::ZERO);
        }
        assert_eq!(pins.0.lock().unwrap()["n1"].len(), MAX_ADDRESSES);
        assert!(pins.has("n1", Ipv4Addr::from_bits(1099)) && !pins.has("n1", Ipv4Addr::from_bits(1000)));
    }

    #[test]
    fn an_address_may_have_several_names() {
        let (pins, address) = (Pins::default(), Ipv4Addr::new(203, 0, 113, 1));
        pins.add("a.example", &[address], Duration::from_secs(1));
        pins.add("b.example", &[address], Duration::from_secs(1));
        let mut names = pins.names_of(address);
        names.sort();
        assert_eq!(names, ["a.example", "b.example"]);
        assert!(!pins.has("a.example", Ipv4Addr::new(203, 0, 113, 2)));
    }
}
