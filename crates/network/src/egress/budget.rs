//! Memory for what has to be held whole on its way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of all sandboxes together, and of one.
const OF_ALL: usize = 64 * 1024 * 1024;
const OF_ONE: usize = 8 * 1024 * 1024;

/// A sandbox's part, and what it takes it from.
#[derive(Clone)]
pub(crate) struct Budget {
    all: Arc<Semaphore>,
    one: Arc<Semaphore>,
}

/// Some bytes of it, given back when dropped.
pub(crate) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_one: OwnedSemaphorePermit,
}

/// A body that keeps its place until it is sent.
pub(crate) struct Holding<B> {
    inner: B,
    _place: Place,
}

impl Budget {
    /// That of all sandboxes.
    pub(crate) fn of_all() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(OF_ALL))
    }

    /// That of one.
    pub(crate) fn of_one() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(OF_ONE))
    }

    pub(crate) fn new(all: Arc<Semaphore>, one: Arc<Semaphore>) -> Self {
        Self { all, one }
    }

    /// None when there is no room for so many.
    pub(crate) fn place(&self, bytes: u64) -> Option<Place> {
        let bytes = u32::try_from(bytes).ok()?;
        Some(Place {
            _of_one: self.one.clone().try_acquire_many_owned(bytes).ok()?,
            _of_all: self.all.clone().try_acquire_many_owned(bytes).ok()?,
        })
    }
}

impl Place {
    pub(crate) fn hold<B>(self, inner: B) -> Holding<B> {
        Holding { inner, _place: self }
    }
}

impl<B: Body + Unpin> Body for Holding<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
