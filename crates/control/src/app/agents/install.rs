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

use crate::app::auth::Live;
use crate::app::guest::query_value;
use crate::app::{App, audit};

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../agent-wrapper/", $name)))),*]
    };
}

const FILES: [(&str, &str); 12] = files![
    "main.mjs",
    "session.mjs",
    "lines.mjs",
    "output.mjs",
    "packages.mjs",
    "claude.mjs",
    "codex.mjs",
    "opencode.mjs",
    "rpc.mjs",
    "rpcagent.mjs",
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
    let version = warren_types::hex(&hash.finalize()[..8]);
    let folder = format!("/usr/local/lib/warren/agent-wrapper-{version}");
    Version { launcher: LAUNCHER.replace(FOLDER, &folder), folder }
});

/// Where it is put.
pub(super) fn program() -> String {
    format!("/usr/local/bin/{WRAPPER}")
}

impl App {
    /// Sees to it that this version of the wrapper is there. One record says that it was put there, not one for each file.
    pub(super) async fn install_wrapper(&self, live: &Live) -> Result<(), Error> {
        let Version { folder, launcher } = &*VERSION;
        let program = program();
        let main = format!("{folder}/main.mjs");
        let (is_current, is_there) =
            tokio::join!(self.holds(live, &program, launcher), self.holds(live, &main, FILES[0].1));
        if is_current && is_there {
            return Ok(());
        }
        let writing = async {
            for (name, text) in FILES {
                self.put(live, &format!("{folder}/{name}"), "644", text).await?;
            }
            self.put(live, &program, "755", launcher).await
        };
        let note =
            live.note(audit::Kind::AgentSession).with("action", "install").with("path", folder.as_str());
        self.audit.around(note, writing).await
    }

    async fn put(&self, live: &Live, path: &str, mode: &str, text: &'static str) -> Result<(), Error> {
        let call = format!("files?path={}&mode={mode}", query_value(path));
        self.guest(live, Method::PUT, &call, HeaderMap::new(), Body::from(text)).await.map(drop)
    }

    /// Whether a file of the sandbox is there and has exactly this text.
    async fn holds(&self, live: &Live, path: &str, text: &str) -> bool {
        let call = format!("files?path={}", query_value(path));
        let answer = self.guest(live, Method::GET, &call, HeaderMap::new(), Body::empty()).await;
        let Ok(answer) = answer else { return false };
        to_bytes(answer.into_body(), text.len()).await.is_ok_and(|found| found == text.as_bytes())
    }
}
