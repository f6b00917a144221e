//! Queue for connections to a server that accepts no more of them.

use std::sync::atomic::{AtomicUsize, Ordering};

use larder_core::fair::{FairPermit, FairSemaphore};
use larder_core::{Result, Share};

/// A queue of callers that wait for a connection while the server is full.
///
/// Only the first caller retries the server, so that the callers do not all flood it. The shares
/// take turns.
pub(crate) struct Crowd {
    first: FairSemaphore,
    waiting: AtomicUsize,
}

/// The right of the first caller in the queue to ask for a connection.
pub(crate) struct First<'a> {
    _waiting: Waiting<'a>,
    _permit: FairPermit,
}

/// Counts a waiting caller until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Crowd {
    pub(crate) fn new() -> Self {
        Self { first: FairSemaphore::new(1), waiting: AtomicUsize::new(0) }
    }

    /// Whether callers are waiting, so that a new one must join the queue.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Joins the queue, and waits to be first.
    pub(crate) async fn first(&self, share: &Share) -> Result<First<'_>> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let waiting = Waiting(&self.waiting);
        Ok(First { _permit: self.first.acquire(share).await?, _waiting: waiting })
    }

    pub(crate) fn close(&self) {
        self.first.close();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn one_is_first_and_the_others_wait() {
        let crowd = Crowd::new();
        assert!(!crowd.is_waited_for());
        let first = crowd.first(&Share::host()).await.unwrap();
        assert!(crowd.is_waited_for());
        assert!(timeout(Duration::ZERO, crowd.first(&Share::host())).await.is_err());
        drop(first);
        assert!(!crowd.is_waited_for());
        drop(crowd.first(&Share::host()).await.unwrap());
    }
}
