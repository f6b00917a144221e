//! The bound on a whole store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::backend::{Backend, Committed, Swept};
use crate::commit::GrowthMax;
use crate::error::{Error, Result};
use crate::to_its_end::ToItsEnd;

/// How long a count is trusted. Within one host it is exact; what other hosts write is seen after so long.
const COUNT_AGE_MAX: Duration = Duration::from_secs(30);

/// What a store's quota counts beside values and bytes of records: the backend says what it takes.
///
/// The default counts names once, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredCost {
    /// What each row takes.
    pub row_overhead: u64,
    /// How often a row has its namespace and key.
    pub name_copies: u64,
    /// What each record takes.
    pub record_overhead: u64,
}

impl Default for StoredCost {
    fn default() -> Self {
        Self { row_overhead: 0, name_copies: 1, record_overhead: 0 }
    }
}

impl StoredCost {
    /// Bytes that a row counts whose namespace and key have `names` bytes.
    pub const fn row(&self, names: u64, value: u64) -> u64 {
        self.name_copies * names + value + self.row_overhead
    }

    /// Bytes that a record counts.
    pub const fn record(&self, key: u64, bytes: u64) -> u64 {
        key + bytes + self.record_overhead
    }
}

/// Counts what a store holds.
#[derive(Debug)]
pub(crate) struct Quota {
    max: u64,
    cost: StoredCost,
    /// Whatever changes what is stored shares it until its outcome is in the count. A count has it alone, so that no
    /// change is half in the count.
    gate: Arc<RwLock<()>>,
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
    /// A bound on what `backend` holds.
    pub(crate) fn new(max: u64, backend: &dyn Backend) -> Self {
        Self { max, cost: backend.stored_cost(), gate: Arc::default(), used: Mutex::default() }
    }

    /// How it counts.
    pub(crate) fn cost(&self) -> StoredCost {
        self.cost
    }

    /// Lets a commit go ahead that adds `bound` bytes at most. Commits under way count in full until they are
    /// done, so that together they never pass the quota.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        bound: u64,
        backend: &dyn Backend,
        now: Duration,
    ) -> Result<Admission> {
        loop {
            if self.is_stale(now) {
                let _alone = self.gate.write().await;
                if self.is_stale(now) {
                    let bytes = backend.stored_bytes().await?;
                    self.lock().counted = Some(Count { bytes, at: now });
                }
            }
            let shared = self.gate.clone().read_owned().await;
            if let Some(growth_max) = self.reserve(bound) {
                return Ok(Admission {
                    quota: self.clone(),
                    bound,
                    growth_max,
                    settled: false,
                    _shared: shared,
                });
            }
        }
    }

    /// Reserves room for a commit; `None` if there is no count: a commit whose outcome is unknown may have ended since the
    /// last one.
    fn reserve(&self, bound: u64) -> Option<GrowthMax> {
        let mut used = self.lock();
        let counted = used.counted.as_ref()?.bytes;
        let growth_max =
            GrowthMax { used: counted.saturating_add(used.reserved), quota: self.max, cost: self.cost };
        used.reserved = used.reserved.saturating_add(bound);
        Some(growth_max)
    }

    /// Runs a sweep and takes what it removed off the count, also if the returned future is dropped.
    pub(crate) async fn sweep(
        self: &Arc<Self>,
        sweep: impl Future<Output = Result<Swept>> + Send + 'static,
    ) -> Result<Swept> {
        let quota = self.clone();
        let shared = self.gate.clone().read_owned().await;
        let counted = async move {
            let swept = sweep.await;
            quota.note_swept(&swept);
            drop(shared);
            swept
        };
        ToItsEnd::new(&runtime()?, counted).await
    }

    fn note_swept(&self, swept: &Result<Swept>) {
        let mut used = self.lock();
        match swept {
            Ok(swept) => {
                if let Some(count) = &mut used.counted {
                    count.bytes = count.bytes.saturating_sub(swept.bytes);
                }
            }
            // It may have removed rows all the same.
            Err(_) => used.counted = None,
        }
    }

    fn is_stale(&self, now: Duration) -> bool {
        self.lock().counted.as_ref().is_none_or(|count| now.saturating_sub(count.at) > COUNT_AGE_MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn runtime() -> Result<Handle> {
    Handle::try_current().map_err(|error| Error::caused("a store is used within a tokio runtime", error))
}

/// A commit that goes ahead.
#[derive(Debug)]
pub(crate) struct Admission {
    quota: Arc<Quota>,
    bound: u64,
    pub(crate) growth_max: GrowthMax,
    settled: bool,
    _shared: OwnedRwLockReadGuard<()>,
}

impl Admission {
    /// Makes the commit and counts what it did, also if the returned future is dropped: a commit that has begun goes on
    /// all the same, and a count beside it would miss its growth.
    pub(crate) async fn settle(
        self,
        commit: impl Future<Output = Result<Committed>> + Send + 'static,
    ) -> Result<Committed> {
        let settled = async move {
            let outcome = commit.await;
            self.note(&outcome);
            outcome
        };
        ToItsEnd::new(&runtime()?, settled).await
    }

    fn note(mut self, outcome: &Result<Committed>) {
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

impl Drop for Admission {
    fn drop(&mut self) {
        let mut used = self.quota.lock();
        used.reserved = used.reserved.saturating_sub(self.bound);
        // The commit panicked, or the runtime ended before it: it has to be counted.
        if !self.settled {
            used.counted = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_memory::InMemory;

    #[tokio::test]
    async fn a_commit_is_admitted_on_a_count_only() {
        let cost = StoredCost { row_overhead: 3, ..StoredCost::default() };
        let quota = Arc::new(Quota { cost, ..Quota::new(10, &InMemory::new()) });
        assert!(quota.reserve(5).is_none());
        let admission = quota.admit(5, &InMemory::new(), Duration::ZERO).await.unwrap();
        assert_eq!(admission.growth_max, GrowthMax { used: 0, quota: 10, cost });
        assert_eq!(quota.reserve(5), Some(GrowthMax { used: 5, quota: 10, cost }));
        // Its outcome is unknown: the count is gone, and the next admission has to make one.
        let unknown = Error::CommitUnknown { reason: "lost".to_string(), cause: None };
        admission.settle(async { Err(unknown) }).await.unwrap_err();
        assert!(quota.reserve(5).is_none());
    }
}
