//! Extended attributes.

use std::os::fd::AsFd;

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use crate::ImageError;
use crate::error::shown;

type Attribute = (Vec<u8>, Vec<u8>);

const LONGEST_NAME: usize = 255;
const LONGEST_VALUE: usize = 64 << 10;

/// Those of users, and the capabilities of programs. The others speak to the host: `trusted.*` and what overlayfs keeps
/// for itself would turn files into whiteouts and folders into others.
fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Sets what may be set and says how many were left out.
pub(super) fn set(file: impl AsFd, path: &[u8], attributes: &[Attribute]) -> Result<u64, ImageError> {
    let mut left_out = 0;
    for (name, value) in attributes {
        if !is_kept(name) || name.contains(&0) {
            left_out += 1;
            continue;
        }
        if name.len() > LONGEST_NAME || value.len() > LONGEST_VALUE {
            return Err(too_large(path, name));
        }
        match fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            // Without inodes of their own, attributes have a block at most, however much space there is.
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => return Err(too_large(path, name)),
            Err(Errno::INVAL) => {
                let (path, name) = (shown(path), shown(name));
                return Err(ImageError::Broken(format!("the attribute {name} of {path} is wrong")));
            }
            Err(error) => {
                return Err(ImageError::io(
                    format!("set the attribute {} of {}", shown(name), shown(path)),
                    error,
                ));
            }
        }
    }
    Ok(left_out)
}

/// Of a folder that was there before: a layer that has it says all about it.
pub(super) fn clear(folder: impl AsFd) -> rustix::io::Result<()> {
    if fs::flistxattr_query(&folder)? == 0 {
        return Ok(());
    }
    let mut names = vec![0; 64 << 10];
    let length = fs::flistxattr(&folder, names.as_mut_slice())?;
    for name in names[..length].split(|byte| *byte == 0).filter(|name| is_kept(name)) {
        fs::fremovexattr(&folder, name)?;
    }
    Ok(())
}

fn too_large(path: &[u8], name: &[u8]) -> ImageError {
    ImageError::TooLarge(format!("the attributes of {} have no room for {}", shown(path), shown(name)))
}
