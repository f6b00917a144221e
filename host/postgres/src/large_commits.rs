//! The queue of large commits, which are made one at a time and with pauses.
//!
//! Several large commits at a time would take the server's CPU time from all other calls. And a
//! commit in many namespaces holds the locks of all of them, so without a pause before the next one
//! every other commit would have to wait for one.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_core::Share;
use larder_core::commit::Commit;
use larder_core::fair::{FairPermit, FairSemaphore};
use larder_core::pace::Pace;
use parking_lot::Mutex;
use tokio::time::{sleep_until, timeout};

use crate::error::Result;

/// How often a waiting commit checks whether it was withdrawn. Until then it may keep a connection
/// from others.
const WITHDRAWN_INTERVAL: Duration = Duration::from_millis(50);

/// Decides when the next large commit is made.
pub(crate) struct LargeCommits {
    permit: FairSemaphore,
    pace: Arc<Mutex<Pace>>,
}

/// The turn of a large commit. The pause begins when it is dropped.
pub(crate) struct LargeTurn {
    _permit: FairPermit,
    pace: Arc<Mutex<Pace>>,
    share: Share,
    began: Instant,
}

impl LargeCommits {
    pub(crate) fn new() -> Self {
        Self { permit: FairSemaphore::new(1), pace: Arc::default() }
    }

    /// Waits for the turn of a large commit, until the commit is withdrawn. Small commits get
    /// `None` at once.
    pub(crate) async fn turn(&self, commit: &Commit) -> Result<Option<LargeTurn>> {
        if !commit.is_large() {
            self.small_came(&commit.share);
            return Ok(None);
        }
        self.pace.lock().came(&commit.share, Instant::now());
        let mut turn = pin!(self.next(&commit.share));
        loop {
            commit.stage.check()?;
            if let Ok(turn) = timeout(WITHDRAWN_INTERVAL, turn.as_mut()).await {
                return turn.map(Some);
            }
        }
    }

    pub(crate) fn close(&self) {
        self.permit.close();
    }

    async fn next(&self, share: &Share) -> Result<LargeTurn> {
        let permit = self.permit.acquire(share).await?;
        let pause = self.pace.lock().pause(Instant::now());
        if let Some(until) = pause {
            sleep_until(until.into()).await;
        }
        let (share, began) = (share.clone(), Instant::now());
        Ok(LargeTurn { _permit: permit, pace: self.pace.clone(), share, began })
    }

    fn small_came(&self, share: &Share) {
        let mut pace = self.pace.lock();
        if pace.is_watching() {
            pace.came(share, Instant::now());
        }
    }
}

impl Drop for LargeTurn {
    fn drop(&mut self) {
        self.pace.lock().large_ended(&self.share, self.began, Instant::now());
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

    /// How long a commit waits for its turn, and the turn.
    async fn waited(queue: &LargeCommits, commit: &Commit) -> (Duration, Option<LargeTurn>) {
        let began = Instant::now();
        let turn = queue.turn(commit).await.unwrap();
        (began.elapsed(), turn)
    }

    #[tokio::test]
    async fn a_large_commit_pauses_after_another_one_if_other_shares_commit_and_a_small_one_never_does() {
        let (bulk, other) = (Share::own(), Share::own());
        let queue = LargeCommits::new();
        let took = Duration::from_millis(40);
        for has_company in [false, true] {
            let turn = queue.turn(&commit(&bulk, 600)).await.unwrap();
            assert!(turn.is_some());
            if has_company {
                assert!(waited(&queue, &commit(&other, 1)).await.1.is_none());
            }
            tokio::time::sleep(took).await;
            drop(turn);
            let ended = Instant::now();
            assert!(waited(&queue, &commit(&bulk, 1)).await.1.is_none());
            let pause = queue.pace.lock().pause(ended);
            assert_eq!(pause.is_some(), has_company);
            drop(queue.turn(&commit(&bulk, 600)).await.unwrap());
            assert!(pause.is_none_or(|until| Instant::now() >= until));
        }
    }

    #[tokio::test]
    async fn a_caller_that_goes_during_the_pause_leaves_the_turn_to_the_next_one() {
        let (bulk, other) = (Share::own(), Share::own());
        let queue = LargeCommits::new();
        drop(queue.turn(&commit(&bulk, 600)).await.unwrap());
        queue.turn(&commit(&other, 1)).await.unwrap();
        let began = Instant::now();
        queue.pace.lock().large_ended(&bulk, began, began + Duration::from_secs(3_600));
        assert!(timeout(Duration::ZERO, queue.turn(&commit(&bulk, 600))).await.is_err());
        *queue.pace.lock() = Pace::default();
        assert!(queue.turn(&commit(&bulk, 600)).await.unwrap().is_some());
    }
}
