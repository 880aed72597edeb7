//! Owners.

use rustix::fs::{Gid, Uid};

use crate::ImageError;
use crate::error::shown;

/// A sandbox has this many users and groups.
pub(crate) const IDS: u64 = 65_536;

pub(super) fn read(name: &[u8], uid: u64, gid: u64) -> Result<(Uid, Gid), ImageError> {
    let within = |id: u64| u32::try_from(id).ok().filter(|_| id < IDS);
    match (within(uid), within(gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(ImageError::Unsupported(format!(
            "{} belongs to user {uid} and group {gid}, and a sandbox has none above {}; build the image with smaller ids",
            shown(name),
            IDS - 1
        ))),
    }
}
