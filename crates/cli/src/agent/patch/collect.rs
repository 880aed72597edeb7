//! Brings home what is different in the sandbox from what went in.

use std::collections::BTreeMap;

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use warren_types::SandboxId;

use super::base::Blobs;
use super::listing::{self, Listed, Listing, Sort};
use super::names::{folder_of_rules, is_left_there, link_refusal, refusal};
use super::repository::{self, Stands};
use super::{Change, Changes, Content, Delivered, Refusal};
use crate::agent::tree::rules::{MAX_RULES, Rules};
use crate::agent::tree::{Entry, Kind, Name};
use crate::client::Client;
use crate::failure::{Refused, hinted};
use crate::output::{human_bytes, printable};

/// Largest file that comes back.
pub(crate) const MAX_FILE: u64 = 64 << 20;
/// All that comes back.
const MAX_ALL: u64 = 1 << 30;
const MAX_CHANGES: usize = 50_000;
/// Refusals beyond these are only counted.
const MAX_REFUSALS: usize = 1000;
const MAX_RULE_FILES: usize = 200;
const AT_ONCE: usize = 6;

/// What went in, and how to look at it.
pub(crate) struct Collect<'a> {
    pub(crate) client: &'a Client,
    pub(crate) sandbox: &'a SandboxId,
    /// The tree in the sandbox.
    pub(crate) folder: &'a str,
    pub(crate) entries: &'a BTreeMap<Name, Entry>,
    /// The listing of it when it had gone in; what has not changed since is not looked at.
    pub(crate) baseline: &'a Listing,
    /// None when ignored files are to come back too.
    pub(crate) rules: Option<Rules>,
    pub(crate) blobs: &'a Blobs,
    pub(crate) delivered: &'a Delivered,
}

/// What a look at one candidate brought.
enum Seen {
    Is(Content),
    Gone,
    Refused(String),
}

pub(crate) async fn collect(mut this: Collect<'_>) -> anyhow::Result<Changes> {
    let told = listing::list(this.client, this.sandbox, this.folder).await?;
    let listing = listing::parse(&told.bytes)?;
    let mut changes = Changes::default();
    let mut refused = Refusals { changes: &mut changes, more: 0 };
    let broken = this.entries.keys().map(|name| name.matches('\n').count()).sum::<usize>();
    // A listing by lines tells nothing of a name with line breaks, and one of those that went in is no news.
    let unknown = listing.unreadable.saturating_sub(if listing.coarse { broken } else { 0 });
    if unknown > 0 {
        refused.add("?", &format!("{unknown} names are not UTF-8 or hold line breaks"));
    }
    if let Some(complaint) = &told.complaint {
        refused.add("?", complaint);
    }
    this.read_rules(&listing).await;
    let mut candidates: Vec<(&Name, &Listed)> = Vec::new();
    let mut unwelcome: BTreeMap<&Name, String> = BTreeMap::new();
    let mut all = 0;
    for (name, listed) in &listing.entries {
        if !this.is_candidate(name, listed, &listing) {
            continue;
        }
        if let Some(why) = this.refusal(name, listed, &listing) {
            // What went in under such a name may be what it was.
            if !this.entries.contains_key(name) || !is_readable(listed) {
                refused.add(name, &why);
                continue;
            }
            unwelcome.insert(name, why);
        }
        all += listed.size;
        candidates.push((name, listed));
    }
    if candidates.len() > MAX_CHANGES || all > MAX_ALL {
        let most = most_in(candidates.iter().map(|(name, _)| name.as_str()));
        return Err(hinted(
            format!(
                "{} files, {} in all, may have changed, most of them in {most:?}: more than a patch holds",
                candidates.len(),
                human_bytes(all)
            ),
            "add what is built to .gitignore in the sandbox, or copy it with `warren cp`",
        ));
    }
    let looks = candidates.into_iter().map(|(name, listed)| this.look(name, listed));
    let seen: Vec<(Name, Seen)> = stream::iter(looks)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<anyhow::Result<_>>()?;
    for (name, seen) in seen {
        let before = this.entries.get(&name).and_then(content_of);
        let after = match seen {
            Seen::Is(content) => Some(content),
            Seen::Gone => None,
            Seen::Refused(why) => {
                refused.add(&name, &why);
                continue;
            }
        };
        if before == after {
            if this.delivered.contains_key(&name) {
                refused.changes.undone.push(Change { name, before, after });
            }
            continue;
        }
        if let Some(why) = unwelcome.get(&name) {
            refused.add(&name, why);
        } else {
            refused.changes.changes.push(Change { name, before, after });
        }
    }
    // What went in and is neither listed as file nor link is gone, if the listing could look everywhere.
    let unlisted = this.entries.iter().filter(|(name, entry)| {
        let is_there = listing.entries.get(*name).is_some_and(|listed| listed.sort != Sort::Folder);
        !is_there && !is_in_git(name) && content_of(entry).is_some()
    });
    let looks = unlisted.map(|(name, entry)| {
        let is_sure = !told.has_gaps && listing.unreadable == 0 || listing.entries.contains_key(name);
        let this = &this;
        async move {
            let seen = if is_sure { Seen::Gone } else { this.is_there_all_the_same(name, entry).await? };
            anyhow::Ok((name, entry, seen))
        }
    });
    let unlisted: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
    for one in unlisted {
        let (name, entry, seen) = one?;
        match seen {
            Seen::Refused(why) => refused.add(name, &why),
            // As it was.
            Seen::Is(_) => {}
            Seen::Gone => refused.changes.changes.push(Change {
                name: name.clone(),
                before: content_of(entry),
                after: None,
            }),
        }
    }
    // A gap in the listing says nothing of what is in it.
    if !told.has_gaps && listing.unreadable == 0 {
        let is_gone =
            |name: &&Name| !this.entries.contains_key(*name) && !listing.entries.contains_key(*name);
        let gone = this.delivered.keys().filter(is_gone).cloned();
        refused.changes.undone.extend(gone.map(|name| Change { name, before: None, after: None }));
    }
    let stands = |name: &str| match this.entries.get(name).map(|entry| &entry.kind) {
        None => Stands::Nothing,
        Some(Kind::Folder) => Stands::Folder,
        Some(_) => Stands::Other,
    };
    let repositories = repository::refusals(&refused.changes.changes, stands);
    refused.changes.changes.retain(|change| !repositories.contains_key(&change.name));
    for (name, why) in &repositories {
        refused.add(name, why);
    }
    refused.end();
    changes.changes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(changes)
}

impl Collect<'_> {
    /// Whether its content may be other than what went in, and is wanted.
    fn is_candidate(&self, name: &str, listed: &Listed, listing: &Listing) -> bool {
        if listed.sort == Sort::Folder || is_in_git(name) {
            return false;
        }
        if !self.entries.contains_key(name) {
            // What is here from there goes on to be asked after, though a rule now ignores it.
            return self.delivered.contains_key(name) || !is_left_there(self.rules.as_ref(), name);
        }
        // In whole seconds, what changed in the second of the listing looks as it did before.
        let is_coarse = listing.coarse || self.baseline.coarse;
        let is_same = self.baseline.entries.get(name).is_some_and(|before| before.stamp == listed.stamp);
        !is_same || is_coarse && listed.changed >= self.baseline.at
    }

    fn refusal(&self, name: &str, listed: &Listed, listing: &Listing) -> Option<String> {
        if let Some(why) = refusal(name) {
            return Some(why.to_owned());
        }
        let mut above = name.match_indices('/').map(|(end, _)| &name[..end]);
        if above.any(|folder| listing.entries.get(folder).is_some_and(|above| above.sort != Sort::Folder)) {
            return Some("what is above it is no folder".to_owned());
        }
        match listed.sort {
            Sort::Other => Some("it is a device, a pipe or a socket".to_owned()),
            Sort::File if listed.size > MAX_FILE => {
                Some(format!("it is larger than {} ({})", human_bytes(MAX_FILE), human_bytes(listed.size)))
            }
            _ => None,
        }
    }

    /// Takes on the rules that were changed in the sandbox.
    async fn read_rules(&mut self, listing: &Listing) {
        let Some(rules) = &mut self.rules else { return };
        let mut left = MAX_RULE_FILES;
        for (name, listed) in &listing.entries {
            let Some(folder) = folder_of_rules(name).filter(|_| refusal(name).is_none()) else { continue };
            let is_same = self.entries.contains_key(name)
                && self.baseline.entries.get(name).is_some_and(|before| before.stamp == listed.stamp);
            // Rules below an ignored folder count for nothing; those that are not here any more are read there.
            if is_same && rules.knows(folder)
                || left == 0
                || listed.sort != Sort::File
                || rules.ignores(name, false)
            {
                continue;
            }
            left -= 1;
            let path = format!("{}/{name}", self.folder);
            if let Ok(content) = read_file(self.client, self.sandbox, &path, MAX_RULES).await {
                rules.set(folder, &String::from_utf8_lossy(&content));
            }
        }
    }

    async fn look(&self, name: &Name, listed: &Listed) -> anyhow::Result<(Name, Seen)> {
        let path = format!("{}/{name}", self.folder);
        let seen = if listed.sort == Sort::Link {
            match self.client.stat_file(self.sandbox, &path).await {
                Ok(stat) => match stat.value.link_target {
                    // A link that went in leads where it led.
                    Some(target) if self.led_there(name, &target) => Seen::Is(Content::Link { target }),
                    Some(target) => match link_refusal(name, &target) {
                        Some(why) => Seen::Refused(why.to_owned()),
                        None => Seen::Is(Content::Link { target }),
                    },
                    None => Seen::Refused("it changed while it was read".to_owned()),
                },
                Err(error) => unreadable(error)?,
            }
        } else {
            match read_file(self.client, self.sandbox, &path, MAX_FILE).await {
                Ok(content) => {
                    let hash = self.blobs.put(&content)?;
                    Seen::Is(Content::File { hash, executable: listed.executable })
                }
                Err(error) => unreadable(error)?,
            }
        };
        Ok((name.clone(), seen))
    }

    /// What has become of something that was not listed: it is gone, or what it was, or it is not known.
    async fn is_there_all_the_same(&self, name: &Name, entry: &Entry) -> anyhow::Result<Seen> {
        let path = format!("{}/{name}", self.folder);
        let stat = match self.client.stat_file(self.sandbox, &path).await {
            Ok(stat) => stat.value,
            Err(error) => return unreadable(error),
        };
        let listed = Listed {
            sort: match stat.kind.as_str() {
                "file" => Sort::File,
                "symlink" => Sort::Link,
                _ => Sort::Other,
            },
            size: stat.size,
            executable: u32::from_str_radix(&stat.mode, 8).is_ok_and(|mode| mode & 0o100 != 0),
            changed: 0,
            stamp: String::new(),
        };
        if name.contains('\n')
            && is_readable(&listed)
            && let (_, Seen::Is(content)) = self.look(name, &listed).await?
            && content_of(entry).as_ref() == Some(&content)
        {
            return Ok(Seen::Is(content));
        }
        Ok(Seen::Refused("it is there and could not be listed".to_owned()))
    }

    fn led_there(&self, name: &str, target: &str) -> bool {
        matches!(self.entries.get(name).map(|entry| &entry.kind), Some(Kind::Link { target: before }) if before == target)
    }
}

/// A file that cannot be read is refused by name; a server that cannot be reached ends everything.
fn unreadable(error: anyhow::Error) -> anyhow::Result<Seen> {
    match error.downcast_ref::<Refused>() {
        Some(refused) if refused.status == 404 => Ok(Seen::Gone),
        // Not the file: the sandbox is gone.
        Some(refused) if refused.status == 410 => Err(error),
        Some(refused) if refused.status < 500 => Ok(Seen::Refused(refused.message.clone())),
        _ if error.is::<TooLarge>() => Ok(Seen::Refused(error.to_string())),
        _ => Err(error),
    }
}

fn content_of(entry: &Entry) -> Option<Content> {
    match &entry.kind {
        Kind::File { executable } => {
            Some(Content::File { hash: entry.hash.clone(), executable: *executable })
        }
        Kind::Link { target } => Some(Content::Link { target: target.clone() }),
        Kind::Folder => None,
    }
}

/// Whether it can be compared: a pipe would never end.
fn is_readable(listed: &Listed) -> bool {
    listed.sort == Sort::Link || listed.sort == Sort::File && listed.size <= MAX_FILE
}

fn is_in_git(name: &str) -> bool {
    name.split('/').any(|part| part == ".git")
}

/// The folder that most of these are in.
fn most_in<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        *counts.entry(name.rsplit_once('/').map_or(".", |(folder, _)| folder)).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.map(|(folder, _)| printable(folder).into_owned()).unwrap_or_default()
}

struct Refusals<'a> {
    changes: &'a mut Changes,
    more: usize,
}

impl Refusals<'_> {
    fn add(&mut self, name: &str, why: &str) {
        if self.changes.refused.len() < MAX_REFUSALS {
            let refusal = Refusal { name: name.to_owned(), why: why.to_owned() };
            self.changes.refused.push(refusal);
        } else {
            self.more += 1;
        }
    }

    fn end(self) {
        if self.more > 0 {
            let refusal =
                Refusal { name: "?".to_owned(), why: format!("{} more, not named here", self.more) };
            self.changes.refused.push(refusal);
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("it is larger than {}", human_bytes(*.0))]
pub(crate) struct TooLarge(u64);

/// Reads a file of the sandbox, no more than `limit` bytes of it.
pub(crate) async fn read_file(
    client: &Client,
    sandbox: &SandboxId,
    path: &str,
    limit: u64,
) -> anyhow::Result<Vec<u8>> {
    let mut response = client.read_file(sandbox, path).await?;
    let mut content = Vec::new();
    while let Some(piece) = client.next_chunk(&mut response).await.context("the file breaks off")? {
        if (content.len() + piece.len()) as u64 > limit {
            return Err(TooLarge(limit).into());
        }
        content.extend_from_slice(&piece);
    }
    Ok(content)
}
