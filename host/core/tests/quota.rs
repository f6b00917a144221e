//! Tests of quotas with cancelled calls, and with concurrent sweeps and counts.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::backend::{Backend, SweepOptions, Swept};
use larder_core::commit::{Commit, Committed};
use larder_core::memory::operator::MemoryOperator;
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::snapshot::{Snapshot, SnapshotOptions};
use larder_core::stored_cost::StoredCost;
use larder_core::{
    Error, HandleOptions, HeldBytes, IdentityParts, InMemory, LimitExceeded, LimitKind, MemorySnapshot, Mode,
    MovableClock, PutOptions, Result, Store, Strategy,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// A call that is held until the test releases it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    /// A commit, before it is made.
    Commit,
    /// A commit that then fails.
    FailingCommit,
    /// A sweep, after it removed its rows.
    Sweep,
    /// A write of a record, before it is made.
    Record,
    /// A count, before it is taken.
    Count,
}

/// An in-memory backend whose calls can be held.
struct Holds {
    rows: InMemory,
    gates: Gates,
}

#[derive(Clone)]
struct Gates {
    held: Arc<Mutex<Option<Held>>>,
    let_go: Arc<Semaphore>,
    /// A permit for each call that has ended.
    ended: Arc<Semaphore>,
}

impl Gates {
    /// Holds the next call of this kind.
    fn hold(&self, which: Held) {
        self.ended.forget_permits(usize::MAX >> 3);
        *self.held.lock() = Some(which);
    }

    fn is_held(&self, which: Held) -> bool {
        let mut held = self.held.lock();
        held.take_if(|held| *held == which).is_some()
    }

    async fn wait(&self) {
        self.let_go.acquire().await.unwrap().forget();
    }

    /// Releases the held call, and waits until it has ended and was counted.
    async fn let_go(&self) {
        self.let_go.add_permits(1);
        self.ended.acquire().await.unwrap().forget();
        tokio::task::yield_now().await;
    }
}

#[async_trait]
impl Backend for Holds {
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        self.rows.snapshot(options).await
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        let failing = self.gates.is_held(Held::FailingCommit);
        if failing || self.gates.is_held(Held::Commit) {
            self.gates.wait().await;
        }
        let outcome = if failing { Err(Error::Conflict) } else { self.rows.commit(commit).await };
        self.gates.ended.add_permits(1);
        outcome
    }

    fn stored_cost(&self) -> StoredCost {
        self.rows.stored_cost()
    }

    async fn stored_bytes(&self) -> Result<u64> {
        if self.gates.is_held(Held::Count) {
            self.gates.wait().await;
        }
        let bytes = self.rows.stored_bytes().await;
        self.gates.ended.add_permits(1);
        bytes
    }

    async fn sweep(&self, options: SweepOptions) -> Result<Swept> {
        let swept = self.rows.sweep(options).await;
        if self.gates.is_held(Held::Sweep) {
            self.gates.wait().await;
        }
        self.gates.ended.add_permits(1);
        swept
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        self.rows.load_record(key).await
    }

    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()> {
        if self.gates.is_held(Held::Record) {
            self.gates.wait().await;
        }
        let outcome = self.rows.write_record(write).await;
        self.gates.ended.add_permits(1);
        outcome
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

const QUOTA: u64 = 10_000;

/// A value with which a row of the namespace `n` counts `bytes` bytes.
fn value(key: &str, bytes: u64) -> Vec<u8> {
    let beside = InMemory::STORED_COST.row(1 + key.len() as u64, 0);
    vec![0; usize::try_from(bytes - beside).unwrap()]
}

struct Fixture {
    store: Store,
    rows: InMemory,
    gates: Gates,
    clock: Arc<MovableClock>,
}

impl Fixture {
    fn new() -> Self {
        let (held, closed) = (Arc::default(), || Arc::new(Semaphore::new(0)));
        let gates = Gates { held, let_go: closed(), ended: closed() };
        let clock = Arc::new(MovableClock::default());
        let rows = InMemory::new();
        let backend = Holds { rows: rows.attach(), gates: gates.clone() };
        let builder = Store::builder(backend).clock(clock.clone()).sweep_interval(None);
        Self { store: builder.quota_bytes(QUOTA).build().unwrap(), rows, gates, clock }
    }

    /// Writes a row that counts `bytes` bytes in all.
    async fn put(&self, key: &str, bytes: u64, ttl_ms: Option<u64>) -> Result<()> {
        let mut update = self.store.handle(HandleOptions::default()).begin(Mode::Update)?;
        let value = value(key, bytes);
        let options = PutOptions::default().ttl_ms(ttl_ms);
        update.put_with("n".into(), key.into(), value, options)?;
        update.commit().await.map(drop)
    }

    /// The bytes that the quota counts, read from the refusal of a row that never fits.
    async fn used(&self) -> u64 {
        let refused = self.put("too large", QUOTA + 1, None).await;
        let Err(Error::LimitExceeded(LimitExceeded { kind: LimitKind::StoreBytes, requested, .. })) = refused
        else {
            panic!("{refused:?}")
        };
        requested - QUOTA - 1
    }
}

/// Begins a call that is then held, and cancels it.
async fn cancel<T>(call: impl Future<Output = T>) {
    let mut call = Box::pin(call);
    for _ in 0..4 {
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_cancelled_commit_that_goes_on_is_counted() {
    let fixture = Fixture::new();
    fixture.put("a", 1_000, None).await.unwrap();
    fixture.gates.hold(Held::Commit);
    cancel(fixture.put("b", 6_000, None)).await;
    // The commit may still be made, so its bytes are reserved.
    assert_eq!(fixture.used().await, 7_000);
    assert!(matches!(fixture.put("c", 3_001, None).await, Err(Error::LimitExceeded(_))));
    fixture.gates.let_go().await;
    assert_eq!(fixture.used().await, 7_000);
    fixture.put("d", 3_000, None).await.unwrap();
    assert_eq!(fixture.used().await, QUOTA);
}

#[tokio::test]
async fn a_cancelled_commit_that_fails_gives_its_bytes_back() {
    let fixture = Fixture::new();
    fixture.put("a", 1_000, None).await.unwrap();
    fixture.gates.hold(Held::FailingCommit);
    // A commit without reads is retried after a conflict. The condition prevents that.
    let conditional = async {
        let mut update = fixture.store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
        let options = PutOptions::default().if_version(larder_core::Version::ABSENT);
        update.put_with("n".into(), "b".into(), value("b", 6_000), options).unwrap();
        update.commit().await
    };
    cancel(conditional).await;
    assert_eq!(fixture.used().await, 7_000);
    fixture.gates.let_go().await;
    assert_eq!(fixture.used().await, 1_000);
    fixture.put("c", 9_000, None).await.unwrap();
}

#[tokio::test]
async fn a_cancelled_commit_is_counted_once_beside_a_recount() {
    let fixture = Fixture::new();
    fixture.put("a", 1_000, None).await.unwrap();
    fixture.gates.hold(Held::Commit);
    cancel(fixture.put("b", 6_000, None)).await;
    fixture.clock.advance(Duration::from_secs(31));
    let (used, ()) = tokio::join!(fixture.used(), fixture.gates.let_go());
    assert_eq!(used, 7_000);
    assert_eq!(fixture.used().await, 7_000);
}

#[tokio::test]
async fn no_commit_waits_for_a_recount() {
    let fixture = Fixture::new();
    fixture.put("a", 1_000, None).await.unwrap();
    fixture.clock.advance(Duration::from_secs(31));
    fixture.gates.hold(Held::Count);
    fixture.put("b", 2_000, None).await.unwrap();
    fixture.put("c", 3_000, None).await.unwrap();
    assert_eq!(fixture.used().await, 6_000);
    // Writes of another store are counted once the recount has ended.
    let foreign = Store::builder(fixture.rows.attach()).sweep_interval(None).build().unwrap();
    let mut update = foreign.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
    update.put("n".into(), "d".into(), value("d", 2_500)).unwrap();
    update.commit().await.unwrap();
    fixture.gates.let_go.add_permits(1);
    let seen = async {
        while fixture.used().await == 6_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fixture.used().await
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), seen).await.unwrap(), 8_500);
}

#[tokio::test]
async fn a_cancelled_write_of_a_record_is_counted() {
    let fixture = Fixture::new();
    let parts = IdentityParts::session("acme", "ann", "monday");
    let snapshot = MemorySnapshot { strategy: Strategy::Truncation, bytes: Vec::new() };
    let operator = MemoryOperator::new(&fixture.store);
    operator.import(parts.clone(), &snapshot, false).await.unwrap();
    let bytes = fixture.used().await;
    assert!(bytes > 20, "{bytes}");
    fixture.gates.hold(Held::Record);
    cancel(operator.import(IdentityParts::session("acme", "bob", "monday"), &snapshot, false)).await;
    assert_eq!(fixture.used().await, 2 * bytes);
    fixture.gates.let_go().await;
    assert_eq!(fixture.used().await, 2 * bytes);
    fixture.clock.advance(Duration::from_secs(31));
    assert_eq!(fixture.used().await, 2 * bytes);
}

#[tokio::test]
async fn what_a_sweep_removes_beside_a_count_is_taken_off_once() {
    let fixture = Fixture::new();
    fixture.put("a", 1_000, None).await.unwrap();
    fixture.put("b", 3_000, Some(1)).await.unwrap();
    assert_eq!(fixture.used().await, 4_000);
    fixture.clock.advance(Duration::from_secs(31));
    fixture.gates.hold(Held::Sweep);
    // The count is stale, so the refused commit starts a new one. By then the sweep has removed its
    // rows but has not ended.
    let (swept, used, ()) = tokio::join!(fixture.store.sweep(), fixture.used(), fixture.gates.let_go());
    assert_eq!((swept.unwrap(), used), (1, 4_000));
    assert_eq!(fixture.used().await, 1_000);
    fixture.put("c", 9_000, None).await.unwrap();
}

#[tokio::test]
async fn a_cancelled_sweep_is_counted() {
    let fixture = Fixture::new();
    fixture.put("a", 1_000, None).await.unwrap();
    fixture.put("b", 3_000, Some(1)).await.unwrap();
    fixture.clock.advance(Duration::from_secs(1));
    fixture.gates.hold(Held::Sweep);
    cancel(fixture.store.sweep()).await;
    fixture.gates.let_go().await;
    assert_eq!(fixture.used().await, 1_000);
}

#[tokio::test]
async fn a_cancelled_commit_is_held_for_its_instance_until_it_is_done() {
    let fixture = Fixture::new();
    let held = HeldBytes::at_most(10_000);
    let options = HandleOptions::default().held(held.clone());
    let handle = fixture.store.handle(options);
    fixture.gates.hold(Held::Commit);
    let put = async {
        let mut update = handle.begin(Mode::Update).unwrap();
        update.put("n".into(), "a".into(), vec![0; 5_000]).unwrap();
        update.commit().await
    };
    cancel(put).await;
    assert_eq!(held.used(), 5_258);
    let mut update = handle.begin(Mode::Update).unwrap();
    let refused = update.put("n".into(), "b".into(), vec![0; 5_000]);
    let expected = LimitExceeded { kind: LimitKind::InstanceBytes, max: 10_000, requested: 10_516 };
    assert!(matches!(refused, Err(Error::LimitExceeded(exceeded)) if exceeded == expected));
    fixture.gates.let_go().await;
    assert_eq!(held.used(), 0);
    update.put("n".into(), "b".into(), vec![0; 5_000]).unwrap();
}
