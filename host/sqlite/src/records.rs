//! The SQL statements on conversation records.

use larder_core::clock::UnixMillis;
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::row::Version;
use larder_core::{Error, Identity, Result};
use rusqlite::{Connection, OptionalExtension, Params, Row, params};

use crate::error::{Result as SqliteResult, SqliteError};
use crate::rows::{expiry, prepare, sql_millis, version};
use crate::unsigned::Unsigned;

pub(crate) fn load(connection: &Connection, key: &RecordKey) -> Result<Option<StoredRecord>> {
    let mut statement = prepare(
        connection,
        "SELECT strategy, bytes, version, due_at, created_at, updated_at FROM larder_memory_state
         WHERE tenant_id = ?1 AND user_id = ?2 AND session_id = ?3 AND run_id = ?4 AND kind = ?5",
    )?;
    let found = statement.query_row(parts(key), |row| {
        Ok(StoredRecord {
            strategy: row.get(0)?,
            bytes: row.get(1)?,
            version: version(row, 2)?,
            due_at: expiry(row, 3)?,
            created_at: row.get::<_, Unsigned>(4)?.0,
            updated_at: row.get::<_, Unsigned>(5)?.0,
        })
    });
    Ok(found.optional().map_err(SqliteError::from)?)
}

/// Makes a write. False if the record is not at the expected version.
pub(crate) fn write(connection: &Connection, write: &RecordWrite) -> SqliteResult<bool> {
    let (tenant, user, session, run, kind) = parts(&write.key);
    let expected = Unsigned(write.expected.0);
    let changed = match &write.record {
        None => connection
            .prepare_cached(
                "DELETE FROM larder_memory_state WHERE tenant_id = ?1 AND user_id = ?2 AND session_id = ?3
                 AND run_id = ?4 AND kind = ?5 AND version = ?6",
            )?
            .execute((tenant, user, session, run, kind, expected))?,
        Some(record) => {
            let StoredRecord { strategy, bytes, version, due_at, created_at, updated_at } = record;
            let (created_at, updated_at) = (sql_millis(*created_at), sql_millis(*updated_at));
            let (due_at, version) = (due_at.map(sql_millis), Unsigned(version.0));
            let mut params = params![
                tenant, user, session, run, kind, strategy, bytes, version, due_at, created_at, updated_at
            ]
            .to_vec();
            let sql = if write.expected == Version::ABSENT {
                INSERT
            } else {
                params.push(&expected);
                UPDATE
            };
            connection.prepare_cached(sql)?.execute(&*params)?
        }
    };
    Ok(changed == 1)
}

/// Sets a record to its state in a redo, whatever its version is here.
pub(crate) fn set(
    connection: &Connection,
    key: &RecordKey,
    record: Option<&StoredRecord>,
) -> SqliteResult<()> {
    let (tenant, user, session, run, kind) = parts(key);
    connection
        .prepare_cached(
            "DELETE FROM larder_memory_state WHERE tenant_id = ?1 AND user_id = ?2 AND session_id = ?3
             AND run_id = ?4 AND kind = ?5",
        )?
        .execute((tenant, user, session, run, kind))?;
    if record.is_some() {
        let record = record.cloned();
        write(connection, &RecordWrite { key: key.clone(), expected: Version::ABSENT, record })?;
    }
    Ok(())
}

const INSERT: &str = "
    INSERT INTO larder_memory_state
        (tenant_id, user_id, session_id, run_id, kind, strategy, bytes, version, due_at, created_at, updated_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
    ON CONFLICT DO NOTHING";

const UPDATE: &str = "
    UPDATE larder_memory_state
    SET strategy = ?6, bytes = ?7, version = ?8, due_at = ?9, created_at = ?10, updated_at = ?11
    WHERE tenant_id = ?1 AND user_id = ?2 AND session_id = ?3 AND run_id = ?4 AND kind = ?5 AND version = ?12";

pub(crate) fn list(connection: &Connection, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>> {
    let Some(after) = after else {
        return keys(connection, &format!("{KEYS} {IN_ORDER} LIMIT ?1"), [max]);
    };
    let (tenant, user, session, run, kind) = parts(after);
    let sql = format!(
        "{KEYS} WHERE (tenant_id, user_id, session_id, run_id, kind) > (?1, ?2, ?3, ?4, ?5) {IN_ORDER} LIMIT ?6"
    );
    keys(connection, &sql, (tenant, user, session, run, kind, max))
}

pub(crate) fn due(connection: &Connection, now: UnixMillis, max: u32) -> Result<Vec<RecordKey>> {
    let sql = format!("{KEYS} WHERE due_at <= ?1 ORDER BY due_at LIMIT ?2");
    keys(connection, &sql, (sql_millis(now), max))
}

const KEYS: &str = "SELECT tenant_id, user_id, session_id, run_id, kind FROM larder_memory_state";
const IN_ORDER: &str = "ORDER BY tenant_id, user_id, session_id, run_id, kind";

fn keys(connection: &Connection, sql: &str, params: impl Params) -> Result<Vec<RecordKey>> {
    let mut statement = prepare(connection, sql)?;
    let mut rows = statement.query(params).map_err(SqliteError::from)?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next().map_err(SqliteError::from)? {
        keys.push(key(row)?);
    }
    Ok(keys)
}

fn key(row: &Row<'_>) -> Result<RecordKey> {
    let part = |index| row.get(index).map_err(|error| Error::from(SqliteError::from(error)));
    let identity = Identity::from_stored(part(0)?, part(1)?, part(2)?, part(3)?)?;
    Ok(RecordKey { identity, kind: row.get(4).map_err(SqliteError::from)? })
}

fn parts(key: &RecordKey) -> (&[u8], &[u8], &[u8], &[u8], &str) {
    let identity = &key.identity;
    (
        identity.tenant().as_bytes(),
        identity.user().as_bytes(),
        identity.session().as_bytes(),
        identity.run().as_bytes(),
        &key.kind,
    )
}
