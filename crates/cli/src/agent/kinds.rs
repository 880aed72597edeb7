//! The agents that are known by name: how each is installed in an image, started, and understood.
//!
//! Nothing of an agent is part of this program. Each comes from npm, into an image, when somebody asks for it. What is said here
//! of one was seen with the version that stands in its file; other versions can be had, and are then at their own word.

mod claude_code;
mod codex;
mod open_code;
pub(crate) mod transcript;

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use super::launch::{Launch, ModelKey};

/// Where packages are in an image: `/opt/warren/agents/KIND/node_modules`.
const FOLDER: &str = "/opt/warren/agents";
/// Names another registry than npm's own.
pub(crate) const REGISTRY_VARIABLE: &str = "WARREN_NPM_REGISTRY";
const MAX_VERSION: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    ClaudeCode,
    Codex,
    OpenCode,
}

/// What an agent is asked to do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Task<'a> {
    /// It works without questions and ends; without a prompt it opens on a terminal.
    pub(crate) prompt: Option<&'a str>,
    /// As the agent calls it; its own choice when absent.
    pub(crate) model: Option<&'a str>,
    /// More arguments, as they are.
    pub(crate) arguments: &'a [String],
}

/// An agent in one of its versions, as it is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) kind: Kind,
    version: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NoSuchAgent {
    #[error(
        "there is no agent {0:?}; there are: claude-code, codex, opencode (any other program: --command)"
    )]
    Kind(String),
    #[error("{0:?} is no version: give one such as 1.2.3, or a tag such as latest")]
    Version(String),
    #[error("{0:?} is no address of a registry: give one that begins with https:// or http://")]
    Registry(String),
}

// === impl Kind ===

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::ClaudeCode, Self::Codex, Self::OpenCode];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClaudeCode => "claude-code",
            Self::Codex => "codex",
            Self::OpenCode => "opencode",
        }
    }

    /// Its program's name.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::ClaudeCode => "claude",
            Self::Codex => "codex",
            Self::OpenCode => "opencode",
        }
    }

    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::ClaudeCode => claude_code::PACKAGE,
            Self::Codex => codex::PACKAGE,
            Self::OpenCode => open_code::PACKAGE,
        }
    }

    /// The version that was tried, which is the one that is installed unless another is asked for.
    pub(crate) fn tried_version(self) -> &'static str {
        match self {
            Self::ClaudeCode => claude_code::VERSION,
            Self::Codex => codex::VERSION,
            Self::OpenCode => open_code::VERSION,
        }
    }

    /// The keys of the providers it can use.
    pub(crate) fn keys(self) -> Vec<ModelKey> {
        let anthropic = || key("ANTHROPIC_API_KEY", "api.anthropic.com");
        let openai = || key("OPENAI_API_KEY", "api.openai.com");
        match self {
            Self::ClaudeCode => vec![anthropic()],
            Self::Codex => vec![openai()],
            Self::OpenCode => vec![anthropic(), openai()],
        }
    }

    /// How it is run inside a sandbox. The sandbox is the fence: the agent asks for no permission and has no sandbox of its own.
    pub(crate) fn launch(self, task: Task<'_>) -> Launch {
        let mut launch = match self {
            Self::ClaudeCode => claude_code::launch(task),
            Self::Codex => codex::launch(task),
            Self::OpenCode => open_code::launch(task),
        };
        launch.install = Wanted { kind: self, version: None }.steps(own_registry().as_deref());
        launch.prompt_on_stdin = task.prompt.map(str::to_owned);
        launch.interactive = task.prompt.is_none();
        launch.keys = self.keys();
        launch
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = NoSuchAgent;

    fn from_str(name: &str) -> Result<Self, NoSuchAgent> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| NoSuchAgent::Kind(name.chars().take(MAX_VERSION).collect()))
    }
}

// === impl Wanted ===

impl Wanted {
    pub(crate) fn with_version(self, version: &str) -> Result<Self, NoSuchAgent> {
        Ok(Self { kind: self.kind, version: Some(checked_version(version)?) })
    }

    pub(crate) fn version(&self) -> &str {
        self.version.as_deref().unwrap_or_else(|| self.kind.tried_version())
    }

    /// The steps of an image that install it: one layer, found again by kind, version and registry.
    pub(crate) fn steps(&self, registry: Option<&str>) -> Vec<Value> {
        let folder = format!("{FOLDER}/{}", self.kind);
        let version = self.version();
        let (packages, program) = match self.kind {
            Kind::ClaudeCode => claude_code::installed(version),
            Kind::Codex => codex::installed(version),
            Kind::OpenCode => open_code::installed(version),
        };
        let registry = registry.map(|url| format!(" --registry={url}")).unwrap_or_default();
        // What a tag stands for today is not what it stood for when a layer of the same steps was made.
        let is_tag = !version.starts_with(|c: char| c.is_ascii_digit());
        let now =
            if is_tag { format!(" as of {}", jiff::Timestamp::now().as_second()) } else { String::new() };
        let commands = [
            format!(": {} {version}{now}", self.kind),
            // An image that has it already is left as it is.
            format!("if [ \"$(cat {folder}/installed 2>/dev/null)\" = \"{version}{now}\" ]; then exit 0; fi"),
            AS_ROOT.to_owned(),
            HAS_NPM.to_owned(),
            BUILD_OF_THIS_MACHINE.to_owned(),
            format!("$sudo mkdir -p {folder}"),
            format!(
                "$sudo npm install --prefix={folder} --cache=/tmp/warren-npm{registry} --no-audit --no-fund \
                 --no-update-notifier --loglevel=error {packages}"
            ),
            "$sudo rm -rf /tmp/warren-npm".to_owned(),
            format!("$sudo ln -sf {folder}/node_modules/{program} /usr/local/bin/{}", self.kind.program()),
            // An agent that does not start is better known now.
            format!("{} --version", self.kind.program()),
            format!("echo \"{version}{now}\" | $sudo tee {folder}/installed >/dev/null"),
        ];
        vec![json!({ "type": "run", "args": { "commands": commands } })]
    }
}

/// `codex` or `codex@1.2.3`.
impl FromStr for Wanted {
    type Err = NoSuchAgent;

    fn from_str(word: &str) -> Result<Self, NoSuchAgent> {
        match word.split_once('@') {
            None => Ok(Self { kind: word.parse()?, version: None }),
            Some((kind, version)) => Self { kind: kind.parse()?, version: None }.with_version(version),
        }
    }
}

const AS_ROOT: &str = r#"if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi"#;

const HAS_NPM: &str = r#"if ! command -v npm >/dev/null; then
  if command -v apt-get >/dev/null; then $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends nodejs npm ca-certificates
  elif command -v apk >/dev/null; then $sudo apk add --no-cache nodejs npm bash libgcc libstdc++
  else echo "this image has no npm, and no package manager to get it with: take a base with Node.js, such as --image node:22" >&2; exit 1
  fi
fi"#;

/// `$build` is how packages call their builds for this machine.
const BUILD_OF_THIS_MACHINE: &str = r#"case "$(uname -m)" in x86_64) build=linux-x64 ;; aarch64) build=linux-arm64 ;; *) echo "there is no agent for a $(uname -m)" >&2; exit 1 ;; esac"#;

fn key(env: &str, host: &str) -> ModelKey {
    ModelKey { env: env.to_owned(), hosts: vec![host.to_owned()] }
}

/// It stands in a command line of the image.
fn checked_version(version: &str) -> Result<String, NoSuchAgent> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
    let starts_well = version.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && version.len() <= MAX_VERSION && version.chars().all(is_plain) {
        Ok(version.to_owned())
    } else {
        Err(NoSuchAgent::Version(version.chars().take(MAX_VERSION).collect()))
    }
}

/// Likewise.
pub(crate) fn checked_registry(url: &str) -> Result<String, NoSuchAgent> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "./:-_~%@".contains(c);
    let has_scheme = url.starts_with("https://") || url.starts_with("http://");
    if has_scheme && url.len() <= 1024 && url.chars().all(is_plain) {
        Ok(url.to_owned())
    } else {
        Err(NoSuchAgent::Registry(url.chars().take(100).collect()))
    }
}

/// The registry the environment names. One that is no address is left out: it would be refused where it is given by hand.
pub(crate) fn own_registry() -> Option<String> {
    std::env::var(REGISTRY_VARIABLE).ok().and_then(|url| checked_registry(&url).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_known_by_name_and_version() {
        assert_eq!("codex".parse::<Wanted>().unwrap().version(), codex::VERSION);
        assert_eq!("codex@0.1.2".parse::<Wanted>().unwrap().version(), "0.1.2");
        for bad in ["codec", "", "codex@", "codex@1;reboot", "codex@$(id)", "codex@-g", "codex@1 2"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_registry_is_an_address_and_nothing_else() {
        assert!(checked_registry("https://npm.example.com:8443/a/b").is_ok());
        for bad in ["npm.example.com", "https://a b", "https://a;id", "https://$(id)", "--registry"] {
            assert!(checked_registry(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_agent_works_without_questions_and_without_keys_in_its_variables() {
        for kind in Kind::ALL {
            let launch =
                kind.launch(Task { prompt: Some("do it"), model: Some("m"), arguments: &["--x".into()] });
            assert_eq!(launch.prompt_on_stdin.as_deref(), Some("do it"), "{kind}");
            assert!(!launch.interactive && !launch.keys.is_empty() && launch.argv.contains(&"m".to_owned()));
            assert!(!launch.argv.iter().any(|word| word == "do it"), "{kind}");
            assert!(launch.keys.iter().all(|key| !launch.envs.contains_key(&key.env)), "{kind}");
            let terminal = kind.launch(Task::default());
            assert!(terminal.interactive && terminal.prompt_on_stdin.is_none(), "{kind}");
            assert_eq!(terminal.lines, crate::agent::launch::Lines::Plain);
            assert_eq!(launch.install, terminal.install);
        }
    }
}
