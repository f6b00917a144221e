//! The row cache returns what a read of the database would return.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder_core::{
    Error, Handle, HandleOptions, Mode, MovableClock, OpenTransactions, PutOptions, Store, Transaction,
    Version,
};
use larder_sqlite::{Sqlite, SqliteOptions};
use tempfile::TempDir;

async fn open(path: &Path) -> Handle {
    let store = Store::builder(Sqlite::open(path, SqliteOptions::default()).await.unwrap()).build().unwrap();
    handle(&store)
}

fn handle(store: &Store) -> Handle {
    store.handle(HandleOptions::default().open_transactions(OpenTransactions::at_most(1_000)))
}

/// Two stores on one file, as in two processes.
async fn two() -> (TempDir, Handle, Handle) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let (ours, theirs) = (open(&path).await, open(&path).await);
    (folder, ours, theirs)
}

async fn put(handle: &Handle, key: &str, value: &str) -> Version {
    let mut transaction = handle.begin(Mode::Update).unwrap();
    transaction.put("n".into(), key.into(), value.into()).unwrap();
    transaction.commit().await.unwrap()
}

async fn get(handle: &Handle, key: &str) -> Option<String> {
    read(&mut handle.begin(Mode::View).unwrap(), key).await.unwrap()
}

async fn read(transaction: &mut Transaction, key: &str) -> Result<Option<String>, Error> {
    Ok(transaction.get("n".into(), key.into()).await?.map(|value| String::from_utf8(value).unwrap()))
}

/// Makes the handle's store cache the row.
async fn warm(handle: &Handle, key: &str) -> Option<String> {
    get(handle, key).await;
    get(handle, key).await
}

#[tokio::test]
async fn what_another_process_commits_is_seen_by_the_next_transaction() {
    let (_folder, ours, theirs) = two().await;
    for turn in 0..50 {
        let value = turn.to_string();
        put(&theirs, "a", &value).await;
        assert_eq!(warm(&ours, "a").await, Some(value.clone()));
        put(&ours, "b", &value).await;
        assert_eq!(warm(&theirs, "b").await, Some(value));
    }
    let mut delete = theirs.begin(Mode::Update).unwrap();
    delete.delete("n".into(), "a".into()).unwrap();
    delete.commit().await.unwrap();
    assert_eq!(get(&ours, "a").await, None);
}

#[tokio::test]
async fn what_this_process_commits_is_seen_at_once_and_absence_too() {
    let (_folder, ours, _) = two().await;
    assert_eq!(warm(&ours, "a").await, None);
    put(&ours, "a", "1").await;
    assert_eq!(get(&ours, "a").await, Some("1".to_string()));
    let version = put(&ours, "a", "2").await;
    let mut view = ours.begin(Mode::View).unwrap();
    assert_eq!(view.get_versioned("n".into(), "a".into()).await.unwrap(), Some((b"2".to_vec(), version)));
    let mut delete = ours.begin(Mode::Update).unwrap();
    delete.delete("n".into(), "a".into()).unwrap();
    delete.commit().await.unwrap();
    assert_eq!(get(&ours, "a").await, None);
}

#[tokio::test]
async fn views_of_cached_rows_need_no_connection() {
    let (_folder, ours, _) = two().await;
    put(&ours, "a", "1").await;
    warm(&ours, "a").await;
    let mut views = Vec::new();
    // More views than the 64 connections for reading.
    for _ in 0..500 {
        let mut view = ours.begin(Mode::View).unwrap();
        assert_eq!(read(&mut view, "a").await.unwrap(), Some("1".to_string()));
        views.push(view);
    }
}

#[tokio::test]
async fn a_view_of_cached_rows_goes_on_in_its_state_while_this_process_commits() {
    let (_folder, ours, _) = two().await;
    for key in ["a", "b", "c"] {
        put(&ours, key, "old").await;
    }
    warm(&ours, "a").await;
    let mut views = Vec::new();
    for _ in 0..100 {
        let mut view = ours.begin(Mode::View).unwrap();
        assert_eq!(read(&mut view, "a").await.unwrap(), Some("old".to_string()));
        views.push(view);
    }
    for key in ["a", "b", "d"] {
        put(&ours, key, "new").await;
        warm(&ours, key).await;
    }
    // All of them can still read, though there are more views than connections.
    for view in &mut views {
        for (key, value) in [("a", Some("old")), ("b", Some("old")), ("c", Some("old")), ("d", None)] {
            assert_eq!(read(view, key).await.unwrap().as_deref(), value, "{key}");
        }
        let all = view.scan("n".into(), String::new()).await.unwrap();
        let all: Vec<_> = all.iter().map(|entry| (entry.key.as_str(), entry.value.as_slice())).collect();
        assert_eq!(all, [("a", b"old".as_slice()), ("b", b"old"), ("c", b"old")]);
    }
}

#[tokio::test]
async fn a_view_whose_state_another_process_has_left_conflicts_and_the_next_one_does_not() {
    let (_folder, ours, theirs) = two().await;
    for key in ["a", "b"] {
        put(&ours, key, "old").await;
    }
    warm(&ours, "a").await;
    let mut view = ours.begin(Mode::View).unwrap();
    assert_eq!(read(&mut view, "a").await.unwrap(), Some("old".to_string()));
    put(&theirs, "b", "new").await;
    assert!(matches!(read(&mut view, "b").await, Err(Error::Conflict)));
    for turn in 0..20 {
        let mut view = ours.begin(Mode::View).unwrap();
        let before = read(&mut view, "a").await.unwrap();
        put(&theirs, "a", &turn.to_string()).await;
        assert_eq!(read(&mut view, "b").await.unwrap(), Some("new".to_string()));
        assert_eq!(read(&mut view, "a").await.unwrap(), before);
    }
}

#[tokio::test]
async fn an_update_on_cached_rows_conflicts_with_a_commit_that_changed_them() {
    let (_folder, ours, theirs) = two().await;
    put(&ours, "a", "1").await;
    for writer in [&ours, &theirs] {
        warm(&ours, "a").await;
        let mut update = ours.begin(Mode::Update).unwrap();
        read(&mut update, "a").await.unwrap();
        update.put("n".into(), "b".into(), b"from a".to_vec()).unwrap();
        put(writer, "a", "2").await;
        assert!(matches!(update.commit().await, Err(Error::Conflict)));
        assert_eq!(get(&ours, "b").await, None);
    }
}

#[tokio::test]
async fn a_commit_that_fails_changes_nothing_that_is_cached() {
    let (_folder, ours, _) = two().await;
    let version = put(&ours, "a", "1").await;
    warm(&ours, "a").await;
    let mut refused = ours.begin(Mode::Update).unwrap();
    refused.put("n".into(), "a".into(), b"2".to_vec()).unwrap();
    refused.delete_if_version("n".into(), "b".into(), Version(version.0 + 7)).unwrap();
    assert!(matches!(refused.commit().await, Err(Error::Conflict)));
    assert_eq!(get(&ours, "a").await, Some("1".to_string()));
    put(&ours, "a", "3").await;
    assert_eq!(get(&ours, "a").await, Some("3".to_string()));
}

#[tokio::test]
async fn rows_with_a_time_to_live_go_when_it_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(MovableClock::default());
    let sqlite = Sqlite::open(folder.path().join("store.db"), SqliteOptions::default()).await.unwrap();
    let store = Store::builder(sqlite).clock(clock.clone()).build().unwrap();
    let ours = handle(&store);
    put(&ours, "a", "for ever").await;
    warm(&ours, "a").await;
    let mut update = ours.begin(Mode::Update).unwrap();
    let options = PutOptions::default().ttl_ms(100);
    update.put_with("n".into(), "a".into(), b"short".to_vec(), options).unwrap();
    update.commit().await.unwrap();
    assert_eq!(warm(&ours, "a").await, Some("short".to_string()));
    clock.advance(Duration::from_millis(100));
    assert_eq!(warm(&ours, "a").await, None);
    put(&ours, "a", "again").await;
    assert_eq!(warm(&ours, "a").await, Some("again".to_string()));
}

#[tokio::test]
async fn a_store_without_a_cache_gives_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions::default().cache_bytes(0);
    let sqlite = Sqlite::open(folder.path().join("store.db"), options).await.unwrap();
    let ours = handle(&Store::builder(sqlite).build().unwrap());
    put(&ours, "a", "1").await;
    let mut view = ours.begin(Mode::View).unwrap();
    assert_eq!(read(&mut view, "a").await.unwrap(), Some("1".to_string()));
    put(&ours, "a", "2").await;
    assert_eq!(read(&mut view, "a").await.unwrap(), Some("1".to_string()));
    assert_eq!(warm(&ours, "a").await, Some("2".to_string()));
}

/// Each commit writes one number to all rows. A view that reads two different numbers saw two
/// states.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_beside_writers_of_two_processes_see_one_state_each_and_never_an_older_one() {
    const ROWS: u64 = 20;
    let (_folder, ours, theirs) = two().await;
    let (ours, theirs) = (Arc::new(ours), Arc::new(theirs));
    let ended = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    let (writer, is_ended) = (ours.clone(), ended.clone());
    tasks.spawn(async move {
        let mut commits = 0;
        while !is_ended.load(Ordering::Relaxed) {
            write_all(&writer, ROWS).await;
            commits += 1;
        }
        commits
    });
    for _ in 0..3 {
        let (reader, is_ended) = (ours.clone(), ended.clone());
        tasks.spawn(async move {
            let (mut newest, mut reads) = (0, 0);
            while !is_ended.load(Ordering::Relaxed) {
                let Some(number) = read_two(&reader, ROWS).await else { continue };
                assert!(number >= newest, "{number} after {newest}");
                newest = number;
                reads += 1;
            }
            assert!(reads > 0);
            0
        });
    }
    for _ in 0..20 {
        write_all(&theirs, ROWS).await;
        // Sometimes longer than this process is wary of another one.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..250))).await;
    }
    ended.store(true, Ordering::Relaxed);
    let mut commits = 20;
    while let Some(done) = tasks.join_next().await {
        commits += done.unwrap();
    }
    assert_eq!(read_two(&ours, ROWS).await, Some(commits));
}

/// Each update reads the whole range and adds the next row. If a commit missed a change, a number
/// would appear twice. If a version were too low, the versions would be out of order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn updates_of_several_processes_on_one_range_come_one_after_the_other() {
    const COMMITS: u64 = 60;
    let (folder, ours, theirs) = two().await;
    let options = SqliteOptions::default().cache_bytes(0);
    let uncached = Sqlite::open(folder.path().join("store.db"), options).await.unwrap();
    let uncached = handle(&Store::builder(uncached).build().unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for handle in [ours, theirs, uncached].map(Arc::new) {
        for _ in 0..2 {
            let handle = handle.clone();
            tasks.spawn(async move {
                for _ in 0..COMMITS {
                    add_next(&handle).await;
                    // Sometimes, one process is alone for longer than it is wary of the other.
                    let pause =
                        if fastrand::u8(..20) == 0 { fastrand::u64(..150) } else { fastrand::u64(..3) };
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            });
        }
    }
    tasks.join_all().await;
    let reader = open(&folder.path().join("store.db")).await;
    let mut view = reader.begin(Mode::View).unwrap();
    let mut newest = Version::ABSENT;
    for number in 0..6 * COMMITS {
        let (_, version) = view.get_versioned("n".into(), format!("{number:05}")).await.unwrap().unwrap();
        assert!(version > newest, "{number}: {version:?} after {newest:?}");
        newest = version;
    }
    let all = view.scan("n".into(), String::new()).await.unwrap();
    assert_eq!(all.len() as u64, 6 * COMMITS);
}

/// Adds a row whose number is the count of the rows before it.
async fn add_next(handle: &Handle) {
    loop {
        let mut update = handle.begin(Mode::Update).unwrap();
        let added = async {
            let rows = update.scan("n".into(), String::new()).await?.len();
            update.put("n".into(), format!("{rows:05}"), Vec::new())?;
            update.commit().await
        };
        match added.await {
            Ok(_) => return,
            Err(Error::Conflict) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Adds 1 to the number in all rows.
async fn write_all(handle: &Handle, rows: u64) {
    loop {
        let mut update = handle.begin(Mode::Update).unwrap();
        let number = match read(&mut update, "0").await {
            Ok(value) => value.map_or(0, |value| value.parse::<u64>().unwrap()) + 1,
            Err(Error::Conflict) => continue,
            Err(error) => panic!("{error}"),
        };
        for row in 0..rows {
            update.put("n".into(), row.to_string(), number.to_string().into_bytes()).unwrap();
        }
        match update.commit().await {
            Ok(_) => return,
            Err(Error::Conflict) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The number in two rows; `None` if the read conflicts with a commit of another process.
async fn read_two(handle: &Handle, rows: u64) -> Option<u64> {
    let mut view = handle.begin(Mode::View).unwrap();
    let mut numbers = Vec::new();
    for _ in 0..2 {
        match read(&mut view, &fastrand::u64(..rows).to_string()).await {
            Ok(value) => numbers.push(value.map_or(0, |value| value.parse().unwrap())),
            Err(Error::Conflict) => return None,
            Err(error) => panic!("{error}"),
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(numbers.first(), numbers.last());
    numbers.pop()
}
