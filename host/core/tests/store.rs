//! The life of a store and of its transactions: deadlines, retries, sweeps, quotas, and the end.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use larder_core::{
    Clock, Error, Event, EventSink, Handle, HandleOptions, IdentityParts, IdentityScope, LimitKind,
    MemoryOptions, MemoryStore, Mode, PutOptions, Store, Strategy, Turn,
};
use larder_model::StandingClock;
use parking_lot::Mutex;
use support::{Engine, Script};

#[derive(Default)]
struct Told(Mutex<Vec<Event>>);

impl EventSink for Told {
    fn emit(&self, event: Event) {
        self.0.lock().push(event);
    }
}

struct Fixture {
    engine: Engine,
    clock: Arc<StandingClock>,
    told: Arc<Told>,
    store: Store,
}

impl Fixture {
    fn new(sweep_interval: Option<Duration>) -> Self {
        Self::with_quota(sweep_interval, None)
    }

    fn with_quota(sweep_interval: Option<Duration>, quota: Option<u64>) -> Self {
        let engine = Engine::new(Script::default());
        let (clock, told) = (Arc::<StandingClock>::default(), Arc::<Told>::default());
        let mut builder = Store::builder(engine.clone())
            .name("notes")
            .clock(clock.clone())
            .events(told.clone())
            .sweep_interval(sweep_interval);
        if let Some(quota) = quota {
            builder = builder.quota_bytes(quota);
        }
        Self { store: builder.build().unwrap(), engine, clock, told }
    }

    fn handle(&self) -> Handle {
        self.store.handle(HandleOptions::default())
    }

    async fn put(&self, key: &str, ttl_ms: Option<u64>) -> Result<(), Error> {
        let mut update = self.handle().begin(Mode::Update)?;
        update.put_with("n".into(), key.into(), Vec::new(), PutOptions::default().ttl_ms(ttl_ms))?;
        update.commit().await.map(drop)
    }

    fn told(&self) -> Vec<String> {
        let events = std::mem::take(&mut *self.told.0.lock());
        let shown = |event: Event| match event {
            Event::TransactionTimedOut { store, timeout } => format!("{store} timed out after {timeout:?}"),
            Event::BackgroundFailed { store, work, error } => format!("{store} could not {work}: {error}"),
            other => panic!("{other:?}"),
        };
        events.into_iter().map(shown).collect()
    }
}

const TIMEOUT: Duration = Duration::from_secs(5);
const INSTANT: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_call_at_the_deadline_is_too_late_and_one_before_is_not() {
    let fixture = Fixture::new(None);
    let mut view = fixture.handle().begin(Mode::View).unwrap();
    fixture.clock.advance(TIMEOUT - INSTANT);
    view.get("n".into(), "k".into()).await.unwrap();
    fixture.clock.advance(INSTANT);
    for _ in 0..2 {
        let late = view.get("n".into(), "k".into()).await;
        assert!(matches!(late, Err(Error::TimedOut)), "{late:?}");
    }
    assert_eq!(fixture.told(), ["notes timed out after 5s"], "it is told once");
    assert!(matches!(view.commit().await, Err(Error::TimedOut)));
}

#[tokio::test(start_paused = true)]
async fn a_store_ends_transactions_at_their_deadline_without_a_call() {
    for sweep_interval in [None, Some(Duration::from_secs(60))] {
        let fixture = Fixture::new(sweep_interval);
        let mut overdue = fixture.handle().begin(Mode::View).unwrap();
        overdue.get("n".into(), "k".into()).await.unwrap();
        fixture.clock.advance(INSTANT);
        let mut other = fixture.handle().begin(Mode::View).unwrap();
        other.get("n".into(), "k".into()).await.unwrap();
        assert_eq!(fixture.engine.script.lock().open_snapshots(), 2);
        fixture.clock.advance(TIMEOUT - INSTANT);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(fixture.engine.script.lock().open_snapshots(), 1, "one has an instant left");
        assert_eq!(fixture.told(), ["notes timed out after 5s"]);
        other.get("n".into(), "k".into()).await.unwrap();
        assert!(matches!(overdue.get("n".into(), "k".into()).await, Err(Error::TimedOut)));
        assert_eq!(fixture.told(), [] as [&str; 0], "it was told already");
    }
}

#[tokio::test]
async fn a_dropped_transaction_gives_its_snapshot_back() {
    let fixture = Fixture::new(None);
    let mut view = fixture.handle().begin(Mode::View).unwrap();
    view.get("n".into(), "k".into()).await.unwrap();
    assert_eq!(fixture.engine.script.lock().open_snapshots(), 1);
    drop(view);
    assert_eq!(fixture.engine.script.lock().open_snapshots(), 0);
}

#[tokio::test]
async fn a_store_that_is_closed_sweeps_once_and_closes_its_backend_once() {
    for (interval, sweeps) in [(None, 0), (Some(Duration::from_secs(60)), 1)] {
        let fixture = Fixture::new(interval);
        fixture.put("k", Some(1_000)).await.unwrap();
        fixture.clock.advance(Duration::from_secs(2));
        let mut view = fixture.handle().begin(Mode::View).unwrap();
        view.get("n".into(), "k".into()).await.unwrap();
        fixture.store.close().await;
        fixture.store.close().await;
        let made = {
            let script = fixture.engine.script.lock();
            (script.sweeps, script.closes, script.open_snapshots())
        };
        assert_eq!(made, (sweeps, 1, 0), "{interval:?}");
        assert!(matches!(view.get("n".into(), "k".into()).await, Err(Error::Closed)));
        assert!(matches!(fixture.store.ping().await, Err(Error::Closed)));
        assert!(matches!(fixture.store.sweep().await, Err(Error::Closed)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_sweep_is_told_and_made_again() {
    let fixture = Fixture::new(Some(Duration::from_secs(2)));
    fixture.engine.script.lock().failure = Some(Error::Corrupt("torn".to_string()));
    tokio::time::sleep(Duration::from_millis(1_900)).await;
    assert_eq!(fixture.engine.script.lock().sweeps, 0, "it is not time yet");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fixture.told(), ["notes could not sweep: stored data is corrupt: torn"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fixture.engine.script.lock().sweeps, 2);
    fixture.engine.script.lock().failure = Some(Error::Closed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fixture.told(), [] as [&str; 0], "a closed backend is no failure");
}

#[tokio::test]
async fn a_commit_that_read_nothing_is_made_again_after_a_conflict() {
    let fixture = Fixture::new(None);
    fixture.engine.script.lock().conflicts = 3;
    fixture.put("k", None).await.unwrap();
    assert_eq!(fixture.engine.script.lock().commits, 4);

    // A condition may be the reason, so it is not made again.
    fixture.engine.script.lock().conflicts = 1;
    let mut update = fixture.handle().begin(Mode::Update).unwrap();
    update.delete_if_version("n".into(), "absent".into(), larder_core::Version::ABSENT).unwrap();
    assert!(matches!(update.commit().await, Err(Error::Conflict)));
    assert_eq!(fixture.engine.script.lock().commits, 5);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_read_nothing_is_made_again_until_its_deadline_and_no_longer() {
    let fixture = Fixture::new(None);
    fixture.engine.script.lock().conflicts = usize::MAX;
    let began = tokio::time::Instant::now();
    let outcome = fixture.put("k", None).await;
    assert!(matches!(outcome, Err(Error::TimedOut)), "{outcome:?}");
    assert_eq!(began.elapsed(), TIMEOUT);
    // The pauses grow to 64 ms, of which a random part passes.
    let commits = fixture.engine.script.lock().commits;
    assert!((70..700).contains(&commits), "{commits}");

    // By the clock of the store, the deadline may pass during an attempt.
    fixture.engine.script.lock().commits = 0;
    let mut update = fixture.handle().begin(Mode::Update).unwrap();
    update.put("n".into(), "k".into(), Vec::new()).unwrap();
    let clock = fixture.clock.clone();
    let advance = async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        clock.advance(TIMEOUT);
    };
    let (outcome, ()) = tokio::join!(update.commit(), advance);
    assert!(matches!(outcome, Err(Error::Conflict)), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn an_old_count_is_made_again_beside_commits_and_its_failure_is_told() {
    let fixture = Fixture::with_quota(None, Some(1 << 20));
    fixture.put("a", None).await.unwrap();
    fixture.clock.advance(Duration::from_secs(30));
    fixture.put("b", None).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(fixture.engine.script.lock().recounts, 0, "30 s are not too old");
    fixture.clock.advance(INSTANT);
    fixture.engine.script.lock().failure = Some(Error::Corrupt("torn".to_string()));
    fixture.put("c", None).await.unwrap();
    tokio::time::sleep(INSTANT).await;
    assert_eq!(fixture.engine.script.lock().recounts, 1);
    assert_eq!(fixture.told(), ["notes could not recount the stored bytes: stored data is corrupt: torn"]);
    // One that kept too much old state may succeed later, and is not told.
    fixture.clock.advance(Duration::from_secs(100));
    fixture.engine.script.lock().failure = Some(Error::TimedOut);
    fixture.put("d", None).await.unwrap();
    tokio::time::sleep(INSTANT).await;
    assert_eq!(fixture.engine.script.lock().recounts, 2);
    assert_eq!(fixture.told(), [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_commit_may_take_as_long_as_the_transaction_has_left() {
    let fixture = Fixture::new(None);
    fixture.engine.script.lock().conflicts = usize::MAX;
    let mut update = fixture.handle().begin(Mode::Update).unwrap();
    update.put("n".into(), "k".into(), Vec::new()).unwrap();
    fixture.clock.advance(Duration::from_secs(3));
    let began = tokio::time::Instant::now();
    assert!(matches!(update.commit().await, Err(Error::TimedOut)));
    assert_eq!(began.elapsed(), Duration::from_secs(2));
}

#[tokio::test]
async fn a_commit_depends_on_the_row_that_expires_first_whichever_was_read_first() {
    for keys in [["short", "long", "none"], ["none", "long", "short"]] {
        for is_scan in [true, false] {
            let fixture = Fixture::new(None);
            fixture.put("short", Some(1_000)).await.unwrap();
            fixture.put("long", Some(3_000)).await.unwrap();
            fixture.put("none", None).await.unwrap();
            for (passed, holds) in [(999, true), (1_000, false)] {
                let mut update = fixture.handle().begin(Mode::Update).unwrap();
                match is_scan {
                    true => assert_eq!(update.scan("n".into(), String::new()).await.unwrap().len(), 3),
                    false => {
                        for key in keys {
                            assert!(update.get("n".into(), key.into()).await.unwrap().is_some());
                        }
                    }
                }
                update.put("m".into(), "k".into(), Vec::new()).unwrap();
                let now = fixture.clock.monotonic();
                fixture.clock.advance(Duration::from_millis(passed) - now);
                assert_eq!(update.commit().await.is_ok(), holds, "{keys:?}, scan: {is_scan}");
            }
        }
    }
}

#[tokio::test]
async fn a_conversation_grows_up_to_the_quota_and_no_further() {
    let fixture = Fixture::with_quota(None, Some(4_000));
    let options = MemoryOptions::new(Strategy::Truncation);
    let memories = MemoryStore::builder(&fixture.store, options).build().unwrap();
    let parts = IdentityParts::session("acme", "ann", "monday");
    let memory = memories.open(parts, &IdentityScope::Any, &Arc::default()).unwrap();
    let turn = |bytes| Turn { user_message: "x".repeat(bytes), ..Turn::default() };
    memory.add_turn(turn(1_000)).await.unwrap();
    let Err(Error::LimitExceeded(exceeded)) = memory.add_turn(turn(4_000)).await else { panic!("it grew") };
    assert_eq!((exceeded.kind, exceeded.max), (LimitKind::StoreBytes, 4_000));
    assert!(exceeded.requested > 5_000 && exceeded.requested < 6_000, "{exceeded:?}");
    memory.add_turn(turn(1_000)).await.unwrap();
    assert_eq!(memory.llm_context().await.unwrap().recent_turns.len(), 2);
    fixture.store.close().await;
    assert!(matches!(memory.add_turn(turn(1)).await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_store_sweeps_every_minute_by_default() {
    let engine = Engine::new(Script::default());
    let _store = Store::builder(engine.clone()).build().unwrap();
    tokio::time::sleep(Duration::from_millis(59_900)).await;
    assert_eq!(engine.script.lock().sweeps, 0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(engine.script.lock().sweeps, 1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(engine.script.lock().sweeps, 2);
}
