//! Removing: what a later layer replaces, and what its whiteouts hide.

use rustix::fs::{self, AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::layer::Touched;
use super::tree::{Folder, Tree};
use crate::ImageError;
use crate::error::shown;

/// Removes a name and all below it, so that something else can take its place.
pub(super) fn replaced(tree: &mut Tree<'_>, folder: &Folder, name: &[u8]) -> Result<(), ImageError> {
    remove(tree, folder, name, None)
}

/// Removes what layers below this one have at a name. What this layer has put there stays, as the format wants it: a
/// whiteout hides only what was there before, wherever in the layer it stands.
pub(super) fn hidden(
    tree: &mut Tree<'_>,
    folder: &Folder,
    name: &[u8],
    touched: &Touched,
) -> Result<(), ImageError> {
    remove(tree, folder, name, Some(touched))
}

/// The same for all that is in a folder.
pub(super) fn emptied(tree: &mut Tree<'_>, folder: &Folder, touched: &Touched) -> Result<(), ImageError> {
    for name in names(folder).map_err(|error| failed(b"a directory", error))? {
        remove(tree, folder, &name, Some(touched))?;
    }
    Ok(())
}

/// Goes as deep as folders were let nest, see [`Tree`].
fn remove(
    tree: &mut Tree<'_>,
    folder: &Folder,
    name: &[u8],
    spared: Option<&Touched>,
) -> Result<(), ImageError> {
    tree.visit()?;
    let is_spared = spared.is_some_and(|touched| touched.has(folder, name));
    let kind = match fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => FileType::from_raw_mode(found.st_mode),
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(name, error)),
    };
    if kind != FileType::Directory {
        if is_spared {
            return Ok(());
        }
        if kind == FileType::Symlink {
            tree.forget();
        }
        return fs::unlinkat(folder, name, AtFlags::empty()).map_err(|error| failed(name, error));
    }
    tree.forget();
    let inner = folder.open(name).map_err(|error| failed(name, error))?;
    for name in names(&inner).map_err(|error| failed(name, error))? {
        remove(tree, &inner, &name, spared)?;
    }
    if is_spared {
        return Ok(());
    }
    match fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
        // Something of this layer is still in it.
        Err(Errno::NOTEMPTY | Errno::EXIST) if spared.is_some() => Ok(()),
        done => done.map_err(|error| failed(name, error)),
    }
}

fn names(folder: &Folder) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn failed(name: &[u8], error: Errno) -> ImageError {
    ImageError::io(format!("remove {}", shown(name)), error)
}
