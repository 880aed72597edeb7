//! Paths as callers give them: bytes, checked before any use.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use warren_guest_api::boot::HOME;
use warren_guest_api::files::MAX_PATH_BYTES;
use warren_types::Error;
use warren_types::error::Result;

/// An absolute path without NUL bytes, repeated slashes or `.`. `..` is left to the kernel, since only it knows what is a
/// symlink; and so is a slash at the end, which it is given for `/.` too: it says that there must be a folder.
#[derive(Clone, PartialEq, Eq)]
pub struct GuestPath(PathBuf);

impl GuestPath {
    /// Takes a path from a request; relative ones are below the home of the usual user.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::below(HOME, bytes)
    }

    /// Takes a path from a request; relative ones are below `home`.
    pub fn below(home: &str, bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Err(Error::invalid("path must not be empty"));
        }
        if bytes.contains(&0) {
            return Err(Error::invalid("path contains a NUL byte"));
        }
        let joined = Path::new(home).join(OsStr::from_bytes(bytes));
        if joined.as_os_str().len() > MAX_PATH_BYTES {
            return Err(Error::invalid(format!("path is longer than {MAX_PATH_BYTES} bytes")));
        }
        // `components` drops repeated slashes, `.` and the trailing slash.
        let mut path: PathBuf = joined.components().collect();
        let given = joined.as_os_str().as_bytes();
        if given.ends_with(b"/") || given.ends_with(b"/.") {
            path.push("");
        }
        Ok(Self(path))
    }

    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Whether it ends in a slash.
    #[must_use]
    pub fn says_folder(&self) -> bool {
        self.0.as_os_str().as_bytes().ends_with(b"/")
    }

    /// The path without a slash at its end.
    #[must_use]
    pub fn plain(&self) -> PathBuf {
        self.0.components().collect()
    }

    /// Its folder and its last name; `None` where it has no last name, as in `/` or `a/..`.
    #[must_use]
    pub fn split(&self) -> Option<(&Path, &OsStr)> {
        Some((self.0.parent()?, self.0.file_name()?))
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The name of an archive's entry as a path below the folder it is unpacked into; `None` for that folder itself.
/// Refuses names that are absolute or go up.
pub fn entry_name(bytes: &[u8]) -> Result<Option<PathBuf>> {
    let shown = || format!("{:?}", OsStr::from_bytes(bytes));
    if bytes.contains(&0) || bytes.len() > MAX_PATH_BYTES {
        return Err(Error::invalid("the archive has an entry whose name is not a path"));
    }
    let mut kept = OsString::new();
    for component in Path::new(OsStr::from_bytes(bytes)).components() {
        match component {
            Component::Normal(name) => {
                if !kept.is_empty() {
                    kept.push("/");
                }
                kept.push(name);
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => {
                return Err(Error::invalid(format!("the archive has an absolute name: {}", shown())));
            }
            Component::ParentDir => {
                return Err(Error::invalid(format!("the archive has a name with `..`: {}", shown())));
            }
        }
    }
    Ok((!kept.is_empty()).then(|| PathBuf::from(OsString::from_vec(kept.into_vec()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_made_absolute_and_plain() {
        let parsed =
            |text: &str| GuestPath::parse(text.as_bytes()).map(|path| path.as_path().display().to_string());
        assert_eq!(parsed("a/b").unwrap(), format!("{HOME}/a/b"));
        let of_root = GuestPath::below("/root", b"a/b").unwrap();
        assert_eq!(of_root.as_path(), Path::new("/root/a/b"));
        assert_eq!(parsed("//etc///./passwd/").unwrap(), "/etc/passwd/");
        assert_eq!(parsed("a/b/.").unwrap(), format!("{HOME}/a/b/"));
        assert_eq!(parsed("a.").unwrap(), format!("{HOME}/a."));
        assert_eq!(parsed("/a/../b").unwrap(), "/a/../b");
        assert_eq!(parsed("/").unwrap(), "/");
        for bad in ["", "a\0b", &"x".repeat(4097), &"a/".repeat(2049)] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
        assert!(GuestPath::parse(b"/a/..").unwrap().split().is_none());
        let folder = GuestPath::parse(b"/a/b/").unwrap();
        assert_eq!(folder.split(), Some((Path::new("/a"), OsStr::new("b"))));
        assert_eq!(folder.plain().as_os_str(), "/a/b");
    }

    #[test]
    fn entries_stay_below_their_folder() {
        let name =
            |text: &str| entry_name(text.as_bytes()).map(|name| name.map(|name| name.display().to_string()));
        assert_eq!(name("./a//b/").unwrap().as_deref(), Some("a/b"));
        assert_eq!(name("./").unwrap(), None);
        for bad in ["/a", "../a", "a/../../b", "a/..", "a\0"] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_entry_is_plain(bytes in prop::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..40)) {
            if let Ok(Some(name)) = entry_name(&bytes) {
                prop_assert!(name.components().all(|component| matches!(component, Component::Normal(_))));
            }
        }
    }
}
