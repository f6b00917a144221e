//! Database files that come from elsewhere, or belong to another application.
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

use common::*;
use larder_core::backend::Backend;
use larder_core::commit::Mutation;
use larder_core::{Driver, Error, HandleOptions, Migration, MigrationLedger, MigrationScope, Store};
use larder_sqlite::{Sqlite, SqliteDriver, SqliteOptions};
use rusqlite::Connection;

fn make(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

/// The contents of every file in a directory.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    names(folder).into_iter().map(|name| (name.clone(), std::fs::read(folder.join(name)).unwrap())).collect()
}

async fn refusal(path: &Path, options: SqliteOptions) -> Error {
    match Sqlite::open(path, options).await {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}

/// The default options, without a cache.
fn uncached() -> SqliteOptions {
    SqliteOptions::default().cache_bytes(0)
}

#[tokio::test]
async fn a_database_that_is_not_larders_is_refused_and_no_byte_of_it_changes() {
    for (sql, reason) in [
        (
            "PRAGMA application_id = 1196444487; CREATE TABLE gpkg_contents (x)",
            "application_id is 0x47504b47",
        ),
        ("PRAGMA application_id = 7", "application_id is 0x00000007"),
        ("CREATE TABLE moz_places (id INTEGER PRIMARY KEY); PRAGMA user_version = 77", "\"moz_places\""),
        ("CREATE VIEW v AS SELECT 1", "\"v\""),
        ("CREATE TABLE larder_entries (x)", "\"larder_entries\""),
        ("CREATE VIEW Larder_Migrations AS SELECT 1", "\"Larder_Migrations\""),
    ] {
        let (folder, path) = folder();
        make(&path, sql);
        let before = contents(folder.path());
        let error = refusal(&path, uncached()).await;
        assert!(
            matches!(&error, Error::Other { reason: said, .. } if said.contains(reason)),
            "{sql}: {error:?}"
        );
        let dsn = format!("sqlite:{}", path.display());
        let migrator = SqliteDriver.migrator(&dsn).unwrap().unwrap();
        assert!(migrator.up().await.is_err(), "{sql}");
        assert!(contents(folder.path()) == before, "{sql}");
    }
}

#[tokio::test]
async fn a_log_that_another_application_left_stays_beside_its_database() {
    let (folder, path) = folder();
    let live = folder.path().join("live.db");
    let owner = Connection::open(&live).unwrap();
    owner.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    // Copied as a crash leaves them.
    std::fs::copy(&live, &path).unwrap();
    std::fs::copy(folder.path().join("live.db-wal"), folder.path().join("store.db-wal")).unwrap();
    let before = [std::fs::read(&path).unwrap(), std::fs::read(folder.path().join("store.db-wal")).unwrap()];
    assert!(matches!(refusal(&path, uncached()).await, Error::Other { .. }));
    let after = [std::fs::read(&path).unwrap(), std::fs::read(folder.path().join("store.db-wal")).unwrap()];
    assert!(before == after);
}

#[tokio::test]
async fn a_platform_may_let_larder_into_a_database_of_its_own() {
    let (_folder, path) = folder();
    make(&path, "CREATE TABLE accounts (x)");
    let options = uncached().other_tables(true);
    Sqlite::open(&path, options).await.unwrap().close().await;
    // From now on the database is also one of larder.
    let database = Sqlite::open(&path, uncached()).await.unwrap();
    commit(&database, "a", b"1").await.unwrap();
    database.finish().await.unwrap();
    make(&path, "CREATE TABLE later (x)");
    Sqlite::open(&path, uncached()).await.unwrap().close().await;
    let dsn = |path: &Path| format!("sqlite:{}?other_tables=yes", path.display());
    let second = path.with_extension("second");
    make(&second, "CREATE TABLE accounts (x)");
    SqliteDriver.open(&dsn(&second)).await.unwrap().close().await;
    // The option does not allow a database that uses larder's names, or one of another application.
    for sql in ["CREATE TABLE larder_memory_state (x)", "PRAGMA application_id = 7; CREATE TABLE t (x)"] {
        let taken = path.with_extension("taken");
        make(&taken, sql);
        assert!(matches!(refusal(&taken, options).await, Error::Other { .. }), "{sql}");
        std::fs::remove_file(&taken).unwrap();
    }
}

#[tokio::test]
async fn nothing_that_is_stored_in_a_database_runs_in_the_host() {
    let (_folder, path) = folder();
    let database = open(&path).await;
    commit(&database, "a", b"1").await.unwrap();
    database.finish().await.unwrap();
    make(
        &path,
        "CREATE TABLE seen (what);
         CREATE TRIGGER put AFTER INSERT ON larder_entries BEGIN INSERT INTO seen VALUES ('insert'); END;
         CREATE TRIGGER changed AFTER UPDATE ON larder_entries BEGIN INSERT INTO seen VALUES ('update'); END;
         CREATE TRIGGER gone BEFORE DELETE ON larder_entries BEGIN SELECT raise(ABORT, 'no'); END;
         CREATE TRIGGER kept AFTER INSERT ON larder_memory_state BEGIN INSERT INTO seen VALUES ('record'); END;
         CREATE TRIGGER counted AFTER UPDATE ON larder_commit_sequence BEGIN INSERT INTO seen VALUES ('count'); END;",
    );
    let database = open(&path).await;
    commit(&database, "a", b"2").await.unwrap();
    commit(&database, "b", b"3").await.unwrap();
    database.commit(commit_of(1, [("a", Mutation::Delete)])).await.unwrap();
    database.write_record(record_write("s", 0, Some((7, b"x")))).await.unwrap();
    database.finish().await.unwrap();
    let seen: i64 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM seen", [], |row| row.get(0))
        .unwrap();
    assert_eq!(seen, 0);
    assert_eq!(dump(&path).rows.len(), 1);
}

#[tokio::test]
async fn a_foreign_key_of_another_table_neither_changes_that_table_nor_stops_a_commit() {
    let (_folder, path) = folder();
    let database = open(&path).await;
    for key in ["a", "b"] {
        commit(&database, key, b"1").await.unwrap();
    }
    database.finish().await.unwrap();
    for action in ["CASCADE", "RESTRICT"] {
        make(
            &path,
            &format!(
                "CREATE TABLE app_{action} (namespace, key, FOREIGN KEY (namespace, key)
                     REFERENCES larder_entries (namespace, key) ON DELETE {action});
                 INSERT INTO app_{action} SELECT namespace, key FROM larder_entries"
            ),
        );
    }
    let database = open(&path).await;
    database.commit(commit_of(1, [("a", Mutation::Delete)])).await.unwrap();
    database.finish().await.unwrap();
    let count = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        Connection::open(&path).unwrap().query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    let counts = ["larder_entries", "app_CASCADE", "app_RESTRICT"].map(count);
    assert_eq!(counts, [1, 2, 2]);
}

#[tokio::test]
async fn a_table_or_index_of_larders_that_larder_did_not_create_is_refused() {
    for sql in [
        "ALTER TABLE larder_entries ADD COLUMN note TEXT",
        "DROP TABLE larder_entries; CREATE TABLE larder_entries (namespace, key, value, version, expires_at)",
        "DROP TABLE larder_entries; CREATE TABLE real (namespace, key, value, version, expires_at);
         CREATE VIEW larder_entries AS SELECT * FROM real",
        "DROP TABLE larder_memory_state",
        "DROP INDEX larder_entries_expiry",
        "CREATE UNIQUE INDEX one_a_namespace ON larder_entries (namespace)",
        "CREATE INDEX by_value ON larder_memory_state (bytes)",
    ] {
        let (_folder, path) = folder();
        open(&path).await.finish().await.unwrap();
        make(&path, sql);
        let error = refusal(&path, uncached()).await;
        assert!(matches!(&error, Error::Corrupt(reason) if reason.contains("larder_")), "{sql}: {error:?}");
    }
}

#[tokio::test]
async fn steps_that_were_checked_out_with_other_line_ends_make_the_same_tables() {
    let (_folder, path) = folder();
    open(&path).await.finish().await.unwrap();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = replace(sql, char(10), char(13, 10));
             PRAGMA writable_schema = RESET;",
        )
        .unwrap();
    drop(connection);
    Sqlite::open(&path, uncached()).await.unwrap().finish().await.unwrap();
}

/// Entries that another program wrote into the ledger of guest migrations.
#[tokio::test]
async fn a_row_of_the_ledger_that_is_not_valid_is_shown_named_and_removed_and_no_other_is() {
    let (_folder, path) = folder();
    let open = async || Store::builder(Sqlite::open(&path, uncached()).await.unwrap()).build().unwrap();
    let any = || HandleOptions::default().migrations(MigrationScope::Any);
    let store = open().await;
    let ledger = MigrationLedger::new(store.handle(any()));
    let step = |id: &str| Migration { id: id.to_string(), checksum: vec![7; 32] };
    for component in ["other", "tasks", "tasks2"] {
        ledger.record(component, step("a"), false).await.unwrap();
    }
    store.close().await;

    let invalid: [&[u8]; 5] = [b"tasks\0\xff\xfe", b"tasks\0b", b"\xff\0a", b"nothing", b""];
    let connection = Connection::open(&path).unwrap();
    for key in invalid {
        let sql = "INSERT INTO larder_entries (namespace, key, value, version)
            SELECT namespace, ?1, CASE WHEN ?1 = CAST('tasks' || char(0) || 'b' AS BLOB) THEN x'7b7d' ELSE value END, version
            FROM larder_entries LIMIT 1";
        connection.execute(sql, [key]).unwrap();
    }
    drop(connection);

    let store = open().await;
    let handle = store.handle(any());
    let ledger = MigrationLedger::new(store.handle(any()));
    let mut found = Vec::new();
    let listed = ledger.for_each_component(|entries| {
        found.extend(entries.into_iter().map(|entry| (entry.key.clone(), entry.applied.is_ok())));
        Ok::<_, Error>(())
    });
    listed.await.unwrap();
    let expected: [(&[u8], bool); 8] = [
        (b"", false),
        (b"nothing", false),
        (b"other\0a", true),
        (b"tasks\0a", true),
        (b"tasks\0b", false),
        (b"tasks\0\xff\xfe", false),
        (b"tasks2\0a", true),
        (b"\xff\0a", false),
    ];
    assert_eq!(found, expected.map(|(key, is_valid)| (key.to_vec(), is_valid)));

    // The component with invalid entries gets an error that names the first such row and what to
    // do. Other components are not affected.
    let declared = async |component: &str| {
        handle.pending_migrations(component.to_string(), vec![step("a"), step("b")]).await
    };
    let Err(Error::Corrupt(reason)) = declared("tasks").await else { panic!("accepted") };
    assert!(reason.contains(r#"the row "tasks\0b" of"#), "{reason}");
    assert!(reason.ends_with("`larder migrations remove --row 7461736b730062`"), "{reason}");
    assert_eq!(declared("tasks2").await.unwrap(), ["b"]);
    let refused = ledger.record("tasks", step("b"), true).await.unwrap_err();
    assert!(matches!(refused, Error::Corrupt(_)), "{refused:?}");

    for key in [&b"tasks\0a"[..], b"tasks\0c", b"\xff\0b"] {
        let refused = ledger.remove_invalid(key, false).await.unwrap_err();
        assert!(matches!(refused, Error::InvalidArgument(_)), "{refused:?}");
    }
    for key in invalid {
        assert_eq!(ledger.remove_invalid(key, true).await.unwrap().key, key);
        assert_eq!(ledger.remove_invalid(key, false).await.unwrap().key, key);
        let gone = ledger.remove_invalid(key, true).await.unwrap_err();
        assert!(matches!(gone, Error::InvalidArgument(_)), "{gone:?}");
    }
    for component in ["other", "tasks", "tasks2"] {
        assert_eq!(declared(component).await.unwrap(), ["b"]);
    }
    store.close().await;
}

#[tokio::test]
async fn all_rows_of_a_component_are_removed_those_too_that_are_not_text() {
    let (_folder, path) = folder();
    let store = Sqlite::open(&path, uncached()).await.unwrap();
    let connection = Connection::open(&path).unwrap();
    for key in [&b"tasks\0\xff\xfe"[..], b"tasks\0\xc3", b"tasks2\0a"] {
        let sql = "INSERT INTO larder_entries (namespace, key, value, version) VALUES (?1, ?2, x'00', 1)";
        connection.execute(sql, (b"__store_migrations__", key)).unwrap();
    }
    let store = Store::builder(store).build().unwrap();
    let ledger = MigrationLedger::new(store.handle(HandleOptions::default()));
    for dry_run in [true, false] {
        let removed = ledger.remove("tasks", None, dry_run).await.unwrap();
        assert_eq!(
            removed.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>(),
            [b"tasks\0\xc3".to_vec(), b"tasks\0\xff\xfe".to_vec()]
        );
    }
    assert!(ledger.remove("tasks", None, false).await.unwrap().is_empty());
    let left: i64 =
        connection.query_row("SELECT count(*) FROM larder_entries", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 1);
    store.close().await;
}
