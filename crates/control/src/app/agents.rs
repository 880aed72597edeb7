//! Agent sessions: commands of one name, spoken to in lines of JSON.
//!
//! ```text
//!   create ── install the wrapper ──▶ start it ──▶ its first lines: who it is, configure, prompt
//!   prompt, interrupt, configure, permission ──▶ one more line each, by whoever asks
//! ```
//!
//! What a session says goes the way of any command's output, so attaching is attaching to the command. All that is known
//! of a session is what the sandbox says of its commands; nothing is kept here.

mod install;
mod options;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Method;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use warren_api::agents::{AgentOptions, AgentPermission, AgentPrompt, AgentSession, WRAPPER};
use warren_api::exec::ExecKill;
use warren_guest_api::exec::{Exec, ExecStart, ShellUse};
use warren_guest_api::frame::MAX_PAYLOAD;
use warren_types::{Error, ErrorKind, ExecId};

use self::options::Kind;
use super::auth::Live;
use super::exec::timestamp;
use super::{App, audit};

/// How long a session may take to have room for a line.
const LINE_TAKEN_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);
/// How long ended sessions are listed.
const LISTED_SECONDS: i64 = 300;
/// Sessions that are asked about their conversation at the same time.
const ASKED_AT_ONCE: usize = 8;
/// What a session may say of its conversation, in bytes.
const MAX_STATE_BYTES: usize = 1024;
/// Longest name of a conversation, in bytes.
const MAX_CONVERSATION_BYTES: usize = 200;

pub(crate) fn agent_not_found() -> Error {
    Error::not_found("agent session not found")
}

impl App {
    pub(crate) async fn create_agent(
        self: &Arc<Self>,
        live: Live,
        options: AgentOptions,
    ) -> Result<AgentSession, Error> {
        let app = Arc::clone(self);
        // A session without its options and prompt is none that anybody asked for.
        self.to_the_end(async move { app.start_agent(&live, options).await }).await
    }

    async fn start_agent(&self, live: &Live, mut options: AgentOptions) -> Result<AgentSession, Error> {
        let kind = Kind::parse(options.agent.take().as_deref())?;
        let prompt = options.prompt.take().filter(|prompt| !prompt.is_empty());
        let configure = options::configure_line(&options)?;
        options::check_kind(kind, &options)?;
        let resume = options.resume.as_deref().filter(|resume| !resume.is_empty());
        let prompt = prompt.map(|text| options::prompt_line(&text, resume)).transpose()?;
        let told: Vec<u8> = [configure, prompt].into_iter().flatten().flatten().collect();
        check_size(&told)?;
        self.install_wrapper(live).await?;
        let start = ExecStart {
            cmd: WRAPPER.to_owned(),
            args: kind.args(),
            envs: [("IS_SANDBOX".to_owned(), "1".to_owned())].into(),
            cwd: options.cwd.filter(|cwd| !cwd.is_empty()),
            shell: ShellUse::WhenNeeded,
            stdin: true,
            ..ExecStart::default()
        };
        let note = live.note(audit::Kind::AgentSession).with("action", "start").with("agent", kind.as_str());
        let facts = |exec: &Exec| serde_json::Map::from_iter([("exec".to_owned(), exec.id.as_str().into())]);
        let starting = async {
            let started = self.guest_json(live, Method::POST, "exec", Some(&start)).await;
            if !matches!(&started, Err(error) if error.kind == ErrorKind::Invalid) {
                return started;
            }
            // In an image whose PATH does not lead to where it was put.
            let start = ExecStart { cmd: install::program(), ..start };
            self.guest_json(live, Method::POST, "exec", Some(&start)).await
        };
        let exec: Exec = self.audit.around_with(note, starting, facts).await?;
        let mut lines = line(&json!({"type": "session", "id": exec.id.as_str()}))?;
        lines.extend(told);
        // A wrapper that ended at once has said why in its output, which is there to be attached to.
        self.send_lines(live, &exec.id, lines).await?;
        view(live, &exec, None)
    }

    /// Running sessions, and those that ended a short while ago.
    pub(crate) async fn list_agents(&self, live: &Live) -> Result<Vec<AgentSession>, Error> {
        let execs = self.known_execs(live).await?;
        let oldest = Timestamp::now().as_millisecond() - LISTED_SECONDS * 1000;
        let recent = |exec: &Exec| {
            exec.ended_at_ms.is_none_or(|ended| i64::try_from(ended).is_ok_and(|ended| ended >= oldest))
        };
        let listed = execs.into_iter().filter(|exec| is_session(exec) && recent(exec));
        stream::iter(listed)
            .map(async |exec| {
                let conversation = self.conversation(live, &exec.id).await;
                view(live, &exec, conversation)
            })
            .buffered(ASKED_AT_ONCE)
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .collect()
    }

    pub(crate) async fn prompt_agent(
        &self,
        live: &Live,
        exec: &ExecId,
        body: &AgentPrompt,
    ) -> Result<(), Error> {
        let text = body.text.as_deref().filter(|text| !text.is_empty());
        let text = text.ok_or_else(|| Error::invalid("text is required: it is what the agent is to do"))?;
        let line = options::prompt_line(text, body.resume.as_deref())?;
        let note = live.note(audit::Kind::AgentSession).with("action", "prompt").with("exec", exec.as_str());
        self.audit.around(note.with("bytes", text.len()), self.tell_agent(live, exec, line)).await
    }

    pub(crate) async fn interrupt_agent(&self, live: &Live, exec: &ExecId) -> Result<(), Error> {
        self.tell_agent(live, exec, line(&json!({"type": "interrupt"}))?).await
    }

    pub(crate) async fn configure_agent(
        &self,
        live: &Live,
        exec: &ExecId,
        options: &AgentOptions,
    ) -> Result<(), Error> {
        let wrong = match options {
            AgentOptions { prompt: Some(_), .. } => Some("prompt: send it to …/prompt"),
            AgentOptions { agent: Some(_), .. } => Some("agent: what runs in a session cannot be changed"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(Error::invalid(wrong));
        }
        let line = options::configure_line(options)?
            .ok_or_else(|| Error::invalid("nothing to configure: name at least one option"))?;
        options::check_kind(Kind::of_args(&self.get_agent(live, exec).await?.args), options)?;
        self.tell_agent(live, exec, line).await
    }

    pub(crate) async fn answer_agent(
        &self,
        live: &Live,
        exec: &ExecId,
        body: &AgentPermission,
    ) -> Result<(), Error> {
        let line = options::permission_line(body)?;
        let note =
            live.note(audit::Kind::AgentSession).with("action", "permission").with("exec", exec.as_str());
        self.audit.around(note, self.tell_agent(live, exec, line)).await
    }

    /// Ends a session. One that has ended already is fine.
    pub(crate) async fn kill_agent(&self, live: &Live, exec: &ExecId, body: &ExecKill) -> Result<(), Error> {
        self.get_agent(live, exec).await?;
        self.kill_exec(live, exec, body).await
    }

    /// Whether a command is an agent session.
    pub(in crate::app) async fn is_agent(&self, live: &Live, exec: &ExecId) -> Result<bool, Error> {
        match self.get_agent(live, exec).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn get_agent(&self, live: &Live, exec: &ExecId) -> Result<Exec, Error> {
        let found = self.guest_json(live, Method::GET, &format!("exec/{exec}"), None::<&()>).await;
        match found {
            Ok(exec) if is_session(&exec) => Ok(exec),
            Ok(_) => Err(agent_not_found()),
            Err(error) if error.kind == ErrorKind::NotFound => Err(agent_not_found()),
            Err(error) => Err(error),
        }
    }

    async fn tell_agent(&self, live: &Live, exec: &ExecId, line: Vec<u8>) -> Result<(), Error> {
        check_size(&line)?;
        let ended = || Error::new(ErrorKind::Conflict, "the agent session has ended; start another one");
        if !self.get_agent(live, exec).await?.running || !self.send_lines(live, exec, line).await? {
            return Err(ended());
        }
        Ok(())
    }

    async fn send_lines(&self, live: &Live, exec: &ExecId, lines: Vec<u8>) -> Result<bool, Error> {
        let sending = self.send_input(live, exec, Bytes::from(lines));
        tokio::time::timeout(LINE_TAKEN_WITHIN, sending).await.unwrap_or_else(|_| {
            Err(Error::unavailable("the agent session does not read its input; try again later, or kill it"))
        })
    }

    /// What a session says its conversation is called. It may say nothing, or nonsense, which is the same.
    async fn conversation(&self, live: &Live, exec: &ExecId) -> Option<String> {
        let path = format!("files?path=/tmp/.warren-agents/{exec}.json");
        let body = axum::body::Body::empty();
        let answer = self.guest(live, Method::GET, &path, http::HeaderMap::new(), body).await.ok()?;
        let bytes = axum::body::to_bytes(answer.into_body(), MAX_STATE_BYTES).await.ok()?;
        let state: Value = serde_json::from_slice(&bytes).ok()?;
        let name = state.get("conversation")?.as_str()?;
        let is_name = (1..=MAX_CONVERSATION_BYTES).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic());
        is_name.then(|| name.to_owned())
    }
}

/// What is told at once goes as one piece, so that nobody else's lines come between; the session's own name fits as well.
fn check_size(lines: &[u8]) -> Result<(), Error> {
    if lines.len() > MAX_PAYLOAD - 1024 {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("what the agent is to be told is larger than {} bytes as JSON", MAX_PAYLOAD - 1024),
        ));
    }
    Ok(())
}

fn is_session(exec: &Exec) -> bool {
    exec.cmd == WRAPPER || exec.cmd == install::program()
}

/// One line for a session. The line end before it ends what somebody else has sent half of.
fn line(message: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, message)
        .map_err(|error| Error::internal(format!("could not encode a line for an agent: {error}")))?;
    line.push(b'\n');
    Ok(line)
}

fn view(live: &Live, exec: &Exec, conversation: Option<String>) -> Result<AgentSession, Error> {
    Ok(AgentSession {
        session_id: exec.id.to_string(),
        sandbox_id: live.id().to_string(),
        running: exec.running,
        started_at: timestamp(exec.started_at_ms)?,
        claude_session_id: conversation,
        agent: Kind::of_args(&exec.args).as_str().to_owned(),
        exit_code: exec.exit.map(|exit| exit.code),
    })
}
