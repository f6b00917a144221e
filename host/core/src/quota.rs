//! The bound on a whole store.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{RwLock, RwLockReadGuard};

use crate::backend::{Backend, Committed};
use crate::commit::GrowthMax;
use crate::error::{Error, Result};

/// How long a count is trusted. Within one host it is exact; what other hosts write is seen after so long.
const COUNT_AGE_MAX: Duration = Duration::from_secs(30);

/// Counts what a store holds.
#[derive(Debug)]
pub(crate) struct Quota {
    max: u64,
    /// Commits share it; a count has it alone, so that no commit is half in the count.
    gate: RwLock<()>,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    counted: Option<Count>,
    /// What the commits under way may add at most.
    reserved: u64,
}

#[derive(Debug)]
struct Count {
    bytes: u64,
    at: Duration,
}

impl Quota {
    pub(crate) fn new(max: u64) -> Self {
        Self { max, gate: RwLock::default(), used: Mutex::default() }
    }

    /// Lets a commit go ahead that adds `bound` bytes at most. Commits under way count in full until they are
    /// done, so that together they never pass the quota.
    pub(crate) async fn admit(
        &self,
        bound: u64,
        backend: &dyn Backend,
        now: Duration,
    ) -> Result<Admission<'_>> {
        if self.is_stale(now) {
            let _alone = self.gate.write().await;
            if self.is_stale(now) {
                let bytes = backend.stored_bytes().await?;
                self.lock().counted = Some(Count { bytes, at: now });
            }
        }
        let shared = self.gate.read().await;
        let mut used = self.lock();
        let counted = used.counted.as_ref().map_or(0, |count| count.bytes);
        let growth_max = GrowthMax { used: counted.saturating_add(used.reserved), quota: self.max };
        used.reserved += bound;
        drop(used);
        Ok(Admission { quota: self, bound, growth_max, settled: false, _shared: shared })
    }

    /// Counts rows that went without a commit.
    pub(crate) fn shrink(&self, bytes: u64) {
        if let Some(count) = &mut self.lock().counted {
            count.bytes = count.bytes.saturating_sub(bytes);
        }
    }

    fn is_stale(&self, now: Duration) -> bool {
        self.lock().counted.as_ref().is_none_or(|count| now.saturating_sub(count.at) > COUNT_AGE_MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A commit that goes ahead.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    quota: &'a Quota,
    bound: u64,
    pub(crate) growth_max: GrowthMax,
    settled: bool,
    _shared: RwLockReadGuard<'a, ()>,
}

impl Admission<'_> {
    /// Counts what the commit did.
    pub(crate) fn settle(mut self, outcome: &Result<Committed>) {
        self.settled = true;
        let mut used = self.quota.lock();
        match outcome {
            Ok(committed) => {
                if let Some(count) = &mut used.counted {
                    count.bytes = count.bytes.saturating_add_signed(committed.growth);
                }
            }
            Err(Error::CommitUnknown { .. }) => used.counted = None,
            Err(_) => {}
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let mut used = self.quota.lock();
        used.reserved = used.reserved.saturating_sub(self.bound);
        // Nobody heard how the commit ended: it has to be counted.
        if !self.settled {
            used.counted = None;
        }
    }
}
