//! Requests to previews that are under way, streams and WebSockets among them: they end with what let them in.
//!
//! A request is in this list before it is looked at who may open the preview. Whoever changes that changes the store first and
//! ends what is in the list after it, so that no request falls between the two.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use warren_types::{Error, SandboxId};

/// Of one sandbox, of all its ports. Anybody may open a preview that has no token, and each request under way costs memory here.
const MAX_OPEN: usize = 1024;

/// The one list of a server.
#[derive(Clone, Default)]
pub(crate) struct OpenPreviews(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    next: u64,
    by_sandbox: HashMap<SandboxId, HashMap<u64, (Opened, CancellationToken)>>,
}

/// What a request opens.
pub(crate) struct Opened {
    pub(crate) port: u16,
    /// The domain of an organisation, when it came by one.
    pub(crate) domain: Option<String>,
}

/// A request in the list, until the last byte of its answer or the end of its WebSocket.
pub(crate) struct OpenPreview {
    all: OpenPreviews,
    id: SandboxId,
    number: u64,
    close: CancellationToken,
    /// When what was shown is good no more.
    expires: OnceLock<Instant>,
}

/// The body of an answer, which breaks off then.
struct Bound {
    body: Body,
    open: Arc<OpenPreview>,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

// === impl OpenPreviews ===

impl OpenPreviews {
    pub(crate) fn begin(&self, id: &SandboxId, opened: Opened) -> Result<Arc<OpenPreview>, Error> {
        let close = CancellationToken::new();
        let mut all = self.lock();
        if all.by_sandbox.get(id).is_some_and(|open| open.len() >= MAX_OPEN) {
            return Err(Error::unavailable(format!(
                "sandbox {id} has {MAX_OPEN} requests to its previews under way; try again when some have ended"
            )));
        }
        let number = all.next;
        all.next += 1;
        all.by_sandbox.entry(id.clone()).or_default().insert(number, (opened, close.clone()));
        drop(all);
        Ok(Arc::new(OpenPreview {
            all: self.clone(),
            id: id.clone(),
            number,
            close,
            expires: OnceLock::new(),
        }))
    }

    /// Ends those of a sandbox that are like that.
    pub(crate) fn end(&self, id: &SandboxId, is_meant: impl Fn(&Opened) -> bool) {
        let all = self.lock();
        let open = all.by_sandbox.get(id).into_iter().flat_map(HashMap::values);
        for (_, close) in open.filter(|(opened, _)| is_meant(opened)) {
            close.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl OpenPreview ===

impl OpenPreview {
    /// What let it in is good until then, in seconds of Unix time.
    pub(crate) fn is_good_until(&self, expires: i64) {
        let left = expires.saturating_sub(Timestamp::now().as_second());
        let _ =
            self.expires.set(Instant::now() + Duration::from_secs(u64::try_from(left).unwrap_or_default()));
    }

    /// Waits until what let it in has ended.
    pub(crate) async fn ended(&self) {
        match self.expires.get() {
            Some(at) => {
                let _ = tokio::time::timeout_at(*at, self.close.cancelled()).await;
            }
            None => self.close.cancelled().await,
        }
    }

    pub(crate) fn bind(self: Arc<Self>, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let watched = Arc::clone(&self);
        Body::new(Bound { body, open: self, ended: Box::pin(async move { watched.ended().await }) })
    }
}

impl Drop for OpenPreview {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(open) = all.by_sandbox.get_mut(&self.id) {
            open.remove(&self.number);
            if open.is_empty() {
                all.by_sandbox.remove(&self.id);
            }
        }
    }
}

// === impl Bound ===

impl HttpBody for Bound {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let is_over = match &polled {
            Poll::Ready(_) => self.open.close.is_cancelled(),
            Poll::Pending => self.ended.as_mut().poll(context).is_ready(),
        };
        if !is_over {
            return polled;
        }
        let why = std::io::Error::other("what opened this preview is no longer good");
        Poll::Ready(Some(Err(axum::Error::new(why))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_has_so_many_at_once() {
        let all = OpenPreviews::default();
        let (id, other): (SandboxId, SandboxId) =
            ("sb-0a1b2c3d".parse().unwrap(), "sb-0a1b2c3e".parse().unwrap());
        let begin = |id| all.begin(id, Opened { port: 80, domain: None });
        let mut open: Vec<_> = (0..MAX_OPEN).map(|_| begin(&id).unwrap()).collect();
        assert!(begin(&id).is_err());
        assert!(begin(&other).is_ok());
        open.pop();
        assert!(begin(&id).is_ok());
        open.clear();
        assert!(all.lock().by_sandbox.is_empty(), "nothing is kept of what has ended");
    }
}
