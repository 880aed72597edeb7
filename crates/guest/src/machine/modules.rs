//! Kernel modules, loaded in the order of their names.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::doing;

/// The kernel unpacks the file itself; for names that end in `.xz` or `.zst`.
const COMPRESSED: i32 = 4;

/// Loads every module in `folder` and removes the files: they lie in memory.
pub(super) fn load_all(folder: &Path) -> io::Result<()> {
    let mut names: Vec<String> = match fs::read_dir(folder) {
        Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    names.sort();
    for name in &names {
        let path = folder.join(name);
        doing(&format!("load the kernel module {name}"), load(&path))?;
        fs::remove_file(&path)?;
    }
    Ok(())
}

fn load(path: &Path) -> io::Result<()> {
    let packed = path.extension().is_some_and(|ending| ending == "xz" || ending == "zst");
    match rustix::system::finit_module(File::open(path)?, c"", if packed { COMPRESSED } else { 0 }) {
        // Built in, or already there.
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => other.map_err(Into::into),
    }
}
