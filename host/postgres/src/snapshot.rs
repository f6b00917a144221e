//! Snapshots. All reads run in one transaction, except the first read of an update.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use larder_core::Mode;
use larder_core::chunk::{Chunk, ChunkRow, ScanOptions};
use larder_core::clock::UnixMillis;
use larder_core::commit::{Commit, Committed};
use larder_core::name::{Key, KeyRange, Namespace, RowKey};
use larder_core::row::StoredValue;
use larder_core::snapshot::{Many, Snapshot, SnapshotOptions};
use larder_core::{Error, Result};
use tokio::time::timeout_at;
use tokio_postgres::Row;

use crate::commit;
use crate::connections::Connections;
use crate::error::{self, Failure};
use crate::first_read::{FirstRead, begin_snapshot};
use crate::moment::{Read, with_moment};
use crate::param::Params;
use crate::queries::Queries;
use crate::rows::{column, expires_at, saturating, stored_value, unsigned, version};
use crate::session::Session;

/// A snapshot. Postgres takes it at the first read.
pub(crate) struct PostgresSnapshot {
    connections: Arc<Connections>,
    /// `None` once the session is released.
    session: Option<Session>,
    /// A read was dropped before it completed, and its session was lost. Later reads would see
    /// another state, so they fail.
    is_lost: bool,
    options: SnapshotOptions,
    /// The time at which rows are tested for expiration. Set when the transaction begins.
    now: i64,
    /// The row that was read before the transaction began.
    first: Option<FirstRead>,
    /// When that row expires. The time of the snapshot must be earlier.
    first_expires_at: Option<UnixMillis>,
}

/// How a session without an open transaction reads.
#[derive(Clone, Copy)]
enum Reading {
    /// By a statement outside a transaction.
    Alone,
    /// By a statement that begins the snapshot's transaction.
    Transaction,
}

/// Reads several rows by key.
///
/// `LIMIT` keeps the planner from turning the lookups into a join that reads more rows. `key = ANY
/// ($2)` could become such a join too. If a value is larger than its share of the bytes that may be
/// sent, the server does not send it. Postgres knows the length of a value without reading it.
macro_rules! get_many {
    ($now:literal) => {
        concat!(
            "
    SELECT asked.position, found.version, found.expires_at, found.value
    FROM unnest($2::bytea[]) WITH ORDINALITY AS asked (key, position)
    CROSS JOIN LATERAL (
        SELECT version, expires_at, CASE WHEN octet_length(value) <= $4 THEN value END AS value
        FROM {schema}.larder_entries
        WHERE namespace = $1 AND key = asked.key AND (expires_at IS NULL OR expires_at > ",
            $now,
            ")
        LIMIT 1
    ) AS found"
        )
    };
}

pub(crate) const GET_MANY: Read<&str> =
    Read { first: with_moment!("$3", get_many!("moment.now")), next: get_many!("$3") };

/// Reads several rows whose values differ much in size. The server adds up the sizes before it
/// sends a value.
macro_rules! get_many_counted {
    ($now:literal) => {
        concat!(
            "
    SELECT position, version, expires_at, total, CASE WHEN total <= $4 THEN value END AS value
    FROM (
        SELECT asked.position, found.*, coalesce(sum(octet_length(found.value)) OVER (), 0) AS total
        FROM unnest($2::bytea[]) WITH ORDINALITY AS asked (key, position)
        CROSS JOIN LATERAL (
            SELECT value, version, expires_at FROM {schema}.larder_entries
            WHERE namespace = $1 AND key = asked.key AND (expires_at IS NULL OR expires_at > ",
            $now,
            ")
            LIMIT 1
        ) AS found
    ) AS counted"
        )
    };
}

pub(crate) const GET_MANY_COUNTED: Read<&str> =
    Read { first: with_moment!("$3", get_many_counted!("moment.now")), next: get_many_counted!("$3") };

/// Scans a range. The server looks up one more row than it sends, to tell whether the range ends.
macro_rules! scan {
    ($now:literal, $order:literal, $end:literal) => {
        concat!(
            "
    SELECT key, CASE WHEN $4 THEN ''::bytea ELSE value END AS value, version, expires_at, is_last
    FROM (
        SELECT *, row_number() OVER so_far AS position, sum(size) OVER so_far - size AS before,
            lead(key) OVER so_far IS NULL AS is_last
        FROM (
            SELECT key, value, version, expires_at,
                octet_length(key) + CASE WHEN $4::boolean THEN 0 ELSE octet_length(value) END AS size
            FROM {schema}.larder_entries
            WHERE namespace = $1 AND key >= $2 AND (expires_at IS NULL OR expires_at > ",
            $now,
            ")",
            $end,
            " ORDER BY key ",
            $order,
            " LIMIT $5::bigint + 1
        ) AS found
        WINDOW so_far AS (ORDER BY key ",
            $order,
            " ROWS UNBOUNDED PRECEDING)
    ) AS counted
    WHERE position <= $5 AND (before < $6 OR position = 1)
    ORDER BY key ",
            $order
        )
    };
}

macro_rules! scan_read {
    ($order:literal, $end:literal) => {
        Read { first: with_moment!("$3", scan!("moment.now", $order, $end)), next: scan!("$3", $order, $end) }
    };
}

// If one statement also served ranges without an end, its plan would not use the end.
pub(crate) const SCAN: Read<&str> = scan_read!("ASC", "");
pub(crate) const SCAN_TO: Read<&str> = scan_read!("ASC", " AND key < $7");
pub(crate) const SCAN_REVERSE: Read<&str> = scan_read!("DESC", "");
pub(crate) const SCAN_REVERSE_TO: Read<&str> = scan_read!("DESC", " AND key < $7");

/// Returns the statement for a range.
fn scan_of(queries: &Queries, reverse: bool, has_end: bool) -> &Read {
    match (reverse, has_end) {
        (false, false) => &queries.scan,
        (false, true) => &queries.scan_to,
        (true, false) => &queries.scan_reverse,
        (true, true) => &queries.scan_reverse_to,
    }
}

macro_rules! next_namespace {
    ($now:literal) => {
        concat!(
            "
    SELECT namespace FROM {schema}.larder_entries
    WHERE namespace >= $1 AND (expires_at IS NULL OR expires_at > ",
            $now,
            ")
    ORDER BY namespace, key LIMIT 1"
        )
    };
}

pub(crate) const NEXT_NAMESPACE: Read<&str> =
    Read { first: with_moment!("$2", next_namespace!("moment.now")), next: next_namespace!("$2") };

impl PostgresSnapshot {
    pub(crate) async fn take(connections: &Arc<Connections>, options: SnapshotOptions) -> Result<Self> {
        let session = in_time(options.deadline, connections.snapshot_session(&options.share)).await?;
        Ok(Self {
            connections: connections.clone(),
            session: Some(session),
            is_lost: false,
            options,
            now: 0,
            first: None,
            first_expires_at: None,
        })
    }

    async fn read(&mut self, read: &Read, params: &Params<'_>) -> error::Result<Vec<Row>> {
        self.read_in(Reading::Transaction, read, params).await
    }

    async fn read_in(
        &mut self,
        reading: Reading,
        read: &Read,
        params: &Params<'_>,
    ) -> error::Result<Vec<Row>> {
        self.connections.check_open()?;
        in_time(self.options.deadline, self.read_unbounded(reading, read, params)).await
    }

    async fn read_unbounded(
        &mut self,
        reading: Reading,
        read: &Read,
        params: &Params<'_>,
    ) -> error::Result<Vec<Row>> {
        self.check_kept()?;
        self.is_lost = true;
        let session = match self.session.take() {
            Some(session) => Ok(session),
            None => self.connections.snapshot_session(&self.options.share).await,
        };
        let rows = match session {
            Ok(mut session) => {
                let rows = self.read_on(&mut session, reading, read, params).await;
                self.session = Some(session);
                rows
            }
            Err(failure) => Err(failure),
        };
        self.is_lost = false;
        rows
    }

    async fn read_on(
        &mut self,
        session: &mut Session,
        reading: Reading,
        read: &Read,
        params: &Params<'_>,
    ) -> error::Result<Vec<Row>> {
        if session.is_in_transaction() {
            return session.query(&read.next, params).await;
        }
        let rows = match self.read_new(session, reading, &read.first, params).await {
            Err(failure) if failure.is_lost_before() => {
                self.connections.renew(session).await?;
                self.read_new(session, reading, &read.first, params).await?
            }
            rows => rows?,
        };
        self.take_moment(rows)
    }

    /// Takes the time of the snapshot from the first row, and returns the rows.
    fn take_moment(&mut self, mut rows: Vec<Row>) -> error::Result<Vec<Row>> {
        let first = rows.first().ok_or_else(|| Failure::corrupt("the database returned no time"))?;
        self.now = column(first, "moment")?;
        if column::<Option<bool>>(first, "is_found")?.is_none() {
            rows.clear();
        }
        let expired =
            self.first_expires_at.take().is_some_and(|expires_at| saturating(expires_at) <= self.now);
        if expired { Err(Error::Conflict.into()) } else { Ok(rows) }
    }

    async fn read_new(
        &mut self,
        session: &mut Session,
        reading: Reading,
        sql: &str,
        params: &Params<'_>,
    ) -> error::Result<Vec<Row>> {
        match reading {
            Reading::Alone => session.read_alone(sql, params).await,
            Reading::Transaction => self.begin_with(session, sql, params).await,
        }
    }

    async fn begin_with(
        &mut self,
        session: &mut Session,
        sql: &str,
        params: &Params<'_>,
    ) -> error::Result<Vec<Row>> {
        let Some(first) = &self.first else {
            let [rows] = begin_snapshot(session, [(sql, params)]).await?;
            return Ok(rows);
        };
        let rows = first.begin(session, self.options.clock.moved_millis(), sql, params).await?;
        self.first_expires_at = first.stored.as_ref().and_then(|stored| stored.expires_at);
        self.first = None;
        Ok(rows)
    }

    /// Reads the first row of an update, outside a transaction.
    async fn read_first(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        let (namespace, key, moved) = (row.namespace.as_bytes(), row.key.as_bytes(), self.moment());
        let rows = self.read_in(Reading::Alone, &self.queries().get, &[&namespace, &key, &moved]).await?;
        let stored = rows.first().map(stored_value).transpose()?;
        self.first = Some(FirstRead { row: row.clone(), stored: stored.clone() });
        Ok(stored)
    }

    fn queries(&self) -> Arc<Queries> {
        self.connections.queries().clone()
    }

    /// Returns the time parameter of a [`Read`].
    fn moment(&self) -> i64 {
        if self.is_in_transaction() { self.now } else { self.options.clock.moved_millis() }
    }

    fn is_in_transaction(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_in_transaction)
    }

    fn check_kept(&self) -> error::Result<()> {
        if self.is_lost { Err(Failure::Gone) } else { Ok(()) }
    }

    /// Whether no transaction has begun on the server.
    fn is_idle(&self) -> bool {
        !self.is_lost && self.session.as_ref().is_none_or(Session::is_idle)
    }
}

async fn in_time<T>(deadline: Instant, work: impl Future<Output = error::Result<T>>) -> error::Result<T> {
    timeout_at(deadline.into(), work).await.unwrap_or(Err(Failure::Overdue))
}

#[async_trait]
impl Snapshot for PostgresSnapshot {
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        let first = self.first.as_ref().filter(|first| first.row == *row)?;
        Some(first.stored.clone())
    }

    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        if self.options.mode == Mode::Update && self.is_idle() && self.first.is_none() {
            return self.read_first(row).await;
        }
        let (namespace, key, now) = (row.namespace.as_bytes(), row.key.as_bytes(), self.moment());
        let rows = self.read(&self.queries().get, &[&namespace, &key, &now]).await?;
        Ok(rows.first().map(stored_value).transpose()?)
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        let names: Vec<&[u8]> = keys.iter().map(Key::as_bytes).collect();
        let (namespace, now, max) = (namespace.as_bytes(), self.moment(), saturating(max_bytes));
        let share = max / i64::try_from(keys.len().max(1)).unwrap_or(i64::MAX);
        let share = i32::try_from(share).unwrap_or(i32::MAX);
        let rows = self.read(&self.queries().get_many, &[&namespace, &names, &now, &share]).await?;
        if let Some(found) = many(&rows, keys.len())? {
            return Ok(Many::Rows(found));
        }
        let now = self.moment();
        let rows = self.read(&self.queries().get_many_counted, &[&namespace, &names, &now, &max]).await?;
        Ok(many_counted(&rows, keys.len(), max_bytes)?)
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        let (namespace, start, now) = (range.namespace().as_bytes(), range.start(), self.moment());
        // The statement looks up one more row.
        let max_rows = i64::try_from(options.max_rows).unwrap_or(i64::MAX).min(i64::MAX - 1);
        let max_bytes = saturating(options.max_bytes);
        let queries = self.queries();
        let read = scan_of(&queries, options.reverse, range.end().is_some());
        let rows = match range.end() {
            None => {
                self.read(read, &[&namespace, &start, &now, &options.keys_only, &max_rows, &max_bytes])
                    .await?
            }
            Some(end) => {
                let params: &Params<'_> =
                    &[&namespace, &start, &now, &options.keys_only, &max_rows, &max_bytes, &end];
                self.read(read, params).await?
            }
        };
        Ok(chunk(&rows, options)?)
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        let now = self.moment();
        let rows = self.read(&self.queries().next_namespace, &[&first_after(after), &now]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Namespace::from_stored(column(row, "namespace")?).map(Some)
    }

    fn pins(&self) -> bool {
        self.session.is_some()
    }

    /// Gives up the session if no transaction is open. Any other session can then continue the
    /// snapshot.
    fn release(&mut self) -> bool {
        let is_idle = self.is_idle();
        if is_idle {
            self.session = None;
        }
        is_idle
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        self.check_kept()?;
        let Self { connections, session, .. } = *self;
        commit::make(&connections, session, commit).await
    }
}

/// Returns the smallest name after `namespace`, which is the name followed by a NUL.
fn first_after(namespace: Option<&Namespace>) -> Vec<u8> {
    let mut first = namespace.map_or(Vec::new(), |namespace| namespace.as_bytes().to_vec());
    if namespace.is_some() {
        first.push(0);
    }
    first
}

/// Decodes the rows of [`GET_MANY`]. Returns `None` if the server left out a value.
fn many(rows: &[Row], asked: usize) -> error::Result<Option<Vec<Option<StoredValue>>>> {
    for row in rows {
        if column::<Option<&[u8]>>(row, "value")?.is_none() {
            return Ok(None);
        }
    }
    in_requested_order(rows, asked).map(Some)
}

/// Decodes the rows of [`GET_MANY_COUNTED`].
fn many_counted(rows: &[Row], asked: usize, max_bytes: u64) -> error::Result<Many> {
    let total = rows.first().map_or(Ok(0), |row| unsigned(row, "total"))?;
    if total > max_bytes {
        return Ok(Many::TooLarge(total));
    }
    in_requested_order(rows, asked).map(Many::Rows)
}

/// Puts the rows in the order of the requested keys. A missing row is `None`.
fn in_requested_order(rows: &[Row], asked: usize) -> error::Result<Vec<Option<StoredValue>>> {
    let mut found = vec![None; asked];
    for row in rows {
        let index =
            usize::try_from(unsigned(row, "position")?).ok().and_then(|position| position.checked_sub(1));
        let index = index.and_then(|index| found.get_mut(index));
        *index.ok_or_else(|| Failure::corrupt("the database returned a key that was not requested"))? =
            Some(stored_value(row)?);
    }
    Ok(found)
}

fn chunk(rows: &[Row], options: ScanOptions) -> error::Result<Chunk> {
    let exhausted = match rows.last() {
        Some(last) => column(last, "is_last")?,
        // If `max_rows` is 0, it is unknown whether the range ends.
        None => options.max_rows > 0,
    };
    let mut chunk = Chunk::default();
    chunk.exhausted = exhausted;
    for row in rows {
        let (key, value) = (column(row, "key")?, column(row, "value")?);
        chunk.push_stored(ChunkRow { key, value, version: version(row)?, expires_at: expires_at(row)? });
    }
    Ok(chunk)
}
