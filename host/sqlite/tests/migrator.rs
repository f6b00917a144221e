//! A platform's own tables in a SQLite file, as the platform meets them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use larder_core::Error;
use larder_core::schema::{Ledger, MigrationError, SchemaError, Step, StepSet, is_missing_migration};
use larder_sqlite::rusqlite::{self, Connection};
use larder_sqlite::{Sqlite, SqliteMigrator, SqliteOptions};
use tempfile::TempDir;

/// As a service for findings of scans has them: references, checks, and what is deleted with its parent.
const SCANS: &str = "
    -- Both are enforced, or the data is worth nothing.
    CREATE TABLE scans (id TEXT PRIMARY KEY, source TEXT NOT NULL CHECK (source IN ('cli', 'server'))) STRICT;
    CREATE TABLE findings (
        id       TEXT PRIMARY KEY,
        scan     TEXT NOT NULL REFERENCES scans (id) ON DELETE CASCADE,
        severity TEXT NOT NULL CHECK (severity IN ('low', 'high'))
    ) STRICT;";
const SESSIONS: &str = "CREATE TABLE sessions (id TEXT PRIMARY KEY) STRICT";
const TEAMS: &str = "CREATE TABLE teams (id TEXT PRIMARY KEY) STRICT";

const FILES: [(&str, &str); 3] =
    [("0001_scans.sql", SCANS), ("0002_sessions.sql", SESSIONS), ("0003_teams.sql", TEAMS)];

struct Database {
    folder: TempDir,
}

impl Database {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("platform.db")
    }

    fn migrator(&self, files: &[(&'static str, &'static str)]) -> SqliteMigrator {
        let ledger = Ledger::new("platform_migrations").unwrap();
        SqliteMigrator::new(self.path(), StepSet::embedded(files).unwrap(), ledger)
    }

    /// With this as its second step, after one that is fine.
    fn with_second(&self, sql: &'static str) -> SqliteMigrator {
        self.migrator(&[("0001_teams.sql", TEAMS), ("0002_second.sql", sql)])
    }

    /// Not through larder, to see what is really there.
    fn look<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        Connection::open(self.path()).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn tables(&self) -> String {
        self.look("SELECT group_concat(name, ' ' ORDER BY name) FROM sqlite_schema WHERE type = 'table'")
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(self.folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn numbers(steps: &[Step]) -> Vec<u32> {
    steps.iter().map(Step::number).collect()
}

fn schema_error(error: MigrationError) -> SchemaError {
    let MigrationError::Schema(error) = error else { panic!("{error:?}") };
    error
}

#[tokio::test]
async fn a_fresh_file_gets_every_step_and_a_second_run_finds_nothing_to_do() {
    let database = Database::new();
    let migrator = database.migrator(&FILES);
    assert_eq!(numbers(&migrator.up().await.unwrap()), [1, 2, 3]);
    assert_eq!(migrator.version().await.unwrap(), 3);
    assert_eq!(database.tables(), "findings platform_migrations scans sessions teams");
    assert_eq!(numbers(&migrator.up().await.unwrap()), Vec::<u32>::new());
    assert_eq!(database.look::<i64>("SELECT count(*) FROM platform_migrations"), 3);
}

#[tokio::test]
async fn the_status_says_what_was_applied_and_when_and_what_is_pending() {
    let database = Database::new();
    let first = database.migrator(&FILES[..1]);
    first.up().await.unwrap();
    let status = database.migrator(&FILES).status().await.unwrap();
    let applied = &status.applied[0];
    assert_eq!((applied.number, applied.name.as_str(), status.applied.len()), (1, "scans", 1));
    let year_2020 = 1_577_836_800_000;
    assert!(applied.applied_at > year_2020, "{}", applied.applied_at);
    assert_eq!(numbers(&status.pending), [2, 3]);
    assert_eq!(numbers(&database.migrator(&FILES).up().await.unwrap()), [2, 3]);
}

#[tokio::test]
async fn looking_at_a_schema_writes_nothing() {
    let database = Database::new();
    let migrator = database.migrator(&FILES);
    assert_eq!(numbers(&migrator.status().await.unwrap().pending), [1, 2, 3]);
    assert!(is_missing_migration(&migrator.version().await.unwrap_err()));
    assert_eq!(database.files(), Vec::<PathBuf>::new());
    // A file that others made, which is not in the mode in which larder writes either.
    Connection::open(database.path()).unwrap().execute_batch(TEAMS).unwrap();
    let before = fs::read(database.path()).unwrap();
    assert!(migrator.status().await.unwrap().is_fresh());
    assert!(is_missing_migration(&migrator.version().await.unwrap_err()));
    assert_eq!(fs::read(database.path()).unwrap(), before);
    assert_eq!(database.files(), [database.path()]);
}

/// C4.5: `IsMissingMigration` of the seed is false for every error.
#[tokio::test]
async fn a_fresh_database_is_told_from_all_that_fails_otherwise() {
    let database = Database::new();
    let migrator = database.migrator(&FILES);
    fs::write(database.path(), b"").unwrap();
    assert!(is_missing_migration(&migrator.version().await.unwrap_err()), "an empty file");

    fs::write(database.path(), [b'x'; 4_096]).unwrap();
    let error = migrator.version().await.unwrap_err();
    assert!(!is_missing_migration(&error));
    assert!(matches!(error, MigrationError::Database(Error::Corrupt(_))), "{error:?}");

    let nowhere = database.folder.path().join("missing").join("platform.db");
    let steps = StepSet::embedded(&FILES).unwrap();
    let error =
        SqliteMigrator::new(nowhere, steps, Ledger::new("mine").unwrap()).version().await.unwrap_err();
    assert!(!is_missing_migration(&error));
    assert!(matches!(error, MigrationError::Database(Error::Unavailable { .. })), "{error:?}");
}

/// C4.1: the seed sets them on one of five connections.
#[tokio::test]
async fn every_connection_enforces_foreign_keys_and_waits_for_locks() {
    let database = Database::new();
    let migrator = database.migrator(&FILES).lock_wait(Duration::from_millis(1_234));
    migrator.up().await.unwrap();
    let mut connections = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let migrator = migrator.clone();
        connections.spawn(async move {
            let settings = migrator.with_connection(|connection| {
                ["foreign_keys", "busy_timeout", "synchronous"].map(|name| {
                    connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap()
                })
            });
            settings.await.unwrap()
        });
    }
    assert_eq!(connections.join_all().await, [[1, 1_234, 1]; 8]);
}

#[tokio::test]
async fn what_refers_to_a_deleted_row_goes_with_it() {
    let database = Database::new();
    let migrator = database.migrator(&FILES);
    migrator.up().await.unwrap();
    let left = migrator.with_connection(|connection| -> rusqlite::Result<i64> {
        connection.execute("INSERT INTO scans VALUES ('s', 'cli')", [])?;
        connection.execute("INSERT INTO findings VALUES ('f', 's', 'low')", [])?;
        connection.execute("DELETE FROM scans", [])?;
        connection.query_row("SELECT count(*) FROM findings", [], |row| row.get(0))
    });
    assert_eq!(left.await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_row_that_a_constraint_forbids_is_refused_and_others_are_not() {
    let database = Database::new();
    let migrator = database.migrator(&FILES);
    migrator.up().await.unwrap();
    let outcomes = migrator.with_connection(|connection| {
        [
            "INSERT INTO scans VALUES ('a', 'elsewhere')",
            "INSERT INTO scans VALUES ('b', 'server')",
            "INSERT INTO findings VALUES ('c', 'b', 'severe')",
            "INSERT INTO findings VALUES ('d', 'no scan', 'high')",
            "INSERT INTO findings VALUES ('e', 'b', 'high')",
        ]
        .map(|sql| connection.execute(sql, []).is_ok())
    });
    assert_eq!(outcomes.await.unwrap(), [false, true, false, false, true]);
}

#[tokio::test]
async fn what_is_changed_about_a_connection_ends_with_it() {
    let database = Database::new();
    let migrator = database.migrator(&FILES);
    let off = migrator.with_connection(|connection| {
        connection.execute_batch("PRAGMA foreign_keys = OFF; BEGIN; CREATE TABLE never (x)")
    });
    off.await.unwrap().unwrap();
    let found = migrator.with_connection(|connection| {
        let sql = "SELECT foreign_keys, (SELECT count(*) FROM sqlite_schema) FROM pragma_foreign_keys";
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
    });
    assert_eq!(found.await.unwrap(), Ok((1_i64, 0_i64)));
}

/// C4.3: the seed's documentation says one thing of it, and its code does another.
#[tokio::test]
async fn a_step_that_fails_is_rolled_back_and_those_before_it_stay() {
    let database = Database::new();
    let error =
        database.with_second("CREATE TABLE two (x); INSERT INTO nowhere VALUES (1)").up().await.unwrap_err();
    let MigrationError::StepFailed { number: 2, name, cause: Error::Other { .. } } = error else {
        panic!("{error:?}")
    };
    assert_eq!(name, "second");
    assert_eq!(database.tables(), "platform_migrations teams");
    // Nothing was recorded, so the step may be put right.
    assert_eq!(numbers(&database.with_second(SESSIONS).up().await.unwrap()), [2]);
}

#[tokio::test]
async fn a_constraint_that_is_checked_last_fails_the_step() {
    let database = Database::new();
    let error = database
        .with_second(
            "CREATE TABLE member (team TEXT REFERENCES teams (id) DEFERRABLE INITIALLY DEFERRED);
             INSERT INTO member VALUES ('no such team')",
        )
        .up()
        .await
        .unwrap_err();
    assert!(matches!(error, MigrationError::StepFailed { number: 2, .. }), "{error:?}");
    assert_eq!(database.tables(), "platform_migrations teams");
}

#[tokio::test]
async fn a_step_can_not_take_its_transaction_apart() {
    for sql in [
        "CREATE TABLE two (x); COMMIT",
        "CREATE TABLE two (x); COMMIT; CREATE TABLE three (x)",
        "CREATE TABLE two (x); END TRANSACTION; BEGIN",
        "CREATE TABLE two (x); ROLLBACK; CREATE TABLE three (x)",
        "BEGIN; CREATE TABLE two (x)",
        "CREATE TABLE two (x); SAVEPOINT here; ROLLBACK TO here",
        "CREATE TABLE two (x); /* hidden */ cOmMiT -- here",
        "CREATE TABLE two (x); ATTACH '' AS other",
        "CREATE TABLE two (x); PRAGMA foreign_keys = OFF",
    ] {
        let database = Database::new();
        let error = database.with_second(sql).up().await.unwrap_err();
        assert!(matches!(error, MigrationError::ForbiddenCommand { number: 2, .. }), "{sql}: {error:?}");
        assert_eq!(database.tables(), "platform_migrations teams", "{sql}");
        assert_eq!(database.with_second(SESSIONS).version().await.unwrap(), 1);
    }
    let database = Database::new();
    let error = database.with_second("COMMIT").up().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "schema step 0002_second was rolled back because it begins, ends or divides a transaction; a step runs in \
         one transaction, which the runner begins and ends"
    );
}

#[tokio::test]
async fn a_trigger_has_a_body_and_that_is_no_transaction() {
    let database = Database::new();
    let trigger = "
        CREATE TABLE log (x);
        CREATE TRIGGER logged AFTER INSERT ON teams BEGIN INSERT INTO log VALUES (new.id); END;
        INSERT INTO teams VALUES ('red');
        ALTER TABLE log RENAME TO team_log; -- the end";
    assert_eq!(numbers(&database.with_second(trigger).up().await.unwrap()), [1, 2]);
    assert_eq!(database.look::<String>("SELECT x FROM team_log"), "red");
}

/// C4.7: the seed knows no checksum and no database that is newer than the program.
#[tokio::test]
async fn a_set_that_does_not_continue_the_database_is_refused_and_nothing_is_done() {
    let database = Database::new();
    database.migrator(&FILES[..2]).up().await.unwrap();
    let edited = database.migrator(&[FILES[0], ("0002_sessions.sql", TEAMS), FILES[2]]);
    for error in [edited.up().await.unwrap_err(), edited.version().await.unwrap_err()] {
        assert_eq!(schema_error(error), SchemaError::Edited(2));
    }
    let older = database.migrator(&FILES[..1]);
    for error in [older.up().await.unwrap_err(), older.status().await.unwrap_err()] {
        assert_eq!(schema_error(error), SchemaError::Newer { applied: 2, known: 1 });
    }
    let gap = "DELETE FROM platform_migrations WHERE number = 1";
    Connection::open(database.path()).unwrap().execute_batch(gap).unwrap();
    let error = database.migrator(&FILES).up().await.unwrap_err();
    assert_eq!(schema_error(error), SchemaError::Missing(1));
    assert_eq!(database.tables(), "findings platform_migrations scans sessions");
}

/// C4.4: the seed reads what was applied before it has a lock.
#[tokio::test]
async fn of_many_who_migrate_at_once_one_applies_each_step() {
    let database = Database::new();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let migrator = database.migrator(&FILES);
        tasks.spawn(async move { numbers(&migrator.up().await.unwrap()) });
    }
    let mut applied = tasks.join_all().await.concat();
    applied.sort_unstable();
    assert_eq!(applied, [1, 2, 3]);
}

#[tokio::test]
async fn a_lock_is_waited_for_as_long_as_was_asked_and_only_where_there_is_something_to_do() {
    let database = Database::new();
    database.migrator(&FILES[..2]).up().await.unwrap();
    let other = Connection::open(database.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let wait = Duration::from_millis(30);
    let migrator = database.migrator(&FILES).lock_wait(wait);
    let error = migrator.up().await.unwrap_err();
    let MigrationError::LockHeld { waited, cause: Error::Unavailable { .. } } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*waited, wait);
    assert!(!is_missing_migration(&error));
    assert_eq!(migrator.version().await.unwrap(), 2);
    assert_eq!(numbers(&database.migrator(&FILES[..2]).up().await.unwrap()), Vec::<u32>::new());
    // It is waited for where there is time.
    let patient = tokio::spawn({
        let migrator = migrator.clone().lock_wait(Duration::MAX);
        async move { numbers(&migrator.up().await.unwrap()) }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(patient.await.unwrap(), [3]);
}

#[tokio::test]
async fn a_lock_on_a_file_that_is_still_fresh_is_said_too() {
    let database = Database::new();
    let other = Connection::open(database.path()).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE; CREATE TABLE x (x)").unwrap();
    let migrator = database.migrator(&FILES).lock_wait(Duration::from_millis(30));
    let error = migrator.up().await.unwrap_err();
    assert!(matches!(error, MigrationError::LockHeld { .. }), "{error:?}");
}

#[tokio::test]
async fn a_file_is_shared_with_larder_and_with_other_platforms() {
    let database = Database::new();
    let store = Sqlite::open(database.path(), SqliteOptions::default()).await.unwrap();
    let other = StepSet::embedded(&[("0001_other.sql", "CREATE TABLE other (x)")]).unwrap();
    let other = SqliteMigrator::new(database.path(), other, Ledger::new("other").unwrap());
    // `other` is a table of this set by now, and no ledger: the name was ill-chosen, and that is found.
    other.up().await.unwrap_err();
    let migrator = database.migrator(&FILES);
    assert!(migrator.status().await.unwrap().is_fresh());
    assert_eq!(numbers(&migrator.up().await.unwrap()), [1, 2, 3]);
    assert_eq!(database.look::<i64>("SELECT count(*) FROM larder_migrations"), 2);
    larder_core::backend::Backend::close(&store).await;
}

#[tokio::test]
async fn a_folder_of_files_is_a_set_too() {
    let database = Database::new();
    let folder = tempfile::tempdir().unwrap();
    for (file, sql) in FILES {
        fs::write(folder.path().join(file), sql).unwrap();
    }
    let steps = StepSet::from_folder(folder.path()).unwrap();
    let migrator = SqliteMigrator::new(database.path(), steps, Ledger::new("platform_migrations").unwrap());
    assert_eq!(numbers(&migrator.up().await.unwrap()), [1, 2, 3]);
    // The same steps, wherever they come from.
    assert_eq!(database.migrator(&FILES).version().await.unwrap(), 3);
}
