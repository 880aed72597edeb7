//! `/v1/exec`.

use std::rc::Rc;
use std::time::Duration;

use http::{Method, StatusCode};
use warren_guest_api::exec::{KEPT_BYTES, Kill};
use warren_types::Error;

use super::{Answer, Call, no_such_path};
use crate::agent::Agent;
use crate::exec::{Course, ExecStream, SingleStream};
use crate::log::Stream;
use crate::reply;
use crate::request::{self, number, wrong_method};

/// Longest wait in one request.
const MAX_WAIT_MS: u64 = 60 * 60 * 1000;

pub(super) async fn route(agent: &Rc<Agent>, rest: &[&str], call: Call) -> Answer {
    match (rest, &call.method) {
        ([], &Method::GET) => reply::json(StatusCode::OK, &agent.commands.list()),
        ([], &Method::POST) => {
            let (command, _) = agent.commands.start(request::json(call.body).await?, false).await?;
            reply::json(StatusCode::CREATED, &command.view())
        }
        (["kept"], &Method::GET) => Ok(reply::whole(StatusCode::OK, agent.commands.kept().await)),
        (["kept"], &Method::PUT) => {
            agent.commands.take_kept(request::whole(call.body, KEPT_BYTES).await?)?;
            Ok(reply::empty(StatusCode::NO_CONTENT))
        }
        (["run"], &Method::POST) => run(agent, call).await,
        ([id], &Method::GET) => reply::json(StatusCode::OK, &agent.commands.get(id)?.view()),
        ([id, "wait"], &Method::GET) => {
            let command = agent.commands.get(id)?;
            let most = number(&call.query, "ms")?.unwrap_or(0).min(MAX_WAIT_MS);
            command.wait(Duration::from_millis(most)).await;
            reply::json(StatusCode::OK, &command.view())
        }
        ([id, "output"], &Method::GET) => output(agent, id, &call),
        ([id, "replay"], &Method::GET) => {
            let (command, reader) = agent.commands.replay(id)?;
            Ok(reply::stream(StatusCode::OK, ExecStream::new(command.id.clone(), reader, Course::Replay)))
        }
        ([id, "attach"], &Method::POST) => attach(agent, id, &call),
        ([id, "input"], &Method::POST) => input(agent, id, call),
        ([id, "kill"], &Method::POST) => {
            let kill: Kill = request::json(call.body).await?;
            agent.commands.get(id)?.kill(kill.signal)?;
            Ok(reply::empty(StatusCode::NO_CONTENT))
        }
        ([] | [_] | [_, "wait" | "output" | "replay" | "attach" | "input" | "kill"], _) => {
            Err(wrong_method())
        }
        _ => Err(no_such_path()),
    }
}

/// Starts a command whose input is empty and streams it from its first byte.
async fn run(agent: &Rc<Agent>, call: Call) -> Answer {
    let mut start: warren_guest_api::exec::ExecStart = request::json(call.body).await?;
    start.stdin = false;
    let (command, reader) = agent.commands.start(start, true).await?;
    let reader = reader.ok_or_else(|| Error::internal("the command has no reader"))?;
    Ok(reply::stream(StatusCode::OK, ExecStream::new(command.id.clone(), reader, Course::Live)))
}

fn attach(agent: &Rc<Agent>, id: &str, call: &Call) -> Answer {
    let (command, reader) = agent.commands.attach(id, number(&call.query, "offset")?)?;
    Ok(reply::stream(StatusCode::OK, ExecStream::new(command.id.clone(), reader, Course::ReplayAndLive)))
}

fn input(agent: &Rc<Agent>, id: &str, call: Call) -> Answer {
    let command = agent.commands.get(id)?;
    let intake = command.input.sender()?;
    let grants = intake.grants();
    tokio::task::spawn_local(async move { command.input.feed(&intake, call.body, &command.output).await });
    Ok(reply::stream(StatusCode::OK, grants))
}

fn output(agent: &Rc<Agent>, id: &str, call: &Call) -> Answer {
    let stream = match call.query.get("stream") {
        None | Some(b"stdout") => Stream::Stdout,
        Some(b"stderr") => Stream::Stderr,
        Some(_) => return Err(Error::invalid("stream must be stdout or stderr").into()),
    };
    let command = agent.commands.get(id)?;
    let reader = command.output.reader(0, false);
    Ok(reply::stream(StatusCode::OK, SingleStream::new(reader, stream)))
}
