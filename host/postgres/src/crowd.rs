//! Those who wait for a connection as the server has no room for more.

use std::sync::atomic::{AtomicUsize, Ordering};

use larder_core::fair::{FairPermit, FairSemaphore};
use larder_core::{Result, Share};

/// A queue whose first one asks for connections; the others wait, by shares in turn, so that a full server is not asked by
/// all of them.
pub(crate) struct Crowd {
    first: FairSemaphore,
    waiting: AtomicUsize,
}

/// The right to ask for a connection, until it is dropped.
pub(crate) struct First<'a> {
    _waiting: Waiting<'a>,
    _permit: FairPermit,
}

/// Counts one that waits. A future that is dropped waits no longer.
struct Waiting<'a>(&'a AtomicUsize);

impl Crowd {
    pub(crate) fn new() -> Self {
        Self { first: FairSemaphore::new(1), waiting: AtomicUsize::new(0) }
    }

    /// Whether one that comes now has to stand in line.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Waits until none is ahead.
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
