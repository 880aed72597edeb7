//! `/v1/logs`.

use std::rc::Rc;

use http::{Method, StatusCode};

use super::{Answer, Call, no_such_path};
use crate::agent::Agent;
use crate::reply;
use crate::request::{self, wrong_method};

pub(super) async fn route(agent: &Rc<Agent>, rest: &[&str], call: Call) -> Answer {
    let pieces = match (rest, &call.method) {
        ([], &Method::POST) => agent.journal.read(request::json(call.body).await?)?,
        (["journal"], &Method::GET) => agent.journal.copy()?,
        ([] | ["journal"], _) => return Err(wrong_method()),
        _ => return Err(no_such_path()),
    };
    Ok(reply::stream(StatusCode::OK, pieces))
}
