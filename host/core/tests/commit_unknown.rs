//! Tests of commits whose answer is lost after they may have taken effect.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use larder_core::backend::{Backend, SweepOptions, Swept};
use larder_core::chunk::{Chunk, ScanOptions};
use larder_core::commit::{Commit, Committed};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::name::{Key, KeyRange, Namespace, RowKey};
use larder_core::row::StoredValue;
use larder_core::snapshot::{Many, Snapshot, SnapshotOptions};
use larder_core::stored_cost::StoredCost;
use larder_core::{Error, HandleOptions, InMemory, LimitExceeded, LimitKind, Mode, Result, Store, Version};
use larder_model::StandingClock;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// What becomes of the next commit and of its answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// The commit is made, and the connection breaks before the answer.
    MadeAndLost,
    /// The commit is not made, and the connection breaks before the answer.
    NotMadeAndLost,
    /// The commit is made, and the answer comes only when the test allows it.
    MadeAndSilent,
    /// The commit has not begun, and begins only when the test allows it.
    NotBegun,
}

/// An in-memory backend that loses answers.
#[derive(Clone)]
struct Loses {
    rows: Arc<InMemory>,
    line: Arc<Line>,
}

/// The connection on which answers are lost.
struct Line {
    fate: Mutex<Option<Fate>>,
    /// A permit lets a silent commit go on.
    go_on: Semaphore,
    commits: AtomicUsize,
}

struct LosesSnapshot {
    inner: Box<dyn Snapshot>,
    line: Arc<Line>,
}

impl Line {
    async fn commit(&self, commit: impl Future<Output = Result<Committed>> + Send) -> Result<Committed> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        let fate = self.fate.lock().take();
        let lost = Error::CommitUnknown { reason: "the connection was lost".to_string(), cause: None };
        match fate {
            None => commit.await,
            Some(Fate::NotMadeAndLost) => Err(lost),
            Some(Fate::MadeAndLost) => commit.await.and(Err(lost)),
            Some(Fate::MadeAndSilent) => {
                let committed = commit.await;
                self.go_on.acquire().await.unwrap().forget();
                committed
            }
            Some(Fate::NotBegun) => {
                self.go_on.acquire().await.unwrap().forget();
                commit.await
            }
        }
    }
}

#[async_trait]
impl Backend for Loses {
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        let inner = self.rows.snapshot(options).await?;
        Ok(Box::new(LosesSnapshot { inner, line: self.line.clone() }))
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        self.line.commit(self.rows.commit(commit)).await
    }

    fn stored_cost(&self) -> StoredCost {
        self.rows.stored_cost()
    }

    async fn stored_bytes(&self) -> Result<u64> {
        self.rows.stored_bytes().await
    }

    async fn sweep(&self, options: SweepOptions) -> Result<Swept> {
        self.rows.sweep(options).await
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        self.rows.load_record(key).await
    }

    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()> {
        self.rows.write_record(write).await
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>> {
        self.rows.list_records(after, max).await
    }

    async fn due_records(&self, now: u64, max: u32) -> Result<Vec<RecordKey>> {
        self.rows.due_records(now, max).await
    }

    async fn ping(&self) -> Result<()> {
        self.rows.ping().await
    }

    async fn close(&self) {
        self.rows.close().await;
    }
}

#[async_trait]
impl Snapshot for LosesSnapshot {
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        self.inner.get_now(row)
    }

    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        self.inner.get(row).await
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        self.inner.get_many(namespace, keys, max_bytes).await
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        self.inner.scan(range, options).await
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        self.inner.next_namespace(after).await
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        self.line.commit(self.inner.commit(commit)).await
    }
}

const QUOTA: u64 = 10_000;

/// Whether an update reads before it writes, so that its commit goes through its snapshot.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reads {
    None,
    TheRow,
}

struct Fixture {
    store: Store,
    line: Arc<Line>,
}

impl Fixture {
    /// A store with a row that counts 1,000 bytes.
    async fn new() -> Self {
        let line = Line { fate: Mutex::new(None), go_on: Semaphore::new(0), commits: AtomicUsize::new(0) };
        let backend = Loses { rows: Arc::new(InMemory::new()), line: Arc::new(line) };
        let builder = Store::builder(backend.clone()).clock(Arc::<StandingClock>::default());
        let store = builder.sweep_interval(None).quota_bytes(QUOTA).build().unwrap();
        let fixture = Self { store, line: backend.line };
        fixture.put("first", 1_000, Reads::None).await.unwrap();
        fixture.line.commits.store(0, Ordering::Relaxed);
        fixture
    }

    /// Writes a row that counts `bytes` bytes in all.
    async fn put(&self, key: &str, bytes: u64, reads: Reads) -> Result<Version> {
        let mut update = self.store.handle(HandleOptions::default()).begin(Mode::Update)?;
        if reads == Reads::TheRow {
            assert_eq!(update.get("n".into(), key.into()).await?, None);
        }
        let beside = InMemory::STORED_COST.row(1 + key.len() as u64, 0);
        update.put("n".into(), key.into(), vec![0; usize::try_from(bytes - beside).unwrap()])?;
        update.commit().await
    }

    async fn put_with_fate(&self, fate: Fate, reads: Reads) -> Result<Version> {
        *self.line.fate.lock() = Some(fate);
        self.put("second", 6_000, reads).await
    }

    async fn is_stored(&self, key: &str) -> bool {
        let mut view = self.store.handle(HandleOptions::default()).begin(Mode::View).unwrap();
        view.get("n".into(), key.into()).await.unwrap().is_some()
    }

    /// The bytes that the quota counts, read from the refusal of a row that never fits.
    async fn used(&self) -> u64 {
        let refused = self.put("too large", QUOTA + 1, Reads::None).await;
        let Err(Error::LimitExceeded(LimitExceeded { kind: LimitKind::StoreBytes, requested, .. })) = refused
        else {
            panic!("{refused:?}")
        };
        requested - QUOTA - 1
    }
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_unknown_and_the_quota_counts_what_is_stored() {
    for reads in [Reads::None, Reads::TheRow] {
        for (fate, is_stored, used) in
            [(Fate::MadeAndLost, true, 7_000), (Fate::NotMadeAndLost, false, 1_000)]
        {
            let fixture = Fixture::new().await;
            let outcome = fixture.put_with_fate(fate, reads).await;
            let Err(Error::CommitUnknown { reason, .. }) = outcome else { panic!("{outcome:?}") };
            assert_eq!(reason, "the connection was lost");
            assert_eq!(fixture.line.commits.load(Ordering::Relaxed), 1, "it is not made again");
            assert_eq!(fixture.is_stored("second").await, is_stored, "{fate:?} {reads:?}");
            assert_eq!(fixture.used().await, used, "{fate:?} {reads:?}");
            fixture.put("rest", QUOTA - used, Reads::None).await.unwrap();
            assert_eq!(fixture.used().await, QUOTA);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_took_effect_and_gets_no_answer_is_unknown_at_the_deadline() {
    for reads in [Reads::None, Reads::TheRow] {
        let fixture = Fixture::new().await;
        let outcome = fixture.put_with_fate(Fate::MadeAndSilent, reads).await;
        let Err(Error::CommitUnknown { reason, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(reason, "the transaction's deadline passed while its commit was in progress");
        assert!(fixture.is_stored("second").await);
        // Its largest growth is reserved until the answer, so no other commit gets these bytes.
        assert_eq!(fixture.used().await, 7_000);
        fixture.line.go_on.add_permits(1);
        tokio::task::yield_now().await;
        assert_eq!(fixture.line.go_on.available_permits(), 0, "the commit has its answer");
        assert_eq!(fixture.used().await, 7_000);
        assert_eq!(fixture.line.commits.load(Ordering::Relaxed), 3, "it is not made again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_has_not_begun_by_the_deadline_is_withdrawn_and_gives_its_bytes_back() {
    for reads in [Reads::None, Reads::TheRow] {
        let fixture = Fixture::new().await;
        let outcome = fixture.put_with_fate(Fate::NotBegun, reads).await;
        assert!(matches!(outcome, Err(Error::TimedOut)), "{outcome:?}");
        assert_eq!(fixture.used().await, 7_000);
        fixture.line.go_on.add_permits(1);
        tokio::task::yield_now().await;
        assert!(!fixture.is_stored("second").await, "a withdrawn commit is not made");
        assert_eq!(fixture.used().await, 1_000);
    }
}
