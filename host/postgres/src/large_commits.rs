//! The queue of large commits, which are made one at a time and with pauses.
//!
//! Several large commits at a time would take the server's CPU time from all other calls. And a
//! commit in many namespaces holds the locks of all of them, so without a pause before the next one
//! every other commit would have to wait for one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder_core::commit::Commit;
use larder_core::fair::{FairPermit, FairSemaphore};
use larder_core::pace::Pace;
use larder_core::{Error, Share};
use parking_lot::Mutex;
use tokio::time::{sleep_until, timeout};

use crate::error::Result;

/// How often a waiting commit checks whether it was withdrawn, or its store was closed. Until then
/// it may keep a connection from others.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Decides when the next large commit is made.
pub(crate) struct LargeCommits {
    permit: FairSemaphore,
    pace: Arc<Mutex<Pace>>,
    closed: AtomicBool,
}

/// The turn of a large commit. If it has begun, the pause begins when it is dropped.
pub(crate) struct LargeTurn {
    _permit: FairPermit,
    pace: Arc<Mutex<Pace>>,
    share: Share,
    began: Option<Instant>,
}

impl LargeCommits {
    pub(crate) fn new() -> Self {
        Self { permit: FairSemaphore::new(1), pace: Arc::default(), closed: AtomicBool::new(false) }
    }

    /// Waits for the turn of a large commit, until the commit is withdrawn or its store is closed.
    /// Small commits get `None` at once.
    pub(crate) async fn turn(&self, commit: &Commit) -> Result<Option<LargeTurn>> {
        if !commit.is_large() {
            self.small_came(&commit.share);
            return Ok(None);
        }
        self.pace.lock().came(&commit.share, Instant::now());
        let mut turn = pin!(self.next(&commit.share));
        loop {
            commit.stage.check()?;
            if self.closed.load(Ordering::Acquire) {
                return Err(Error::Closed.into());
            }
            if let Ok(turn) = timeout(CHECK_INTERVAL, turn.as_mut()).await {
                return turn.map(Some);
            }
        }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.permit.close();
    }

    async fn next(&self, share: &Share) -> Result<LargeTurn> {
        let permit = self.permit.acquire(share).await?;
        let pause = self.pace.lock().pause(Instant::now());
        if let Some(until) = pause {
            sleep_until(until.into()).await;
        }
        Ok(LargeTurn { _permit: permit, pace: self.pace.clone(), share: share.clone(), began: None })
    }

    fn small_came(&self, share: &Share) {
        let mut pace = self.pace.lock();
        if pace.is_watching() {
            pace.came(share, Instant::now());
        }
    }
}

impl LargeTurn {
    /// Begins the commit, once it has a connection: the wait for one is no work of the server.
    pub(crate) fn begin(&mut self) {
        self.began = Some(Instant::now());
    }
}

impl Drop for LargeTurn {
    fn drop(&mut self) {
        if let Some(began) = self.began {
            self.pace.lock().large_ended(&self.share, began, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use larder_core::Limits;
    use larder_core::commit::Mutation;
    use larder_core::name::{Key, Namespace, RowKey};

    use super::*;

    fn commit(share: &Share, rows: usize) -> Commit {
        let limits = Limits::default();
        let namespace = Namespace::new("n", &limits).unwrap();
        let writes: BTreeMap<_, _> = (0..rows)
            .map(|number| {
                let key = Key::new(number.to_string(), &limits).unwrap();
                (RowKey { namespace: namespace.clone(), key }, Mutation::Delete)
            })
            .collect();
        Commit { writes, share: share.clone(), ..Commit::default() }
    }

    /// Waits for the turn of a large commit, and begins it.
    async fn begun(queue: &LargeCommits, share: &Share) -> LargeTurn {
        let mut turn = queue.turn(&commit(share, 600)).await.unwrap().unwrap();
        turn.begin();
        turn
    }

    #[tokio::test]
    async fn a_large_commit_pauses_after_another_one_if_other_shares_commit_and_a_small_one_never_does() {
        let (bulk, other) = (Share::own(), Share::own());
        let queue = LargeCommits::new();
        let took = Duration::from_millis(40);
        for has_company in [false, true] {
            let turn = begun(&queue, &bulk).await;
            if has_company {
                assert!(queue.turn(&commit(&other, 1)).await.unwrap().is_none());
            }
            tokio::time::sleep(took).await;
            drop(turn);
            let ended = Instant::now();
            assert!(queue.turn(&commit(&bulk, 1)).await.unwrap().is_none());
            let pause = queue.pace.lock().pause(ended);
            assert_eq!(pause.is_some(), has_company);
            drop(begun(&queue, &bulk).await);
            assert!(pause.is_none_or(|until| Instant::now() >= until));
        }
    }

    #[tokio::test]
    async fn a_caller_that_goes_during_the_pause_leaves_the_turn_to_the_next_one() {
        let (bulk, other) = (Share::own(), Share::own());
        let queue = LargeCommits::new();
        drop(begun(&queue, &bulk).await);
        queue.turn(&commit(&other, 1)).await.unwrap();
        let began = Instant::now();
        queue.pace.lock().large_ended(&bulk, began, began + Duration::from_secs(3_600));
        assert!(timeout(Duration::ZERO, queue.turn(&commit(&bulk, 600))).await.is_err());
        *queue.pace.lock() = Pace::default();
        assert!(queue.turn(&commit(&bulk, 600)).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_close_ends_the_pause_with_an_error() {
        let (bulk, other) = (Share::own(), Share::own());
        let queue = LargeCommits::new();
        drop(begun(&queue, &bulk).await);
        queue.turn(&commit(&other, 1)).await.unwrap();
        let began = Instant::now();
        queue.pace.lock().large_ended(&bulk, began, began + Duration::from_secs(3_600));
        let paused = commit(&bulk, 600);
        let mut turn = pin!(queue.turn(&paused));
        assert!(timeout(Duration::ZERO, turn.as_mut()).await.is_err());
        queue.close();
        assert!(matches!(turn.await.map_err(Error::from), Err(Error::Closed)));
    }

    #[tokio::test]
    async fn a_large_commit_that_never_began_is_followed_by_no_pause() {
        let (bulk, other) = (Share::own(), Share::own());
        let queue = LargeCommits::new();
        drop(begun(&queue, &bulk).await);
        queue.turn(&commit(&other, 1)).await.unwrap();
        let ended = queue.pace.lock().pause(Instant::now());
        let turn = queue.turn(&commit(&bulk, 600)).await.unwrap();
        queue.turn(&commit(&other, 1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(turn);
        // Only the first one counts, and its pause is over.
        assert!(ended.is_none_or(|until| until <= Instant::now()));
        assert_eq!(queue.pace.lock().pause(Instant::now()), None);
    }
}
