//! The times of commits and views, while another process holds the lock or the clock steps back.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use larder_core::backend::Backend;
use larder_core::snapshot::{Snapshot, SnapshotOptions};
use larder_core::{
    Error, Handle, HandleOptions, Limits, Mode, MovableClock, PutOptions, Share, Store, Transaction, Version,
};
use larder_sqlite::{Sqlite, SqliteOptions};
use tokio::task::JoinHandle;

const MINUTE: u64 = 60_000;

struct Opened {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    clock: Arc<MovableClock>,
    store: Store,
    handle: Handle,
}

async fn opened(cache_bytes: u64) -> Opened {
    let (folder, path) = folder();
    let clock = Arc::new(MovableClock::default());
    let store = store(&path, &clock, cache_bytes).await;
    let handle = store.handle(HandleOptions::default());
    Opened { _folder: folder, path, clock, store, handle }
}

async fn store(path: &Path, clock: &Arc<MovableClock>, cache_bytes: u64) -> Store {
    let options = SqliteOptions::default().cache_bytes(cache_bytes);
    let backend = Sqlite::open(path, options).await.unwrap();
    Store::builder(backend).clock(clock.clone()).sweep_interval(None).build().unwrap()
}

/// A connection of another process, which holds the write lock.
fn locked(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

fn minute() -> PutOptions {
    PutOptions::default().ttl_ms(MINUTE)
}

async fn put_for_a_minute(handle: &Handle, key: &str, value: &str) -> Version {
    let mut update = handle.begin(Mode::Update).unwrap();
    update.put_with("n".into(), key.into(), value.into(), minute()).unwrap();
    update.commit().await.unwrap()
}

async fn put(handle: &Handle, key: &str, value: &str) -> Version {
    let mut update = handle.begin(Mode::Update).unwrap();
    update.put("n".into(), key.into(), value.into()).unwrap();
    update.commit().await.unwrap()
}

async fn get(transaction: &mut Transaction, key: &str) -> Option<String> {
    let value = transaction.get("n".into(), key.into()).await.unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}

async fn now(handle: &Handle, key: &str) -> Option<String> {
    get(&mut handle.begin(Mode::View).unwrap(), key).await
}

/// A commit that was requested and waits for the lock.
async fn waiting(transaction: Transaction) -> JoinHandle<larder_core::Result<Version>> {
    let commit = tokio::spawn(transaction.commit());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!commit.is_finished());
    commit
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ends_while_its_update_waits_for_another_process_is_a_conflict() {
    let opened = opened(1 << 20).await;
    put_for_a_minute(&opened.handle, "lease", "me").await;
    let mut update = opened.handle.begin(Mode::Update).unwrap();
    assert_eq!(get(&mut update, "lease").await.as_deref(), Some("me"));
    update.put("n".into(), "row".into(), b"mine".to_vec()).unwrap();
    let lock = locked(&opened.path);
    let commit = waiting(update).await;
    opened.clock.advance(Duration::from_millis(2 * MINUTE));
    assert_eq!(now(&opened.handle, "lease").await, None);
    lock.execute_batch("ROLLBACK").unwrap();
    assert!(matches!(commit.await.unwrap(), Err(Error::Conflict)));
    assert_eq!(now(&opened.handle, "row").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_to_live_counts_from_when_the_lock_was_got() {
    let opened = opened(1 << 20).await;
    let mut update = opened.handle.begin(Mode::Update).unwrap();
    update.put_with("n".into(), "a".into(), b"1".to_vec(), minute()).unwrap();
    let lock = locked(&opened.path);
    let commit = waiting(update).await;
    opened.clock.advance(Duration::from_millis(2 * MINUTE));
    lock.execute_batch("ROLLBACK").unwrap();
    commit.await.unwrap().unwrap();
    assert_eq!(now(&opened.handle, "a").await.as_deref(), Some("1"));
    opened.clock.advance(Duration::from_millis(MINUTE));
    assert_eq!(now(&opened.handle, "a").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_on_a_row_that_expires_while_the_commit_waits_does_not_hold() {
    let opened = opened(1 << 20).await;
    let version = put_for_a_minute(&opened.handle, "lease", "me").await;
    let mut update = opened.handle.begin(Mode::Update).unwrap();
    let renewed = minute().if_version(version);
    update.put_with("n".into(), "lease".into(), b"me".to_vec(), renewed).unwrap();
    let lock = locked(&opened.path);
    let commit = waiting(update).await;
    opened.clock.advance(Duration::from_millis(2 * MINUTE));
    lock.execute_batch("ROLLBACK").unwrap();
    assert!(matches!(commit.await.unwrap(), Err(Error::Conflict)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_for_another_process_end_with_their_deadlines_and_write_nothing() {
    let opened = opened(1 << 20).await;
    let limits = Limits::default().transaction_timeout(Duration::from_millis(300));
    let handle = opened.store.handle(HandleOptions::default().limits(limits));
    let lock = locked(&opened.path);
    let since = Instant::now();
    let mut commits = Vec::new();
    for (key, reads) in [("blind", false), ("read", true), ("queued", false)] {
        let mut update = handle.begin(Mode::Update).unwrap();
        if reads {
            assert_eq!(get(&mut update, key).await, None);
        }
        update.put("n".into(), key.into(), b"1".to_vec()).unwrap();
        commits.push(tokio::spawn(update.commit()));
    }
    for commit in commits {
        assert!(matches!(commit.await.unwrap(), Err(Error::TimedOut)));
    }
    // A commit waits 5 s for the lock.
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    lock.execute_batch("ROLLBACK").unwrap();
    let mut after = opened.handle.begin(Mode::Update).unwrap();
    after.put("n".into(), "after".into(), b"1".to_vec()).unwrap();
    after.commit().await.unwrap();
    for key in ["blind", "read", "queued"] {
        assert_eq!(now(&opened.handle, key).await, None, "{key}");
    }
    assert_eq!(now(&opened.handle, "after").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_view_that_moves_on_to_a_newer_state_takes_a_moment_that_belongs_to_it() {
    for cache_bytes in [0, 1 << 20] {
        let opened = opened(cache_bytes).await;
        put_for_a_minute(&opened.handle, "lease", "me").await;
        put(&opened.handle, "row", "old").await;
        let database = Sqlite::open(&opened.path, SqliteOptions::default().cache_bytes(cache_bytes));
        let database = database.await.unwrap();
        let clock = larder_core::ForwardClock::new(opened.clock.clone());
        let deadline = Instant::now() + Duration::from_secs(10);
        let options = SnapshotOptions::new(Mode::View, clock, deadline, Share::host());
        // The snapshot has not read anything yet.
        let mut view: Box<dyn Snapshot> = database.snapshot(options).await.unwrap();
        opened.clock.advance(Duration::from_millis(2 * MINUTE));
        put(&opened.handle, "row", "after the lease").await;
        let lease = view.get(&row("lease")).await.unwrap();
        let value = view.get(&row("row")).await.unwrap().unwrap().value;
        assert_eq!((lease.is_some(), value == b"old"), (value == b"old", value == b"old"));
        drop(view);
        database.close().await;
        opened.store.close().await;
    }
}

#[tokio::test]
async fn a_clock_that_steps_back_brings_no_row_back() {
    for cache_bytes in [0, 1 << 20] {
        let opened = opened(cache_bytes).await;
        put_for_a_minute(&opened.handle, "read", "1").await;
        put_for_a_minute(&opened.handle, "unread", "1").await;
        assert_eq!(now(&opened.handle, "read").await.as_deref(), Some("1"));
        let mut view = opened.handle.begin(Mode::View).unwrap();
        assert_eq!(view.scan("n".into(), String::new()).await.unwrap().len(), 2);
        opened.clock.advance(Duration::from_millis(2 * MINUTE));
        assert_eq!(now(&opened.handle, "read").await, None);
        let mut absent = opened.handle.begin(Mode::Update).unwrap();
        assert_eq!(absent.scan("n".into(), String::new()).await.unwrap(), []);
        assert_eq!(get(&mut absent, "read").await, None);
        opened.clock.step_back(Duration::from_millis(2 * MINUTE));
        for key in ["read", "unread"] {
            assert_eq!(now(&opened.handle, key).await, None, "{key}");
        }
        absent.put("n".into(), "mark".into(), b"because it was empty".to_vec()).unwrap();
        absent.commit().await.unwrap();
        assert_eq!(opened.store.sweep().await.unwrap(), 2);
        assert_eq!(now(&opened.handle, "read").await, None);
        // A store that is reopened in this process, and another one opened while the first is open.
        let beside = store(&opened.path, &opened.clock, cache_bytes).await;
        put_for_a_minute(&opened.handle, "read", "2").await;
        let other = beside.handle(HandleOptions::default());
        assert_eq!(now(&other, "read").await.as_deref(), Some("2"));
        beside.close().await;
        opened.store.close().await;
    }
}

#[tokio::test]
async fn a_row_written_by_a_host_that_is_ahead_lives_as_much_longer() {
    const DAYS: Duration = Duration::from_secs(58 * 24 * 3_600);
    let opened = opened(1 << 20).await;
    let ahead = Arc::new(MovableClock::default());
    ahead.advance(DAYS);
    let other = store(&opened.path, &ahead, 1 << 20).await;
    put_for_a_minute(&other.handle(HandleOptions::default()), "a", "1").await;
    opened.clock.advance(DAYS);
    assert_eq!(now(&opened.handle, "a").await.as_deref(), Some("1"));
    opened.clock.advance(Duration::from_millis(2 * MINUTE));
    assert_eq!(now(&opened.handle, "a").await, None);
    other.close().await;
}

fn rows(path: &Path) -> u64 {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.query_row("SELECT count(*) FROM larder_entries", [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_store_that_is_closed_leaves_no_expired_rows() {
    let (_folder, path) = folder();
    for _ in 0..5 {
        let clock = Arc::new(MovableClock::default());
        let backend = Sqlite::open(&path, SqliteOptions::default()).await.unwrap();
        let store = Store::builder(backend).clock(clock.clone()).build().unwrap();
        let handle = store.handle(HandleOptions::default());
        put(&handle, "kept", "1").await;
        for key in ["a", "b", "c"] {
            put_for_a_minute(&handle, key, "1").await;
        }
        clock.advance(Duration::from_millis(2 * MINUTE));
        store.close().await;
        assert_eq!(rows(&path), 1);
    }
}

#[tokio::test]
async fn a_close_does_not_wait_for_another_process_to_sweep() {
    let opened = opened(1 << 20).await;
    let backend = Sqlite::open(&opened.path, SqliteOptions::default()).await.unwrap();
    let store = Store::builder(backend).clock(opened.clock.clone()).build().unwrap();
    put_for_a_minute(&opened.handle, "a", "1").await;
    opened.clock.advance(Duration::from_millis(2 * MINUTE));
    let lock = locked(&opened.path);
    let begun = Instant::now();
    store.close().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    lock.execute_batch("ROLLBACK").unwrap();
    drop(lock);
    assert_eq!(rows(&opened.path), 1);
}
