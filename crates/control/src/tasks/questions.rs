//! Answers what sandboxes ask about themselves, as their node passes it on. The node says how much of that there can be; a
//! question that could not be answered comes again with the next stream.

use std::sync::Arc;

use axum::body::Body;
use tracing::Instrument;
use warren_node_api::{Answer, Question, Subject};
use warren_types::{Error, SandboxId};

use super::lines::{FIRST_PAUSE, LONGEST_PAUSE, Lines, OPEN_DEADLINE};
use crate::app::App;
use crate::app::auth::sandbox_not_found;

pub(super) async fn answer_all(app: Arc<App>) {
    let mut pause = FIRST_PAUSE;
    loop {
        match tokio::time::timeout(OPEN_DEADLINE, app.node.watch_questions()).await {
            Ok(Ok(questions)) => {
                pause = FIRST_PAUSE;
                follow(&app, questions).await;
            }
            // The watch on its changes says so already.
            Ok(Err(error)) => tracing::debug!(%error, "sandboxes cannot ask about themselves"),
            Err(_) => tracing::debug!("sandboxes cannot ask about themselves: the node does not answer"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn follow(app: &Arc<App>, questions: Body) {
    let mut lines = Lines::new(questions);
    loop {
        let end = match lines.next().await {
            Ok(line) => match serde_json::from_slice::<Question>(&line) {
                Ok(question) => {
                    let app = Arc::clone(app);
                    let tasks = app.tasks.clone();
                    tasks.spawn(async move { answer(&app, question).await }.in_current_span());
                    continue;
                }
                Err(error) => format!("a line is not a question: {error}"),
            },
            Err(end) => end.to_string(),
        };
        return tracing::info!(reason = end, "the stream of questions ended; opening it again");
    }
}

async fn answer(app: &Arc<App>, question: Question) {
    let answer = match question.subject {
        Subject::About => about(app, &question.sandbox_id).await,
        Subject::Scale { memory_mb } => app.scale_itself(&question.sandbox_id, memory_mb).await,
    };
    let answer = answer.unwrap_or_else(Answer::Refused);
    if let Err(error) = app.node.answer_question(question.number, &answer).await {
        tracing::debug!(%error, "an answer did not reach its node");
    }
}

async fn about(app: &App, id: &SandboxId) -> Result<Answer, Error> {
    let standing = app.store.find_standing(id).await?.ok_or_else(sandbox_not_found)?;
    let row = app.store.find_sandbox(&standing.org, id).await?.ok_or_else(sandbox_not_found)?;
    Ok(Answer::About { region: app.region().to_owned(), template: row.template })
}
