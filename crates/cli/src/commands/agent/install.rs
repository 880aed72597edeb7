//! `warren agent install KIND…`: a snapshot with agents in it.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::agent::kinds::{self, Kind, Wanted};
use crate::build_source::Source;
use crate::commands::build::build_as;
use crate::context::Context;
use crate::failure::usage;

#[derive(Args)]
#[command(after_help = "\
Agents come from npm and are installed in an image of your server; none is part of Warren. Claude Code is proprietary: its
terms are Anthropic's. Prints NAME@VERSION, what `warren create --snapshot` takes; installing again makes a new version.

Examples:
  warren agent install claude-code                        the snapshot agent-claude-code
  warren agent install claude-code codex opencode         all three, as the snapshot agents
  warren agent install codex@0.170.0 --image node:22      another version, on another image")]
pub(crate) struct InstallArgs {
    /// claude-code, codex or opencode; KIND@VERSION for another version than the one that was tried
    #[arg(required = true, value_name = "KIND")]
    kinds: Vec<Wanted>,
    /// What the snapshot is called [default: agent-KIND, or agents for several]
    #[arg(long, value_name = "NAME")]
    snapshot: Option<String>,
    /// What they are installed on: an image of a registry, or snapshot:NAME [default: the server's own]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Version of the agent's npm package, when there is one agent
    #[arg(long)]
    version: Option<String>,
    /// Another registry of npm packages, as the sandboxes of your server reach it [default: $WARREN_NPM_REGISTRY, or npm's]
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
    /// What keeps its sandboxes apart from the host: container or vm [default: the server's]
    #[arg(long, value_name = "KIND")]
    isolation: Option<String>,
}

pub(crate) async fn run(context: &Context, args: InstallArgs) -> anyhow::Result<ExitCode> {
    let wanted = wanted(args.kinds, args.version.as_deref())?;
    let registry = match args.registry {
        Some(url) => Some(kinds::checked_registry(&url).map_err(|error| usage(error.to_string()))?),
        None => kinds::own_registry(),
    };
    let name = args.snapshot.unwrap_or_else(|| default_name(&wanted));
    let listed = wanted.iter().map(|each| format!("{} {}", each.kind.package(), each.version()));
    context.output.note(&format!("installing {}", listed.collect::<Vec<_>>().join(", ")));
    let source = Source::Manifest(manifest(args.image.as_deref(), &wanted, registry.as_deref()));
    build_as(context, &source, &name, args.isolation, None).await
}

fn wanted(mut kinds: Vec<Wanted>, version: Option<&str>) -> anyhow::Result<Vec<Wanted>> {
    if let Some(version) = version {
        let (Some(only), true) = (kinds.pop(), kinds.is_empty()) else {
            return Err(usage("--version is for one agent: write KIND@VERSION when there are several"));
        };
        kinds.push(only.with_version(version).map_err(|error| usage(error.to_string()))?);
    }
    for (at, each) in kinds.iter().enumerate() {
        if kinds.iter().skip(at + 1).any(|other| other.kind == each.kind) {
            return Err(usage(format!("{} is named twice", each.kind)));
        }
    }
    // The order they are named in makes no other image.
    kinds.sort_by_key(|each| Kind::ALL.iter().position(|kind| *kind == each.kind));
    Ok(kinds)
}

fn default_name(wanted: &[Wanted]) -> String {
    match wanted {
        [only] => format!("agent-{}", only.kind),
        _ => "agents".to_owned(),
    }
}

fn manifest(image: Option<&str>, wanted: &[Wanted], registry: Option<&str>) -> Value {
    let steps: Vec<Value> = wanted.iter().flat_map(|each| each.steps(registry)).collect();
    json!({ "base": image.unwrap_or("base"), "steps": steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Vec<Wanted> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn order_makes_no_other_image_and_nothing_is_named_twice() {
        let one = wanted(parse(&["opencode", "codex"]), None).unwrap();
        assert_eq!(one, wanted(parse(&["codex", "opencode"]), None).unwrap());
        assert_eq!(default_name(&one), "agents");
        assert!(wanted(parse(&["codex", "codex@1.0.0"]), None).is_err());
        assert!(wanted(parse(&["codex", "opencode"]), Some("1.0.0")).is_err());
        let single = wanted(parse(&["codex"]), Some("1.0.0")).unwrap();
        assert_eq!((single[0].version(), default_name(&single).as_str()), ("1.0.0", "agent-codex"));
    }
}
