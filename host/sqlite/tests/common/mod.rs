//! Helpers that several test files share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use larder_core::backend::{Backend, SweepOptions};
use larder_core::clock::{Clock, ForwardClock};
use larder_core::commit::{Commit, Committed, Mutation};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::name::{Key, Namespace, RowKey, Value};
use larder_core::row::StoredValue;
use larder_core::{Identity, IdentityParts, Limits, Result, Version};
use larder_sqlite::{Sqlite, SqliteOptions};
use tempfile::TempDir;

pub fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    (folder, path)
}

pub async fn open(path: &Path) -> Sqlite {
    Sqlite::open(path, SqliteOptions::default()).await.unwrap()
}

pub async fn open_positioned(path: &Path) -> Sqlite {
    Sqlite::open_positioned(path, SqliteOptions::default()).await.unwrap()
}

pub fn row(key: &str) -> RowKey {
    let limits = Limits::default();
    RowKey { namespace: Namespace::new("n", &limits).unwrap(), key: Key::new(key, &limits).unwrap() }
}

pub fn put(value: &[u8], ttl_ms: Option<u64>) -> Mutation {
    let limits = Limits::default().value_bytes(64 << 20);
    Mutation::Put { value: Value::new(value.to_vec(), &limits).unwrap(), ttl_ms }
}

pub fn commit_of<const N: usize>(now: u64, writes: [(&str, Mutation); N]) -> Arc<Commit> {
    let writes: BTreeMap<_, _> = writes.into_iter().map(|(key, mutation)| (row(key), mutation)).collect();
    Arc::new(Commit { clock: clock_at(now), writes, ..Default::default() })
}

/// A clock that stands still.
pub fn clock_at(now: u64) -> ForwardClock {
    ForwardClock::new(Arc::new(Standing(now)))
}

struct Standing(u64);

impl Clock for Standing {
    fn unix_millis(&self) -> u64 {
        self.0
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

pub fn sweep_at(now: u64, max_rows: u32) -> SweepOptions {
    SweepOptions::new(clock_at(now), max_rows, u64::MAX)
}

pub async fn commit(database: &Sqlite, key: &str, value: &[u8]) -> Result<Version> {
    let committed: Committed = database.commit(commit_of(1, [(key, put(value, None))])).await?;
    Ok(committed.version)
}

pub fn record_key(session: &str) -> RecordKey {
    let parts = IdentityParts::session("t", "u", session);
    RecordKey::conversation(Identity::new(parts, &Limits::default()).unwrap())
}

pub fn record_write(session: &str, expected: u64, record: Option<(u64, &[u8])>) -> Arc<RecordWrite> {
    let record = record.map(|(version, bytes)| StoredRecord {
        strategy: "truncation".to_string(),
        bytes: bytes.to_vec(),
        version: Version(version),
        due_at: (version % 2 == 0).then_some(version),
        created_at: 1,
        updated_at: version,
    });
    Arc::new(RecordWrite { key: record_key(session), expected: Version(expected), record })
}

/// The contents of a file: its position or reserved versions, rows and records.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dump {
    pub position: u64,
    pub rows: BTreeMap<(Vec<u8>, Vec<u8>), StoredValue>,
    pub records: BTreeMap<RecordKey, StoredRecord>,
}

pub fn dump(path: &Path) -> Dump {
    let connection = rusqlite::Connection::open(path).unwrap();
    let position =
        connection.query_row("SELECT last FROM larder_commit_sequence", [], |row| row.get(0)).unwrap();
    let mut statement =
        connection.prepare("SELECT namespace, key, value, version, expires_at FROM larder_entries").unwrap();
    let rows = statement
        .query_map([], |row| {
            let stored =
                StoredValue { value: row.get(2)?, version: Version(row.get(3)?), expires_at: row.get(4)? };
            Ok(((row.get(0)?, row.get(1)?), stored))
        })
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap();
    let mut statement = connection
        .prepare(
            "SELECT tenant_id, user_id, session_id, run_id, kind, strategy, bytes, version, due_at, created_at,
                 updated_at FROM larder_memory_state",
        )
        .unwrap();
    let records = statement
        .query_map([], |row| {
            let identity = Identity::from_stored(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?).unwrap();
            let record = StoredRecord {
                strategy: row.get(5)?,
                bytes: row.get(6)?,
                version: Version(row.get(7)?),
                due_at: row.get(8)?,
                created_at: row.get(9)?,
                updated_at: row.get(10)?,
            };
            Ok((RecordKey { identity, kind: row.get(4)? }, record))
        })
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap();
    Dump { position, rows, records }
}

/// The names in a directory, in order.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
