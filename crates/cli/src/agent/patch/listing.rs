//! What is in a tree in the sandbox, by name and `stat`.
//!
//! GNU's `find` tells it best; every other image has `find` and `stat` that tell it in whole seconds. The listing comes as the output
//! of a command, since the disk may be full, and says itself where it ends: a name that is missing in it counts as deleted, so one that
//! was cut short is an error. It says what to look at and is believed in nothing.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;
use warren_api::exec::ExecCreate;
use warren_types::{ExecId, SandboxId};

use super::super::tree::Name;
use crate::client::Client;
use crate::exec_stream::ExecStream;
use crate::failure::hinted;
use crate::output::{Output, printable};

/// Seconds that listing a tree may take.
const LIMIT: i64 = 120;
const EXIT_OF_LIMIT: i32 = -1;
const MAX_BYTES: usize = 256 << 20;
const MAX_COMPLAINTS: usize = 64 << 10;
const MAX_ENTRIES: usize = 1_000_000;

/// Nothing is written before somebody reads, which the end of the input tells. What vanishes while it is listed makes `find` end with 1, and
/// so does what cannot be looked into.
const SCRIPT: &str = r#"
export LC_ALL=C
read -r _
cd "$1" || exit 3
if find . -maxdepth 0 -printf '' 2>/dev/null; then
    end='\0'
    printf 'fine %s\0' "$(date +%s)" || exit
    find . -name .git -prune -o ! -name . -printf '%y %s %T@ %C@ %m %P\0'
else
    end='\n'
    printf 'coarse %s\n' "$(date +%s)" || exit
    find . -name .git -prune -o ! -name . -exec stat -c '%f %s %Y %Z %a %n' '{}' +
fi
code=$?
[ $code -le 1 ] || exit $code
printf "end %s$end" $code
"#;
/// What `find` and `stat` say of a file that vanished.
const VANISHED: &str = "No such file or directory";

/// A listing as it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// To be parsed.
    pub(crate) bytes: Vec<u8>,
    /// Whether something could not be looked at: then a name that is missing may be there all the same.
    pub(crate) has_gaps: bool,
    /// What was said of that, unless it was that a file vanished.
    pub(crate) complaint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Sort {
    File,
    Link,
    Folder,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What a command wrote, up to a limit.
#[derive(Clone)]
struct Kept {
    bytes: Arc<Mutex<Vec<u8>>>,
    limit: usize,
}

/// Lists `folder`.
pub(crate) async fn list(client: &Client, sandbox: &SandboxId, folder: &str) -> anyhow::Result<Told> {
    let body = ExecCreate {
        cmd: Some("/bin/sh".to_owned()),
        args: Some(["-c", SCRIPT, "sh", folder].map(str::to_owned).into()),
        cwd: Some("/".to_owned()),
        timeout: Some(LIMIT),
        ..ExecCreate::default()
    };
    let session = client.create_exec(sandbox, &body).await?.value;
    let exec: ExecId = session.session_id.parse().map_err(|_| {
        hinted("the server named the command in a way that cannot be read", "is it a Warren server?")
    })?;
    let (stdout, stderr) = (Kept::new(MAX_BYTES), Kept::new(MAX_COMPLAINTS));
    let code = ExecStream::new(client, Output::new(true, true), (sandbox, &exec), Some(0), None)
        .without_input()
        .without_gaps()
        .writing_to(stdout.clone(), stderr.clone())
        .follow()
        .await?;
    let (bytes, complaints) = (stdout.take(), stderr.take());
    let complaints = String::from_utf8_lossy(&complaints);
    match code {
        0 if bytes.len() > MAX_BYTES => Err(too_many()),
        0 => whole(bytes, &complaints),
        3 => Err(anyhow::anyhow!("{folder} is not there any more")),
        EXIT_OF_LIMIT => Err(anyhow::anyhow!("listing the tree in the sandbox took longer than {LIMIT} s")),
        code => {
            let last = complaints.lines().last().unwrap_or_default();
            Err(anyhow::anyhow!("the sandbox could not list it ({code}): {}", printable(last)))
        }
    }
}

/// Takes the end off a listing; one without it was cut short.
fn whole(mut bytes: Vec<u8>, complaints: &str) -> anyhow::Result<Told> {
    let cut_short = || anyhow::anyhow!("the listing of the tree in the sandbox was cut short");
    let end = if bytes.starts_with(b"fine ") { b'\0' } else { b'\n' };
    let body = bytes.strip_suffix(&[end]).ok_or_else(cut_short)?;
    let begin = body.iter().rposition(|byte| *byte == end).ok_or_else(cut_short)? + 1;
    let code = body[begin..].strip_prefix(b"end ").ok_or_else(cut_short)?;
    let has_gaps = code != b"0";
    bytes.truncate(begin);
    let complaint =
        complaints.lines().rev().map(str::trim).find(|line| !line.is_empty() && !line.ends_with(VANISHED));
    Ok(Told {
        bytes,
        has_gaps,
        complaint: complaint.filter(|_| has_gaps).map(|line| printable(line).into_owned()),
    })
}

fn too_many() -> anyhow::Error {
    hinted(
        format!("there are more than {MAX_ENTRIES} files in the tree"),
        "copy what you need with `warren cp`",
    )
}

impl Kept {
    fn new(limit: usize) -> Self {
        Self { bytes: Arc::default(), limit }
    }

    /// One byte more than the limit says that there was more.
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsyncWrite for Kept {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, piece: &[u8]) -> Poll<std::io::Result<usize>> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let room = (self.limit + 1).saturating_sub(bytes.len()).min(piece.len());
        bytes.extend_from_slice(&piece[..room]);
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

pub(crate) fn parse(bytes: &[u8]) -> anyhow::Result<Listing> {
    let is_fine = bytes.starts_with(b"fine ");
    let end = if is_fine { b'\0' } else { b'\n' };
    let mut lines = bytes.split(|byte| *byte == end).filter(|line| !line.is_empty());
    let head = lines.next().and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let at = head.split_once(' ').and_then(|(_, at)| at.parse().ok());
    let at = at.ok_or_else(|| anyhow::anyhow!("the listing of the tree has no beginning"))?;
    let mut listing = Listing { coarse: !is_fine, at, ..Listing::default() };
    for line in lines {
        match std::str::from_utf8(line).ok().and_then(|line| entry(line, is_fine)) {
            Some((name, listed)) => {
                listing.entries.insert(name, listed);
            }
            None => listing.unreadable += 1,
        }
        if listing.entries.len() > MAX_ENTRIES {
            return Err(too_many());
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
    fn a_listing_without_its_end_is_no_listing() {
        for told in [
            &b"fine 100\0f 3 1.5 2.5 755 a\0"[..],
            b"fine 100\0",
            b"",
            b"coarse 1\n81a4 5 7 8 644 ./a\n",
            b"fine 1\0end 0\0f",
        ] {
            assert!(whole(told.to_vec(), "").is_err(), "{}", String::from_utf8_lossy(told));
        }
        let told = whole(b"fine 100\0f 3 1.5 2.5 755 a\0end 0\0".to_vec(), "").unwrap();
        assert_eq!((told.bytes.as_slice(), told.has_gaps), (&b"fine 100\0f 3 1.5 2.5 755 a\0"[..], false));
        let told = whole(
            b"coarse 1\nend 1\n".to_vec(),
            "find: ./x: Permission denied\nstat: y: No such file or directory\n",
        )
        .unwrap();
        assert_eq!((told.has_gaps, told.complaint.as_deref()), (true, Some("find: ./x: Permission denied")));
        let told = whole(b"coarse 1\nend 1\n".to_vec(), "stat: y: No such file or directory\n").unwrap();
        assert_eq!((told.has_gaps, told.complaint), (true, None));
    }

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
