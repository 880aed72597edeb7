//! What sandboxes ask about themselves.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use warren_node_api::{Answer, Question, Subject};

use super::SimNode;
use crate::harness::eventually;

impl SimNode {
    /// Asks as a sandbox does, once somebody is there to answer.
    pub(crate) async fn ask(&self, id: &str, subject: Subject) -> Answer {
        let number = {
            let mut state = self.state();
            state.asked += 1;
            state.asked
        };
        let question = Question { number, sandbox_id: id.parse().unwrap(), subject };
        eventually("questions are heard", async || self.0.questions.send(question.clone()).ok()).await;
        eventually("it is answered", async || self.state().answers.remove(&number)).await
    }
}

pub(super) async fn watch(State(node): State<SimNode>) -> Body {
    let asked = node.0.questions.subscribe();
    Body::from_stream(stream::unfold(asked, async |mut asked| {
        let line = serde_json::to_string(&asked.recv().await.ok()?).unwrap() + "\n";
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), asked))
    }))
}

pub(super) async fn answer(
    State(node): State<SimNode>,
    Path(number): Path<u64>,
    Json(answer): Json<Answer>,
) -> StatusCode {
    node.state().answers.insert(number, answer);
    StatusCode::NO_CONTENT
}
