//! Whole databases as files: backups, checks, and the files that a close leaves.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use larder_core::backend::Backend;
use larder_core::commit::Mutation;
use larder_core::snapshot::SnapshotOptions;
use larder_core::{Error, Mode, Share, Version};
use larder_sqlite::{Sqlite, SqliteOptions};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backup_under_constant_commits_is_exactly_the_state_at_its_position() {
    let (folder, path) = folder();
    let database = Arc::new(Sqlite::open_positioned(&path, SqliteOptions::default()).await.unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4 {
        let (database, stop) = (database.clone(), stop.clone());
        tasks.spawn(async move {
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                // Every third change is a record write, which moves the position too.
                if turn % 3 == 0 {
                    let session = format!("{task}-{turn}");
                    database.write_record(record_write(&session, 0, Some((7, &[7; 900])))).await.unwrap();
                } else {
                    commit(&database, &format!("{task}-{turn}"), &[1; 900]).await.unwrap();
                }
                turn += 1;
            }
        });
    }
    let mut last = Version::ABSENT;
    for turn in 0..8 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let copy = folder.path().join(format!("copy-{turn}.db"));
        let before = (database.redo_position().await.unwrap(), database.changes());
        let info = database.backup(&copy).await.unwrap();
        let after = (database.redo_position().await.unwrap(), database.changes());
        assert!(before.0 <= info.position && info.position <= after.0, "{before:?} {info:?} {after:?}");
        assert!(before.1 <= info.changes && info.changes <= after.1, "{before:?} {info:?} {after:?}");
        assert!(info.position > last);
        last = info.position;
        assert_eq!(info.bytes, copy.metadata().unwrap().len());
        // Bytes 18 and 19 of the header say that the database has no write-ahead log.
        assert_eq!(std::fs::read(&copy).unwrap()[18..20], [1, 1]);
        Sqlite::verify(&copy).await.unwrap();
        let found = dump(&copy);
        assert_eq!(found.position, info.position.0);
        // Every change wrote one row or one record of its own, so there are as many as changes.
        assert_eq!((found.rows.len() + found.records.len()) as u64, info.changes);
        let versions: BTreeSet<u64> = found.rows.values().map(|row| row.version.0).collect();
        assert_eq!(versions.len(), found.rows.len());
        assert!(versions.last().is_none_or(|newest| *newest <= info.position.0));
    }
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    // The last copy holds every commit up to its position.
    let (copied, now) = (dump(&folder.path().join("copy-7.db")), dump(&path));
    let expected: Vec<_> = now.rows.into_iter().filter(|(_, row)| row.version.0 <= copied.position).collect();
    assert_eq!(copied.rows.into_iter().collect::<Vec<_>>(), expected);
    database.finish().await.unwrap();
    let mut expected: Vec<String> = (0..8).map(|turn| format!("copy-{turn}.db")).collect();
    expected.push("store.db".to_string());
    assert_eq!(names(folder.path()), expected);
}

#[tokio::test]
async fn a_backup_never_overwrites_and_leaves_nothing_when_it_fails() {
    let (folder, path) = folder();
    let database = open(&path).await;
    let taken = folder.path().join("taken.db");
    std::fs::write(&taken, b"foreign").unwrap();
    assert!(matches!(database.backup(&taken).await, Err(Error::Unavailable { .. })));
    assert_eq!(std::fs::read(&taken).unwrap(), b"foreign");
    let nowhere = folder.path().join("nowhere").join("copy.db");
    assert!(matches!(database.backup(&nowhere).await, Err(Error::Unavailable { .. })));
    database.finish().await.unwrap();
    assert!(matches!(database.backup(&folder.path().join("late.db")).await, Err(Error::Closed)));
    assert_eq!(names(folder.path()), ["store.db", "taken.db"]);
}

#[tokio::test]
async fn a_copy_opens_as_a_store_and_goes_on_from_its_position() {
    let (folder, path) = folder();
    let database = open_positioned(&path).await;
    commit(&database, "a", b"1").await.unwrap();
    let copy = folder.path().join("copy.db");
    let info = database.backup(&copy).await.unwrap();
    assert_eq!((info.position, info.changes), (Version(1), 1));
    let copied = open_positioned(&copy).await;
    assert_eq!(copied.redo_position().await.unwrap(), Version(1));
    assert_eq!(commit(&copied, "b", b"2").await.unwrap(), Version(2));
}

#[tokio::test]
async fn a_close_waits_for_reads_under_way_and_leaves_one_file() {
    let (folder, path) = folder();
    let database = open(&path).await;
    for turn in 0..100 {
        commit(&database, &turn.to_string(), &[0; 2_000]).await.unwrap();
    }
    assert_eq!(names(folder.path()), ["store.db", "store.db-shm", "store.db-wal"]);
    let options =
        SnapshotOptions::new(Mode::View, clock_at(1), Instant::now() + Duration::from_secs(5), Share::host());
    let mut snapshot = database.snapshot(options).await.unwrap();
    snapshot.get(&row("0")).await.unwrap();
    let read = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let found = snapshot.get(&row("99")).await.unwrap().unwrap();
        drop(snapshot);
        found.version
    };
    let (finished, version) = tokio::join!(database.finish(), read);
    finished.unwrap();
    assert_eq!(version, Version(100));
    assert_eq!(names(folder.path()), ["store.db"]);
    assert_eq!(dump(&path).rows.len(), 100);
    // A second call is harmless.
    database.finish().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_is_kept_after_the_close_moves_the_log_with_its_end() {
    let (folder, path) = folder();
    let database = open(&path).await;
    commit(&database, "a", b"1").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let options = SnapshotOptions::new(Mode::View, clock_at(1), deadline, Share::host());
    let mut snapshot = database.snapshot(options).await.unwrap();
    snapshot.get(&row("a")).await.unwrap();
    assert!(matches!(database.finish().await, Err(Error::Unavailable { .. })));
    assert!(names(folder.path()).contains(&"store.db-wal".to_string()));
    drop(snapshot);
    assert_eq!(names(folder.path()), ["store.db"]);
    assert_eq!(dump(&path).rows.len(), 1);
}

#[tokio::test]
async fn changes_count_what_changed_something_and_wake_who_waits() {
    let (_folder, path) = folder();
    let database = open_positioned(&path).await;
    let mut changes = database.watch_changes();
    assert_eq!((database.changes(), database.redo_position().await.unwrap()), (0, Version(0)));
    commit(&database, "text", b"no counter").await.unwrap();
    changes.changed().await.unwrap();
    assert_eq!(*changes.borrow_and_update(), 1);
    let refused = commit_of(1, [("text", Mutation::Increment(1))]);
    assert!(matches!(database.commit(refused).await, Err(Error::InvalidArgument(_))));
    database.commit(commit_of(1, [])).await.unwrap();
    assert!(matches!(database.write_record(record_write("s", 9, None)).await, Err(Error::Conflict)));
    assert_eq!((database.changes(), database.redo_position().await.unwrap()), (1, Version(1)));
    assert!(!changes.has_changed().unwrap());

    database.write_record(record_write("s", 0, Some((5, b"{}")))).await.unwrap();
    assert_eq!((database.changes(), database.redo_position().await.unwrap()), (2, Version(2)));
    let expiring = commit_of(1, [("short", put(b"", Some(10)))]);
    assert_eq!(database.commit(expiring).await.unwrap().version, Version(3));
    assert_eq!(database.sweep(sweep_at(5, 10)).await.unwrap().rows, 0);
    assert_eq!(database.changes(), 3);
    assert_eq!(database.sweep(sweep_at(11, 10)).await.unwrap().rows, 1);
    // A sweep counts as a change, but does not move the position.
    assert_eq!((database.changes(), database.redo_position().await.unwrap()), (4, Version(3)));
}

#[tokio::test]
async fn a_positioned_database_stays_positioned_however_it_is_opened() {
    let (_folder, path) = folder();
    let plain = open(&path).await;
    plain.write_record(record_write("a", 0, Some((1, b"")))).await.unwrap();
    assert_eq!(plain.redo_position().await.unwrap(), Version(0));
    plain.finish().await.unwrap();
    let positioned = Sqlite::open_positioned(&path, SqliteOptions::default()).await.unwrap();
    positioned.write_record(record_write("b", 0, Some((1, b"")))).await.unwrap();
    assert_eq!(positioned.redo_position().await.unwrap(), Version(1));
    positioned.finish().await.unwrap();
    let plain = open(&path).await;
    plain.write_record(record_write("c", 0, Some((1, b"")))).await.unwrap();
    assert_eq!(plain.redo_position().await.unwrap(), Version(2));
    // A record write moved the position, so the next row gets the version after it.
    assert_eq!(commit(&plain, "a", b"").await.unwrap(), Version(3));
}

fn set_application_id(path: &Path, id: i32) {
    rusqlite::Connection::open(path).unwrap().pragma_update(None, "application_id", id).unwrap();
}

/// An intact database in one file.
async fn filled(path: &Path) {
    let database = open(path).await;
    for turn in 0..200 {
        commit(&database, &format!("{turn:03}"), &[1; 1_000]).await.unwrap();
    }
    database.finish().await.unwrap();
}

async fn reason(path: &Path) -> String {
    match Sqlite::verify(path).await {
        Err(Error::Corrupt(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_intact_database_is_verified_and_left_as_it_is() {
    let (folder, _) = folder();
    let path = folder.path().join("a?b% #'c.db");
    filled(&path).await;
    let before = std::fs::read(&path).unwrap();
    Sqlite::verify(&path).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == before);
    assert_eq!(names(folder.path()), ["a?b% #'c.db"]);
    // `LRDR`, big-endian, at the application id of SQLite's header.
    assert_eq!(before[68..72], *b"LRDR");
    // As an earlier release left it.
    set_application_id(&path, 0);
    Sqlite::verify(&path).await.unwrap();
}

#[tokio::test]
async fn a_database_with_its_log_beside_it_is_verified_with_what_the_log_holds() {
    let (folder, path) = folder();
    let database = open_positioned(&path).await;
    commit(&database, "a", b"1").await.unwrap();
    // Files as a crash leaves them.
    let crashed = folder.path().join("crashed.db");
    std::fs::copy(&path, &crashed).unwrap();
    std::fs::copy(folder.path().join("store.db-wal"), folder.path().join("crashed.db-wal")).unwrap();
    Sqlite::verify(&crashed).await.unwrap();
    assert_eq!(dump(&crashed).position, 1);
}

#[tokio::test]
async fn what_is_no_intact_database_of_larder_is_corrupt() {
    let (folder, path) = folder();
    filled(&path).await;
    let bytes = std::fs::read(&path).unwrap();
    let case = folder.path().join("case.db");

    std::fs::write(&case, []).unwrap();
    assert!(reason(&case).await.contains("shorter than the header of a database"));
    std::fs::write(&case, &bytes[..50]).unwrap();
    assert!(reason(&case).await.contains("shorter than the header of a database"));
    std::fs::write(&case, [b'x'; 9_000]).unwrap();
    assert!(reason(&case).await.contains("not an intact SQLite database"));
    // Cut in half, within a page and between two, and with only the header left.
    for length in [bytes.len() / 2 / 4_096 * 4_096, bytes.len() / 2 + 100, 4_096, 100] {
        std::fs::write(&case, &bytes[..length]).unwrap();
        assert!(matches!(Sqlite::verify(&case).await, Err(Error::Corrupt(_))), "{length}");
    }
    // The magic string, and noise after it.
    let mut noise = bytes[..16].to_vec();
    noise.extend((0..9_000_u32).map(|byte| (byte.wrapping_mul(2_654_435_761) >> 24) as u8));
    std::fs::write(&case, &noise).unwrap();
    assert!(matches!(Sqlite::verify(&case).await, Err(Error::Corrupt(_))));
    // The root page of the rows is lost.
    let root: usize = rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'larder_entries'", [], |row| row.get(0))
        .unwrap();
    let mut hole = bytes.clone();
    hole[(root - 1) * 4_096..root * 4_096].fill(0);
    std::fs::write(&case, &hole).unwrap();
    assert!(matches!(Sqlite::verify(&case).await, Err(Error::Corrupt(_))));

    std::fs::write(&case, &bytes).unwrap();
    set_application_id(&case, 7);
    Sqlite::verify(&case).await.unwrap();
    let forged = "DROP TABLE larder_migrations; CREATE TABLE larder_migrations (number INTEGER)";
    rusqlite::Connection::open(&case).unwrap().execute_batch(forged).unwrap();
    assert!(reason(&case).await.contains("belongs to another application"));
    std::fs::remove_file(&case).unwrap();
    rusqlite::Connection::open(&case).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(reason(&case).await.contains("has no tables of larder"));
    std::fs::remove_file(&case).unwrap();
    assert!(matches!(Sqlite::verify(&case).await, Err(Error::Unavailable { .. })));
    assert_eq!(names(folder.path()), ["store.db"]);
}

#[tokio::test]
async fn a_database_of_an_earlier_release_and_another_applications_keep_their_application_id() {
    let (_folder, path) = folder();
    filled(&path).await;
    for id in [0, 7] {
        set_application_id(&path, id);
        let database = open(&path).await;
        assert!(database.redo_position().await.unwrap() >= Version(200));
        database.finish().await.unwrap();
        let header = std::fs::read(&path).unwrap();
        assert_eq!(header[68..72], id.to_be_bytes());
    }
}
