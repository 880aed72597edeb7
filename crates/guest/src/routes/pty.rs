//! `/v1/pty`.

use std::rc::Rc;

use http::{Method, StatusCode};
use warren_guest_api::pty::Resize;

use super::{Answer, Call, no_such_path};
use crate::agent::Agent;
use crate::pty::TerminalStream;
use crate::reply;
use crate::request::{self, wrong_method};

pub(super) async fn route(agent: &Rc<Agent>, rest: &[&str], call: Call) -> Answer {
    match (rest, &call.method) {
        ([], &Method::GET) => reply::json(StatusCode::OK, &agent.terminals.list()),
        ([], &Method::POST) => {
            let terminal = agent.terminals.start(request::json(call.body).await?).await?;
            reply::json(StatusCode::CREATED, &terminal.view())
        }
        ([id], &Method::DELETE) => {
            agent.terminals.delete(id)?;
            Ok(reply::empty(StatusCode::NO_CONTENT))
        }
        ([id, "resize"], &Method::POST) => {
            let size: Resize = request::json(call.body).await?;
            agent.terminals.resize(id, &size)?;
            Ok(reply::empty(StatusCode::NO_CONTENT))
        }
        ([id, "attach"], &Method::POST) => {
            Ok(reply::stream(StatusCode::OK, TerminalStream::new(agent.terminals.attach(id)?)))
        }
        ([id, "input"], &Method::POST) => {
            let terminal = agent.terminals.get(id)?;
            let intake = terminal.senders.enter()?;
            let grants = intake.grants();
            tokio::task::spawn_local(async move { terminal.feed(&intake, call.body).await });
            Ok(reply::stream(StatusCode::OK, grants))
        }
        ([] | [_] | [_, "resize" | "attach" | "input"], _) => Err(wrong_method()),
        _ => Err(no_such_path()),
    }
}
