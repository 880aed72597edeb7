//! Putting the wrapper into a sandbox: the same in every image, old checkpoints included.
//!
//! It is written as root's files, and only where this version is not there. Versions live beside each other in folders
//! named by their content, and what starts them is replaced in one step and last, so a session that runs keeps the version
//! it was started with.

use std::sync::LazyLock;

use axum::body::{Body, to_bytes};
use http::{HeaderMap, Method};
use sha2::{Digest, Sha256};
use warren_api::agents::WRAPPER;
use warren_types::Error;

use crate::app::App;
use crate::app::auth::Live;
use crate::app::files::{FileMode, FilePath};

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

/// This version: its folder, and what starts it.
struct Version {
    folder: String,
    launcher: String,
}

static VERSION: LazyLock<Version> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    for (name, text) in FILES.into_iter().chain([("", LAUNCHER)]) {
        hash.update(name);
        hash.update([0]);
        hash.update(text);
        hash.update([0]);
    }
    let version: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let folder = format!("/usr/local/lib/warren/agent-wrapper-{version}");
    Version { launcher: LAUNCHER.replace(FOLDER, &folder), folder }
});

impl App {
    /// Sees to it that this version of the wrapper is there.
    pub(super) async fn install_wrapper(&self, live: &Live) -> Result<(), Error> {
        let Version { folder, launcher } = &*VERSION;
        let program = path(format!("/usr/local/bin/{WRAPPER}"))?;
        let main = path(format!("{folder}/main.mjs"))?;
        let (is_current, is_there) =
            tokio::join!(self.holds(live, &program, launcher), self.holds(live, &main, FILES[0].1));
        if is_current && is_there {
            return Ok(());
        }
        for (name, text) in FILES {
            let path = path(format!("{folder}/{name}"))?;
            let mode = FileMode::parse("0644")?;
            self.write_file(live, &path, Some(mode), HeaderMap::new(), Body::from(text)).await?;
        }
        let mode = FileMode::parse("0755")?;
        self.write_file(live, &program, Some(mode), HeaderMap::new(), Body::from(launcher.as_str())).await
    }

    /// Whether a file of the sandbox is there and has exactly this text.
    async fn holds(&self, live: &Live, path: &FilePath, text: &str) -> bool {
        let answer = self.guest_file(live, Method::GET, "files", path, HeaderMap::new(), Body::empty()).await;
        let Ok(answer) = answer else { return false };
        to_bytes(answer.into_body(), text.len()).await.is_ok_and(|found| found == text.as_bytes())
    }
}

fn path(path: String) -> Result<FilePath, Error> {
    FilePath::from_query(Some(path))
}
