//! Operations outside the transactions of guests: checks, sweeps, counts and pings.

use std::time::Duration;

use larder_core::backend::{SweepOptions, Swept};
use larder_core::{Error, Share};
use tokio::time::timeout;
use tokio_postgres::Row;

use crate::answer::answered_or_stalled;
use crate::connections::Connections;
use crate::error::{Failure, Result};
use crate::moment::moment;
use crate::opening;
use crate::param::Params;
use crate::rows::{column, unsigned};
use crate::session::Session;
use crate::versions;

/// How a transaction begins, and the time limit of its statement.
///
/// The server's own timeout is longer. It takes effect only if this process is stopped.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    begin: &'static str,
    max: Duration,
}

/// Reads few rows.
pub(crate) const READ: Kind = Kind { begin: opening::READ, max: Duration::from_secs(30) };

/// Writes few rows.
const WRITE: Kind = Kind { begin: opening::SHORT, max: READ.max };

/// Reads every row.
const COUNT_ALL: Kind = Kind { begin: opening::COUNT, max: Duration::from_secs(540) };

/// Time limit for a ping.
const PING_MAX: Duration = Duration::from_secs(5);

pub(crate) const COUNT: &str = "
    SELECT (
        (SELECT coalesce(sum(octet_length(namespace) + octet_length(key) + octet_length(value)), 0)
            FROM {schema}.larder_entries)
        + (SELECT coalesce(sum(octet_length(tenant_id) + octet_length(user_id) + octet_length(session_id)
            + octet_length(run_id) + octet_length(kind) + octet_length(bytes)), 0) FROM {schema}.larder_memory_state)
    )::bigint AS bytes";

/// Deletes expired rows.
///
/// It skips a row that another transaction is writing. It also misses a row that was written after
/// the statement began, because its new row version is not visible to the statement. A later sweep
/// finds both.
pub(crate) const SWEEP: &str = concat!(
    "
    WITH expired AS MATERIALIZED (
        SELECT ctid AS position FROM {schema}.larder_entries WHERE expires_at <= ",
    moment!("$1"),
    "
        ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ), deleted AS (
        DELETE FROM {schema}.larder_entries AS entries USING expired WHERE entries.ctid = expired.position
        RETURNING octet_length(namespace) + octet_length(key) + octet_length(value) AS bytes
    )
    SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM deleted"
);

/// Lists the relations with larder's names in a schema, with the kind of each.
const RELATIONS: &str = "
    SELECT relname::text AS name, relkind::text AS kind
    FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname = ANY($2)";

/// The relations that larder's steps create, with the kinds that each may have. A table may be
/// partitioned.
const EXPECTED: [(&str, &[&str]); 3] = [
    ("larder_entries", &["r", "p"]),
    ("larder_commit_sequence", &["S"]),
    ("larder_memory_state", &["r", "p"]),
];

/// Fails if one of larder's tables is missing in the schema, although the ledger records that all
/// steps are applied.
pub(crate) async fn check_tables(connections: &Connections, schema: &str) -> Result<()> {
    let names = EXPECTED.map(|(name, _)| name);
    let rows = transaction(connections, READ, RELATIONS, &[&schema, &names.as_slice()]).await?;
    let mut found = Vec::new();
    for row in &rows {
        found.push((column::<String>(row, "name")?, column::<String>(row, "kind")?));
    }
    let is_there = |(expected, kinds): &(&str, &[&str])| {
        found.iter().any(|(name, kind)| name == expected && kinds.contains(&kind.as_str()))
    };
    match EXPECTED.iter().find(|expected| !is_there(expected)) {
        None => Ok(()),
        Some((missing, _)) => Err(Failure::Known(Error::Corrupt(format!(
            "the store in schema {schema:?} of the database is incomplete: its ledger \"larder_migrations\" records that \
             larder's tables were created, but {missing:?} is missing or of another kind; restore the schema from a backup"
        )))),
    }
}

pub(crate) async fn stored_bytes(connections: &Connections) -> Result<u64> {
    unsigned(one(&transaction(connections, COUNT_ALL, &connections.queries().count, &[]).await?)?, "bytes")
}

pub(crate) async fn sweep(connections: &Connections, options: &SweepOptions) -> Result<Swept> {
    let (moved, max_rows) = (options.clock.moved_millis(), i64::from(options.max_rows));
    // Behind a pooler, the server may change without a new connection. The sequence is moved before
    // the sweep, because a failure afterwards would hide what the sweep removed.
    let mut session = connections.session(&Share::host()).await?;
    match answered_or_stalled(&mut session, WRITE.max, versions::follow_clock).await {
        // The sweep gets another connection.
        Err(failure) if failure.is_lost_before() => {}
        followed => followed?,
    }
    drop(session);
    let rows = transaction(connections, WRITE, &connections.queries().sweep, &[&moved, &max_rows]).await?;
    let row = one(&rows)?;
    Ok(Swept { rows: unsigned(row, "rows")?, bytes: unsigned(row, "bytes")? })
}

pub(crate) async fn ping(connections: &Connections) -> Result<()> {
    let answer = transaction(connections, READ, "SELECT 1", &[]);
    match timeout(PING_MAX, answer).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(Failure::Stalled("timed out while waiting for a response of the database")),
    }
}

fn one(rows: &[Row]) -> Result<&Row> {
    rows.first().ok_or_else(|| Failure::corrupt("the database returned no row"))
}

/// Runs one statement in a transaction. Retries once if the connection is broken.
pub(crate) async fn transaction(
    connections: &Connections,
    kind: Kind,
    sql: &str,
    params: &Params<'_>,
) -> Result<Vec<Row>> {
    transaction_of(&Share::host(), connections, kind, sql, params).await
}

/// Like [`transaction`], on behalf of a share.
pub(crate) async fn transaction_of(
    share: &Share,
    connections: &Connections,
    kind: Kind,
    sql: &str,
    params: &Params<'_>,
) -> Result<Vec<Row>> {
    let mut session = connections.session(share).await?;
    match finished(&mut session, kind, sql, params).await {
        Err(failure) if failure.is_lost_before() => {
            connections.renew(&mut session).await?;
            finished(&mut session, kind, sql, params).await
        }
        rows => rows,
    }
}

async fn finished(
    session: &mut Session,
    Kind { begin, max }: Kind,
    sql: &str,
    params: &Params<'_>,
) -> Result<Vec<Row>> {
    answered_or_stalled(session, max, async |session| session.finish_one(begin, (sql, params)).await).await
}
