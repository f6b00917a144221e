//! What is done beside transactions.

use std::time::Duration;

use larder_core::backend::{SweepOptions, Swept};
use tokio::time::timeout;
use tokio_postgres::Row;

use crate::connections::Connections;
use crate::error::{Failure, Result};
use crate::moment::moment;
use crate::rows::unsigned;
use crate::session::Params;

/// How long a server may take to say that it is there.
const PING_MAX: Duration = Duration::from_secs(5);

/// Every row is read, which takes as long as it takes.
const BEGIN_COUNT: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = '10min'";

const COUNT: &str = "
    SELECT (
        (SELECT coalesce(sum(octet_length(namespace) + octet_length(key) + octet_length(value)), 0)
            FROM larder_entries)
        + (SELECT coalesce(sum(octet_length(tenant_id) + octet_length(user_id) + octet_length(session_id)
            + octet_length(run_id) + octet_length(kind) + octet_length(bytes)), 0) FROM larder_memory_state)
    )::bigint AS bytes";

/// Expired rows are seen by no transaction, so taking them away needn't be watched by any.
const BEGIN_SWEEP: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// A row that somebody is writing is left for later. So is one that was written since the statement began: its new
/// place is not visible to the statement.
const SWEEP: &str = concat!(
    "
    WITH expired AS MATERIALIZED (
        SELECT ctid AS place FROM larder_entries WHERE expires_at <= ",
    moment!("$1"),
    "
        ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ), deleted AS (
        DELETE FROM larder_entries AS entries USING expired WHERE entries.ctid = expired.place
        RETURNING octet_length(namespace) + octet_length(key) + octet_length(value) AS bytes
    )
    SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM deleted"
);

pub(crate) async fn stored_bytes(connections: &Connections) -> Result<u64> {
    unsigned(one(&transaction(connections, BEGIN_COUNT, COUNT, &[]).await?)?, "bytes")
}

pub(crate) async fn sweep(connections: &Connections, options: &SweepOptions) -> Result<Swept> {
    let (moved, max_rows) = (options.clock.moved_millis(), i64::from(options.max_rows));
    let rows = transaction(connections, BEGIN_SWEEP, SWEEP, &[&moved, &max_rows]).await?;
    let row = one(&rows)?;
    Ok(Swept { rows: unsigned(row, "rows")?, bytes: unsigned(row, "bytes")? })
}

pub(crate) async fn ping(connections: &Connections) -> Result<()> {
    let answer = transaction(connections, "BEGIN READ ONLY", "SELECT 1", &[]);
    match timeout(PING_MAX, answer).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(Failure::Stalled("the database did not answer in time")),
    }
}

fn one(rows: &[Row]) -> Result<&Row> {
    rows.first().ok_or_else(|| Failure::corrupt("the database gave no row"))
}

/// Runs a statement in a transaction, once more where the connection turns out to be gone.
pub(crate) async fn transaction(
    connections: &Connections,
    begin: &str,
    sql: &str,
    params: &Params<'_>,
) -> Result<Vec<Row>> {
    let mut session = connections.session().await?;
    match session.enclosed(begin, sql, params).await {
        Err(failure) if failure.is_lost_before() => {
            connections.renew(&mut session).await?;
            session.enclosed(begin, sql, params).await
        }
        rows => rows,
    }
}
