//! What the machine uses, as its kernel says.

use std::fs;

use warren_guest_api::machine::Usage;

pub(crate) fn read() -> Usage {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Usage { memory_bytes: in_use(&memory), processes: processes() }
}

/// All but what the kernel would give to whoever asks next.
fn in_use(text: &str) -> u64 {
    let kilobytes = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
    };
    kilobytes("MemTotal").saturating_sub(kilobytes("MemAvailable")) * 1024
}

fn processes() -> u64 {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let is_process = |name: &[u8]| name.first().is_some_and(u8::is_ascii_digit);
    entries.flatten().filter(|entry| is_process(entry.file_name().as_encoded_bytes())).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_not_in_use() {
        let text = "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     400 kB\n";
        assert_eq!(in_use(text), 600 * 1024);
        assert_eq!(in_use("nonsense"), 0);
        assert!(processes() > 0);
    }
}
