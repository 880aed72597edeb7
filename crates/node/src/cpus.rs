//! Which CPUs a sandbox may run on, so that it sees as many as it has.

use std::sync::Mutex;

/// Spreads sandboxes over the CPUs of this machine.
pub(crate) struct Cpus {
    /// Sandboxes per CPU, by the CPU's number.
    load: Mutex<Vec<(u32, u32)>>,
}

impl Cpus {
    /// The CPUs this process may use.
    pub(crate) fn detect() -> Self {
        let set = rustix::thread::sched_getaffinity(None);
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let load: Vec<(u32, u32)> = match set {
            Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU)
                .filter(|cpu| set.is_set(*cpu))
                .filter_map(|cpu| Some((u32::try_from(cpu).ok()?, 0)))
                .collect(),
            Err(_) => (0..u32::try_from(count).unwrap_or(1)).map(|cpu| (cpu, 0)).collect(),
        };
        Self { load: Mutex::new(load) }
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.lock().len()).unwrap_or(u32::MAX)
    }

    /// Takes `count` of the least used CPUs; none when the sandbox is as large as the machine.
    pub(crate) fn take(&self, count: u32) -> Vec<u32> {
        let mut load = self.lock();
        if usize::try_from(count).unwrap_or(usize::MAX) >= load.len() {
            return Vec::new();
        }
        load.sort_by_key(|(cpu, sandboxes)| (*sandboxes, *cpu));
        let taken = usize::try_from(count).unwrap_or(0);
        load.iter_mut()
            .take(taken)
            .map(|(cpu, sandboxes)| {
                *sandboxes += 1;
                *cpu
            })
            .collect()
    }

    /// Counts CPUs that a sandbox from before this start already has.
    pub(crate) fn adopt(&self, cpus: &[u32]) {
        for (cpu, sandboxes) in self.lock().iter_mut() {
            *sandboxes += u32::from(cpus.contains(cpu));
        }
    }

    pub(crate) fn give_back(&self, cpus: &[u32]) {
        for (cpu, sandboxes) in self.lock().iter_mut() {
            *sandboxes = sandboxes.saturating_sub(u32::from(cpus.contains(cpu)));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u32, u32)>> {
        self.load.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_sandboxes_spread_and_large_ones_take_all() {
        let cpus = Cpus { load: Mutex::new(vec![(0, 0), (2, 0), (5, 0)]) };
        assert_eq!(cpus.take(1), [0]);
        assert_eq!(cpus.take(2), [2, 5]);
        assert!(cpus.take(3).is_empty());
        cpus.give_back(&[2, 5]);
        assert_eq!(cpus.take(1), [2]);
    }
}
