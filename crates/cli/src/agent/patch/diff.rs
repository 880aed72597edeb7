//! Changes as git writes them. `git apply` takes the result.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sha1::{Digest as _, Sha1};

use super::binary;
use super::merge::{COMPARE_LIMIT, Edit, edits, is_binary, lines_of};
use super::{Change, Content};

/// Lines around a change.
const CONTEXT: usize = 3;
/// After this long texts are shown as wholly different; a hostile one must not keep us.
const ALL_LIMIT: Duration = Duration::from_secs(20);
const NOTHING: &str = "0000000000000000000000000000000000000000";
const SHORT: usize = 10;

/// Where contents come from; none when one is no longer to be had.
pub(crate) trait Contents {
    fn before(&self, change: &Change) -> Option<Vec<u8>>;
    fn after(&self, change: &Change) -> Option<Vec<u8>>;
}

/// `whole`: with binary contents in it, for a machine.
pub(crate) fn diff(changes: &[Change], contents: &impl Contents, whole: bool) -> Vec<u8> {
    let mut writer = Writer {
        text: Vec::new(),
        contents,
        whole,
        deadline: Instant::now() + ALL_LIMIT,
        from: renames(changes),
    };
    let gone: Vec<&str> = writer.from.values().map(|change| change.name.as_str()).collect();
    for change in changes.iter().filter(|change| !gone.contains(&change.name.as_str())) {
        writer.change(change);
    }
    writer.text
}

/// Files that are gone, by the name under which the same content is new.
fn renames(changes: &[Change]) -> BTreeMap<&str, &Change> {
    let empty = crate::agent::tree::hash_of(b"");
    let mut gone: BTreeMap<&str, Vec<&Change>> = BTreeMap::new();
    for change in changes.iter().rev().filter(|change| change.after.is_none()) {
        if let Some(hash) = change.before.as_ref().and_then(Content::hash).filter(|hash| *hash != empty) {
            gone.entry(hash).or_default().push(change);
        }
    }
    let is_new = |change: &&Change| change.before.is_none();
    let renamed = changes.iter().filter(is_new).filter_map(|change| {
        let hash = change.after.as_ref()?.hash()?;
        Some((change.name.as_str(), gone.get_mut(hash)?.pop()?))
    });
    renamed.collect()
}

struct Writer<'a, C> {
    text: Vec<u8>,
    contents: &'a C,
    whole: bool,
    deadline: Instant,
    from: BTreeMap<&'a str, &'a Change>,
}

/// One side of a change.
struct Side {
    mode: &'static str,
    content: Vec<u8>,
    id: String,
}

impl<C: Contents> Writer<'_, C> {
    fn line(&mut self, line: &str) {
        self.text.extend_from_slice(line.as_bytes());
        self.text.push(b'\n');
    }

    fn change(&mut self, change: &Change) {
        if let Some(before) = self.from.get(change.name.as_str()).copied() {
            return self.rename(before, change);
        }
        let before = change.before.as_ref().map(|content| side(content, self.contents.before(change)));
        let after = change.after.as_ref().map(|content| side(content, self.contents.after(change)));
        let (Some(before), Some(after)) = (flat(before), flat(after)) else {
            // A patch with a hole in it must not look like one that can be applied.
            return self.line(&format!(
                "# {}: what went in is neither here nor on the server any more, so no difference can be shown",
                quoted("", &change.name)
            ));
        };
        if change.letter() == 'T' {
            self.sides(&change.name, before.as_ref(), None);
            return self.sides(&change.name, None, after.as_ref());
        }
        self.sides(&change.name, before.as_ref(), after.as_ref());
    }

    fn rename(&mut self, before: &Change, after: &Change) {
        let (from, to) = (quoted("", &before.name), quoted("", &after.name));
        self.line(&format!("diff --git {} {}", quoted("a/", &before.name), quoted("b/", &after.name)));
        if let (Some(old), Some(new)) = (&before.before, &after.after)
            && old.mode() != new.mode()
        {
            self.line(&format!("old mode {}\nnew mode {}", old.mode(), new.mode()));
        }
        self.line(&format!("similarity index 100%\nrename from {from}\nrename to {to}"));
    }

    fn sides(&mut self, name: &str, before: Option<&Side>, after: Option<&Side>) {
        let (old, new) = (quoted("a/", name), quoted("b/", name));
        self.line(&format!("diff --git {old} {new}"));
        let mut ending = String::new();
        match (before, after) {
            (None, Some(after)) => self.line(&format!("new file mode {}", after.mode)),
            (Some(before), None) => self.line(&format!("deleted file mode {}", before.mode)),
            (Some(before), Some(after)) if before.mode != after.mode => {
                self.line(&format!("old mode {}\nnew mode {}", before.mode, after.mode));
            }
            (Some(before), _) => ending = format!(" {}", before.mode),
            (None, None) => {}
        }
        let content = |side: Option<&Side>| side.map(|side| side.content.clone()).unwrap_or_default();
        let (a, b) = (content(before), content(after));
        if a == b && before.is_some() == after.is_some() {
            return;
        }
        let is_binary = is_binary(&a) || is_binary(&b);
        let length = if is_binary && self.whole { NOTHING.len() } else { SHORT };
        let id = |side: Option<&Side>| side.map_or(NOTHING, |side| side.id.as_str())[..length].to_owned();
        self.line(&format!("index {}..{}{ending}", id(before), id(after)));
        let label = |side: Option<&Side>, name: &str| match side {
            Some(_) if name.contains(' ') => format!("{name}\t"),
            Some(_) => name.to_owned(),
            None => "/dev/null".to_owned(),
        };
        let (old, new) = (label(before, &old), label(after, &new));
        if is_binary && self.whole {
            binary::write(&mut self.text, &a, &b);
        } else if is_binary {
            let (old, new) = (old.trim_end(), new.trim_end());
            self.line(&format!("Binary files {old} and {new} differ ({} and {} bytes)", a.len(), b.len()));
        } else if a != b {
            self.line(&format!("--- {old}\n+++ {new}"));
            self.hunks(&a, &b);
        }
    }

    fn hunks(&mut self, a: &[u8], b: &[u8]) {
        let (a, b) = (lines_of(a), lines_of(b));
        let deadline = self.deadline.min(Instant::now() + COMPARE_LIMIT);
        for group in grouped(edits(&a, &b, deadline)) {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let before = CONTEXT.min(first.base.start);
            let after = CONTEXT.min(a.len() - last.base.end);
            let old = first.base.start - before..last.base.end + after;
            let new = first.new.start - before..last.new.end + after;
            self.line(&format!("@@ -{} +{} @@", stretch(&old), stretch(&new)));
            let mut at = old.start;
            for edit in &group {
                self.lines(b' ', &a[at..edit.base.start]);
                self.lines(b'-', &a[edit.base.clone()]);
                self.lines(b'+', &b[edit.new.clone()]);
                at = edit.base.end;
            }
            self.lines(b' ', &a[at..old.end]);
        }
    }

    fn lines(&mut self, sign: u8, lines: &[&[u8]]) {
        for line in lines {
            self.text.push(sign);
            self.text.extend_from_slice(line);
            if !line.ends_with(b"\n") {
                self.text.extend_from_slice(b"\n\\ No newline at end of file\n");
            }
        }
    }
}

/// Edits whose surroundings meet are shown together.
fn grouped(edits: Vec<Edit>) -> Vec<Vec<Edit>> {
    let mut groups: Vec<Vec<Edit>> = Vec::new();
    for edit in edits {
        match groups.last_mut() {
            Some(group)
                if group.last().is_some_and(|last| edit.base.start - last.base.end <= 2 * CONTEXT) =>
            {
                group.push(edit);
            }
            _ => groups.push(vec![edit]),
        }
    }
    groups
}

fn stretch(range: &std::ops::Range<usize>) -> String {
    match range.len() {
        // Of nothing, the line before it is named.
        0 => format!("{},0", range.start),
        1 => format!("{}", range.start + 1),
        length => format!("{},{length}", range.start + 1),
    }
}

fn side(content: &Content, bytes: Option<Vec<u8>>) -> Option<Side> {
    let bytes = match content {
        Content::Link { target } => target.clone().into_bytes(),
        Content::File { .. } => bytes?,
    };
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(&bytes);
    let id = warren_types::hex(&hasher.finalize());
    Some(Side { mode: content.mode(), content: bytes, id })
}

/// None when a side that there should be is not to be had.
#[expect(clippy::option_option, reason = "a side that is absent and one that is lost are two things")]
fn flat(side: Option<Option<Side>>) -> Option<Option<Side>> {
    match side {
        None => Some(None),
        Some(None) => None,
        Some(side) => Some(side),
    }
}

/// A name as git quotes it.
fn quoted(prefix: &str, name: &str) -> String {
    if !name.contains(['"', '\\']) && !name.chars().any(char::is_control) {
        return format!("{prefix}{name}");
    }
    let mut text = format!("\"{prefix}");
    for byte in name.bytes() {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' => text.push(char::from(byte)),
            byte => text.push_str(&format!("\\{byte:03o}")),
        }
    }
    text.push('"');
    text
}
