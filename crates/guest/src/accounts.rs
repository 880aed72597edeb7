//! The sandbox's own account files, read directly: a statically linked program must not ask the C library about users.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Longest account file that is looked at.
const MAX_BYTES: u64 = 1024 * 1024;

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

/// Ids of the groups that list `user` as a member, from the text of `/etc/group`.
pub(crate) fn groups_of(user: &str, text: &str) -> Vec<u32> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':').skip(2);
            let id = fields.next()?.parse().ok()?;
            fields.next()?.split(',').any(|member| member.trim() == user).then_some(id)
        })
        .take(64)
        .collect()
}

/// Login shell of the account with this number, from the text of `/etc/passwd`.
pub(crate) fn shell_of(uid: u32, text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let &[_, _, number, _, _, _, shell] = &fields[..] else { return None };
        (number.parse() == Ok(uid) && shell.starts_with('/')).then(|| shell.to_owned())
    })
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
        assert_eq!(groups_of("sandbox", group), [27, 999]);
        let passwd = "root:x:0:0:root:/root:/bin/sh\nsandbox:x:1000:1000::/home/sandbox:/bin/zsh\n";
        assert_eq!(shell_of(1000, passwd).as_deref(), Some("/bin/zsh"));
        assert_eq!(shell_of(7, passwd), None);
        let lines = "# x=y\nA=1\nexport B=\"two words\"\n =no\nC='3'\nD=a=b\nbroken\n";
        let pairs = [("A", "1"), ("B", "two words"), ("C", "3"), ("D", "a=b")];
        assert_eq!(environment(lines), pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
