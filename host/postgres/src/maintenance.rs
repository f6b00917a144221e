//! What is done beside transactions.

use std::time::Duration;

use larder_core::backend::{SweepOptions, Swept};
use larder_core::{Error, Share};
use tokio::time::timeout;
use tokio_postgres::Row;

use crate::answer::answered;
use crate::connections::Connections;
use crate::error::{Failure, Result};
use crate::moment::moment;
use crate::opening;
use crate::param::Params;
use crate::rows::{column, unsigned};
use crate::session::Session;
use crate::versions;

/// How long a statement may take. The server ends it later, in case that this process is stopped.
const STATEMENT_MAX: Duration = Duration::from_secs(30);

/// The same for a statement that reads every row.
const COUNT_MAX: Duration = Duration::from_secs(540);

/// How long a server may take to say that it is there.
const PING_MAX: Duration = Duration::from_secs(5);

pub(crate) const COUNT: &str = "
    SELECT (
        (SELECT coalesce(sum(octet_length(namespace) + octet_length(key) + octet_length(value)), 0)
            FROM {schema}.larder_entries)
        + (SELECT coalesce(sum(octet_length(tenant_id) + octet_length(user_id) + octet_length(session_id)
            + octet_length(run_id) + octet_length(kind) + octet_length(bytes)), 0) FROM {schema}.larder_memory_state)
    )::bigint AS bytes";

/// A row that somebody is writing is left for later. So is one that was written since the statement began: its new
/// place is not visible to the statement.
pub(crate) const SWEEP: &str = concat!(
    "
    WITH expired AS MATERIALIZED (
        SELECT ctid AS place FROM {schema}.larder_entries WHERE expires_at <= ",
    moment!("$1"),
    "
        ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ), deleted AS (
        DELETE FROM {schema}.larder_entries AS entries USING expired WHERE entries.ctid = expired.place
        RETURNING octet_length(namespace) + octet_length(key) + octet_length(value) AS bytes
    )
    SELECT count(*) AS rows, coalesce(sum(bytes), 0)::bigint AS bytes FROM deleted"
);

/// What a schema has under larder's names: of each the kind.
const RELATIONS: &str = "
    SELECT relname::text AS name, relkind::text AS kind
    FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname = ANY($2)";

/// What larder's steps create, with the kinds that each may be of: a table can be partitioned.
const EXPECTED: [(&str, &[&str]); 3] = [
    ("larder_entries", &["r", "p"]),
    ("larder_commit_sequence", &["S"]),
    ("larder_memory_state", &["r", "p"]),
];

/// Refuses a schema that lacks a table of larder's, as its ledger says that all steps are applied.
pub(crate) async fn check_tables(connections: &Connections, schema: &str) -> Result<()> {
    let names = EXPECTED.map(|(name, _)| name);
    let rows = transaction(connections, opening::READ, RELATIONS, &[&schema, &names.as_slice()]).await?;
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
            "schema {schema:?} of the database holds no intact store: its ledger \"larder_migrations\" says that larder's \
             tables were created, but {missing:?} is missing or of another kind; restore the schema from a backup"
        )))),
    }
}

pub(crate) async fn stored_bytes(connections: &Connections) -> Result<u64> {
    unsigned(
        one(&transaction(connections, opening::COUNT, &connections.queries().count, &[]).await?)?,
        "bytes",
    )
}

pub(crate) async fn sweep(connections: &Connections, options: &SweepOptions) -> Result<Swept> {
    let (moved, max_rows) = (options.clock.moved_millis(), i64::from(options.max_rows));
    let rows =
        transaction(connections, opening::SHORT, &connections.queries().sweep, &[&moved, &max_rows]).await?;
    // Behind a pooler, the server may be replaced without a new connection.
    let mut session = connections.session(&Share::host()).await?;
    let followed = answered(&mut session, STATEMENT_MAX, versions::follow_clock).await;
    followed.unwrap_or(Err(Failure::Stalled("the database did not answer in time")))?;
    let row = one(&rows)?;
    Ok(Swept { rows: unsigned(row, "rows")?, bytes: unsigned(row, "bytes")? })
}

pub(crate) async fn ping(connections: &Connections) -> Result<()> {
    let answer = transaction(connections, opening::READ, "SELECT 1", &[]);
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
    transaction_of(&Share::host(), connections, begin, sql, params).await
}

/// The same on behalf of a share.
pub(crate) async fn transaction_of(
    share: &Share,
    connections: &Connections,
    begin: &str,
    sql: &str,
    params: &Params<'_>,
) -> Result<Vec<Row>> {
    let mut session = connections.session(share).await?;
    match finished(&mut session, begin, sql, params).await {
        Err(failure) if failure.is_lost_before() => {
            connections.renew(&mut session).await?;
            finished(&mut session, begin, sql, params).await
        }
        rows => rows,
    }
}

/// Gives up if the server does not answer.
async fn finished(session: &mut Session, begin: &str, sql: &str, params: &Params<'_>) -> Result<Vec<Row>> {
    let max = if begin == opening::COUNT { COUNT_MAX } else { STATEMENT_MAX };
    let rows = answered(session, max, async |session| session.finish_one(begin, (sql, params)).await).await;
    rows.unwrap_or(Err(Failure::Stalled("the database did not answer in time")))
}
