//! What is asked to be run, and the one place where it becomes a [`Launch`].

use super::launch::Launch;
use crate::failure::usage;

/// What works on the tree.
#[derive(Debug, Clone)]
pub(crate) enum Program {
    /// An agent that is known by name.
    Kind(String),
    /// A command for a shell; the prompt is its last word.
    Command(String),
}

impl Program {
    /// In a word, for lists.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Kind(kind) => kind.clone(),
            Self::Command(command) => {
                let word = command.split_whitespace().next().unwrap_or("command");
                word.rsplit('/').next().unwrap_or(word).chars().filter(|c| !c.is_control()).take(60).collect()
            }
        }
    }

    /// `interactive`: on a terminal, with a person before it.
    pub(crate) fn launch(&self, prompt: Option<&str>, interactive: bool) -> anyhow::Result<Launch> {
        match self {
            // Kinds are made here.
            Self::Kind(kind) => Err(usage(format!("there is no agent {kind:?}; give one with --command"))),
            Self::Command(command) => {
                let mut argv = vec!["/bin/sh".to_owned(), "-c".to_owned()];
                match prompt {
                    Some(prompt) => {
                        argv.extend([format!("{command} \"$@\""), "sh".to_owned(), prompt.to_owned()])
                    }
                    None => argv.push(command.clone()),
                }
                Ok(Launch { argv, interactive, ..Launch::default() })
            }
        }
    }
}
