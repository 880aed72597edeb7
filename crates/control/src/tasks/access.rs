//! Tells nodes what they could not be told of secrets and policies, and takes from them what secrets were used for.

use std::sync::Arc;
use std::time::Duration;

use crate::app::App;

const TELL_EVERY: Duration = Duration::from_secs(2);
const TAKE_EVERY: Duration = Duration::from_secs(3);
const TAKE_DEADLINE: Duration = Duration::from_secs(10);

pub(super) async fn tell_again(app: Arc<App>) {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        app.push_untold_access().await;
    }
}

/// A batch is acknowledged after it is stored. When this process ends in between, the same batch comes again and changes
/// nothing.
pub(super) async fn take_uses(app: Arc<App>) {
    let mut acknowledged = 0;
    let mut failed = false;
    let mut more = false;
    loop {
        if !more {
            tokio::time::sleep(TAKE_EVERY).await;
        }
        let taken = tokio::time::timeout(TAKE_DEADLINE, app.take_secret_uses(acknowledged)).await;
        more = false;
        match taken {
            Ok(Ok((batch, any))) => {
                // A node that repeats itself is not asked without end.
                more = any && batch != acknowledged;
                acknowledged = batch;
                failed = false;
            }
            // Said once, not every few seconds.
            Ok(Err(error)) if !failed => {
                tracing::info!(%error, "the node does not say what secrets were used for; asking again");
                failed = true;
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}
