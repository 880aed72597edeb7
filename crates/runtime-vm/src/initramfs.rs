//! The initramfs of a machine: the guest agent as `/init`, and the kernel modules it loads.
//!
//! A cpio archive in the "newc" format, uncompressed: the kernel unpacks it faster than it would decompress it, and under
//! emulation by far.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use warren_guest_api::machine::MODULES_DIR;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const DATA: u32 = 0o100_644;
const DEVICE: u32 = 0o020_600;

/// Writes the archive to `path`: `agent`, and `modules` in the order in which they are to be loaded.
pub fn write(path: &Path, agent: &Path, modules: &[PathBuf]) -> io::Result<()> {
    let mut archive = Archive::default();
    archive.add("dev", FOLDER, &[], (0, 0));
    // What a program's descriptors 0 to 2 are before it has mounted anything.
    archive.add("dev/console", DEVICE, &[], (5, 1));
    archive.add("dev/null", DEVICE, &[], (1, 3));
    archive.add(MODULES_DIR.trim_start_matches('/'), FOLDER, &[], (0, 0));
    for (place, module) in modules.iter().enumerate() {
        let name = module.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let name = format!("{}/{place:03}-{name}", MODULES_DIR.trim_start_matches('/'));
        archive.add(&name, DATA, &fs::read(module)?, (0, 0));
    }
    archive.add("init", PROGRAM, &fs::read(agent)?, (0, 0));
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, archive.finish())?;
    // QEMU is nobody, and reads it; whatever umask this program has.
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o644))?;
    fs::rename(unfinished, path)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.files += 1;
        let length = u32::try_from(content.len()).expect("agent and modules are far smaller than 4 GiB");
        let name_length = u32::try_from(name.len() + 1).expect("names are short");
        // Number, mode, owner, group, links, time, size, device it lies on, device it is, name, no checksum.
        let fields = [self.files, mode, 0, 0, 1, 0, length, 0, 0, device.0, device.1, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_110_bytes_and_everything_is_aligned() {
        let mut archive = Archive::default();
        archive.add("init", PROGRAM, b"12345", (0, 0));
        let bytes = archive.finish();
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000081ed");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"12345");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
