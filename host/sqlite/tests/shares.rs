//! Shares on SQLite: connections for reading, and the write-ahead log.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder_core::{
    Error, Event, EventChannel, EventSubscriber, Handle, HandleOptions, Limits, Mode, OpenTransactions,
    Share, SnapshotEndReason, Store, TracingEvents, Transaction,
};
use larder_sqlite::{Sqlite, SqliteOptions};
use tempfile::TempDir;

/// More snapshots than connections for reading.
const SLEEPERS: usize = 70;

struct Opened {
    store: Store,
    events: EventSubscriber,
    folder: TempDir,
}

async fn open(options: SqliteOptions) -> Opened {
    let folder = tempfile::tempdir().unwrap();
    let database = Sqlite::open(folder.path().join("store.db"), options).await.unwrap();
    let events = Arc::new(EventChannel::new(1_000, Arc::new(TracingEvents)));
    let subscriber = events.subscribe();
    let store = Store::builder(database).events(events).build().unwrap();
    Opened { store, events: subscriber, folder }
}

impl Opened {
    /// A handle of a new share, with a transaction timeout of minutes.
    fn handle(&self) -> Handle {
        self.handle_of(Share::own())
    }

    fn handle_of(&self, share: Share) -> Handle {
        let limits = Limits::default().transaction_timeout(Duration::from_secs(300));
        let open_transactions = OpenTransactions::at_most(1_000);
        let limits = Arc::new(limits);
        self.store
            .handle(HandleOptions::default().limits(limits).open_transactions(open_transactions).share(share))
    }

    /// The reasons for which snapshots were ended since the last call.
    async fn ended(&mut self) -> Vec<SnapshotEndReason> {
        let mut reasons = Vec::new();
        while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, self.events.next()).await {
            if let Event::SnapshotEnded { reason, .. } = event.unwrap() {
                reasons.push(reason);
            }
        }
        reasons
    }
}

fn without_cache() -> SqliteOptions {
    SqliteOptions::default().cache_bytes(0)
}

async fn put(handle: &Handle, key: &str, value: Vec<u8>) {
    let mut transaction = handle.begin(Mode::Update).unwrap();
    transaction.put("n".into(), key.into(), value).unwrap();
    transaction.commit().await.unwrap();
}

async fn read(transaction: &mut Transaction, key: &str) -> Result<Option<Vec<u8>>, Error> {
    transaction.get("n".into(), key.into()).await
}

/// Views that have each read one row, and then stay idle.
async fn sleepers(handle: &Handle, count: usize) -> Vec<Transaction> {
    let mut views = Vec::new();
    for number in 0..count {
        let mut view = handle.begin(Mode::View).unwrap();
        assert_eq!(read(&mut view, &format!("absent {number}")).await.unwrap(), None);
        views.push(view);
    }
    views
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_stay_idle_give_way_to_one_that_reads() {
    let mut opened = open(without_cache()).await;
    let (idle, active) = (opened.handle(), opened.handle());
    put(&idle, "a", b"1".to_vec()).await;
    // The last views already take over connections of the first ones.
    let mut views = sleepers(&idle, SLEEPERS).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    for _ in 0..100 {
        let mut view = active.begin(Mode::View).unwrap();
        assert_eq!(read(&mut view, "a").await.unwrap(), Some(b"1".to_vec()));
    }
    let mut outcomes = Vec::new();
    for view in &mut views {
        outcomes.push(read(view, "a").await);
    }
    let conflicts = outcomes.iter().filter(|outcome| matches!(outcome, Err(Error::Conflict))).count();
    let read_on = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Some(_)))).count();
    assert_eq!(conflicts + read_on, SLEEPERS);
    assert!((7..20).contains(&conflicts), "{conflicts}");
    let ended = opened.ended().await;
    assert_eq!(ended, vec![SnapshotEndReason::ConnectionWanted; conflicts]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_are_touched_all_the_time_give_way_to_a_share_that_holds_fewer() {
    let mut opened = open(without_cache()).await;
    let (greedy, active) = (opened.handle(), opened.handle());
    let mut views = sleepers(&greedy, 64).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    // A refused write is a call of the view too, and needs no connection.
    let touching = tokio::spawn(async move {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            for view in &mut views {
                assert!(view.put("n".into(), "a".into(), Vec::new()).is_err());
            }
            tokio::task::yield_now().await;
        }
    });
    for _ in 0..5 {
        let mut view = active.begin(Mode::View).unwrap();
        assert_eq!(read(&mut view, "a").await.unwrap(), None);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    touching.await.unwrap();
    assert!(opened.ended().await.contains(&SnapshotEndReason::ConnectionWanted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_holds_the_most_takes_no_connection_of_one_that_holds_few() {
    let opened = open(without_cache()).await;
    let (greedy, modest) = (opened.handle(), opened.handle());
    let mut few = sleepers(&modest, 1).await;
    tokio::time::sleep(Duration::from_millis(120)).await;
    let many = sleepers(&greedy, 100).await;
    assert_eq!(read(&mut few[0], "a").await.unwrap(), None);
    drop(many);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_gave_way_reads_on_as_long_as_its_state_is_the_newest() {
    let mut opened = open(SqliteOptions::default()).await;
    let (idle, active) = (opened.handle(), opened.handle());
    put(&idle, "a", b"1".to_vec()).await;
    let mut views = sleepers(&idle, SLEEPERS).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    for number in 0..100 {
        let mut view = active.begin(Mode::View).unwrap();
        assert_eq!(read(&mut view, &format!("other {number}")).await.unwrap(), None);
    }
    for (number, view) in views.iter_mut().enumerate() {
        assert_eq!(read(view, &format!("further {number}")).await.unwrap(), None);
    }
    assert_eq!(opened.ended().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_share_that_holds_the_most_gives_way_first() {
    let mut opened = open(without_cache()).await;
    let (greedy, modest, active) = (Share::own(), Share::own(), opened.handle());
    let mut few = sleepers(&opened.handle_of(modest), 4).await;
    let many = sleepers(&opened.handle_of(greedy), 60).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    // All 64 connections are in use, so each of these views takes one from the greedy share.
    let mut views = sleepers(&active, 20).await;
    for view in few.iter_mut().chain(&mut views) {
        assert_eq!(read(view, "a").await.unwrap(), None);
    }
    drop(many);
    assert_eq!(opened.ended().await, vec![SnapshotEndReason::ConnectionWanted; 20]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_that_idle_snapshots_stand_on_do_not_use_up_the_connections_of_commits() {
    let opened = open(SqliteOptions::default()).await;
    let (idle, active) = (opened.handle(), opened.handle());
    let mut views = Vec::new();
    // Each view reads another state, which a connection pins.
    for number in 0..100 {
        put(&active, "a", vec![number]).await;
        let mut view = idle.begin(Mode::View).unwrap();
        assert_eq!(read(&mut view, "a").await.unwrap(), Some(vec![number]));
        views.push((number, view));
    }
    // The youngest views can still read, including rows that are not cached.
    for (number, view) in views.iter_mut().rev().take(20) {
        assert_eq!(read(view, "absent").await.unwrap(), None);
        assert_eq!(read(view, "a").await.unwrap(), Some(vec![*number]));
    }
    let mut conflicts = 0;
    for (_, view) in views.iter_mut().take(60) {
        conflicts += usize::from(matches!(read(view, "absent").await, Err(Error::Conflict)));
    }
    // A view that read a row before it was cached may hold a connection of its own.
    assert!(conflicts >= 58, "{conflicts}");
    let mut view = active.begin(Mode::View).unwrap();
    assert_eq!(read(&mut view, "another").await.unwrap(), None);
}

fn log_bytes(folder: &Path) -> u64 {
    std::fs::metadata(folder.join("store.db-wal")).unwrap().len()
}

const LOG_BYTES: u64 = 4 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_overlap_do_not_let_the_log_grow_past_its_bound() {
    for cache_bytes in [0, SqliteOptions::CACHE_BYTES] {
        let mut opened = open(SqliteOptions::default().log_bytes(LOG_BYTES).cache_bytes(cache_bytes)).await;
        let (reader, writer) = (opened.handle(), opened.handle());
        let mut views = std::collections::VecDeque::new();
        let mut longest = 0;
        for number in 0..200 {
            let mut view = reader.begin(Mode::View).unwrap();
            read(&mut view, &format!("absent {number}")).await.unwrap();
            views.push_back(view);
            if views.len() > 12 {
                views.pop_front();
            }
            put(&writer, "large", vec![number; 256 << 10]).await;
            longest = longest.max(log_bytes(opened.folder.path()));
        }
        // 50 MiB were written in total.
        assert!(longest <= LOG_BYTES + (2 << 20), "{longest}");
        let ended = opened.ended().await;
        assert!(ended.contains(&SnapshotEndReason::LogFull), "{ended:?}");
        // The youngest view was not ended.
        assert!(read(views.back_mut().unwrap(), "absent").await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_another_program_is_not_ended_and_commits_go_on() {
    let opened = open(SqliteOptions::default().log_bytes(1 << 20)).await;
    let writer = opened.handle();
    put(&writer, "a", b"1".to_vec()).await;
    let other = rusqlite::Connection::open(opened.folder.path().join("store.db")).unwrap();
    other.execute_batch("BEGIN").unwrap();
    let rows =
        || other.query_row("SELECT count(*) FROM larder_entries", [], |row| row.get::<_, u64>(0)).unwrap();
    assert_eq!(rows(), 1);
    for number in 0..8 {
        put(&writer, &format!("large {number}"), vec![number; 512 << 10]).await;
    }
    assert_eq!(rows(), 1);
    assert!(log_bytes(opened.folder.path()) > 4 << 20);
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(rows(), 9);
}

#[tokio::test]
async fn a_bound_of_the_log_that_is_too_low_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions::default().log_bytes(100);
    let Err(Error::InvalidArgument(reason)) = Sqlite::open(folder.path().join("a.db"), options).await else {
        panic!("accepted")
    };
    assert_eq!(reason, "log_bytes is 100, but must be at least 1048576");
}
