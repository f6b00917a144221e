//! The file that a store has open: paths, links, working directories, and files that are moved
//! meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]
#![cfg(unix)]

mod common;

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::*;
use larder_core::backend::{Backend, SweepOptions};
use larder_core::snapshot::SnapshotOptions;
use larder_core::{Driver, Error, ForwardClock, Mode, Result, Share};
use larder_schema::{Ledger, StepSet};
use larder_sqlite::{Sqlite, SqliteDriver, SqliteMigrator, SqliteOptions};

fn options() -> SnapshotOptions {
    SnapshotOptions::new(
        Mode::View,
        ForwardClock::default(),
        Instant::now() + Duration::from_secs(5),
        Share::host(),
    )
}

async fn get(database: &Sqlite, key: &str) -> Result<Option<Vec<u8>>> {
    let mut snapshot = database.snapshot(options()).await?;
    let found = match snapshot.get_now(&row(key)) {
        Some(found) => found,
        None => snapshot.get(&row(key)).await?,
    };
    Ok(found.map(|stored| stored.value))
}

fn is_moved(outcome: Result<impl std::fmt::Debug>) -> bool {
    matches!(&outcome, Err(Error::Unavailable { reason, .. }) if reason.contains("moved, removed or replaced"))
        || panic!("{outcome:?}")
}

/// Whether this process holds the lock that marks a file as in use.
///
/// The kernel's list of locks may be incomplete if other threads lock and unlock while it is read,
/// and locks may be held only for a moment. So the list is read several times.
fn holds_lock(path: &Path) -> bool {
    // The first byte that SQLite locks for reading.
    const SHARED_FIRST: &str = "1073741826";
    let ours = std::process::id().to_string();
    let name = format!(":{}", path.metadata().unwrap().ino());
    let is_it = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(4) == Some(&ours.as_str())
            && fields.get(5).is_some_and(|inode| inode.ends_with(&name))
            && fields.get(6) == Some(&SHARED_FIRST)
    };
    (0..32).any(|_| std::fs::read_to_string("/proc/locks").unwrap().lines().any(is_it))
}

/// Opens the file, reads, and closes it with the SQLite of another program, which is most likely
/// older.
fn look_from_outside(path: &Path) {
    let program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                   c.execute('SELECT count(*) FROM larder_entries').fetchone(); c.close()";
    assert!(Command::new("python3").args(["-c", program]).arg(path).status().unwrap().success());
}

#[tokio::test]
async fn whatever_looks_at_a_live_database_its_locks_stay_and_no_other_process_takes_its_log_away() {
    let (folder, path) = folder();
    let database = open_positioned(&path).await;
    commit(&database, "before", b"1").await.unwrap();
    assert!(holds_lock(&path));
    let steps = StepSet::embedded(&[("0001_mine.sql", "CREATE TABLE mine (x)")]).unwrap();
    let migrator = SqliteMigrator::new(&path, steps, Ledger::new("mine_migrations").unwrap());

    Sqlite::verify(&path).await.unwrap();
    assert!(holds_lock(&path), "verify");
    database.backup(&folder.path().join("copy.db")).await.unwrap();
    assert!(holds_lock(&path), "backup");
    migrator.status().await.unwrap();
    migrator.up().await.unwrap();
    migrator.with_connection(|_| ()).await.unwrap();
    assert!(holds_lock(&path), "migrator");
    let second = open_positioned(&path).await;
    commit(&second, "second", b"2").await.unwrap();
    second.close().await;
    drop(second);
    assert!(holds_lock(&path), "a second store");

    look_from_outside(&path);
    assert!(names(folder.path()).contains(&"store.db-wal".to_string()));
    commit(&database, "after", b"3").await.unwrap();
    look_from_outside(&path);
    database.finish().await.unwrap();
    let keys: Vec<_> = dump(&path).rows.into_keys().map(|(_, key)| key).collect();
    assert_eq!(keys, [b"after".to_vec(), b"before".to_vec(), b"second".to_vec()]);
}

#[tokio::test]
async fn a_database_behind_a_symlink_is_verified_finished_and_checkpointed_where_it_really_is() {
    let (folder, _) = folder();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let (link, real) = (folder.path().join("link.db"), folder.path().join("data/real.db"));
    symlink("data/real.db", &link).unwrap();
    let database = open(&link).await;
    for turn in 0..100 {
        commit(&database, &format!("{turn:03}"), &[1; 100_000]).await.unwrap();
    }
    Sqlite::verify(&link).await.unwrap();
    // The log is checkpointed in the background once it has 4 MiB.
    let checkpointed = async {
        while real.metadata().unwrap().len() < 9_000_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), checkpointed).await.unwrap();
    database.finish().await.unwrap();
    assert_eq!(names(folder.path()), ["data", "link.db"]);
    assert_eq!(names(real.parent().unwrap()), ["real.db"]);
}

#[tokio::test]
async fn a_symlink_that_is_turned_while_the_store_is_open_changes_nothing() {
    let (folder, path) = folder();
    let link = folder.path().join("link.db");
    symlink(&path, &link).unwrap();
    let database = open(&link).await;
    commit(&database, "a", b"1").await.unwrap();
    std::fs::remove_file(&link).unwrap();
    symlink(folder.path().join("other.db"), &link).unwrap();
    let held = [database.snapshot(options()).await.unwrap(), database.snapshot(options()).await.unwrap()];
    commit(&database, "a", b"2").await.unwrap();
    assert_eq!(get(&database, "a").await.unwrap(), Some(b"2".to_vec()));
    drop(held);
    database.finish().await.unwrap();
    assert_eq!(names(folder.path()), ["link.db", "store.db"]);
}

/// Something that happens to a file while it is open, other than a write.
type Fate = (&'static str, fn(&Path));

const FATES: [Fate; 6] = [
    ("renamed", |path| std::fs::rename(path, path.with_extension("away")).unwrap()),
    ("removed", |path| std::fs::remove_file(path).unwrap()),
    ("replaced", |path| {
        std::fs::copy(path, path.with_extension("new")).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }),
    ("without its log", |path| std::fs::remove_file(format!("{}-wal", path.display())).unwrap()),
    ("without the index", |path| std::fs::remove_file(format!("{}-shm", path.display())).unwrap()),
    ("with another index", |path| {
        let index = format!("{}-shm", path.display());
        std::fs::copy(&index, path.with_extension("new")).unwrap();
        std::fs::rename(path.with_extension("new"), index).unwrap();
    }),
];

#[tokio::test]
async fn a_file_that_meets_something_is_noticed_by_a_ping_and_all_further_work_is_refused() {
    for (fate, befall) in FATES {
        let (_folder, path) = folder();
        let database = open_positioned(&path).await;
        commit(&database, "a", b"1").await.unwrap();
        database.ping().await.unwrap();
        befall(&path);
        let replaced = path.exists().then(|| std::fs::read(&path).unwrap());
        assert!(is_moved(database.ping().await), "{fate}");
        assert!(is_moved(commit(&database, "b", b"2").await));
        assert!(is_moved(get(&database, "a").await));
        assert!(is_moved(database.write_record(record_write("s", 0, Some((7, b"x")))).await));
        let sweep = SweepOptions::new(ForwardClock::default(), 10, u64::MAX);
        assert!(is_moved(database.sweep(sweep).await));
        assert!(is_moved(database.redo_position().await));
        assert!(is_moved(database.load_record(&record_key("s")).await));
        database.close().await;
        if fate.starts_with("with") {
            // The connections still have the database open.
            assert_eq!(dump(&path).rows.len(), 1);
        } else {
            assert!(path.exists().then(|| std::fs::read(&path).unwrap()) == replaced, "{fate}");
        }
    }
}

#[tokio::test]
async fn a_file_that_meets_something_is_noticed_by_a_new_connection() {
    for (fate, befall) in &FATES[..3] {
        let (_folder, path) = folder();
        let database = Sqlite::open(&path, SqliteOptions::default().cache_bytes(0)).await.unwrap();
        commit(&database, "a", b"1").await.unwrap();
        let held = database.snapshot(options()).await.unwrap();
        befall(&path);
        assert!(is_moved(database.snapshot(options()).await.map(drop)), "{fate}");
        assert!(is_moved(commit(&database, "b", b"2").await), "{fate}");
        drop(held);
        assert_eq!(*fate == "replaced", path.exists());
    }
}

#[tokio::test]
async fn a_file_that_meets_something_is_noticed_in_the_background() {
    for (fate, befall) in FATES {
        let (_folder, path) = folder();
        let database = open(&path).await;
        commit(&database, "a", b"1").await.unwrap();
        befall(&path);
        let noticed = async {
            let mut turn = 0;
            while commit(&database, &format!("{turn}"), b"1").await.is_ok() {
                turn += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), noticed).await.unwrap_or_else(|_| panic!("{fate}"));
        assert!(is_moved(get(&database, "a").await));
    }
}

#[tokio::test]
async fn an_index_that_is_removed_while_two_processes_commit_loses_no_commit_that_was_made_after_the_next_look()
 {
    let (_folder, path) = folder();
    let database = open(&path).await;
    commit(&database, "a", b"1").await.unwrap();
    std::fs::remove_file(format!("{}-shm", path.display())).unwrap();
    assert!(is_moved(database.ping().await));
    assert!(is_moved(commit(&database, "b", b"1").await));
    look_from_outside(&path);
    database.close().await;
    assert_eq!(dump(&path).rows.len(), 1);
}

#[tokio::test]
async fn a_file_with_a_second_name_or_with_the_name_of_a_queue_is_refused() {
    let (folder, path) = folder();
    open(&path).await.finish().await.unwrap();
    let second = folder.path().join("second.db");
    std::fs::hard_link(&path, &second).unwrap();
    for path in [&path, &second] {
        let refused = Sqlite::open(path, SqliteOptions::default()).await;
        let Err(Error::Other { reason, .. }) = refused.map(drop) else { panic!("{path:?} was opened") };
        assert!(reason.contains("2 names (hard links)"), "{reason}");
    }
    std::fs::remove_file(&second).unwrap();
    open(&path).await.finish().await.unwrap();
    let queue = Sqlite::open(folder.path().join("a.db-turn"), SqliteOptions::default()).await;
    assert!(matches!(queue.map(drop), Err(Error::InvalidArgument(_))));
    assert_eq!(names(folder.path()), ["store.db"]);
}

#[tokio::test]
async fn a_store_that_writes_is_refused_as_long_as_one_of_the_same_process_only_looks() {
    let (_folder, path) = folder();
    let other = rusqlite::Connection::open(&path).unwrap();
    open(&path).await.close().await;
    other.execute_batch("CREATE TABLE beside (x)").unwrap();
    let dsn = format!("sqlite:{}", path.display());
    let looking = SqliteDriver.open_read_only(&dsn).await.unwrap();
    looking.ping().await.unwrap();
    let refused = Sqlite::open(&path, SqliteOptions::default()).await;
    let Err(Error::Other { reason, .. }) = refused.map(drop) else { panic!("it was opened") };
    assert!(reason.contains("for reading only"), "{reason}");
    looking.close().await;
    drop(looking);
    let database = open(&path).await;
    commit(&database, "a", b"1").await.unwrap();
    let looking = SqliteDriver.open_read_only(&dsn).await.unwrap();
    looking.ping().await.unwrap();
    commit(&database, "b", b"1").await.unwrap();
    looking.close().await;
    database.close().await;
    drop(other);
}

/// Runs the test alone in a process of its own, because the working directory belongs to the whole
/// process.
fn in_a_process_of_its_own(test: &str) -> bool {
    const CHILD: &str = "LARDER_LOCATION_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let program = std::env::current_exe().unwrap();
    let status = Command::new(program).args(["--exact", test]).env(CHILD, "yes").status().unwrap();
    assert!(status.success());
    false
}

#[tokio::test]
async fn a_relative_path_means_one_file_wherever_the_process_goes() {
    if !in_a_process_of_its_own("a_relative_path_means_one_file_wherever_the_process_goes") {
        return;
    }
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::env::set_current_dir(folder.path()).unwrap();
    let steps = StepSet::embedded(&[("0001_mine.sql", "CREATE TABLE mine (x)")]).unwrap();
    let migrator = SqliteMigrator::new("store.db", steps, Ledger::new("mine_migrations").unwrap());
    let options_without_cache = SqliteOptions::default().cache_bytes(0);
    let database = Sqlite::open("store.db", options_without_cache).await.unwrap();
    commit(&database, "a", b"1").await.unwrap();
    std::env::set_current_dir(elsewhere.path()).unwrap();
    let held = [database.snapshot(options()).await.unwrap(), database.snapshot(options()).await.unwrap()];
    assert_eq!(get(&database, "a").await.unwrap(), Some(b"1".to_vec()));
    drop(held);
    migrator.up().await.unwrap();
    database.ping().await.unwrap();
    database.finish().await.unwrap();
    assert_eq!(names(folder.path()), ["store.db"]);
    assert!(names(elsewhere.path()).is_empty());
}

#[tokio::test]
async fn a_name_that_looks_like_a_uri_is_the_name_of_a_file() {
    if !in_a_process_of_its_own("a_name_that_looks_like_a_uri_is_the_name_of_a_file") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::env::set_current_dir(folder.path()).unwrap();
    let backend = SqliteDriver.open("sqlite:file:a.db").await.unwrap();
    backend.close().await;
    let backend = SqliteDriver.open("sqlite:file:b.db%3Fmode=memory").await.unwrap();
    backend.close().await;
    assert_eq!(names(folder.path()), ["file:a.db", "file:b.db?mode=memory"]);
    for path in ["", ":memory:"] {
        let refused = Sqlite::open(path, SqliteOptions::default()).await;
        assert!(matches!(refused.map(drop), Err(Error::InvalidArgument(_))), "{path}");
    }
}
