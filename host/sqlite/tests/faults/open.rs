//! The first open of a database, and a platform's schema migrations, while calls fail.

use larder_core::{HandleOptions, Mode, Store};
use larder_schema::{Ledger, MigrationError, StepSet};
use larder_sqlite::{Sqlite, SqliteMigrator, SqliteOptions};
use rusqlite::Connection;

use larder_sqlite_vfs::{Counts, Disk, Fault};

/// Creates a database while calls fail. Whatever the outcome, the next open must find all tables,
/// and what was committed in between.
pub async fn first_open(fault: Option<Fault>) -> (usize, Counts) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let disk = Disk::watch(folder.path());
    disk.arm(fault);
    let opened = Sqlite::open(&path, SqliteOptions::default()).await;
    let made = disk.disarm();
    assert!(opened.is_ok() || fault.is_some(), "{opened:?}");
    let is_opened = opened.is_ok();
    if let Ok(database) = opened {
        let store = Store::builder(database).sweep_interval(None).build().unwrap();
        put(&store, "a").await;
        store.close().await;
    }
    let database = Sqlite::open(&path, SqliteOptions::default()).await.unwrap();
    let store = Store::builder(database).sweep_interval(None).build().unwrap();
    let mut view = store.handle(HandleOptions::default()).begin(Mode::View).unwrap();
    let found = view.get("n".into(), "a".into()).await.unwrap();
    assert_eq!(found.is_some(), is_opened);
    drop(view);
    put(&store, "b").await;
    store.close().await;
    Sqlite::verify(&path).await.unwrap();
    made
}

async fn put(store: &Store, key: &str) {
    let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
    update.put("n".into(), key.into(), b"1".to_vec()).unwrap();
    update.commit().await.unwrap();
}

/// Each step creates a table and rows in it.
const STEPS: [(&str, &str); 3] = [
    ("0001_a.sql", "CREATE TABLE a (x); INSERT INTO a VALUES (randomblob(9000)); INSERT INTO a VALUES (1)"),
    ("0002_b.sql", "CREATE TABLE b (x); INSERT INTO b SELECT x FROM a; DELETE FROM a"),
    ("0003_c.sql", "CREATE TABLE c (x); INSERT INTO c SELECT x FROM b; INSERT INTO c VALUES (2)"),
];

/// Applies the steps while calls fail. Steps in the ledger must be applied as a whole, and others
/// not at all. A second run must apply each of the others once.
pub async fn migrate(fault: Option<Fault>) -> (usize, Counts) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("platform.db");
    let steps = StepSet::embedded(&STEPS).unwrap();
    let migrator = SqliteMigrator::new(&path, steps, Ledger::new("steps").unwrap());
    // The file exists, so that a failure is that of a step.
    migrator.with_connection(|_| ()).await.unwrap();
    let disk = Disk::watch(folder.path());
    disk.arm(fault);
    let outcome = migrator.up().await;
    let made = disk.disarm();
    assert!(fault.is_some() || outcome.as_ref().is_ok_and(|steps| steps.len() == 3), "{outcome:?}");
    let applied = match migrator.version().await {
        Ok(version) => version,
        Err(MigrationError::Fresh(_)) => 0,
        Err(error) => panic!("{error:?}"),
    };
    // The number of rows in each table that exists, after that many steps.
    let expected: &[&[i64]] = &[&[], &[2], &[0, 2], &[0, 2, 3]];
    assert_eq!(rows(&path), expected[applied as usize], "after {applied} steps and {outcome:?}");
    match &outcome {
        Ok(_) => assert_eq!(applied, 3),
        // The number is that of the step that was rolled back.
        Err(MigrationError::StepFailed { number, .. }) => assert_eq!(*number, applied + 1),
        Err(_) => {}
    }
    assert_eq!(migrator.up().await.unwrap().len(), 3 - applied as usize);
    assert_eq!(rows(&path), [0, 2, 3]);
    made
}

fn rows(path: &std::path::Path) -> Vec<i64> {
    let connection = Connection::open(path).unwrap();
    let intact: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(intact, "ok");
    let count = |table: &&str| {
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).ok()
    };
    ["a", "b", "c"].iter().filter_map(count).collect()
}
