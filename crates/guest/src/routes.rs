//! Which request is answered by what; the table is in `warren_guest_api`.

mod exec;
mod files;
mod logs;
mod ports;
mod pty;

use std::rc::Rc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use warren_types::Error;

use crate::agent::Agent;
use crate::query::Query;
use crate::reply::{self, Failure, Reply};
use crate::request::{self, wrong_method};
use crate::usage;

type Answer = Result<Reply, Failure>;

/// A request, taken apart.
struct Call {
    method: Method,
    query: Query,
    head: http::request::Parts,
    body: Incoming,
}

/// Answers every request with something.
pub(crate) async fn answer(agent: &Rc<Agent>, request: Request<Incoming>) -> Reply {
    match route(agent, request).await {
        Ok(reply) => reply,
        Err(failure) => reply::failure(failure),
    }
}

async fn route(agent: &Rc<Agent>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let call = Call { method: head.method.clone(), query, head, body };
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["v1", "status"] => match call.method {
            Method::GET => reply::json(StatusCode::OK, &agent.status()),
            _ => Err(wrong_method()),
        },
        ["v1", "usage"] => match call.method {
            Method::GET => reply::json(StatusCode::OK, &usage::read()),
            _ => Err(wrong_method()),
        },
        ["v1", "renew"] => match call.method {
            Method::POST => {
                let wanted = request::json(call.body).await?;
                reply::json(StatusCode::OK, &agent.renew(wanted).await?)
            }
            _ => Err(wrong_method()),
        },
        ["v1", what @ ("sync" | "end")] => match call.method {
            Method::POST => {
                let grace = if *what == "end" {
                    Some(request::number(&call.query, "ms")?.unwrap_or(0))
                } else {
                    None
                };
                agent.rest_machine(grace).await?;
                reply::json(StatusCode::OK, &serde_json::json!({}))
            }
            _ => Err(wrong_method()),
        },
        ["v1", what @ ("exec" | "logs" | "ports" | "pty" | "files"), rest @ ..] => {
            agent.check_owned()?;
            match *what {
                "exec" => exec::route(agent, rest, call).await,
                "logs" => logs::route(agent, rest, call).await,
                "ports" => ports::route(agent, rest, call).await,
                "pty" => pty::route(agent, rest, call).await,
                _ => files::route(agent, rest, call).await,
            }
        }
        _ => Err(no_such_path()),
    }
}

fn no_such_path() -> Failure {
    Error::not_found("the agent has no such path").into()
}
