//! What is asked to be run, and the one place where it becomes a [`Launch`].

use super::kinds::{Kind, Task};
use super::launch::Launch;
use crate::failure::usage;

/// What works on the tree.
#[derive(Debug, Clone)]
pub(crate) enum Program {
    /// An agent that is known by name.
    Kind { kind: Kind, model: Option<String>, arguments: Vec<String> },
    /// The same on this machine, with its hands in the sandbox.
    Outside(Kind),
    /// A command for a shell; the prompt is its last word.
    Command(String),
}

impl Program {
    /// In a word, for lists.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Kind { kind, .. } | Self::Outside(kind) => kind.name().to_owned(),
            Self::Command(command) => {
                let word = command.split_whitespace().next().unwrap_or("command");
                let name = word.rsplit('/').next().unwrap_or(word);
                let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
                name.chars().filter(plain).take(60).collect()
            }
        }
    }

    /// `interactive`: on a terminal, with a person before it.
    pub(crate) fn launch(&self, prompt: Option<&str>, interactive: bool) -> anyhow::Result<Launch> {
        match self {
            Self::Kind { .. } if prompt.is_none() && !interactive => {
                Err(usage("without a terminal the agent needs a prompt"))
            }
            Self::Kind { kind, model, arguments } => {
                Ok(kind.launch(Task { prompt, model: model.as_deref(), arguments }))
            }
            Self::Outside(_) if prompt.is_none() && !interactive => {
                Err(usage("without a terminal the agent needs a prompt"))
            }
            // Nothing of it is in the sandbox.
            Self::Outside(_) => Ok(Launch::default()),
            Self::Command(command) => {
                let mut argv = vec!["/bin/sh".to_owned(), "-c".to_owned()];
                match prompt {
                    Some(prompt) => {
                        argv.extend([format!("{command} \"$@\""), "sh".to_owned(), prompt.to_owned()]);
                    }
                    None => argv.push(command.clone()),
                }
                Ok(Launch { argv, interactive, ..Launch::default() })
            }
        }
    }

    /// The snapshot that `warren agent install` makes of it.
    pub(crate) fn usual_snapshot(&self) -> Option<String> {
        match self {
            Self::Kind { kind, .. } => Some(format!("agent-{}", kind.name())),
            Self::Outside(_) | Self::Command(_) => None,
        }
    }
}
