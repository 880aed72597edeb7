//! What is in a tree in the sandbox, by name and `stat`.
//!
//! GNU's `find` tells it best; every other image has `find` and `stat` that tell it in whole seconds. The listing goes through a
//! file, so that its size is ours to bound. It says what to look at and is believed in nothing.

use std::collections::BTreeMap;

use warren_api::exec::ExecCreate;
use warren_types::SandboxId;

use super::super::tree::Name;
use super::collect::read_file;
use crate::client::Client;
use crate::failure::hinted;
use crate::output::printable;

/// Seconds that listing a tree may take.
const LIMIT: i64 = 120;
const MAX_BYTES: u64 = 256 << 20;
const MAX_ENTRIES: usize = 1_000_000;

const SCRIPT: &str = r#"
cd "$1" || exit 3
umask 077
if find . -maxdepth 0 -printf '' 2>/dev/null; then
    { printf 'fine %s\0' "$(date +%s)"; find . -name .git -prune -o ! -name . -printf '%y %s %T@ %C@ %m %P\0'; } >"$2"
else
    { printf 'coarse %s\n' "$(date +%s)"; find . -name .git -prune -o ! -name . -exec stat -c '%f %s %Y %Z %a %n' '{}' +; } >"$2"
fi
# What vanishes while it is listed makes find fail and is no failure.
[ -s "$2" ]
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    File,
    Link,
    Folder,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) sort: Sort,
    pub(crate) size: u64,
    pub(crate) executable: bool,
    /// Of the last change, in seconds.
    pub(crate) changed: i64,
    /// All that `stat` said, to be compared with what it said before.
    pub(crate) stamp: String,
}

#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Whether times are in whole seconds.
    pub(crate) coarse: bool,
    /// When it was made, by the sandbox's clock, in seconds.
    pub(crate) at: i64,
    pub(crate) entries: BTreeMap<Name, Listed>,
    /// Names that are not UTF-8, or lines that make no sense.
    pub(crate) unreadable: usize,
}

/// Lists `folder`, and returns the bytes it was read from.
pub(crate) async fn list(client: &Client, sandbox: &SandboxId, folder: &str) -> anyhow::Result<Vec<u8>> {
    let path = format!("/tmp/.warren-listing-{:016x}", super::super::run::random()?);
    let body = ExecCreate {
        cmd: Some("/bin/sh".to_owned()),
        args: Some(["-c", SCRIPT, "sh", folder, &path].map(str::to_owned).into()),
        cwd: Some("/".to_owned()),
        timeout: Some(LIMIT),
        ..ExecCreate::default()
    };
    let result = client.run_exec(sandbox, &body).await?.value;
    let content = match result.exit_code {
        0 => read_file(client, sandbox, &path, MAX_BYTES).await,
        3 => Err(anyhow::anyhow!("{folder} is not there any more")),
        code => {
            let last = result.stderr.lines().last().unwrap_or_default();
            Err(anyhow::anyhow!("the sandbox could not list it ({code}): {}", printable(last)))
        }
    };
    let _ = client.remove_file(sandbox, &path).await;
    content
}

pub(crate) fn parse(bytes: &[u8]) -> anyhow::Result<Listing> {
    let is_fine = bytes.starts_with(b"fine ");
    let end = if is_fine { b'\0' } else { b'\n' };
    let mut lines = bytes.split(|byte| *byte == end).filter(|line| !line.is_empty());
    let head = lines.next().and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let at = head.split_once(' ').and_then(|(_, at)| at.parse().ok()).unwrap_or(0);
    let mut listing = Listing { coarse: !is_fine, at, ..Listing::default() };
    for line in lines {
        match std::str::from_utf8(line).ok().and_then(|line| entry(line, is_fine)) {
            Some((name, listed)) => {
                listing.entries.insert(name, listed);
            }
            None => listing.unreadable += 1,
        }
        if listing.entries.len() > MAX_ENTRIES {
            return Err(hinted(
                format!("there are more than {MAX_ENTRIES} files in the tree"),
                "copy what you need with `warren cp`",
            ));
        }
    }
    Ok(listing)
}

fn entry(line: &str, is_fine: bool) -> Option<(Name, Listed)> {
    let mut parts = line.splitn(6, ' ');
    let mut next = || parts.next();
    let (sort, size, modified, changed, mode, name) = (next()?, next()?, next()?, next()?, next()?, next()?);
    let name = name.strip_prefix("./").filter(|_| !is_fine).unwrap_or(name);
    let sort = if is_fine {
        match sort {
            "f" => Sort::File,
            "l" => Sort::Link,
            "d" => Sort::Folder,
            _ => Sort::Other,
        }
    } else {
        match u32::from_str_radix(sort, 16).ok()? & 0o170_000 {
            0o100_000 => Sort::File,
            0o120_000 => Sort::Link,
            0o040_000 => Sort::Folder,
            _ => Sort::Other,
        }
    };
    let listed = Listed {
        sort,
        size: size.parse().ok()?,
        executable: u32::from_str_radix(mode, 8).ok()? & 0o100 != 0,
        changed: changed.split('.').next()?.parse().ok()?,
        stamp: format!("{size} {modified} {changed} {mode}"),
    };
    Some((name.to_owned(), listed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_listings_are_read() {
        let fine = b"fine 100\0f 3 1.5 2.5 755 a b\nc\0d 4096 1.0 1.0 755 d\0p 0 1.0 1.0 644 fifo\0l 1 1.0 1.0 777 l\0f x\0f 1 1 1 644 \xff\0";
        let listing = parse(fine).unwrap();
        assert!(!listing.coarse && listing.at == 100 && listing.unreadable == 2);
        let file = &listing.entries["a b\nc"];
        assert_eq!((file.sort, file.size, file.executable, file.changed), (Sort::File, 3, true, 2));
        assert_eq!(listing.entries["fifo"].sort, Sort::Other);
        let coarse = b"coarse 100\n81a4 5 7 8 644 ./a b\na1ff 1 7 8 777 ./l\n11a4 0 7 8 644 ./fifo\n";
        let listing = parse(coarse).unwrap();
        assert!(listing.coarse && listing.unreadable == 0);
        assert_eq!(listing.entries["a b"].sort, Sort::File);
        assert_eq!(listing.entries["l"].sort, Sort::Link);
        assert_eq!(listing.entries["fifo"].sort, Sort::Other);
    }
}
