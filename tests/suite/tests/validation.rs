//! Updates that read many rows and commit so late that the commit log no longer reaches back to
//! their snapshot.
//!
//! The backend validates their reads in advance, in slices, while other commits go on. The tests
//! poll a commit by hand, so they decide what happens before it and between two of its slices.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "tests")]

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use larder_core::backend::Backend;
use larder_core::{
    Error, Handle, HandleOptions, InMemory, Mode, MovableClock, PutOptions, Result, Store, Transaction,
    Version,
};
use larder_sqlite::{Sqlite, SqliteOptions};

const NAMESPACE: &str = "rows";

/// The rows that an update reads: 20 slices.
const ROWS: usize = 5_000;

/// One store, opened twice: `other` stands for another process.
struct Fixture {
    name: &'static str,
    clock: Arc<MovableClock>,
    store: Handle,
    other: Handle,
    _folder: Option<tempfile::TempDir>,
}

impl Fixture {
    async fn all() -> Vec<Self> {
        vec![
            Self::in_memory().await,
            Self::sqlite("sqlite", 1 << 26).await,
            Self::sqlite("no cache", 0).await,
        ]
    }

    async fn in_memory() -> Self {
        let backend = InMemory::new();
        let other = backend.attach();
        Self::new("in-memory", backend, other, None).await
    }

    async fn sqlite(name: &'static str, cache_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let options = SqliteOptions::default().cache_bytes(cache_bytes);
        let backend = Sqlite::open(&path, options).await.unwrap();
        let other = Sqlite::open(&path, options).await.unwrap();
        Self::new(name, backend, other, Some(folder)).await
    }

    async fn new(
        name: &'static str,
        backend: impl Backend,
        other: impl Backend,
        folder: Option<tempfile::TempDir>,
    ) -> Self {
        let clock = Arc::new(MovableClock::default());
        let open = |backend: Arc<dyn Backend>| {
            let store = Store::builder_shared(backend).clock(clock.clone()).sweep_interval(None);
            store.build().unwrap().handle(HandleOptions::default())
        };
        let (store, other) = (open(Arc::new(backend)), open(Arc::new(other)));
        let fixture = Self { name, clock, store, other, _folder: folder };
        fixture.put_all(&fixture.store, NAMESPACE, ROWS, None).await;
        fixture
    }

    async fn put_all(&self, handle: &Handle, namespace: &str, count: usize, ttl_ms: Option<u64>) {
        let mut update = handle.begin(Mode::Update).unwrap();
        for number in 0..count {
            let options = PutOptions::default().ttl_ms(ttl_ms);
            update.put_with(namespace.into(), key(number), b"value".to_vec(), options).unwrap();
        }
        update.commit().await.unwrap();
    }

    /// Makes so many commits that the commit log drops the earlier ones.
    async fn push_log_over(&self) {
        for _ in 0..2 {
            self.put_all(&self.store, "others", 9_000, None).await;
        }
    }

    async fn put(&self, handle: &Handle, namespace: &str, number: usize) {
        let mut update = handle.begin(Mode::Update).unwrap();
        update.put(namespace.into(), key(number), b"new".to_vec()).unwrap();
        update.commit().await.unwrap();
    }

    /// An update that has read `count` rows one by one, and is about to write one.
    async fn reading(&self, count: usize) -> Transaction {
        let mut update = self.store.begin(Mode::Update).unwrap();
        for number in 0..count {
            update.get(NAMESPACE.into(), key(number)).await.unwrap();
        }
        update.put("results".into(), "sum".into(), b"1".to_vec()).unwrap();
        update
    }

    /// The same, after the commit log has dropped its snapshot.
    async fn late(&self) -> Committing {
        let update = self.reading(ROWS).await;
        self.push_log_over().await;
        Committing::new(update)
    }

    async fn has_result(&self) -> bool {
        let mut view = self.store.begin(Mode::View).unwrap();
        view.get("results".into(), "sum".into()).await.unwrap().is_some()
    }
}

fn key(number: usize) -> String {
    format!("{number:06}")
}

/// A commit that only advances when it is polled.
struct Committing(Pin<Box<dyn Future<Output = Result<Version>> + Send>>);

impl Committing {
    fn new(update: Transaction) -> Self {
        Self(Box::pin(update.commit()))
    }

    fn poll(&mut self) -> Poll<Result<Version>> {
        self.0.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Validates some slices. The commit must not complete in them.
    fn advance(&mut self, slices: usize) {
        for _ in 0..slices {
            assert!(self.poll().is_pending());
        }
    }

    async fn end(self) -> Result<Version> {
        self.0.await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_read_much_commits_if_nothing_of_it_changed() {
    for fixture in Fixture::all().await {
        fixture.late().await.end().await.unwrap();
        assert!(fixture.has_result().await, "{}", fixture.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_commit_is_made_between_two_slices_of_a_validation() {
    for fixture in Fixture::all().await {
        let mut late = fixture.late().await;
        for number in 0..15 {
            late.advance(1);
            // This commit completes although the validation does not advance meanwhile.
            fixture.put(&fixture.store, "others", number).await;
        }
        assert!(!fixture.has_result().await);
        late.end().await.unwrap();
        assert!(fixture.has_result().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changed_before_a_validation_is_a_conflict() {
    for fixture in Fixture::all().await {
        let update = fixture.reading(ROWS).await;
        fixture.put(&fixture.store, NAMESPACE, ROWS - 1).await;
        fixture.push_log_over().await;
        assert!(matches!(Committing::new(update).end().await, Err(Error::Conflict)), "{}", fixture.name);
        assert!(!fixture.has_result().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changes_during_a_validation_is_a_conflict_wherever_it_is() {
    for fixture in Fixture::all().await {
        for (slices, number) in [(1, 0), (1, ROWS - 1), (15, 0), (15, ROWS - 1)] {
            let mut late = fixture.late().await;
            late.advance(slices);
            fixture.put(&fixture.store, NAMESPACE, number).await;
            assert!(matches!(late.end().await, Err(Error::Conflict)), "{}", fixture.name);
            assert!(!fixture.has_result().await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_validated_in_slices_too_and_tells_a_row_that_came() {
    for fixture in Fixture::all().await {
        for comes in [false, true] {
            let mut update = fixture.store.begin(Mode::Update).unwrap();
            assert_eq!(update.scan(NAMESPACE.into(), String::new()).await.unwrap().len(), ROWS);
            update.put("results".into(), "sum".into(), b"1".to_vec()).unwrap();
            if comes {
                fixture.put(&fixture.store, NAMESPACE, ROWS).await;
            }
            fixture.push_log_over().await;
            let mut late = Committing::new(update);
            late.advance(15);
            match comes {
                false => drop(late.end().await.unwrap()),
                true => assert!(matches!(late.end().await, Err(Error::Conflict)), "{}", fixture.name),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_expires_during_a_validation_is_a_conflict() {
    for fixture in Fixture::all().await {
        fixture.put_all(&fixture.store, NAMESPACE, 1, Some(60_000)).await;
        for expires in [false, true] {
            let mut late = fixture.late().await;
            late.advance(15);
            fixture.clock.advance(Duration::from_secs(if expires { 60 } else { 30 }));
            match expires {
                false => drop(late.end().await.unwrap()),
                true => assert!(matches!(late.end().await, Err(Error::Conflict)), "{}", fixture.name),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_goes_on_although_the_log_is_pushed_over_again_during_each_validation() {
    for fixture in Fixture::all().await {
        let mut late = fixture.late().await;
        for _ in 0..3 {
            late.advance(15);
            fixture.push_log_over().await;
        }
        late.end().await.unwrap();
        let mut late = fixture.late().await;
        late.advance(15);
        fixture.put(&fixture.store, NAMESPACE, 7).await;
        fixture.push_log_over().await;
        assert!(matches!(late.end().await, Err(Error::Conflict)), "{}", fixture.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_of_another_process_are_validated_as_often_as_they_come() {
    for fixture in Fixture::all().await {
        let mut late = Committing::new(fixture.reading(ROWS).await);
        for number in 0..3 {
            fixture.put(&fixture.other, "others", number).await;
            // In memory, both handles share one commit log.
            if fixture.name != "in-memory" {
                late.advance(15);
            }
        }
        late.end().await.unwrap();
        let late = Committing::new(fixture.reading(ROWS).await);
        fixture.put(&fixture.other, NAMESPACE, 7).await;
        assert!(matches!(late.end().await, Err(Error::Conflict)), "{}", fixture.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_dropped_during_its_validation_is_not_made() {
    for fixture in Fixture::all().await {
        let mut late = fixture.late().await;
        late.advance(15);
        drop(late);
        fixture.push_log_over().await;
        assert!(!fixture.has_result().await, "{}", fixture.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_have_expired_in_a_range_are_looked_at_while_others_commit() {
    for fixture in Fixture::all().await {
        let mut update = fixture.store.begin(Mode::Update).unwrap();
        assert!(update.scan("leases".into(), String::new()).await.unwrap().is_empty());
        update.put("results".into(), "sum".into(), b"1".to_vec()).unwrap();
        fixture.put_all(&fixture.store, "leases", ROWS, Some(1)).await;
        fixture.clock.advance(Duration::from_secs(1));
        fixture.push_log_over().await;
        let mut late = Committing::new(update);
        late.advance(15);
        late.end().await.unwrap();
    }
}
