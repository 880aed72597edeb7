//! `warren cp SRC DST`: files and folders, one way or the other.
//!
//! As with `cp -r`: an existing folder as destination receives the source under its own name, any other destination becomes
//! the source's copy. A source folder that ends in `/.` means what is in it. Links are followed, permissions kept. What arrives
//! here is put in place when it is whole.

mod download;
mod upload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use crate::client::Client;
use crate::context::Context;
use crate::endings::Endings;
use crate::failure::{Refused, usage};
use crate::output::Output;

/// Permissions of a file nobody says them of.
const NEW_FILE: u32 = 0o644;

/// Where relative paths in a sandbox start.
pub(crate) const SANDBOX_HOME: &str = "/home/sandbox";

#[derive(Args)]
#[command(after_help = "\
Examples:
  warren cp notes.txt sb-0123abcd:/workspace/     a file into a folder
  warren cp sb-0123abcd:results ./results         a folder from the sandbox's home
  tar c . | warren cp - sb-0123abcd:/tmp/all.tar  stdin to a file; - as DST is stdout, folders go there as tar")]
pub(crate) struct CpArgs {
    /// A path here, ID:PATH in a sandbox, or - for stdin
    #[arg(value_name = "SRC")]
    source: Place,
    /// A path here, ID:PATH in a sandbox, or - for stdout
    #[arg(value_name = "DST")]
    target: Place,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    Stdio,
    There(SandboxId, String),
}

/// What a path in a sandbox is, links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    /// With its permissions.
    File(u32),
    Missing,
}

impl std::str::FromStr for Place {
    type Err = std::convert::Infallible;

    /// Only a whole sandbox id before the colon makes a remote place, so `a:b` is a file here.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-" {
            return Ok(Self::Stdio);
        }
        if let Some((id, path)) = text.split_once(':')
            && let Ok(id) = id.parse()
        {
            let path = if path.is_empty() { SANDBOX_HOME } else { path };
            return Ok(Self::There(id, path.to_owned()));
        }
        Ok(Self::Here(text.into()))
    }
}

pub(crate) async fn run(context: &Context, args: CpArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let copy = Copy { client: &client, output: context.output };
    let mut endings = Endings::catch()?;
    tokio::select! {
        copied = copy.run(args) => copied.map(|()| ExitCode::SUCCESS),
        // What was not finished is removed where the copy is dropped.
        code = endings.next() => Ok(ExitCode::from(code)),
    }
}

/// A copy under way.
struct Copy<'a> {
    client: &'a Client,
    output: Output,
}

impl Copy<'_> {
    async fn run(&self, args: CpArgs) -> anyhow::Result<()> {
        match (args.source, args.target) {
            (Place::Here(source), Place::There(id, path)) => self.upload(&source, &id, &path).await,
            (Place::Stdio, Place::There(id, path)) => self.upload_stdin(&id, &path).await,
            (Place::There(id, path), Place::Here(target)) => self.download(&id, &path, &target).await,
            (Place::There(id, path), Place::Stdio) => self.download_to_stdout(&id, &path).await,
            (Place::There(..), Place::There(..)) => Err(usage(
                "from one sandbox to another: copy through here, `warren cp ID:/a - | warren cp - ID:/b`",
            )),
            (Place::Here(_) | Place::Stdio, Place::Here(_) | Place::Stdio) => {
                Err(usage("one side must be in a sandbox, written ID:PATH"))
            }
        }
    }

    async fn kind_of(&self, id: &SandboxId, path: &str) -> anyhow::Result<Kind> {
        let stat = match self.client.stat_target(id, path).await {
            Ok(answer) => answer.value,
            Err(error) => return missing_or(error),
        };
        Ok(match stat.kind.as_str() {
            "directory" => Kind::Folder,
            _ => Kind::File(u32::from_str_radix(&stat.mode, 8).map_or(NEW_FILE, |mode| mode & 0o777)),
        })
    }

    fn told_skipped(&self, skipped: u64) {
        if skipped > 0 {
            self.output.warn(&format!("{skipped} entries were left out: neither files, folders nor links"));
        }
    }
}

fn missing_or(error: anyhow::Error) -> anyhow::Result<Kind> {
    match error.downcast_ref::<Refused>() {
        // Of an unknown sandbox the next request will say the same.
        Some(refused) if refused.status == 404 => Ok(Kind::Missing),
        _ => Err(error),
    }
}

/// The last name of a path in a sandbox.
fn last_name(path: &str) -> Option<&str> {
    path.trim_end_matches('/').rsplit('/').next().filter(|name| !matches!(*name, "" | "." | ".."))
}

/// Joins a folder in a sandbox and a name.
fn joined(folder: &str, name: &str) -> String {
    format!("{}/{name}", folder.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_id_makes_a_place_in_a_sandbox() {
        let place = |text: &str| text.parse::<Place>().unwrap();
        let id: SandboxId = "sb-0123abcd".parse().unwrap();
        assert_eq!(place("sb-0123abcd:/a:b"), Place::There(id.clone(), "/a:b".to_owned()));
        assert_eq!(place("sb-0123abcd:"), Place::There(id, SANDBOX_HOME.to_owned()));
        for local in ["sb-0123:/a", "a:b", "sb-0123abcd", "./-"] {
            assert_eq!(place(local), Place::Here(local.into()));
        }
        assert_eq!(place("-"), Place::Stdio);
    }

    #[test]
    fn names_are_the_last_part() {
        assert_eq!(last_name("/a/b/"), Some("b"));
        assert_eq!(last_name("b"), Some("b"));
        for none in ["/", "", "..", "/a/.."] {
            assert_eq!(last_name(none), None, "{none}");
        }
    }
}
