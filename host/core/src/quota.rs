//! The quota: a bound on the size of a whole store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::backend::{Backend, Swept};
use crate::commit::{Committed, GrowthMax};
use crate::error::{Error, Result};
use crate::stored_cost::StoredCost;
use crate::to_its_end::ToItsEnd;

/// The age at which a count is recounted. A count is exact for the writes of this process; a
/// recount adds those of other processes.
const COUNT_AGE_MAX: Duration = Duration::from_secs(30);

/// Counts the size of a store and admits changes to it.
///
/// The first count, and one after a change with an unknown outcome, is taken while no change is in
/// progress. Later counts are taken while changes continue, in a [`Recount`], for which no commit
/// waits.
#[derive(Debug)]
pub(crate) struct Quota {
    max: u64,
    cost: StoredCost,
    /// Each change of the store holds it shared until its outcome is in the count. The first count
    /// holds it exclusively, so that it includes each change either fully or not at all.
    gate: Arc<RwLock<()>>,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    counted: Option<Count>,
    /// The maximum growth by the commits in progress.
    reserved: u64,
    /// Each change in progress holds a clone. A recount replaces it, to tell apart the changes that
    /// began before its end.
    generation: Arc<()>,
    recount: Option<DuringRecount>,
    /// The number of recounts that have begun.
    recounts: u64,
}

#[derive(Debug)]
struct Count {
    bytes: u64,
    at: Duration,
}

/// The growth by changes during a recount.
#[derive(Debug, Default)]
struct DuringRecount {
    /// The number of the recount.
    number: u64,
    /// The minimum and maximum growth by changes that the recount may or may not have seen.
    least: i64,
    most: i64,
    /// The growth by changes that began after the recount, so that it has not seen them.
    later: i64,
    /// The generation of the changes that it may have seen; set once the recount has ended.
    seen: Option<Arc<()>>,
}

/// A count in progress while changes continue.
#[derive(Debug)]
pub(crate) struct Recount {
    quota: Arc<Quota>,
    number: u64,
    /// When it began, by the store's clock and by the machine's.
    began: (Duration, Instant),
}

/// The time from one recount to the next, in durations of the first, in addition to
/// [`COUNT_AGE_MAX`].
const PAUSE_FACTOR: u32 = 10;

/// The interval at which a recount checks whether the changes that it may have seen have ended.
const SETTLED_INTERVAL: Duration = Duration::from_millis(20);

impl Quota {
    /// Creates a quota of `max` bytes for `backend`.
    pub(crate) fn new(max: u64, backend: &dyn Backend) -> Self {
        Self { max, cost: backend.stored_cost(), gate: Arc::default(), used: Mutex::default() }
    }

    /// The overhead that it counts.
    pub(crate) fn cost(&self) -> StoredCost {
        self.cost
    }

    /// Admits a commit that adds at most `bound` bytes. Commits in progress count in full until
    /// they end, so that together they never exceed the quota.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        bound: u64,
        backend: &dyn Backend,
        now: Duration,
    ) -> Result<Admission> {
        loop {
            if !self.is_counted() {
                let _alone = self.gate.write().await;
                if !self.is_counted() {
                    let bytes = backend.stored_bytes().await?;
                    let mut used = self.lock();
                    used.counted = Some(Count { bytes, at: now });
                    // It began before this count.
                    used.recount = None;
                }
            }
            let shared = self.gate.clone().read_owned().await;
            if let Some((growth_max, generation)) = self.reserve(bound) {
                return Ok(Admission {
                    quota: self.clone(),
                    bound,
                    growth_max,
                    generation,
                    settled: false,
                    _shared: shared,
                });
            }
        }
    }

    /// Reserves `bound` bytes for a commit.
    ///
    /// `None` if there is no count, because a commit with an unknown outcome may have ended since
    /// the last one.
    fn reserve(&self, bound: u64) -> Option<(GrowthMax, Arc<()>)> {
        let mut used = self.lock();
        let counted = used.counted.as_ref()?.bytes;
        let growth_max =
            GrowthMax { used: counted.saturating_add(used.reserved), quota: self.max, cost: self.cost };
        used.reserved = used.reserved.saturating_add(bound);
        Some((growth_max, used.generation.clone()))
    }

    /// Begins a recount if the count is too old and no recount is in progress.
    pub(crate) fn recount(self: &Arc<Self>, now: Duration) -> Option<Recount> {
        let mut used = self.lock();
        let at = used.counted.as_ref()?.at;
        if used.recount.is_some() || now.saturating_sub(at) <= COUNT_AGE_MAX {
            return None;
        }
        used.recounts += 1;
        let number = used.recounts;
        used.recount = Some(DuringRecount { number, ..DuringRecount::default() });
        Some(Recount { quota: self.clone(), number, began: (now, Instant::now()) })
    }

    /// Runs a sweep and subtracts the removed rows from the count, even if the returned future is
    /// dropped.
    pub(crate) async fn sweep(
        self: &Arc<Self>,
        sweep: impl Future<Output = Result<Swept>> + Send + 'static,
    ) -> Result<Swept> {
        let quota = self.clone();
        let shared = self.gate.clone().read_owned().await;
        let generation = self.lock().generation.clone();
        let counted = async move {
            let swept = sweep.await;
            quota.note_swept(&swept, generation);
            drop(shared);
            swept
        };
        ToItsEnd::new(&runtime()?, counted).await
    }

    fn note_swept(&self, swept: &Result<Swept>, generation: Arc<()>) {
        let mut used = self.lock();
        match swept {
            Ok(swept) => used.grow(-i64::try_from(swept.bytes).unwrap_or(i64::MAX), &generation),
            // The sweep may have removed rows before it failed.
            Err(_) => used.counted = None,
        }
        // Drop it under the lock, so that a recount that finds no clone finds the growth.
        drop(generation);
    }

    fn is_counted(&self) -> bool {
        self.lock().counted.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock()
    }
}

impl Used {
    /// Ends a recount; `None` if it was superseded.
    fn take_recount(&mut self, number: u64) -> Option<DuringRecount> {
        self.recount.take_if(|during| during.number == number)
    }

    /// Adds the growth by a change of this generation.
    fn grow(&mut self, growth: i64, generation: &Arc<()>) {
        if let Some(count) = &mut self.counted {
            count.bytes = count.bytes.saturating_add_signed(growth);
        }
        let Some(during) = &mut self.recount else { return };
        match &during.seen {
            Some(seen) if !Arc::ptr_eq(seen, generation) => {
                during.later = during.later.saturating_add(growth)
            }
            _ => {
                during.least = during.least.saturating_add(growth.min(0));
                during.most = during.most.saturating_add(growth.max(0));
            }
        }
    }
}

impl Recount {
    /// Counts, and corrects the quota's count by what other processes wrote.
    ///
    /// Changes during the recount leave a minimum and a maximum for the size of the store. The
    /// present count is exact for the writes of this process, so it stays if it is between them.
    ///
    /// # Errors
    /// - Any error of `count`. The present count then stays.
    pub(crate) async fn run(self, count: impl Future<Output = Result<u64>>) -> Result<()> {
        let bytes = count.await?;
        let seen = {
            let used = &mut *self.quota.lock();
            let recount = used.recount.as_mut().filter(|during| during.number == self.number);
            // Otherwise it was superseded.
            let Some(during) = recount else { return Ok(()) };
            let seen = std::mem::take(&mut used.generation);
            during.seen = Some(seen.clone());
            Arc::downgrade(&seen)
        };
        // The recount itself holds one clone.
        while seen.strong_count() > 1 {
            tokio::time::sleep(SETTLED_INTERVAL).await;
        }
        let at = self.next_at();
        let mut used = self.quota.lock();
        let Some(during) = used.take_recount(self.number) else { return Ok(()) };
        if let Some(count) = &mut used.counted {
            let at_rest = bytes.saturating_add_signed(during.later);
            let least = at_rest.saturating_add_signed(during.least);
            let most = at_rest.saturating_add_signed(during.most);
            *count = Count { bytes: count.bytes.clamp(least, most), at };
        }
        Ok(())
    }
}

impl Recount {
    /// The time from which the age of the new count is measured. It is later for a longer recount,
    /// so that long recounts are followed by long pauses.
    fn next_at(&self) -> Duration {
        let (began, since) = self.began;
        began.saturating_add(since.elapsed().saturating_mul(PAUSE_FACTOR))
    }
}

impl Drop for Recount {
    fn drop(&mut self) {
        let at = self.next_at();
        let mut used = self.quota.lock();
        // After a failure, the next recount is as late as after a success.
        if used.take_recount(self.number).is_some()
            && let Some(count) = &mut used.counted
        {
            count.at = at;
        }
    }
}

fn runtime() -> Result<Handle> {
    Handle::try_current()
        .map_err(|error| Error::caused("cannot change the store outside of a tokio runtime", error))
}

/// An admitted change.
#[derive(Debug)]
pub(crate) struct Admission {
    quota: Arc<Quota>,
    bound: u64,
    pub(crate) growth_max: GrowthMax,
    generation: Arc<()>,
    settled: bool,
    _shared: OwnedRwLockReadGuard<()>,
}

impl Admission {
    /// Makes the change and counts its growth, even if the returned future is dropped. A commit
    /// that has begun continues in any case, and a count would miss its growth.
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
            Ok(committed) => used.grow(committed.growth, &self.generation),
            Err(Error::CommitUnknown { .. }) => used.counted = None,
            Err(_) => {}
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut used = self.quota.lock();
        used.reserved = used.reserved.saturating_sub(self.bound);
        // The change panicked, or the runtime ended first, so the store has to be counted again.
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
        let reserve = |bound| quota.reserve(bound).map(|(growth_max, _)| growth_max);
        let admission = quota.admit(5, &InMemory::new(), Duration::ZERO).await.unwrap();
        assert_eq!(admission.growth_max, GrowthMax { used: 0, quota: 10, cost });
        assert_eq!(reserve(5), Some(GrowthMax { used: 5, quota: 10, cost }));
        // The outcome is unknown, so the count is invalid and the next admission has to count.
        let unknown = Error::CommitUnknown { reason: "lost".to_string(), cause: None };
        admission.settle(async { Err(unknown) }).await.unwrap_err();
        assert!(reserve(5).is_none());
    }

    /// A quota whose count of `counted` bytes is too old, and the recount that it begins.
    async fn old(counted: u64) -> (Arc<Quota>, Recount) {
        let quota = Arc::new(Quota::new(1_000, &InMemory::new()));
        quota.lock().counted = Some(Count { bytes: counted, at: Duration::ZERO });
        assert!(quota.recount(COUNT_AGE_MAX).is_none());
        let recount = quota.recount(LATER).unwrap();
        assert!(quota.recount(LATER).is_none(), "a recount is in progress");
        (quota, recount)
    }

    const LATER: Duration = Duration::from_secs(31);

    async fn admit(quota: &Arc<Quota>) -> Admission {
        quota.admit(100, &InMemory::new(), LATER).await.unwrap()
    }

    async fn settle(admission: Admission, growth: i64) {
        admission.settle(async move { Ok(Committed { growth, ..Committed::default() }) }).await.unwrap();
    }

    fn counted(quota: &Quota) -> Option<u64> {
        quota.lock().counted.as_ref().map(|count| count.bytes)
    }

    #[tokio::test]
    async fn a_recount_keeps_an_exact_count_whatever_it_saw_of_changes_beside_it() {
        for seen in [500, 560, 440, 500 + 60 - 60] {
            let (quota, recount) = old(500).await;
            let (growing, shrinking) = (admit(&quota).await, admit(&quota).await);
            let change = async {
                settle(growing, 60).await;
                settle(shrinking, -60).await;
                Ok(seen)
            };
            recount.run(change).await.unwrap();
            assert_eq!(counted(&quota), Some(500));
            assert!(quota.recount(LATER).is_none(), "the count is new");
        }
    }

    #[tokio::test]
    async fn a_recount_sees_what_others_wrote_and_adds_what_came_after_it() {
        let (quota, recount) = old(500).await;
        let under_way = admit(&quota).await;
        let later = async {
            // Until the recount has counted, and waits for the change in progress.
            while Arc::strong_count(&under_way.generation) > 2 {
                tokio::task::yield_now().await;
            }
            settle(admit(&quota).await, 10).await;
            settle(under_way, 0).await;
        };
        let (outcome, ()) = tokio::join!(recount.run(async { Ok(700) }), later);
        outcome.unwrap();
        assert_eq!(counted(&quota), Some(710));
    }

    #[tokio::test]
    async fn a_recount_that_fails_or_is_dropped_changes_nothing_and_the_next_comes_later() {
        for fails in [true, false] {
            let (quota, recount) = old(500).await;
            match fails {
                true => drop(recount.run(async { Err(Error::Closed) }).await.unwrap_err()),
                false => drop(recount),
            }
            assert_eq!(counted(&quota), Some(500));
            assert!(quota.recount(LATER + COUNT_AGE_MAX).is_none());
            assert!(quota.recount(LATER * 3).is_some());
        }
    }

    #[tokio::test]
    async fn a_recount_says_nothing_once_a_change_is_unknown() {
        let (quota, recount) = old(500).await;
        let admission = admit(&quota).await;
        let unknown = async move {
            let unknown = Error::CommitUnknown { reason: "lost".to_string(), cause: None };
            admission.settle(async { Err(unknown) }).await.unwrap_err();
            Ok(700)
        };
        recount.run(unknown).await.unwrap();
        assert_eq!(counted(&quota), None);
    }
}
