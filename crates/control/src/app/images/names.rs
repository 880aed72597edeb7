//! Names of snapshots. They are segments of paths, and clients differ in what they escape.

use std::fmt;

use warren_types::Error;

use super::manifest::BASE_TEMPLATE;

const MAX_NAME_BYTES: usize = 128;

/// `name`, which is its newest version, or `name@3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotRef {
    pub name: String,
    pub version: Option<u32>,
}

impl SnapshotRef {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let (name, version) = match text.rsplit_once('@') {
            Some((name, version)) => {
                let digits = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
                let number = version.parse().ok().filter(|number| digits && *number > 0);
                let bad =
                    || Error::invalid(format!("{text:?}: after the @ comes the number of a version, from 1"));
                (name, Some(number.ok_or_else(bad)?))
            }
            None => (text, None),
        };
        check_name(name)?;
        Ok(Self { name: name.to_owned(), version })
    }
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The name of something that is to be made: as [`check_name`], and not one that means something else wherever it is said.
pub(crate) fn check_new_name(name: &str) -> Result<(), Error> {
    if name == BASE_TEMPLATE {
        return Err(Error::invalid("base is the template that is always there; choose another name"));
    }
    check_name(name)
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.trim().is_empty() {
        return Err(Error::invalid("name is required"));
    }
    // Paths are tidied by clients and proxies: these two would name something else.
    let is_dots = name == "." || name == "..";
    if name.len() > MAX_NAME_BYTES
        || is_dots
        || name.contains(|c: char| c.is_control() || matches!(c, '/' | '@'))
    {
        return Err(Error::invalid(format!(
            "name must be at most {MAX_NAME_BYTES} bytes without `/`, `@` and control characters"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_are_told_apart() {
        let parsed = SnapshotRef::parse("data science@12").unwrap();
        assert_eq!((parsed.name.as_str(), parsed.version), ("data science", Some(12)));
        assert_eq!(parsed.to_string(), "data science@12");
        assert_eq!(SnapshotRef::parse("é").unwrap().version, None);
        assert!(check_new_name("base").is_err() && SnapshotRef::parse("base").is_ok());
        for bad in
            ["", " ", "a/b", "a@", "a@0", "a@x", "a@-1", "a@+1", "a@b@1", "a\nb", "..", &"x".repeat(129)]
        {
            assert!(SnapshotRef::parse(bad).is_err(), "{bad:?}");
        }
    }
}
