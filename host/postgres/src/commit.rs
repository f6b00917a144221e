//! Commits: what the plan says, in one statement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use larder_core::backend::{Committed, Version};
use larder_core::commit::{Commit, CurrentRow, Need, Plan, RowWrite};
use larder_core::name::RowKey;
use larder_core::to_its_end::ToItsEnd;
use larder_core::{Error, Result};
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::connections::Connections;
use crate::error::{self, Failure};
use crate::first_read::FirstRead;
use crate::rows::{column, expires_at, saturating, unsigned, version as version_of};
use crate::session::{Params, Session};

/// How long a commit may take. Its transaction's deadline doesn't count any more.
const COMMIT_MAX: Duration = Duration::from_secs(30);

const BEGIN: &str = "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE";

/// The rows as they are, live or not, and locked in key order.
const CURRENT: &str = "
    SELECT asked.position, found.version, found.expires_at, octet_length(found.value)::bigint AS value_bytes,
        CASE WHEN asked.whole THEN found.value END AS value
    FROM unnest($1::bytea[], $2::bytea[], $3::boolean[]) WITH ORDINALITY AS asked (namespace, key, whole, position)
    CROSS JOIN LATERAL (
        SELECT version, expires_at, value FROM larder_entries
        WHERE namespace = asked.namespace AND key = asked.key
        FOR UPDATE
    ) AS found";

/// All changes of a commit, in key order, and their version.
///
/// The version is drawn after the transaction has taken its snapshot. Who draws a larger one and commits first has
/// changed the row since that snapshot, so the smaller one fails to serialize: a row's versions only grow. (A row that
/// others made and deleted meanwhile is not there to tell; that it was there is not seen either.)
///
/// Rows to delete are found one by one: as a join the planner might read the whole index, and thereby watch it.
macro_rules! write_all {
    ($condition:literal) => {
        concat!(
            "
    WITH drawn AS MATERIALIZED (
        SELECT nextval('larder_commit_sequence') AS version",
            $condition,
            "
    ), written AS (
        INSERT INTO larder_entries (namespace, key, value, expires_at, version)
        SELECT puts.namespace, puts.key, puts.value, puts.expires_at, drawn.version
        FROM drawn
        CROSS JOIN unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[]) AS puts (namespace, key, value, expires_at)
        ON CONFLICT (namespace, key) DO UPDATE
        SET value = excluded.value, expires_at = excluded.expires_at, version = excluded.version
    ), deleted AS (
        DELETE FROM larder_entries AS entries
        USING drawn CROSS JOIN unnest($5::bytea[], $6::bytea[]) AS deletes (namespace, key)
        CROSS JOIN LATERAL (
            SELECT ctid AS place FROM larder_entries
            WHERE namespace = deletes.namespace AND key = deletes.key
            LIMIT 1
        ) AS found
        WHERE entries.ctid = found.place
    )
    SELECT version FROM drawn"
        )
    };
}

const WRITE: &str = write_all!("");

/// The same, if a row is at a version: `$7` to `$10` say which row, when it must be live, and the version, none for no row.
const WRITE_IF: &str = write_all!(
    "
        WHERE (
            SELECT version FROM larder_entries
            WHERE namespace = $7 AND key = $8 AND (expires_at IS NULL OR expires_at > $9)
        ) IS NOT DISTINCT FROM $10::bigint"
);

/// The same for a single row, which most commits write, without what the server does to run over arrays.
const PUT: &str = "
    INSERT INTO larder_entries (namespace, key, value, expires_at, version)
    VALUES ($1, $2, $3, $4, nextval('larder_commit_sequence'))
    ON CONFLICT (namespace, key) DO UPDATE
    SET value = excluded.value, expires_at = excluded.expires_at, version = excluded.version
    RETURNING version";

/// The same for a single row that the transaction has seen in its snapshot. It is there, or the statement fails to
/// serialize. An insert that runs into the row would lock it first, and log that.
const REPLACE: &str = "
    UPDATE larder_entries
    SET value = $3, expires_at = $4, version = nextval('larder_commit_sequence')
    WHERE namespace = $1 AND key = $2
    RETURNING version";

/// The same for a single row that the transaction has read without a snapshot of its own, where it was there.
const REPLACE_IF: &str = "
    UPDATE larder_entries
    SET value = $3, expires_at = $4, version = nextval('larder_commit_sequence')
    WHERE namespace = $1 AND key = $2 AND version = $5
    RETURNING version";

/// Makes the commit of a transaction that read nothing.
pub(crate) async fn blind(connections: &Arc<Connections>, commit: Arc<Commit>) -> Result<Committed> {
    connections.check_open()?;
    if commit.writes.is_empty() && commit.conditions.is_empty() {
        return Ok(Committed::default());
    }
    let held = connections.clone();
    let work = async move {
        let mut session = held.session().await?;
        make_on_any(&held, &mut session, &commit, None).await
    };
    Ok(ToItsEnd::new(connections.runtime(), work).await?)
}

/// Makes the commit of a transaction that is open in a session.
///
/// `found` is a row that the transaction has read and found there.
pub(crate) async fn after_reads(
    connections: &Arc<Connections>,
    mut session: Session,
    commit: Arc<Commit>,
    found: Option<RowKey>,
) -> Result<Committed> {
    connections.check_open()?;
    let work = async move { make(&mut session, &commit, found.as_ref(), None).await };
    Ok(ToItsEnd::new(connections.runtime(), work).await?)
}

/// Makes the commit of a transaction that read one row, and has none open at the server.
pub(crate) async fn after_first_read(
    connections: &Arc<Connections>,
    mut session: Session,
    commit: Arc<Commit>,
    first: FirstRead,
) -> Result<Committed> {
    connections.check_open()?;
    if commit.writes.is_empty() && commit.conditions.is_empty() {
        return Ok(Committed::default());
    }
    let held = connections.clone();
    let work = async move { make_on_any(&held, &mut session, &commit, Some(&first)).await };
    Ok(ToItsEnd::new(connections.runtime(), work).await?)
}

/// Makes a commit that has no transaction open at the server, once more where the connection was lost before.
async fn make_on_any(
    connections: &Connections,
    session: &mut Session,
    commit: &Commit,
    first: Option<&FirstRead>,
) -> error::Result<Committed> {
    match make(session, commit, None, first).await {
        Err(failure) if failure.is_lost_before() => {
            connections.renew(session).await?;
            make(session, commit, None, first).await
        }
        outcome => outcome,
    }
}

async fn write_if(session: &mut Session, commit: &Commit, first: &FirstRead) -> error::Result<Committed> {
    let plan = commit.plan(|_, _| Ok(None))?;
    let (version, now) = (first.version(), saturating(commit.now));
    let (namespace, key) = (first.row.namespace.as_bytes(), first.row.key.as_bytes());
    let rows = match plan.writes.as_slice() {
        [(row, RowWrite::Put { value, expires_at })] if **row == first.row && version.is_some() => {
            let expiry = expires_at.map(saturating);
            let params: &Params<'_> = &[&namespace, &key, &value.as_ref(), &expiry, &version];
            session.commit_alone(REPLACE_IF, params).await?
        }
        _ => {
            let changes = Changes::of(&plan);
            let condition: &Params<'_> = &[&namespace, &key, &now, &version];
            session.commit_alone(WRITE_IF, &[&changes.params(), condition].concat()).await?
        }
    };
    match rows.first() {
        None => Err(Error::Conflict.into()),
        Some(drawn) => committed(version_of(drawn), plan.growth),
    }
}

async fn make(
    session: &mut Session,
    commit: &Commit,
    found: Option<&RowKey>,
    first: Option<&FirstRead>,
) -> error::Result<Committed> {
    in_time(session, async |session| match first {
        Some(first) if commit.needs().is_empty() => write_if(session, commit, first).await,
        first => make_unbounded(session, commit, found, first).await,
    })
    .await
}

/// Gives up on work that may commit, and says whether it did not.
pub(crate) async fn in_time<T>(
    session: &mut Session,
    work: impl AsyncFnOnce(&mut Session) -> error::Result<T>,
) -> error::Result<T> {
    match timeout(COMMIT_MAX, work(session)).await {
        Ok(outcome) => outcome,
        Err(_) if session.is_committing() => Err(Failure::CommitLost(None)),
        Err(_) => Err(Failure::Stalled("the database did not get to the commit in time")),
    }
}

async fn make_unbounded(
    session: &mut Session,
    commit: &Commit,
    found: Option<&RowKey>,
    first: Option<&FirstRead>,
) -> error::Result<Committed> {
    let current = read_current(session, &commit.needs(), first).await?;
    let plan = commit.plan(|row, _| Ok(current.get(row).cloned()))?;
    if plan.writes.is_empty() {
        if !session.is_idle() {
            session.commit().await?;
        }
        return Ok(Committed::default());
    }
    let rows = write(session, &plan, found).await?;
    let drawn =
        rows.first().ok_or_else(|| Failure::corrupt("the database gave no version")).and_then(version_of);
    committed(drawn, plan.growth)
}

/// What was committed. Where the version can't be read, the rows are written all the same; what as, is not known.
fn committed(drawn: error::Result<Version>, growth: i64) -> error::Result<Committed> {
    match drawn {
        Ok(version) => Ok(Committed { version, growth }),
        Err(failure) => Err(Failure::CommitLost(Some(Box::new(failure)))),
    }
}

async fn read_current<'a>(
    session: &mut Session,
    needs: &BTreeMap<&'a RowKey, Need>,
    first: Option<&FirstRead>,
) -> error::Result<BTreeMap<&'a RowKey, CurrentRow>> {
    if needs.is_empty() {
        return Ok(BTreeMap::new());
    }
    let namespaces: Vec<&[u8]> = needs.keys().map(|row| row.namespace.as_bytes()).collect();
    let keys: Vec<&[u8]> = needs.keys().map(|row| row.key.as_bytes()).collect();
    let whole: Vec<bool> = needs.values().map(|need| *need == Need::Value).collect();
    let params: &Params<'_> = &[&namespaces, &keys, &whole];
    let rows = match first {
        _ if session.is_in_transaction() => session.query(CURRENT, params).await?,
        Some(first) => first.begin(session, BEGIN, CURRENT, params).await?,
        None => session.begin(BEGIN, CURRENT, params).await?,
    };
    let asked: Vec<&'a RowKey> = needs.keys().copied().collect();
    rows.iter().map(|row| current_row(row, &asked)).collect()
}

fn current_row<'a>(row: &Row, asked: &[&'a RowKey]) -> error::Result<(&'a RowKey, CurrentRow)> {
    let position = usize::try_from(unsigned(row, "position")?).unwrap_or_default();
    let key = position.checked_sub(1).and_then(|place| asked.get(place));
    let key = key.ok_or_else(|| Failure::corrupt("the database answered for a row that was not asked"))?;
    let current = CurrentRow {
        version: version_of(row)?,
        expires_at: expires_at(row)?,
        value_bytes: unsigned(row, "value_bytes")?,
        value: column(row, "value")?,
    };
    Ok((key, current))
}

async fn write(session: &mut Session, plan: &Plan<'_>, found: Option<&RowKey>) -> error::Result<Vec<Row>> {
    let [(row, RowWrite::Put { value, expires_at })] = plan.writes.as_slice() else {
        return send(session, WRITE, &Changes::of(plan).params()).await;
    };
    let sql = if found == Some(*row) { REPLACE } else { PUT };
    let (namespace, key) = (row.namespace.as_bytes(), row.key.as_bytes());
    send(session, sql, &[&namespace, &key, &value.as_ref(), &expires_at.map(saturating)]).await
}

async fn send(session: &mut Session, sql: &str, params: &Params<'_>) -> error::Result<Vec<Row>> {
    if session.is_in_transaction() {
        session.commit_with(sql, params).await
    } else {
        session.commit_alone(sql, params).await
    }
}

/// The parameters of [`WRITE`], and the first ones of [`WRITE_IF`].
#[derive(Default)]
struct Changes<'a> {
    put_namespaces: Vec<&'a [u8]>,
    put_keys: Vec<&'a [u8]>,
    values: Vec<&'a [u8]>,
    expiries: Vec<Option<i64>>,
    deleted_namespaces: Vec<&'a [u8]>,
    deleted_keys: Vec<&'a [u8]>,
}

impl<'a> Changes<'a> {
    /// In the order of the statement.
    fn params(&self) -> [&(dyn ToSql + Sync); 6] {
        let Self { put_namespaces, put_keys, values, expiries, deleted_namespaces, deleted_keys } = self;
        [put_namespaces, put_keys, values, expiries, deleted_namespaces, deleted_keys]
    }

    fn of(plan: &'a Plan<'_>) -> Self {
        let mut changes = Self::default();
        for (row, write) in &plan.writes {
            match write {
                RowWrite::Put { value, expires_at } => {
                    changes.put_namespaces.push(row.namespace.as_bytes());
                    changes.put_keys.push(row.key.as_bytes());
                    changes.values.push(value);
                    changes.expiries.push(expires_at.map(saturating));
                }
                RowWrite::Delete => {
                    changes.deleted_namespaces.push(row.namespace.as_bytes());
                    changes.deleted_keys.push(row.key.as_bytes());
                }
            }
        }
        changes
    }
}
