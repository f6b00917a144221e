//! Large commits, which do not block readers or threads of the executor.
//!
//! One is made at a time, on a blocking thread. Other writers wait for it as tasks. It works on a
//! copy of the ordered map and locks the database only to publish the copy, so snapshots are taken
//! and rows are read meanwhile.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinError;

use super::latest::Table;
use super::stored_row::StoredRow;
use super::{Database, Newest, Shared, Tried, row_name};
use crate::commit::{Commit, Committed, RowWrite};
use crate::commit_log::CommitLog;
use crate::error::{Error, Result};
use crate::pace::SMALL_COST_MAX;
use crate::row::Version;
use crate::share::Share;
use crate::validation::Attempt;

/// Whether a commit would block a thread and the database for too long if it were made inline.
pub(super) fn is_large(attempt: Attempt, commit: &Commit) -> bool {
    commit.cost() + attempt.cost(&commit.reads) > SMALL_COST_MAX
}

/// The change of one row.
enum Change {
    Put(StoredRow),
    Remove(Vec<u8>),
}

/// Excludes other writers and owns the commit log. Dropping it returns the log and lets the writers
/// continue.
struct Alone<'a> {
    shared: &'a Shared,
    share: &'a Share,
    began: Instant,
    log: CommitLog,
}

impl<'a> Alone<'a> {
    fn begin(shared: &'a Shared, share: &'a Share, database: &mut Database) -> Self {
        database.has_large_commit = true;
        Self { shared, share, began: Instant::now(), log: std::mem::take(&mut database.log) }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut database = self.shared.lock();
        database.log = std::mem::take(&mut self.log);
        database.has_large_commit = false;
        // Also if it failed, because other writers have waited all the same.
        database.pace.large_ended(self.share, self.began, Instant::now());
        drop(database);
        self.shared.large_ended.notify_waiters();
    }
}

/// The error of a large commit without an outcome. If it panicked, it may have been published.
fn not_ended(error: JoinError) -> Error {
    match error.is_panic() {
        true => {
            let reason = "the commit panicked before it returned an outcome".to_string();
            Error::CommitUnknown { reason, cause: Some(Arc::new(error)) }
        }
        false => Error::caused("the runtime ended before the commit was made", error),
    }
}

impl Shared {
    /// Makes a large commit once it is admitted.
    pub(super) async fn attempt_large(
        self: &Arc<Self>,
        attempt: Attempt,
        commit: &Arc<Commit>,
    ) -> Result<Tried> {
        let turn = self.large.acquire(&commit.share).await?;
        commit.stage.check()?;
        {
            let (now, mut database) = (Instant::now(), self.lock());
            database.pace.came(&commit.share, now);
            if let Some(until) = database.pace.pause(now) {
                return Ok(Tried::Paused(until));
            }
        }
        let (shared, commit) = (self.clone(), commit.clone());
        let work = move || {
            let tried = shared.make_large(attempt, &commit);
            // On this thread, because the caller may have been dropped.
            shared.let_go();
            drop(turn);
            tried
        };
        tokio::task::spawn_blocking(work).await.map_err(not_ended)?
    }

    /// Waits until no large commit is being made.
    pub(super) async fn wait_for_large(&self) {
        let mut ended = pin!(self.large_ended.notified());
        // Registered before the check, so that the notification is not missed.
        ended.as_mut().enable();
        let is_under_way = self.lock().has_large_commit;
        if is_under_way {
            ended.await;
        }
    }

    fn make_large(&self, attempt: Attempt, commit: &Commit) -> Result<Tried> {
        let (mut alone, mut rows, last) = {
            let mut database = self.lock();
            (Alone::begin(self, &commit.share, &mut database), database.rows.clone(), database.last)
        };
        let now = commit.clock.now();
        let latest = self.latest();
        let newest = Newest { rows: &rows, latest: &latest, log: &alone.log, version: last };
        let Some(plan) = newest.plan(attempt, commit, now)? else { return Ok(Tried::Unvalidated) };
        let grown = latest.grown(plan.writes.len());
        drop(latest);
        if plan.writes.is_empty() {
            return Ok(Tried::Made(Committed::default()));
        }
        let version = Version(last.0 + 1);
        let mut name = Vec::new();
        let mut changes = Vec::with_capacity(plan.writes.len());
        for (row, write) in &plan.writes {
            row_name::write(&mut name, &row.namespace, row.key.as_bytes());
            changes.push(match write {
                RowWrite::Put { value, expires_at } => {
                    let stored = StoredRow::new(&name, value, version, *expires_at);
                    rows.put(stored.clone());
                    Change::Put(stored)
                }
                RowWrite::Delete => {
                    rows.remove(&name);
                    Change::Remove(name.clone())
                }
            });
        }
        let mut database = self.lock();
        // Checked again under the lock, which is the moment of the commit: snapshots of the
        // previous state were taken meanwhile.
        plan.check_visible(now, commit.clock.now())?;
        // From here on nothing can fail.
        let before = std::mem::replace(&mut database.rows, rows);
        let (replaced, outgrown) = database.publish(self, &changes, grown);
        database.last = version;
        drop(database);
        alone.log.push(version, commit.writes.keys().cloned());
        drop(alone);
        // Large maps take time to free.
        drop((before, replaced, outgrown, changes));
        Ok(Tried::Made(Committed { version, growth: plan.growth }))
    }
}

impl Database {
    /// Publishes changes that the ordered map already contains. Returns the replaced rows and the
    /// replaced table.
    fn publish(
        &mut self,
        shared: &Shared,
        changes: &[Change],
        grown: Option<Table>,
    ) -> (Vec<StoredRow>, Option<Table>) {
        let mut replaced = Vec::new();
        let mut latest = shared.latest_to_change();
        let outgrown = grown.map(|table| latest.replace_table(table));
        for change in changes {
            let before = match change {
                Change::Put(stored) => self.replace(&mut latest, stored.name(), Some(stored)),
                Change::Remove(name) => self.replace(&mut latest, name, None),
            };
            replaced.extend(before);
        }
        drop(latest);
        if !shared.snapshots().is_empty() {
            shared.note_replaced(&replaced, changes.len());
        }
        (replaced, outgrown)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::{Context, Waker};
    use std::time::Duration;

    use super::*;
    use crate::clock::{Clock, ForwardClock, UnixMillis};
    use crate::commit::Mutation;
    use crate::limits::Limits;
    use crate::name::{Key, Namespace, RowKey, Value};
    use crate::read_set::ReadSet;

    fn row(key: impl Into<String>) -> RowKey {
        let limits = Limits::default();
        RowKey { namespace: Namespace::new("n", &limits).unwrap(), key: Key::new(key, &limits).unwrap() }
    }

    fn put() -> Mutation {
        Mutation::Put { value: Value::trusted(b"value".to_vec()), ttl_ms: None }
    }

    fn puts(count: usize) -> Commit {
        let writes = (0..count).map(|number| (row(number.to_string()), put())).collect();
        Commit { writes, share: Share::own(), ..Commit::default() }
    }

    fn version(shared: &Shared, key: &str) -> Option<Version> {
        let mut name = Vec::new();
        let row = row(key);
        row_name::write(&mut name, &row.namespace, row.key.as_bytes());
        let database = shared.lock();
        let ordered = database.rows.get(&name).map(StoredRow::version);
        assert_eq!(shared.latest().get(&name).map(StoredRow::version), ordered);
        ordered
    }

    #[tokio::test]
    async fn a_large_commit_puts_and_deletes_rows_and_the_log_tells_of_it() {
        let shared = Arc::<Shared>::default();
        let made = shared.commit(Version::ABSENT, &Arc::new(puts(600))).await.unwrap();
        assert_eq!((made.version, version(&shared, "599")), (Version(1), Some(Version(1))));
        let mut read = ReadSet::default();
        read.record_row(row("7"), Version(1));
        let mut deletes = puts(600);
        deletes.writes.values_mut().for_each(|write| *write = Mutation::Delete);
        shared.commit(Version::ABSENT, &Arc::new(deletes)).await.unwrap();
        assert_eq!(version(&shared, "7"), None);
        let writes = BTreeMap::from([(row("new"), put())]);
        let stale = Arc::new(Commit { reads: read, writes, ..Commit::default() });
        assert!(matches!(shared.commit(Version(1), &stale).await, Err(Error::Conflict)));
        assert_eq!(shared.lock().rows.len(), 0);
    }

    #[tokio::test]
    async fn a_large_commit_that_fails_changes_nothing() {
        let shared = Arc::<Shared>::default();
        let mut commit = puts(600);
        commit.conditions = BTreeMap::from([(row("7"), Version(3))]);
        let outcome = shared.commit(Version::ABSENT, &Arc::new(commit)).await;
        assert!(matches!(outcome, Err(Error::Conflict)));
        assert_eq!((version(&shared, "8"), shared.lock().last), (None, Version::ABSENT));
        let made = shared.commit(Version::ABSENT, &Arc::new(puts(1))).await.unwrap();
        assert_eq!(made.version, Version(1));
    }

    /// A clock that advances by `step` milliseconds at each reading.
    #[derive(Default)]
    struct SlowClock {
        now: AtomicU64,
        step: AtomicU64,
    }

    impl Clock for SlowClock {
        fn unix_millis(&self) -> UnixMillis {
            self.now.fetch_add(self.step.load(Ordering::Relaxed), Ordering::Relaxed)
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    #[tokio::test]
    async fn a_large_commit_with_times_to_live_may_take_a_millisecond_for_each_row() {
        let shared = Arc::<Shared>::default();
        let slow = Arc::<SlowClock>::default();
        slow.now.store(1_000_000, Ordering::Relaxed);
        let commit = |ttl_ms| {
            let mut commit = puts(600);
            let put = Mutation::Put { value: Value::trusted(b"value".to_vec()), ttl_ms };
            commit.writes.insert(row("7"), put);
            Arc::new(Commit { clock: ForwardClock::new(slow.clone()), ..commit })
        };
        slow.step.store(700, Ordering::Relaxed);
        shared.commit(Version::ABSENT, &commit(Some(9_000))).await.unwrap();
        slow.step.store(701, Ordering::Relaxed);
        let late = shared.commit(Version::ABSENT, &commit(Some(9_000))).await;
        assert!(matches!(late, Err(Error::Conflict)));
        shared.commit(Version::ABSENT, &commit(None)).await.unwrap();
        assert_eq!(version(&shared, "599"), Some(Version(2)));
    }

    #[tokio::test]
    async fn other_writers_wait_for_a_large_commit_as_tasks_and_snapshots_are_taken() {
        let shared = Arc::<Shared>::default();
        shared.commit(Version::ABSENT, &Arc::new(puts(1))).await.unwrap();
        let share = Share::own();
        let alone = Alone::begin(&shared, &share, &mut shared.lock());
        let small = Arc::new(puts(1));
        let mut waiting = std::pin::pin!(shared.commit(Version::ABSENT, &small));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(version(&shared, "0"), Some(Version(1)));
        drop(alone);
        assert_eq!(waiting.await.unwrap().version, Version(2));
    }

    #[tokio::test]
    async fn a_commit_without_writes_waits_for_no_large_one_and_a_sweep_does() {
        use crate::backend::{Backend, SweepOptions};

        let in_memory = crate::InMemory::new();
        let (shared, share) = (in_memory.shared.clone(), Share::own());
        let alone = Alone::begin(&shared, &share, &mut shared.lock());
        in_memory.commit(Arc::default()).await.unwrap();
        let options = SweepOptions::new(ForwardClock::default(), 1, 1);
        let mut sweep = in_memory.sweep(options);
        assert!(sweep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(alone);
        assert_eq!(sweep.await.unwrap().rows, 0);
    }

    #[tokio::test]
    async fn a_recount_ends_with_its_snapshot_and_a_count_does_not() {
        use crate::backend::Backend;

        let in_memory = crate::InMemory::new().keep_for_snapshots(0);
        in_memory.commit(Arc::new(puts(10_000))).await.unwrap();
        let (mut count, mut recount) = (in_memory.stored_bytes(), in_memory.recount());
        let mut context = Context::from_waker(Waker::noop());
        assert!(count.as_mut().poll(&mut context).is_pending());
        assert!(recount.as_mut().poll(&mut context).is_pending());
        in_memory.commit(Arc::new(puts(10_000))).await.unwrap();
        assert!(matches!(recount.await, Err(Error::TimedOut)));
        assert!(count.await.unwrap() > 10_000 * 400);
        assert!(in_memory.recount().await.unwrap() > 10_000 * 400);
    }

    #[tokio::test]
    async fn a_small_commit_that_waits_for_a_large_one_can_be_withdrawn() {
        let shared = Arc::<Shared>::default();
        let share = Share::own();
        let alone = Alone::begin(&shared, &share, &mut shared.lock());
        let small = Arc::new(puts(1));
        let mut waiting = std::pin::pin!(shared.commit(Version::ABSENT, &small));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(small.stage.withdraw());
        drop(alone);
        assert!(matches!(waiting.await, Err(Error::TimedOut)));
    }

    fn reads(count: usize) -> ReadSet {
        let mut reads = ReadSet::default();
        (0..count).for_each(|number| reads.record_row(row(number.to_string()), Version(1)));
        reads
    }

    #[tokio::test]
    async fn a_large_commit_stands_in_the_log_and_counts_for_the_pauses() {
        use crate::commit_log::Verdict;

        let shared = Arc::<Shared>::default();
        shared.commit(Version::ABSENT, &Arc::new(puts(1))).await.unwrap();
        assert!(!shared.lock().pace.is_watching());
        shared.commit(Version::ABSENT, &Arc::new(puts(600))).await.unwrap();
        let database = shared.lock();
        assert!(database.pace.is_watching());
        let check = |reads: &ReadSet, since| database.log.check(reads, Version(since), Version(2));
        assert_eq!(check(&reads(1), 0), Verdict::Touched);
        assert_eq!(check(&reads(600), 1), Verdict::Touched);
        let mut other = ReadSet::default();
        other.record_row(row("other"), Version::ABSENT);
        assert_eq!((check(&other, 0), check(&other, 1)), (Verdict::Untouched, Verdict::Untouched));
    }

    #[tokio::test]
    async fn a_large_commit_that_is_withdrawn_waits_for_no_pause_and_is_company_for_others() {
        let shared = Arc::<Shared>::default();
        let (now, bulk) = (Instant::now(), Share::own());
        shared.lock().pace.came(&Share::own(), now);
        shared.lock().pace.large_ended(&bulk, now, now + Duration::from_secs(3_600));
        let mut context = Context::from_waker(Waker::noop());
        let paused = Arc::new(puts(600));
        assert!(!shared.lock().pace.has_company(&bulk, now + Duration::from_secs(60)));
        let mut waiting = std::pin::pin!(shared.commit(Version::ABSENT, &paused));
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert_eq!(shared.lock().pace.pause(now), Some(now + Duration::from_secs(3_601)));
        let withdrawn = Arc::new(puts(600));
        assert!(withdrawn.stage.withdraw());
        let outcome = std::pin::pin!(shared.commit(Version::ABSENT, &withdrawn)).poll(&mut context);
        assert!(matches!(outcome, std::task::Poll::Ready(Err(Error::TimedOut))));
    }

    #[tokio::test]
    async fn one_large_commit_is_admitted_at_a_time() {
        let (shared, share) = (Shared::default(), Share::own());
        let turn = shared.large.try_acquire(&share).unwrap();
        assert!(shared.large.try_acquire(&share).is_none());
        drop(turn);
        assert!(shared.large.try_acquire(&share).is_some());
    }
}
