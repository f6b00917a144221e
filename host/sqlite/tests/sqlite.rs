//! Behaviour that is particular to SQLite. The conformance suite tests what all backends share.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_core::{
    Drivers, Error, Handle, HandleOptions, Limits, Mode, OpenTransactions, Range, Store, Transaction, Version,
};
use larder_sqlite::{Sqlite, SqliteDriver, SqliteOptions};
use tempfile::TempDir;

fn database() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    (folder, path)
}

async fn store(path: &Path) -> Store {
    Store::builder(Sqlite::open(path, SqliteOptions::default()).await.unwrap()).build().unwrap()
}

fn handle(store: &Store) -> Handle {
    store.handle(HandleOptions::default().open_transactions(OpenTransactions::at_most(1_000)))
}

async fn put(handle: &Handle, key: &str, value: &[u8]) -> Version {
    let mut transaction = handle.begin(Mode::Update).unwrap();
    transaction.put("n".into(), key.into(), value.to_vec()).unwrap();
    transaction.commit().await.unwrap()
}

async fn get(handle: &Handle, key: &str) -> Option<Vec<u8>> {
    handle.begin(Mode::View).unwrap().get("n".into(), key.into()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commits_of_many_tasks_are_all_made() {
    let (_folder, path) = database();
    let store = store(&path).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..32 {
        let handle = handle(&store);
        tasks.spawn(async move {
            for turn in 0..50 {
                let mut transaction = handle.begin(Mode::Update).unwrap();
                transaction.increment("n".into(), "sum".into(), 1).unwrap();
                transaction.put("n".into(), format!("{task}-{turn}"), vec![1]).unwrap();
                transaction.commit().await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let handle = handle(&store);
    assert_eq!(get(&handle, "sum").await, Some(b"1600".to_vec()));
    let rows = handle.begin(Mode::View).unwrap().scan("n".into(), String::new()).await.unwrap();
    assert_eq!(rows.len(), 1_601);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_of_a_group_that_fails_fails_alone() {
    let (_folder, path) = database();
    let store = store(&path).await;
    put(&handle(&store), "text", b"no counter").await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..64 {
        let handle = handle(&store);
        tasks.spawn(async move {
            let mut transaction = handle.begin(Mode::Update).unwrap();
            let key = if task % 2 == 0 { "sum" } else { "text" };
            transaction.increment("n".into(), key.into(), 1).unwrap();
            (task, transaction.commit().await)
        });
    }
    for (task, outcome) in tasks.join_all().await {
        match outcome {
            Ok(version) => assert!(task % 2 == 0 && version > Version::ABSENT),
            Err(error) => assert!(task % 2 == 1 && matches!(error, Error::InvalidArgument(_))),
        }
    }
    assert_eq!(get(&handle(&store), "sum").await, Some(b"32".to_vec()));
    assert_eq!(get(&handle(&store), "text").await, Some(b"no counter".to_vec()));
}

#[tokio::test]
async fn a_commit_through_a_second_connection_is_seen_by_validation() {
    let (_folder, path) = database();
    let (first, second) = (store(&path).await, store(&path).await);
    put(&handle(&first), "a", b"1").await;
    let first = handle(&first);
    let mut transaction = first.begin(Mode::Update).unwrap();
    assert_eq!(transaction.get("n".into(), "a".into()).await.unwrap(), Some(b"1".to_vec()));
    transaction.put("n".into(), "b".into(), vec![]).unwrap();
    put(&handle(&second), "a", b"2").await;
    assert!(matches!(transaction.commit().await, Err(Error::Conflict)));

    let mut transaction = first.begin(Mode::Update).unwrap();
    assert_eq!(transaction.scan("n".into(), "x".into()).await.unwrap(), []);
    transaction.put("n".into(), "b".into(), vec![]).unwrap();
    put(&handle(&second), "y", b"beside the range").await;
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn another_process_that_holds_the_lock_is_waited_for_without_blocking_the_runtime() {
    let (_folder, path) = database();
    let store = store(&path).await;
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The runtime has one thread: a blocking wait would keep the lock's owner from releasing it.
    let release = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        other.execute_batch("ROLLBACK").unwrap();
    };
    let handle = handle(&store);
    let (version, ()) = tokio::join!(put(&handle, "a", b"1"), release);
    assert_eq!(version, Version(1));
}

#[tokio::test]
async fn a_path_with_special_characters_is_that_file() {
    let folder = tempfile::tempdir().unwrap();
    let dsn = format!("sqlite:{}/a%3Fb%25 'c.db?durability=full", folder.path().display());
    let mut drivers = Drivers::new();
    drivers.register(SqliteDriver).unwrap();
    drivers.open(&dsn).await.unwrap().close().await;
    assert!(folder.path().join("a?b% 'c.db").is_file());
}

#[tokio::test]
async fn a_missing_folder_is_not_found() {
    let outcome = Sqlite::open("/nowhere/at/all/store.db", SqliteOptions::default()).await;
    assert!(matches!(outcome, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn what_is_committed_is_there_after_opening_again_and_versions_go_on() {
    let (_folder, path) = database();
    let first = store(&path).await;
    put(&handle(&first), "a", b"kept").await;
    let before = put(&handle(&first), "b", b"").await;
    first.close().await;
    let second = store(&path).await;
    assert_eq!(get(&handle(&second), "a").await, Some(b"kept".to_vec()));
    // A close gives back versions that were reserved and not allocated.
    assert_eq!(put(&handle(&second), "b", b"").await, Version(before.0 + 1));
    drop(second);
    // Without a close they are skipped. A process that opens the database meanwhile skips them too.
    let third = store(&path).await;
    assert!(put(&handle(&third), "b", b"").await > Version(before.0 + 1));
}

#[tokio::test]
async fn a_missing_file_is_only_made_where_that_is_wanted() {
    let (_folder, path) = database();
    let options = SqliteOptions::default().create(false);
    assert!(matches!(Sqlite::open(&path, options).await, Err(Error::NotFound { .. })));
    assert!(!path.exists());
    store(&path).await.close().await;
    Sqlite::open(&path, options).await.unwrap();
}

/// Reads something that is never cached, which takes a connection.
async fn read_in_database(view: &mut Transaction) -> Result<(), Error> {
    let range = Range { reverse: true, ..Range::default() };
    view.scan_page("n".into(), range, None).await.map(drop)
}

#[tokio::test]
async fn an_abandoned_transaction_gives_its_connection_back_at_its_deadline() {
    let (_folder, path) = database();
    let store = store(&path).await;
    let limits = Limits::default().transaction_timeout(Duration::from_millis(100));
    let options = HandleOptions::default().limits(limits).open_transactions(OpenTransactions::at_most(100));
    let (short, long) = (store.handle(options), handle(&store));
    let mut forgotten = Vec::new();
    for _ in 0..64 {
        let mut view = short.begin(Mode::View).unwrap();
        read_in_database(&mut view).await.unwrap();
        forgotten.push(view);
    }
    // The store looks for overdue transactions four times per second.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut views = Vec::new();
    for _ in 0..64 {
        let mut view = long.begin(Mode::View).unwrap();
        read_in_database(&mut view).await.unwrap();
        views.push(view);
    }
    for view in &mut views {
        read_in_database(view).await.unwrap();
    }
    for mut view in forgotten {
        assert!(matches!(read_in_database(&mut view).await, Err(Error::TimedOut)));
    }
}

#[tokio::test]
async fn rows_that_are_not_as_larder_writes_them_are_corrupt() {
    let (_folder, path) = database();
    let store = store(&path).await;
    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .execute(
            "INSERT INTO larder_entries (namespace, key, value, version) VALUES (x'6e', x'ff', x'', 1)",
            [],
        )
        .unwrap();
    other
        .execute(
            "INSERT INTO larder_entries (namespace, key, value, version) VALUES (x'6d', x'61', x'', -1)",
            [],
        )
        .unwrap();
    let handle = handle(&store);
    let mut view = handle.begin(Mode::View).unwrap();
    assert!(matches!(view.scan("n".into(), String::new()).await, Err(Error::Corrupt(_))));
    let mut view = handle.begin(Mode::View).unwrap();
    assert!(matches!(view.get("m".into(), "a".into()).await, Err(Error::Corrupt(_))));
}
