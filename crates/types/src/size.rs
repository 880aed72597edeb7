//! How large a sandbox is. Sizes come in tiers: memory decides the vCPUs.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `(memory in MiB, vCPUs)`, smallest first; the second is the default.
pub const TIERS: [(u32, u32); 4] = [(1024, 1), (4096, 1), (8192, 2), (16384, 4)];
pub const DEFAULT_TIER: (u32, u32) = TIERS[1];

pub const MIN_DISK_MB: u32 = 20 * 1024;
pub const MAX_DISK_MB: u32 = 256 * 1024;

/// vCPUs, memory and disk (MiB) of one sandbox; always one of the tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub cpu_count: u32,
    pub memory_mb: u32,
    pub disk_mb: u32,
}

/// To more memory, or to less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Up,
    Down,
}

impl Size {
    /// Fills in what a request leaves out and refuses what is not a tier.
    pub fn resolve(cpu_count: Option<i64>, memory_mb: Option<i64>, disk_mb: Option<i64>) -> Result<Self> {
        let (memory_mb, cpu_count) = match (cpu_count, memory_mb) {
            (None, None) => DEFAULT_TIER,
            (None, Some(memory)) => tier_of_memory(memory)?,
            (Some(cpus), None) => tier_of_cpus(cpus)?,
            (Some(cpus), Some(memory)) => {
                tier_of_cpus(cpus)?;
                let tier = tier_of_memory(memory)?;
                if i64::from(tier.1) != cpus {
                    let valid: Vec<String> = TIERS.iter().map(|(m, c)| format!("{c} vCPU/{m} MB")).collect();
                    return Err(Error::invalid(format!(
                        "cpuCount {cpus} and memoryMB {memory} do not match an allowed tier; valid combinations: {}",
                        valid.join(", ")
                    )));
                }
                tier
            }
        };
        Ok(Self { cpu_count, memory_mb, disk_mb: disk(disk_mb)? })
    }

    /// The same disk with another tier's memory and vCPUs.
    pub fn with_memory(self, memory_mb: i64) -> Result<Self> {
        let (memory_mb, cpu_count) = tier_of_memory(memory_mb)?;
        Ok(Self { cpu_count, memory_mb, ..self })
    }

    /// The smallest tier with at least that much memory and no less than this one; the largest when there is none.
    #[must_use]
    pub fn with_memory_between_this_and_largest(self, memory_mb: i64) -> Self {
        let floor = memory_mb.max(i64::from(self.memory_mb));
        let largest = TIERS[TIERS.len() - 1];
        let (memory_mb, cpu_count) =
            TIERS.into_iter().find(|tier| i64::from(tier.0) >= floor).unwrap_or(largest);
        Self { cpu_count, memory_mb, ..self }
    }

    /// The tier above or below this one.
    #[must_use]
    pub fn next_tier(self, direction: Direction) -> Option<u32> {
        match direction {
            Direction::Up => TIERS.into_iter().map(|tier| tier.0).find(|memory| *memory > self.memory_mb),
            Direction::Down => TIERS.into_iter().map(|tier| tier.0).rfind(|memory| *memory < self.memory_mb),
        }
    }
}

fn tier_of_memory(memory: i64) -> Result<(u32, u32)> {
    let largest = TIERS[TIERS.len() - 1].0;
    if let Some(tier) = TIERS.into_iter().find(|tier| i64::from(tier.0) == memory) {
        return Ok(tier);
    }
    if memory > i64::from(largest) {
        return Err(Error::invalid(format!(
            "memoryMB={memory} exceeds the largest self-serve tier ({largest} MB)"
        )));
    }
    Err(Error::invalid(format!("memoryMB must be one of: 1024, 4096, 8192, 16384 (got {memory})")))
}

/// The smallest tier with that many vCPUs.
fn tier_of_cpus(cpus: i64) -> Result<(u32, u32)> {
    let largest = TIERS[TIERS.len() - 1].1;
    if let Some(tier) = TIERS.into_iter().find(|tier| i64::from(tier.1) == cpus) {
        return Ok(tier);
    }
    if cpus > i64::from(largest) {
        return Err(Error::invalid(format!(
            "cpuCount={cpus} exceeds the largest self-serve tier ({largest} vCPU)"
        )));
    }
    Err(Error::invalid(format!("cpuCount must be one of: 1, 2, 4 (got {cpus})")))
}

fn disk(disk_mb: Option<i64>) -> Result<u32> {
    match disk_mb {
        None | Some(0) => Ok(MIN_DISK_MB),
        Some(disk) if disk < i64::from(MIN_DISK_MB) => {
            Err(Error::invalid(format!("diskMB must be at least {MIN_DISK_MB} (20GB)")))
        }
        Some(disk) if disk > i64::from(MAX_DISK_MB) => {
            Err(Error::invalid(format!("diskMB cannot exceed {MAX_DISK_MB} (256GB)")))
        }
        Some(disk) => u32::try_from(disk).map_err(|_| Error::invalid("diskMB is out of range")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(cpu: Option<i64>, memory: Option<i64>) -> Option<(u32, u32)> {
        Size::resolve(cpu, memory, None).ok().map(|size| (size.cpu_count, size.memory_mb))
    }

    #[test]
    fn what_is_left_out_is_inferred() {
        assert_eq!(resolved(None, None), Some((1, 4096)));
        assert_eq!(resolved(None, Some(16384)), Some((4, 16384)));
        assert_eq!(resolved(Some(1), None), Some((1, 1024)));
        assert_eq!(resolved(Some(2), None), Some((2, 8192)));
        assert_eq!(resolved(Some(1), Some(4096)), Some((1, 4096)));
    }

    #[test]
    fn what_is_no_tier_is_refused_with_the_choices() {
        for (cpu, memory, says) in [
            (None, Some(2048), "must be one of: 1024, 4096, 8192, 16384 (got 2048)"),
            (None, Some(65536), "exceeds the largest self-serve tier (16384 MB)"),
            (Some(3), None, "must be one of: 1, 2, 4 (got 3)"),
            (Some(8), None, "exceeds the largest self-serve tier (4 vCPU)"),
            (Some(2), Some(1024), "do not match an allowed tier"),
            (Some(-1), None, "must be one of"),
            (None, Some(i64::MIN), "must be one of"),
        ] {
            let error = Size::resolve(cpu, memory, None).unwrap_err();
            assert!(error.message.contains(says), "{}", error.message);
        }
    }

    #[test]
    fn a_fork_gets_a_tier_that_is_no_smaller_than_its_checkpoint() {
        let size = Size { cpu_count: 1, memory_mb: 4096, disk_mb: 20480 };
        for (asked, given) in [
            (0, 4096),
            (-5, 4096),
            (1024, 4096),
            (4096, 4096),
            (4097, 8192),
            (16384, 16384),
            (i64::MAX, 16384),
        ] {
            assert_eq!(size.with_memory_between_this_and_largest(asked).memory_mb, given, "{asked}");
        }
        assert_eq!(size.next_tier(Direction::Up), Some(8192));
        assert_eq!(size.next_tier(Direction::Down), Some(1024));
        assert_eq!(size.with_memory(16384).unwrap().next_tier(Direction::Up), None);
        assert_eq!(size.with_memory(1024).unwrap().next_tier(Direction::Down), None);
        assert!(size.with_memory(2048).is_err());
    }

    #[test]
    fn disks_have_a_floor_and_a_ceiling() {
        assert_eq!(Size::resolve(None, None, None).unwrap().disk_mb, 20480);
        assert!(Size::resolve(None, None, Some(20479)).is_err());
        assert!(Size::resolve(None, None, Some(262_145)).is_err());
        assert_eq!(Size::resolve(None, None, Some(262_144)).unwrap().disk_mb, 262_144);
    }
}
