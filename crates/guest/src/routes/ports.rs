//! `/v1/ports`.

use std::rc::Rc;

use http::{Method, StatusCode};
use warren_types::Error;

use super::{Answer, Call, no_such_path};
use crate::agent::Agent;
use crate::reply;
use crate::request::wrong_method;

pub(super) async fn route(agent: &Rc<Agent>, rest: &[&str], call: Call) -> Answer {
    match (rest, &call.method) {
        ([port], &Method::POST) => {
            let port = port.parse().ok().filter(|port| *port != 0);
            let port = port.ok_or_else(|| Error::invalid("a port is a number from 1 to 65535"))?;
            Ok(reply::stream(StatusCode::OK, agent.ports.connect(port, call.body).await?))
        }
        ([_], _) => Err(wrong_method()),
        _ => Err(no_such_path()),
    }
}
