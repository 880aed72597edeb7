//! When a sandbox was last used.
//!
//! A call counts from its beginning to its end. A stream (attached command or terminal) counts by its traffic: a quiet
//! one does not keep the sandbox awake.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

#[derive(Debug)]
pub(crate) struct Activity {
    started: Instant,
    /// Milliseconds after `started`.
    last: AtomicU64,
    calls: AtomicUsize,
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), last: AtomicU64::new(0), calls: AtomicUsize::new(0) })
    }

    pub(crate) fn touch(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(now, Ordering::Relaxed);
    }

    /// When the sandbox may be called idle, if nothing happens until then; `None` while a call is under way.
    pub(crate) fn idle_at(&self, timeout: Duration) -> Option<Instant> {
        if self.calls.load(Ordering::Relaxed) > 0 {
            return None;
        }
        Some(self.started + Duration::from_millis(self.last.load(Ordering::Relaxed)) + timeout)
    }

    pub(crate) fn has_calls(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn begin_call(self: &Arc<Self>) -> Call {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.touch();
        Call { activity: self.clone() }
    }
}

/// A call under way; ends when dropped.
#[derive(Debug)]
pub(crate) struct Call {
    activity: Arc<Activity>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.activity.touch();
        self.activity.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that keeps its call under way until its end.
pub(crate) fn hold(body: Body, call: Call) -> Body {
    Body::new(Watched { body, seen: Seen::Held(call) })
}

/// A body whose every piece counts as use.
pub(crate) fn count(body: Body, activity: Arc<Activity>) -> Body {
    Body::new(Watched { body, seen: Seen::Counted(activity) })
}

struct Watched {
    body: Body,
    seen: Seen,
}

enum Seen {
    Held(#[expect(dead_code, reason = "held for its drop")] Call),
    Counted(Arc<Activity>),
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(_))), Seen::Counted(activity)) = (&frame, &self.seen) {
            activity.touch();
        }
        frame
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

    #[tokio::test(start_paused = true)]
    async fn a_call_holds_off_idleness_until_it_ends() {
        let activity = Activity::new();
        let timeout = Duration::from_secs(10);
        let call = activity.begin_call();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(activity.idle_at(timeout), None);
        drop(call);
        assert_eq!(activity.idle_at(timeout), Some(Instant::now() + timeout));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_counts_by_its_traffic() {
        let activity = Activity::new();
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let mut body = count(Body::from_stream(pieces), activity.clone());
        tokio::time::advance(Duration::from_secs(5)).await;
        let before = activity.idle_at(Duration::ZERO);
        sender.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
        http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap();
        assert_eq!(activity.idle_at(Duration::ZERO).unwrap() - before.unwrap(), Duration::from_secs(5));
    }
}
