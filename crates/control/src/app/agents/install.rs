//! Putting the wrapper into a sandbox: the same in every image, old checkpoints included.
//!
//! One command, run by root of the sandbox, which does nothing when this version is there. Versions live beside each
//! other in folders named by their content, and what starts them is replaced in one step, so a session that runs keeps
//! the version it was started with.

use std::sync::LazyLock;

use sha2::{Digest, Sha256};
use warren_api::agents::WRAPPER;
use warren_guest_api::exec::{ExecStart, ShellUse};
use warren_types::{Error, ErrorKind};

use crate::app::App;
use crate::app::auth::Live;
use crate::app::exec::run::Ran;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../agent-wrapper/", $name)))),*]
    };
}

const FILES: [(&str, &str); 11] = files![
    "main.mjs",
    "session.mjs",
    "lines.mjs",
    "output.mjs",
    "packages.mjs",
    "claude.mjs",
    "codex.mjs",
    "opencode.mjs",
    "rpc.mjs",
    "events.mjs",
    "processes.mjs",
];
const LAUNCHER: &str = include_str!("../../../agent-wrapper/launcher.sh");
/// What the launcher has where the folder of its version belongs.
const FOLDER: &str = "@FOLDER@";
const INSTALL_WITHIN_MS: u64 = 30_000;

/// Arguments: the folder, the program, its text, then names and texts of files.
const SCRIPT: &str = r#"set -e
umask 022
folder=$1 program=$2 text=$3
shift 3
if [ -f "$folder/.whole" ] && [ "$(cat "$program" 2>/dev/null)" = "$text" ]; then exit 0; fi
mkdir -p "$folder" "$(dirname "$program")"
while [ $# -gt 1 ]; do
    printf %s "$2" >"$folder/.$1.$$"
    mv -f "$folder/.$1.$$" "$folder/$1"
    shift 2
done
: >"$folder/.whole"
printf '%s\n' "$text" >"$program.$$"
chmod 755 "$program.$$"
mv -f "$program.$$" "$program"
"#;

static ARGUMENTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    for (name, text) in FILES.into_iter().chain([("", LAUNCHER)]) {
        hash.update(name);
        hash.update([0]);
        hash.update(text);
        hash.update([0]);
    }
    let version: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let folder = format!("/usr/local/lib/warren/agent-wrapper-{version}");
    let launcher = LAUNCHER.trim_end().replace(FOLDER, &folder);
    let fixed = ["-c".to_owned(), SCRIPT.to_owned(), "install".to_owned(), folder];
    let files = FILES.into_iter().flat_map(|(name, text)| [name.to_owned(), text.to_owned()]);
    fixed.into_iter().chain([format!("/usr/local/bin/{WRAPPER}"), launcher]).chain(files).collect()
});

impl App {
    /// Sees to it that this version of the wrapper is there.
    pub(super) async fn install_wrapper(&self, live: &Live) -> Result<(), Error> {
        let start = ExecStart {
            cmd: "/bin/sh".to_owned(),
            args: ARGUMENTS.clone(),
            cwd: Some("/".to_owned()),
            shell: ShellUse::WhenNeeded,
            timeout_ms: Some(INSTALL_WITHIN_MS),
            as_root: true,
            ..ExecStart::default()
        };
        match self.run_exec(live, &start).await? {
            Ran::Whole(result) if result.exit_code == 0 => Ok(()),
            Ran::Whole(result) => {
                let why = result.stderr.trim();
                let why = &why[..why.floor_char_boundary(500)];
                Err(Error::new(
                    ErrorKind::SandboxFailed,
                    format!(
                        "{WRAPPER} could not be put into the sandbox: {why} (exit code {})",
                        result.exit_code
                    ),
                ))
            }
            Ran::Large { .. } => {
                Err(Error::new(ErrorKind::SandboxFailed, "/bin/sh of the sandbox does not work as a shell"))
            }
        }
    }
}
