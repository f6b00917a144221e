//! Databases in object storage whose schemas compute forever. A host must not run any of it.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use host::*;
use larder_core::Store;
use larder_sqlite::{Sqlite, rusqlite};
use larder_tenants::{Holder, TenantError, TenantKey, Tenants};
use rusqlite::Connection;

fn ann() -> TenantKey {
    key("acme/users/ann")
}

/// How long a host may take for a tenant with a few rows.
const QUICKLY: Duration = Duration::from_secs(20);

/// An expression that is fast, and one that replaces it and takes longer than any test. It is a
/// single function call, which SQLite does not interrupt.
const QUICK: &str = "instr('x', 'y')";
const SLOW: &str = "instr(hex(zeroblob(5000000)), hex(zeroblob(2000000)) || 'y')";

/// Replaces the fast expression in all definitions. SQLite does not evaluate it then.
fn slow_schema() -> String {
    let [quick, slow] = [QUICK, SLOW].map(|sql| sql.replace('\'', "''"));
    format!(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = replace(sql, '{quick}', '{slow}') WHERE sql LIKE '%instr%';"
    )
}

/// A database as larder creates it, with one row, after running some SQL.
async fn database(path: PathBuf, sql: &str) -> PathBuf {
    let store = Store::builder(Sqlite::open(&path, Default::default()).await.unwrap()).build().unwrap();
    let mut update = store.handle(Default::default()).begin(larder_core::Mode::Update).unwrap();
    update.put("n".into(), "row".into(), b"1".to_vec()).unwrap();
    update.commit().await.unwrap();
    store.close().await;
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    drop(connection);
    path
}

async fn publish(tenants: &Tenants, file: &Path) {
    let publisher = Holder::new("publisher").unwrap();
    let lease = tenants.remote().acquire(&ann(), &publisher, Duration::ZERO).await.unwrap();
    lease.publish(file, 0).await.unwrap();
    lease.release().await.unwrap();
}

/// Runs a test in a runtime that does not wait for a thread that computes forever.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let outcome = runtime.block_on(AssertUnwindSafe(test).catch_unwind());
    runtime.shutdown_background();
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

async fn quickly<T>(what: &str, work: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(QUICKLY, work).await;
    outcome.unwrap_or_else(|_| panic!("the host computes forever: {what}"))
}

/// Objects beside larder's tables stay unchanged, and larder's own rows are usable.
#[test]
fn a_tenant_whose_other_tables_and_triggers_compute_for_ever_is_used_without_running_them() {
    run(async {
        let loops = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        let slow = format!("INSERT INTO evil (x) VALUES ('one'); {}", slow_schema());
        let cases = [
            format!(
                "CREATE TABLE seen (x);
                 CREATE TRIGGER one AFTER INSERT ON larder_entries BEGIN INSERT INTO seen {loops}; END;
                 CREATE TRIGGER two BEFORE UPDATE ON larder_entries BEGIN INSERT INTO seen {loops}; END;
                 CREATE TRIGGER three AFTER UPDATE ON larder_commit_sequence BEGIN INSERT INTO seen {loops}; END;
                 CREATE TRIGGER four AFTER INSERT ON seen BEGIN INSERT INTO seen VALUES (1); END;"
            ),
            format!("CREATE VIEW endless AS {loops}; CREATE VIEW of_itself AS SELECT * FROM of_itself"),
            format!("CREATE TABLE evil (x CHECK (x > {QUICK})); {slow}"),
            format!(
                "CREATE TABLE evil (x CHECK (x > {QUICK})); {slow}
                 CREATE TRIGGER evil AFTER INSERT ON larder_entries BEGIN SELECT 1; END"
            ),
            format!("CREATE TABLE evil (x, y NOT NULL AS (x > {QUICK})); {slow}"),
            format!("CREATE TABLE evil (x, y INT NOT NULL AS (x > {QUICK}) STORED); {slow}"),
            format!("CREATE TABLE evil (x TEXT, y INT AS (x > {QUICK})) STRICT; {slow}"),
            format!("CREATE TABLE evil (x); CREATE INDEX by_that ON evil (x > {QUICK}); {slow}"),
            format!("CREATE TABLE evil (x); CREATE INDEX part ON evil (x) WHERE x > {QUICK}; {slow}"),
            "CREATE VIRTUAL TABLE words USING fts5(x); INSERT INTO words VALUES ('one');
             UPDATE words_content SET c0 = zeroblob(1000000)"
                .to_string(),
        ];
        for (number, sql) in cases.iter().enumerate() {
            let world = World::new();
            let file = database(world.cache("hostile.db"), sql).await;
            let b = world.host("b").await;
            publish(&b, &file).await;
            let tenant = quickly(sql, b.get(&ann())).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            assert_eq!(get(&tenant, "row").await.unwrap().as_deref(), Some("1"), "case {number}");
            quickly(sql, put(&tenant, "row", "2")).await.unwrap();
            quickly(sql, b.checkpoint(&ann())).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            drop(tenant);
            quickly(sql, b.close()).await.unwrap();
            let c = world.host("c").await;
            assert_eq!(quickly(sql, get_in(&c, &ann(), "row")).await.as_deref(), Some("2"), "case {number}");
        }
    });
}

#[test]
fn a_tenant_whose_own_tables_compute_for_ever_is_corrupt() {
    run(async {
        let row =
            "INSERT INTO larder_entries (namespace, key, value, version) VALUES (x'6e', x'6d', x'31', 1);";
        let entries = |more: &str| {
            format!(
                "DROP TABLE larder_entries;
                 CREATE TABLE larder_entries (
                     namespace BLOB NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, version INTEGER NOT NULL,
                     expires_at INTEGER, {more} PRIMARY KEY (namespace, key)) STRICT, WITHOUT ROWID;
                 CREATE INDEX larder_entries_expiry ON larder_entries (expires_at) WHERE expires_at IS NOT NULL;
                 {row}"
            )
        };
        // A step is pending, so opening the database writes to the ledger.
        let ledger = |column: &str, more: &str| {
            format!(
                "DROP TABLE larder_memory_state;
                 ALTER TABLE larder_migrations RENAME TO old;
                 CREATE TABLE larder_migrations (
                     number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum BLOB NOT NULL, applied_at INTEGER NOT NULL
                     {column}) STRICT;
                 INSERT INTO larder_migrations (number, name, checksum, applied_at) SELECT * FROM old WHERE number = 1;
                 DROP TABLE old; {more}"
            )
        };
        let cases = [
            entries(&format!("more INT NOT NULL AS (key > {QUICK}), ")),
            format!("CREATE INDEX by_that ON larder_entries (key > {QUICK}); {row}"),
            format!("CREATE INDEX part ON larder_entries (key) WHERE key > {QUICK}; {row}"),
            ledger(&format!(", CHECK (name > {QUICK})"), ""),
            ledger(&format!(", more INT NOT NULL AS (name > {QUICK})"), ""),
            ledger("", &format!("CREATE INDEX by_that ON larder_migrations (name > {QUICK});")),
        ]
        .map(|sql| sql + &slow_schema());
        for sql in &cases {
            let world = World::new();
            let file = database(world.cache("hostile.db"), sql).await;
            let b = world.host("b").await;
            publish(&b, &file).await;
            let error = quickly(sql, b.get(&ann())).await.unwrap_err();
            let TenantError::Corrupt { reason, .. } = &error else { panic!("{sql}: {error}") };
            assert!(reason.contains("larder_"), "{reason}");
            assert_eq!(b.cache().tenants().unwrap(), []);
        }
    });
}
