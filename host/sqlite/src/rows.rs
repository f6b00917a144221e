//! The statements on rows.

use larder_core::backend::{Chunk, ChunkRow, ScanOptions, StoredValue, Version, is_live};
use larder_core::clock::UnixMillis;
use larder_core::commit::{CurrentRow, Need, RowWrite};
use larder_core::name::{Key, KeyRange, Namespace, RowKey};
use larder_core::read_set::{CurrentState, RangePart};
use larder_core::validation::Allowance;
use larder_core::{Error, Result};
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};

use crate::error::{Result as SqliteResult, SqliteError};

/// The version that none given so far is above: that of the last commit, or what the process that made it has reserved.
pub(crate) fn last_version(connection: &Connection) -> Result<Version> {
    let mut statement = prepare(connection, "SELECT last FROM larder_commit_sequence")?;
    let last: u64 = statement.query_row([], |row| row.get(0)).map_err(SqliteError::from)?;
    Ok(Version(last))
}

pub(crate) fn set_last_version(connection: &Connection, version: Version) -> SqliteResult<()> {
    connection.prepare_cached("UPDATE larder_commit_sequence SET last = ?1")?.execute([version.0])?;
    Ok(())
}

pub(crate) fn get(connection: &Connection, row: &RowKey, now: UnixMillis) -> Result<Option<StoredValue>> {
    let mut statement = prepare(
        connection,
        "SELECT value, version, expires_at FROM larder_entries
         WHERE namespace = ?1 AND key = ?2 AND (expires_at IS NULL OR expires_at > ?3)",
    )?;
    let found = statement
        .query_row((row.namespace.as_bytes(), row.key.as_bytes(), sql_millis(now)), stored_value)
        .optional();
    Ok(found.map_err(SqliteError::from)?)
}

pub(crate) fn scan(
    connection: &Connection,
    range: &KeyRange,
    options: ScanOptions,
    now: UnixMillis,
) -> Result<Chunk> {
    let value = if options.keys_only { "x''" } else { "value" };
    let order = if options.reverse { "DESC" } else { "ASC" };
    let (bounds, parameters) = range_condition(range, now);
    let mut statement = prepare(
        connection,
        &format!(
            "SELECT key, {value}, version, expires_at FROM larder_entries WHERE {bounds} ORDER BY key {order}"
        ),
    )?;
    let mut found = statement.query(params_from_iter(parameters)).map_err(SqliteError::from)?;
    let mut chunk = Chunk::default();
    while let Some(row) = found.next().map_err(SqliteError::from)? {
        if chunk.is_full(&options) {
            return Ok(chunk);
        }
        chunk.push_stored(chunk_row(row)?);
    }
    chunk.exhausted = true;
    Ok(chunk)
}

pub(crate) fn next_namespace(
    connection: &Connection,
    after: Option<&Namespace>,
    now: UnixMillis,
) -> Result<Option<Namespace>> {
    let condition = if after.is_some() { "namespace > ?2 AND" } else { "?2 IS NULL AND" };
    let sql = format!(
        "SELECT namespace FROM larder_entries WHERE {condition} (expires_at IS NULL OR expires_at > ?1)
         ORDER BY namespace LIMIT 1"
    );
    let found = prepare(connection, &sql)?
        .query_row((sql_millis(now), after.map(Namespace::as_bytes)), |row| row.get(0))
        .optional()
        .map_err(SqliteError::from)?;
    found.map(Namespace::from_stored).transpose()
}

/// A row as it is stored, live or not.
pub(crate) fn current_row(connection: &Connection, row: &RowKey, need: Need) -> Result<Option<CurrentRow>> {
    let value = match need {
        Need::Header => "NULL",
        Need::Value => "value",
    };
    let mut statement = prepare(
        connection,
        &format!(
            "SELECT version, expires_at, length(value), {value} FROM larder_entries
             WHERE namespace = ?1 AND key = ?2"
        ),
    )?;
    let found = statement.query_row((row.namespace.as_bytes(), row.key.as_bytes()), |row| {
        Ok(CurrentRow {
            version: Version(row.get(0)?),
            expires_at: row.get(1)?,
            value_bytes: row.get(2)?,
            value: row.get(3)?,
        })
    });
    Ok(found.optional().map_err(SqliteError::from)?)
}

/// Writes a row; false where nothing had to be changed, as for the deletion of a row that is not there.
pub(crate) fn write(
    connection: &Connection,
    row: &RowKey,
    write: &RowWrite<'_>,
    version: Version,
) -> SqliteResult<bool> {
    let (namespace, key) = (row.namespace.as_bytes(), row.key.as_bytes());
    let changed = match write {
        RowWrite::Put { value, expires_at } => connection
            .prepare_cached(
                "INSERT INTO larder_entries (namespace, key, value, version, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (namespace, key) DO UPDATE
                 SET value = excluded.value, version = excluded.version, expires_at = excluded.expires_at",
            )?
            .execute((namespace, key, value.as_ref(), version.0, *expires_at))?,
        RowWrite::Delete => connection
            .prepare_cached("DELETE FROM larder_entries WHERE namespace = ?1 AND key = ?2")?
            .execute((namespace, key))?,
    };
    Ok(changed > 0)
}

pub(crate) fn stored_bytes(connection: &Connection) -> Result<u64> {
    let mut statement = prepare(
        connection,
        "SELECT (SELECT coalesce(sum(length(namespace) + length(key) + length(value)), 0) FROM larder_entries)
             + (SELECT coalesce(sum(length(tenant_id) + length(user_id) + length(session_id) + length(run_id)
                    + octet_length(kind) + length(bytes)), 0) FROM larder_memory_state)",
    )?;
    Ok(statement.query_row([], |row| row.get(0)).map_err(SqliteError::from)?)
}

/// Removes expired rows, and gives them without their values, with the bytes of each.
pub(crate) fn sweep(
    connection: &Connection,
    now: UnixMillis,
    max_rows: u32,
) -> SqliteResult<Vec<(StoredName, u64)>> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM larder_entries WHERE (namespace, key) IN
             (SELECT namespace, key FROM larder_entries WHERE expires_at <= ?1 LIMIT ?2)
         RETURNING namespace, key, length(namespace) + length(key) + length(value)",
    )?;
    let swept = statement.query_map((sql_millis(now), max_rows), |row| {
        Ok((StoredName { namespace: row.get(0)?, key: row.get(1)? }, row.get(2)?))
    })?;
    Ok(swept.collect::<rusqlite::Result<_>>()?)
}

/// The names of a row as the file has them.
pub(crate) struct StoredName {
    namespace: Vec<u8>,
    key: Vec<u8>,
}

impl StoredName {
    /// The row; none where the names are no text, which is never read.
    pub(crate) fn row(self) -> Option<RowKey> {
        let namespace = Namespace::from_stored(self.namespace).ok()?;
        Some(RowKey { namespace, key: Key::from_stored(self.key).ok()? })
    }
}

/// The committed state that a transaction sees.
pub(crate) struct Current<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) now: UnixMillis,
}

impl CurrentState for Current<'_> {
    fn version(&mut self, row: &RowKey) -> Result<Version> {
        let mut statement = prepare(
            self.connection,
            "SELECT version FROM larder_entries
             WHERE namespace = ?1 AND key = ?2 AND (expires_at IS NULL OR expires_at > ?3)",
        )?;
        let found = statement
            .query_row((row.namespace.as_bytes(), row.key.as_bytes(), sql_millis(self.now)), |row| row.get(0))
            .optional()
            .map_err(SqliteError::from)?;
        Ok(found.map_or(Version::ABSENT, Version))
    }

    fn range(&mut self, range: &KeyRange, allowance: &mut Allowance) -> Result<RangePart> {
        let until = if range.end().is_some() { "AND key < ?3" } else { "AND ?3 IS NULL" };
        // Only a row that is looked at is read as far as its version, which lies behind its value.
        let sql = format!(
            "SELECT key, version, expires_at FROM larder_entries
             WHERE namespace = ?1 AND key >= ?2 {until} ORDER BY key"
        );
        let mut statement = prepare(self.connection, &sql)?;
        let bounds = (range.namespace().as_bytes(), range.start(), range.end());
        let mut found = statement.query(bounds).map_err(SqliteError::from)?;
        let mut part = RangePart::default();
        let mut goes_on = true;
        while let Some(row) = found.next().map_err(SqliteError::from)? {
            if !goes_on {
                part.next = Some(bytes(row, 0)?.to_vec());
                break;
            }
            if is_live(row.get(2).map_err(SqliteError::from)?, self.now) {
                part.state.add(Version(row.get(1).map_err(SqliteError::from)?));
            }
            goes_on = allowance.spend();
        }
        Ok(part)
    }
}

/// The live rows of a range.
fn range_condition(range: &KeyRange, now: UnixMillis) -> (&'static str, Vec<SqlValue>) {
    let mut parameters = vec![
        SqlValue::Blob(range.namespace().as_bytes().to_vec()),
        SqlValue::Blob(range.start().to_vec()),
        SqlValue::Integer(sql_millis(now)),
    ];
    match range.end() {
        None => ("namespace = ?1 AND key >= ?2 AND (expires_at IS NULL OR expires_at > ?3)", parameters),
        Some(end) => {
            parameters.push(SqlValue::Blob(end.to_vec()));
            (
                "namespace = ?1 AND key >= ?2 AND key < ?4 AND (expires_at IS NULL OR expires_at > ?3)",
                parameters,
            )
        }
    }
}

fn chunk_row<'r>(row: &'r Row<'_>) -> SqliteResult<ChunkRow<'r>> {
    let (key, value) = (bytes(row, 0)?, bytes(row, 1)?);
    Ok(ChunkRow { key, value, version: Version(row.get(2)?), expires_at: row.get(3)? })
}

/// The bytes of a column, where they are.
fn bytes<'r>(row: &'r Row<'_>, column: usize) -> SqliteResult<&'r [u8]> {
    let found = row.get_ref(column)?;
    let unexpected = || rusqlite::Error::InvalidColumnType(column, String::new(), found.data_type());
    Ok(found.as_blob().map_err(|_| unexpected())?)
}

fn stored_value(row: &Row<'_>) -> rusqlite::Result<StoredValue> {
    Ok(StoredValue { value: row.get(0)?, version: Version(row.get(1)?), expires_at: row.get(2)? })
}

pub(crate) fn prepare<'c>(connection: &'c Connection, sql: &str) -> Result<rusqlite::CachedStatement<'c>> {
    connection.prepare_cached(sql).map_err(|error| Error::from(SqliteError::from(error)))
}

/// A moment that SQLite's signed numbers can't hold never comes.
pub(crate) fn sql_millis(millis: UnixMillis) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}
