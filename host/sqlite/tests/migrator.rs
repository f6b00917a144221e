//! A platform's own tables in a SQLite file, as the platform uses the migrator.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use larder_core::Error;
use larder_schema::{
    ForeignKeyViolation, Ledger, MigrationError, SchemaError, Step, StepSet, is_missing_migration,
};
use larder_sqlite::rusqlite::{self, Connection};
use larder_sqlite::{Sqlite, SqliteMigrator, SqliteOptions, Synchronous};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Tables as a service for scan findings has them, with references, checks and cascading deletes.
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

    /// A migrator with this SQL as its second step, after a valid first step.
    fn with_second(&self, sql: &'static str) -> SqliteMigrator {
        self.migrator(&[("0001_teams.sql", TEAMS), ("0002_second.sql", sql)])
    }

    /// Reads with plain SQLite, to see what the file really holds.
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

fn schema_error(error: MigrationError<Error>) -> SchemaError {
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
    // A file that another program created, and which is not in WAL mode.
    Connection::open(database.path()).unwrap().execute_batch(TEAMS).unwrap();
    let before = fs::read(database.path()).unwrap();
    assert!(migrator.status().await.unwrap().is_fresh());
    assert!(is_missing_migration(&migrator.version().await.unwrap_err()));
    assert_eq!(fs::read(database.path()).unwrap(), before);
    assert_eq!(database.files(), [database.path()]);
}

/// A fresh database is reported as a missing migration. No other failure is.
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
    assert!(matches!(error, MigrationError::Database(Error::NotFound { .. })), "{error:?}");
}

/// These settings belong to a connection, so each new connection must get them.
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

/// The failed step leaves nothing behind, and can be corrected.
#[tokio::test]
async fn a_step_that_fails_is_rolled_back_and_those_before_it_stay() {
    let database = Database::new();
    let error =
        database.with_second("CREATE TABLE two (x); INSERT INTO nowhere VALUES (1)").up().await.unwrap_err();
    let MigrationError::StepFailed { number: 2, name, cause: Error::Other { .. }, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(name, "second");
    assert_eq!(database.tables(), "platform_migrations teams");
    // Nothing was recorded, so the step may be corrected.
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
    assert!(matches!(error, MigrationError::ForeignKeys { number: 2, .. }), "{error:?}");
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
        "CREATE TABLE two (x); PRAGMA main.Foreign_Keys(1)",
        "CREATE TABLE two (x); PRAGMA soft_heap_limit = 1000000",
        "CREATE TABLE two (x); PRAGMA hard_heap_limit = 1000000",
        "CREATE TABLE two (x); PRAGMA temp_store_directory = '/'",
        "CREATE TABLE two (x); VACUUM",
        "CREATE TABLE two (x); -- smaller\n vacuum INTO 'other.db'",
        "CREATE TABLE two (x); PRAGMA wal_checkpoint(TRUNCATE)",
        "CREATE TABLE two (x); PRAGMA main.WAL_checkpoint",
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
        "schema step \"0002_second.sql\" was rolled back in line 1, at \"COMMIT\": it begins, ends or divides a \
         transaction; remove the command, because the runner begins and ends the transaction of each step"
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

/// A changed, missing or newer step is found by the ledger before anything runs.
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

/// Each migrator must read the ledger again after it has the lock.
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
    // With a longer timeout, it waits.
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
    // The step creates a table with the name of the ledger, so it fails.
    other.up().await.unwrap_err();
    let migrator = database.migrator(&FILES);
    assert!(migrator.status().await.unwrap().is_fresh());
    assert_eq!(numbers(&migrator.up().await.unwrap()), [1, 2, 3]);
    assert_eq!(database.look::<i64>("SELECT count(*) FROM larder_migrations"), 2);
    larder_core::backend::Backend::close(&store).await;
}

/// The migrator of larder's own steps, as `larder schema` uses it.
#[tokio::test]
async fn larders_tables_that_were_altered_by_hand_are_refused_by_the_runner_too() {
    let database = Database::new();
    let store = Sqlite::open(database.path(), SqliteOptions::default()).await.unwrap();
    larder_core::backend::Backend::close(&store).await;
    let dsn = format!("sqlite:{}", database.path().display());
    let migrator = larder_core::Driver::migrator(&larder_sqlite::SqliteDriver, &dsn).unwrap().unwrap();
    assert!(migrator.status().await.unwrap().pending.is_empty());
    assert!(migrator.up().await.unwrap().is_empty());
    let alter = "ALTER TABLE larder_entries ADD COLUMN extra BLOB";
    Connection::open(database.path()).unwrap().execute_batch(alter).unwrap();
    let opened = Sqlite::open(database.path(), SqliteOptions::default()).await;
    let Err(Error::Corrupt(reason)) = opened else { panic!("{:?}", opened.err()) };
    for error in [migrator.status().await.unwrap_err(), migrator.up().await.unwrap_err()] {
        assert!(
            matches!(&error, MigrationError::Database(Error::Corrupt(same)) if *same == reason),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_step_that_fails_because_the_disk_is_full_is_not_blamed_on_the_file() {
    let database = Database::new();
    let fill = "PRAGMA max_page_count = 8; CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(1000000))";
    let error = database.with_second(fill).up().await.unwrap_err();
    assert!(matches!(error, MigrationError::StepFailed { number: 2, cause: Error::Unavailable { .. }, .. }));
    let text = error.to_string();
    assert!(text.contains("the file is not at fault") && !text.contains("correct the file"), "{text}");
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
    // The same steps, from another source.
    assert_eq!(database.migrator(&FILES).version().await.unwrap(), 3);
}

// The environment of a step, and its effects.

const PARENTS: &str = "
    CREATE TABLE parents (id INTEGER PRIMARY KEY, name TEXT);
    CREATE TABLE children (
        id INTEGER PRIMARY KEY,
        parent INTEGER NOT NULL REFERENCES parents (id) ON DELETE CASCADE ON UPDATE CASCADE
    );
    INSERT INTO parents VALUES (1, 'one'), (2, 'two');
    INSERT INTO children VALUES (10, 1), (11, 1), (12, 2);";

const REBUILD: &str = "
    CREATE TABLE new_parents (id INTEGER PRIMARY KEY, name TEXT NOT NULL, age INTEGER);
    INSERT INTO new_parents SELECT id, name, 0 FROM parents;
    DROP TABLE parents;
    ALTER TABLE new_parents RENAME TO parents;";

fn violations(error: MigrationError<Error>) -> Vec<(String, Option<i64>, String)> {
    let MigrationError::ForeignKeys { number: 2, violations, .. } = error else { panic!("{error:?}") };
    assert_eq!(violations.count(), violations.first().len() as u64);
    let violation =
        |violation: &ForeignKeyViolation| (violation.table.clone(), violation.row, violation.parent.clone());
    violations.first().iter().map(violation).collect()
}

#[tokio::test]
async fn a_parent_table_that_is_rebuilt_keeps_its_children() {
    let database = Database::new();
    let migrator = database.migrator(&[("0001_parents.sql", PARENTS), ("0002_rebuild.sql", REBUILD)]);
    assert_eq!(numbers(&migrator.up().await.unwrap()), [1, 2]);
    assert_eq!(database.look::<i64>("SELECT count(*) FROM children"), 3);
    let refers = "SELECT \"table\" FROM pragma_foreign_key_list('children')";
    assert_eq!(database.look::<String>(refers), "parents");
    let left = migrator.with_connection(|connection| -> rusqlite::Result<i64> {
        connection.execute("DELETE FROM parents WHERE id = 1", [])?;
        connection.query_row("SELECT count(*) FROM children", [], |row| row.get(0))
    });
    assert_eq!(left.await.unwrap(), Ok(1), "foreign keys are not enforced after the step");
}

#[tokio::test]
async fn a_step_that_leaves_rows_without_their_parents_fails_and_names_them() {
    let children = |rows: &[i64]| {
        rows.iter().map(|row| ("children".to_string(), Some(*row), "parents".to_string())).collect::<Vec<_>>()
    };
    for (sql, rows) in [
        ("DELETE FROM parents WHERE id = 1", &[10, 11][..]),
        ("UPDATE parents SET id = 7 WHERE id = 2", &[12]),
        ("INSERT INTO children VALUES (13, 9)", &[13]),
        ("DROP TABLE parents", &[10, 11, 12]),
        ("PRAGMA defer_foreign_keys = ON; DELETE FROM parents WHERE id = 2", &[12]),
    ] {
        let database = Database::new();
        let migrator = database.migrator(&[("0001_parents.sql", PARENTS), ("0002_second.sql", sql)]);
        assert_eq!(violations(migrator.up().await.unwrap_err()), children(rows), "{sql}");
        assert_eq!(database.look::<i64>("SELECT count(*) FROM parents, children"), 6, "{sql}");
        assert_eq!(migrator.version().await.unwrap(), 1);
    }
    let database = Database::new();
    let wrong_order = "ALTER TABLE parents RENAME TO old_parents;
        CREATE TABLE parents (id INTEGER PRIMARY KEY, name TEXT);
        INSERT INTO parents SELECT * FROM old_parents; DROP TABLE old_parents";
    let migrator = database.migrator(&[("0001_parents.sql", PARENTS), ("0002_second.sql", wrong_order)]);
    let error = migrator.up().await.unwrap_err();
    assert!(error.to_string().contains("row 10 of \"children\" refers to \"old_parents\""), "{error}");
}

#[tokio::test]
async fn a_step_in_the_earlier_way_of_renaming_tables_leaves_the_next_in_the_usual_one() {
    let database = Database::new();
    let legacy = "PRAGMA legacy_alter_table = ON; ALTER TABLE parents RENAME TO kept; ALTER TABLE kept RENAME TO parents";
    let usual = "ALTER TABLE parents RENAME TO people";
    let migrator = database.migrator(&[
        ("0001_parents.sql", PARENTS),
        ("0002_legacy.sql", legacy),
        ("0003_usual.sql", usual),
    ]);
    assert_eq!(numbers(&migrator.up().await.unwrap()), [1, 2, 3]);
    let refers = "SELECT \"table\" FROM pragma_foreign_key_list('children')";
    assert_eq!(database.look::<String>(refers), "people");
}

#[tokio::test]
async fn rows_that_lacked_their_parents_before_a_step_do_not_fail_it() {
    let database = Database::new();
    database.migrator(&[("0001_parents.sql", PARENTS)]).up().await.unwrap();
    let before = "PRAGMA foreign_keys = OFF; INSERT INTO children VALUES (13, 9), (14, 9);
        CREATE TABLE apart (parent INTEGER REFERENCES parents (name)); INSERT INTO apart VALUES (1);
        CREATE TABLE keyed (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parents (id)) WITHOUT ROWID;
        INSERT INTO keyed VALUES (1, 8), (2, 8)";
    Connection::open(database.path()).unwrap().execute_batch(before).unwrap();
    let second = |sql| database.migrator(&[("0001_parents.sql", PARENTS), ("0002_second.sql", sql)]);
    let error = second("INSERT INTO children VALUES (15, 9); DELETE FROM children WHERE id = 14").up().await;
    assert_eq!(violations(error.unwrap_err()), [("children".to_string(), Some(15), "parents".to_string())]);
    let error = second("INSERT INTO keyed VALUES (3, 8)").up().await.unwrap_err();
    assert_eq!(violations(error), [("keyed".to_string(), None, "parents".to_string())]);
    let new = "CREATE TABLE new (parent INTEGER REFERENCES parents (name)); INSERT INTO new VALUES (1)";
    let error = second(new).up().await.unwrap_err();
    assert!(matches!(error, MigrationError::StepFailed { number: 2, .. }), "{error:?}");
    assert_eq!(numbers(&second(REBUILD).up().await.unwrap()), [2]);
}

/// Runs a step on a database that has these tables, which were created with foreign keys off.
async fn second_step(before: &str, sql: &'static str) -> (Database, Result<Vec<u32>, MigrationError<Error>>) {
    let database = Database::new();
    database.migrator(&[("0001_teams.sql", TEAMS)]).up().await.unwrap();
    let connection = Connection::open(database.path()).unwrap();
    connection.execute_batch(&format!("PRAGMA foreign_keys = OFF; {before}")).unwrap();
    drop(connection);
    let migrator = database.migrator(&[("0001_teams.sql", TEAMS), ("0002_second.sql", sql)]);
    let outcome = migrator.up().await.map(|steps| numbers(&steps));
    (database, outcome)
}

/// A row without its parent, and a table that SQLite cannot check.
const ORPHANS: &str = "CREATE TABLE p (id INTEGER PRIMARY KEY, name TEXT);
    CREATE TABLE c (k TEXT, a INTEGER REFERENCES p, b INTEGER REFERENCES p);
    CREATE TABLE keyed (k TEXT PRIMARY KEY, a REFERENCES p) WITHOUT ROWID;
    CREATE TABLE apart (name TEXT REFERENCES p (name));
    INSERT INTO p VALUES (1, 'one'), (5, 'five');
    INSERT INTO c VALUES ('good', 1, 1), ('old', 99, 5), ('none', NULL, 1);
    INSERT INTO keyed VALUES ('good', 1), ('old', 99);
    INSERT INTO apart VALUES ('two');";

#[tokio::test]
async fn rows_that_a_step_does_not_change_do_not_count_whatever_it_renames() {
    for sql in [
        "ALTER TABLE p RENAME TO people",
        "ALTER TABLE c RENAME TO children",
        "ALTER TABLE c RENAME TO children; ALTER TABLE p RENAME TO people; ALTER TABLE children RENAME TO p",
        "ALTER TABLE c RENAME COLUMN a TO parent",
        "ALTER TABLE keyed RENAME TO k; ALTER TABLE k RENAME COLUMN k TO l; ALTER TABLE p RENAME COLUMN id TO number",
        "ALTER TABLE apart RENAME TO afar",
        "ALTER TABLE c ADD COLUMN d REFERENCES p; CREATE TABLE other (x REFERENCES p)",
        "ALTER TABLE c ADD COLUMN d; ALTER TABLE c DROP COLUMN k",
        "PRAGMA legacy_alter_table = ON; ALTER TABLE c RENAME TO children",
        "CREATE TABLE z (x); DROP TABLE z; CREATE INDEX i ON c (a); DROP INDEX i",
        "UPDATE c SET k = 'still', b = 1 WHERE a = 99; UPDATE keyed SET a = 5 WHERE k = 'good'",
        "DELETE FROM c WHERE a = 99; DELETE FROM keyed WHERE a = 99; DELETE FROM apart",
        "CREATE TABLE n (k TEXT, a INTEGER REFERENCES p (id), b INTEGER REFERENCES P);
         INSERT INTO n (rowid, k, a, b) SELECT rowid, * FROM c; DROP TABLE c; ALTER TABLE n RENAME TO c",
    ] {
        assert_eq!(second_step(ORPHANS, sql).await.1.unwrap(), [2], "{sql}");
    }
}

#[tokio::test]
async fn no_violation_is_taken_for_one_that_was_there_before() {
    let row = |table: &str, row| (table.to_string(), row, "p".to_string());
    for (sql, expected) in [
        // Another row gets the row id of the old one.
        (
            "CREATE TABLE n (k TEXT, a INTEGER REFERENCES p, b INTEGER REFERENCES p);
             INSERT INTO n SELECT * FROM c WHERE k = 'none'; INSERT INTO n SELECT * FROM c WHERE k = 'good';
             DROP TABLE c; ALTER TABLE n RENAME TO c; DELETE FROM keyed; DELETE FROM p WHERE id = 1",
            vec![row("c", Some(2)), row("c", Some(1)), row("c", Some(2))],
        ),
        // One violation is repaired, and another is made in the same row, table or key.
        ("UPDATE c SET a = 5, b = 77 WHERE a = 99", vec![row("c", Some(2))]),
        ("UPDATE c SET a = 5, b = 99 WHERE a = 99", vec![row("c", Some(2))]),
        ("UPDATE c SET a = 98 WHERE a = 99", vec![row("c", Some(2))]),
        ("DELETE FROM c WHERE a = 99; INSERT INTO c VALUES ('new', 99, 1)", vec![row("c", Some(4))]),
        ("UPDATE keyed SET a = 5 WHERE k = 'old'; INSERT INTO keyed VALUES ('new', 99)", vec![row("keyed", None)]),
        ("UPDATE keyed SET a = 99 WHERE k = 'good'; DELETE FROM keyed WHERE k = 'old'", vec![row("keyed", None)]),
        // Another table gets the pages, or the name, of the one that had violations.
        (
            "DROP TABLE c; CREATE TABLE d (k TEXT, a INTEGER REFERENCES p, b INTEGER REFERENCES p);
             INSERT INTO d (rowid, k, a, b) VALUES (2, 'new', 99, 5)",
            vec![row("d", Some(2))],
        ),
        (
            "ALTER TABLE c RENAME TO gone; CREATE TABLE c (k TEXT, a INTEGER REFERENCES p, b INTEGER REFERENCES p);
             INSERT INTO c (rowid, k, a, b) VALUES (2, 'new', 99, 5)",
            vec![row("c", Some(2))],
        ),
    ] {
        let (database, outcome) = second_step(ORPHANS, sql).await;
        assert_eq!(violations(outcome.unwrap_err()), expected, "{sql}");
        assert_eq!(database.look::<i64>("SELECT count(*) FROM c"), 3, "{sql}");
    }
}

#[tokio::test]
async fn a_table_that_a_step_renames_beside_a_drop_is_not_known_again_and_the_error_says_what_to_do() {
    let sql = "CREATE TABLE z (x); DROP TABLE z; ALTER TABLE p RENAME TO people";
    let (_database, outcome) = second_step(ORPHANS, sql).await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("row 2 of \"c\" refers to \"people\""), "{error}");
    assert!(error.contains("rename tables and columns in a step that drops nothing"), "{error}");
}

#[tokio::test]
async fn as_many_violations_as_there_are_rows_do_not_fail_a_step_and_one_more_does() {
    let many = "CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE c (a REFERENCES p);
        WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000)
        INSERT INTO c SELECT x FROM n;
        CREATE TABLE keyed (a REFERENCES p, b, PRIMARY KEY (b, a)) WITHOUT ROWID; INSERT INTO keyed SELECT a, -a FROM c";
    assert_eq!(second_step(many, "CREATE TABLE z (x)").await.1.unwrap(), [2]);
    let (_database, outcome) = second_step(many, "INSERT INTO c VALUES (-1)").await;
    assert_eq!(violations(outcome.unwrap_err()), [("c".to_string(), Some(20_001), "p".to_string())]);
}

#[tokio::test]
async fn a_query_in_a_step_runs_for_all_its_rows() {
    let database = Database::new();
    let error = database
        .with_second("SELECT abs(column1) FROM (VALUES (1), (2), (-9223372036854775808))")
        .up()
        .await
        .unwrap_err();
    assert!(matches!(error, MigrationError::StepFailed { number: 2, .. }), "{error:?}");
    assert_eq!(database.with_second("SELECT 1 UNION SELECT 2").version().await.unwrap(), 1);
}

#[tokio::test]
async fn an_error_of_a_step_names_the_file_the_statement_and_the_line() {
    let long =
        "CREATE TABLE two (x UNIQUE);\n\n-- Twice.\nINSERT INTO two\n    VALUES (1),\n    (1);\nSELECT 1";
    for (sql, position) in [
        (long, "line 4, at \"INSERT INTO two VALUES (1), (1);\""),
        ("SELECT 1;\nSELECT\n  1,\n  nothing", "line 4, at \"SELECT 1, nothing\""),
        ("SELECT 1;\r\nSELEC 2", "line 2, at \"SELEC 2\""),
    ] {
        let database = Database::new();
        let error = database.with_second(sql).up().await.unwrap_err().to_string();
        let expected = format!("schema step \"0002_second.sql\" failed in {position} and was rolled back");
        assert!(error.starts_with(&expected), "{error}");
    }
}

// Checksums.

#[tokio::test]
async fn a_checkout_with_other_line_ends_is_the_same_step_and_runs_the_same_statements() {
    let (unix, windows) = ("CREATE TABLE t (x);\nINSERT INTO t VALUES ('a\nb');\n", {
        "\u{feff}CREATE TABLE t (x);\r\nINSERT INTO t VALUES ('a\r\nb');"
    });
    for (first, second) in [(unix, windows), (windows, unix)] {
        let database = Database::new();
        database.migrator(&[("0001_t.sql", first)]).up().await.unwrap();
        assert_eq!(database.look::<String>("SELECT x FROM t"), "a\nb");
        let migrator = database.migrator(&[("0001_t.sql", second), ("0002_teams.sql", TEAMS)]);
        assert_eq!(numbers(&migrator.up().await.unwrap()), [2]);
    }
}

/// Hosts of an earlier release still read the ledger, until a step is applied that they lack.
#[tokio::test]
async fn a_checksum_of_an_earlier_release_is_recorded_anew_with_the_next_step() {
    let database = Database::new();
    let first = ("0001_teams.sql", TEAMS);
    let steps = StepSet::embedded(&[first]).unwrap();
    database.migrator(&[first]).up().await.unwrap();
    let earlier = Sha256::digest(format!("\u{feff}{TEAMS}\r\n")).to_vec();
    let recorded = || database.look::<Vec<u8>>("SELECT checksum FROM platform_migrations WHERE number = 1");
    let connection = Connection::open(database.path()).unwrap();
    connection.execute("UPDATE platform_migrations SET checksum = ?1", [&earlier]).unwrap();
    assert_eq!(numbers(&database.migrator(&[first]).up().await.unwrap()), Vec::<u32>::new());
    assert_eq!(recorded(), earlier);
    let migrator = database.migrator(&[first, ("0002_sessions.sql", SESSIONS)]);
    assert_eq!(numbers(&migrator.up().await.unwrap()), [2]);
    assert_eq!(recorded(), steps.steps()[0].checksum());
    assert_eq!(migrator.version().await.unwrap(), 2);
}

#[tokio::test]
async fn a_file_that_was_not_touched_is_the_step_that_an_earlier_release_recorded() {
    for text in [
        "CREATE TABLE t (x);\r\nINSERT INTO t VALUES (1);\n",
        "CREATE TABLE t (x);\r\n\n",
        "CREATE TABLE t (x);\n\r\n",
        "CREATE TABLE t (x);\n\n\n\n\n\n\n\n\n",
        "\u{feff}\u{feff}CREATE TABLE t (x);\n",
        "\nCREATE TABLE t (x);\r\n",
    ] {
        let database = Database::new();
        let migrator = database.migrator(&[("0001_t.sql", text)]);
        migrator.up().await.unwrap();
        let recorded = Sha256::digest(text).to_vec();
        let connection = Connection::open(database.path()).unwrap();
        connection.execute("UPDATE platform_migrations SET checksum = ?1", [&recorded]).unwrap();
        assert_eq!(migrator.version().await.unwrap(), 1, "{text:?}");
        let both = database.migrator(&[("0001_t.sql", text), ("0002_teams.sql", TEAMS)]);
        assert_eq!(numbers(&both.up().await.unwrap()), [2], "{text:?}");
        let found = database.look::<Vec<u8>>("SELECT checksum FROM platform_migrations WHERE number = 1");
        assert_eq!(found, StepSet::embedded(&[("0001_t.sql", text)]).unwrap().steps()[0].checksum());
        let edited = database.migrator(&[("0001_t.sql", "CREATE TABLE t (y);"), ("0002_teams.sql", TEAMS)]);
        assert_eq!(schema_error(edited.up().await.unwrap_err()), SchemaError::Edited(1));
    }
}

// A step does the same whether it is applied alone or after others.

/// Statements that leave something behind on a connection, and statements that would notice it.
const PIECES: [&str; 16] = [
    "CREATE TEMP TABLE t (x)",
    "CREATE TEMP TABLE log (x)",
    "CREATE TEMP TABLE platform_migrations (number, name, checksum, applied_at)",
    "CREATE TEMP TRIGGER noticed AFTER INSERT ON log BEGIN DELETE FROM log; END",
    "CREATE TEMP VIEW seen AS SELECT 1",
    "CREATE TABLE t (x)",
    "CREATE TABLE IF NOT EXISTS t (x DEFAULT 7)",
    "INSERT INTO t VALUES (1)",
    "DROP TABLE t",
    "PRAGMA case_sensitive_like = ON",
    "PRAGMA recursive_triggers = ON",
    "PRAGMA ignore_check_constraints = ON",
    "PRAGMA max_page_count = 3",
    "INSERT INTO log SELECT 'a' LIKE 'A'",
    "INSERT INTO log SELECT last_insert_rowid() || ',' || changes() || ',' || total_changes()",
    "INSERT INTO log SELECT group_concat(recursive_triggers) FROM pragma_recursive_triggers",
];

#[tokio::test]
async fn any_split_of_steps_into_runs_gives_the_same_tables_or_the_same_error() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..40 {
        let mut files = vec![("0001_log.sql".to_string(), "CREATE TABLE log (x)".to_string())];
        for number in 2..8 {
            let (one, two) = (random.choice(PIECES).unwrap(), random.choice(PIECES).unwrap());
            files.push((format!("{number:04}_piece.sql"), format!("{one};\n{two}")));
        }
        let mut whole = vec![files.len()];
        let expected = apply_in_runs(&files, &whole).await;
        whole.splice(..0, (1..files.len()).filter(|_| random.bool()));
        assert_eq!(
            apply_in_runs(&files, &whole).await,
            expected,
            "{seed}, round {round}: {whole:?} of {files:#?}"
        );
    }
}

/// Applies the first of the files up to each number in turn. Returns the error and the contents of
/// the database.
async fn apply_in_runs(files: &[(String, String)], ends: &[usize]) -> (Option<String>, String) {
    let database = Database::new();
    let folder = tempfile::tempdir().unwrap();
    let mut written = 0;
    let mut error = None;
    for end in ends {
        for (file, sql) in files.iter().take(*end).skip(written) {
            fs::write(folder.path().join(file), sql).unwrap();
        }
        written = *end;
        let ledger = Ledger::new("platform_migrations").unwrap();
        let steps = StepSet::from_folder(folder.path()).unwrap();
        let options = SqliteOptions::default().synchronous(Synchronous::Off);
        let migrator = SqliteMigrator::new(database.path(), steps, ledger).options(options);
        if let Err(failed) = migrator.up().await {
            error = Some(format!("{failed}: {:?}", std::error::Error::source(&failed)));
            break;
        }
    }
    let found = "SELECT coalesce((SELECT group_concat(sql, ';') FROM sqlite_schema), '') || '|' ||
        coalesce((SELECT group_concat(number) FROM platform_migrations), '') || '|' ||
        coalesce((SELECT group_concat(x) FROM log), '')";
    (error, database.look(found))
}
