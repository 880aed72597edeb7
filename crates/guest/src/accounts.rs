//! The sandbox's own account files, read directly: a statically linked program must not ask the C library about users.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;

/// Longest account file that is looked at.
const MAX_BYTES: u64 = 1024 * 1024;
/// Groups of one user that count; the kernel takes more, but nobody has them.
const MAX_GROUPS: usize = 64;

/// Ids of the groups that list a user as a member, by the user's name.
pub(crate) type Members = Rc<BTreeMap<String, Vec<u32>>>;
/// Login shells by user id.
pub(crate) type Shells = Rc<BTreeMap<u32, String>>;

/// A text file whose parsed form is kept until the file changes.
pub(crate) struct Parsed<T> {
    path: PathBuf,
    parse: fn(&str) -> T,
    last: RefCell<Option<(Version, T)>>,
}

type Version = (u64, u64, i64, i64);

impl<T: Clone + Default> Parsed<T> {
    pub(crate) fn new(path: &str, parse: fn(&str) -> T) -> Self {
        Self { path: PathBuf::from(path), parse, last: RefCell::new(None) }
    }

    /// What the file says now; the default when it cannot be read.
    pub(crate) fn get(&self) -> T {
        let Ok(meta) = std::fs::metadata(&self.path) else { return T::default() };
        // A FIFO in its place would block whoever opens it.
        if !meta.is_file() {
            return T::default();
        }
        let version = (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
        if let Some((seen, parsed)) = &*self.last.borrow()
            && *seen == version
        {
            return parsed.clone();
        }
        let mut bytes = Vec::new();
        if File::open(&self.path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)).is_err() {
            return T::default();
        }
        let parsed = (self.parse)(&String::from_utf8_lossy(&bytes));
        *self.last.borrow_mut() = Some((version, parsed.clone()));
        parsed
    }
}

/// From the text of `/etc/group`.
pub(crate) fn members(text: &str) -> Members {
    let mut members = BTreeMap::<String, Vec<u32>>::new();
    for line in text.lines() {
        let mut fields = line.split(':').skip(2);
        let Some(Ok(id)) = fields.next().map(str::parse) else { continue };
        for member in fields.next().unwrap_or_default().split(',').map(str::trim) {
            let groups = members.entry(member.to_owned()).or_default();
            if groups.len() < MAX_GROUPS && !groups.contains(&id) {
                groups.push(id);
            }
        }
    }
    Rc::new(members)
}

/// From the text of `/etc/passwd`; the first line with a number is the one that counts.
pub(crate) fn shells(text: &str) -> Shells {
    let mut shells = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let &[_, _, number, _, _, _, shell] = &fields[..] else { continue };
        if let Ok(uid) = number.parse()
            && shell.starts_with('/')
        {
            shells.entry(uid).or_insert_with(|| shell.to_owned());
        }
    }
    Rc::new(shells)
}

/// Settings of `/etc/environment`: `NAME=value` lines, with optional `export` and quotes.
pub(crate) fn environment(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            let (name, value) = line.strip_prefix("export ").unwrap_or(line).trim_start().split_once('=')?;
            let usable = !name.is_empty() && !name.starts_with('#') && !name.contains(char::is_whitespace);
            let value = value.trim();
            let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
            let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
            (usable && !line.contains('\0')).then(|| (name.to_owned(), value.to_owned()))
        })
        .take(1000)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_files_are_read_leniently() {
        let group = "root:x:0:\nsudo:x:27:other,sandbox\nbroken\ndocker:x:999:sandbox\nbad:x:nine:sandbox\n";
        assert_eq!(members(group)["sandbox"], [27, 999]);
        let passwd = "root:x:0:0:root:/root:/bin/sh\nsandbox:x:1000:1000::/home/sandbox:/bin/zsh\n";
        assert_eq!(shells(passwd)[&1000], "/bin/zsh");
        assert_eq!(shells(passwd).get(&7), None);
        let lines = "# x=y\nA=1\nexport B=\"two words\"\n =no\nC='3'\nD=a=b\nbroken\n";
        let pairs = [("A", "1"), ("B", "two words"), ("C", "3"), ("D", "a=b")];
        assert_eq!(environment(lines), pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
