//! Commits: what the plan says, in one statement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use larder_core::backend::{Committed, Version};
use larder_core::clock::UnixMillis;
use larder_core::commit::{Commit, CurrentRow, Mutation, Need, Plan, RowWrite};
use larder_core::name::RowKey;
use larder_core::to_its_end::ToItsEnd;
use larder_core::{Error, Result};
use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::connections::Connections;
use crate::error::{self, Failure};
use crate::first_read::FirstRead;
use crate::moment::moment;
use crate::rows::{column, expires_at, saturating, unsigned, version as version_of};
use crate::session::{Params, Session};

/// How long a commit may take. Its transaction's deadline doesn't count any more.
const COMMIT_MAX: Duration = Duration::from_secs(30);

const BEGIN: &str = "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE";

/// The rows as they are, live or not, and locked in key order.
pub(crate) const CURRENT: &str = concat!("
    SELECT asked.position, found.version, found.expires_at, octet_length(found.value)::bigint AS value_bytes,
        ", moment!("$4"), " AS moment,
        CASE WHEN asked.whole THEN found.value END AS value
    FROM unnest($1::bytea[], $2::bytea[], $3::boolean[]) WITH ORDINALITY AS asked (namespace, key, whole, position)
    CROSS JOIN LATERAL (
        SELECT version, expires_at, value FROM {schema}.larder_entries
        WHERE namespace = asked.namespace AND key = asked.key
        FOR UPDATE
    ) AS found");

/// When a row that is put expires: a counter keeps its expiry, a time to live counts from the moment. What runs into a row
/// that another transaction has locked reads the clock once it has the lock: so does `ON CONFLICT DO UPDATE`, but no plain
/// update. An insert that waits for another of the same row, which is rolled back, counts from before the wait, and so do the
/// rows before one that waits: [`is_late!`] looks after those.
macro_rules! expiry {
    ($kept:literal, $ttl:literal, $moved:literal) => {
        concat!("coalesce(", $kept, ", ", moment!($moved), " + ", $ttl, ")")
    };
}

/// Whether the statement waited for a lock since it took the moment from which times to live count. It may take 100 ms, and
/// one more for each row, without a wait.
macro_rules! is_late {
    ($since:literal, $rows:literal, $moved:literal) => {
        concat!(moment!($moved), " - ", $since, " > 100 + ", $rows)
    };
}

/// The version that was drawn, unless something that the commit rests on has expired, or times to live would count from too
/// early: then the statement fails, by a division by zero, which nothing else in it can come to. It must be evaluated once all
/// rows are locked and written.
macro_rules! unless_expired {
    ($version:literal, $moved:literal, $expires_at:literal, $is_late:expr) => {
        concat!(
            $version,
            " / CASE WHEN ",
            $expires_at,
            "::bigint <= ",
            moment!($moved),
            " OR ",
            $is_late,
            " THEN 0 ELSE 1 END AS version"
        )
    };
}

/// All changes of a commit, in key order, and their version.
///
/// The version is drawn after the transaction has taken its snapshot. Who draws a larger one and commits first has
/// changed the row since that snapshot, so the smaller one fails to serialize: a row's versions only grow. (A row that
/// others made and deleted meanwhile is not there to tell; that it was there is not seen either.)
///
/// Rows to delete are found one by one: as a join the planner might read the whole index, and thereby watch it. That the
/// changes are counted has them made before the last look at the clock.
macro_rules! write_all {
    ($condition:expr) => {
        concat!(
            "
    WITH drawn AS MATERIALIZED (
        SELECT nextval({sequence}) AS version, ",
            moment!("$11"),
            " AS moment",
            $condition,
            "
    ), written AS (
        INSERT INTO {schema}.larder_entries (namespace, key, value, expires_at, version)
        SELECT puts.namespace, puts.key, puts.value, puts.expires_at, drawn.version
        FROM drawn
        CROSS JOIN unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[]) AS puts (namespace, key, value, expires_at)
        ON CONFLICT (namespace, key) DO UPDATE
        SET value = excluded.value, expires_at = excluded.expires_at, version = excluded.version
        RETURNING 1
    ), lapsing AS (
        INSERT INTO {schema}.larder_entries (namespace, key, value, expires_at, version)
        SELECT puts.namespace, puts.key, puts.value, drawn.moment + puts.ttl, drawn.version
        FROM drawn
        CROSS JOIN unnest($5::bytea[], $6::bytea[], $7::bytea[], $8::bigint[]) AS puts (namespace, key, value, ttl)
        ON CONFLICT (namespace, key) DO UPDATE
        SET value = excluded.value, version = excluded.version,
            expires_at = excluded.expires_at - (SELECT moment FROM drawn) + ",
            moment!("$11"),
            "
        RETURNING 1
    ), deleted AS (
        DELETE FROM {schema}.larder_entries AS entries
        USING drawn CROSS JOIN unnest($9::bytea[], $10::bytea[]) AS deletes (namespace, key)
        CROSS JOIN LATERAL (
            SELECT ctid AS place FROM {schema}.larder_entries
            WHERE namespace = deletes.namespace AND key = deletes.key
            LIMIT 1
        ) AS found
        WHERE entries.ctid = found.place
        RETURNING 1
    )
    SELECT ",
            unless_expired!(
                "drawn.version",
                "$11",
                "$12",
                concat!(
                    "lapsing.rows > 0 AND ",
                    is_late!("drawn.moment", "put.rows + lapsing.rows + gone.rows", "$11")
                )
            ),
            "
    FROM drawn CROSS JOIN (SELECT count(*) AS rows FROM written) AS put
    CROSS JOIN (SELECT count(*) AS rows FROM lapsing) AS lapsing CROSS JOIN (SELECT count(*) AS rows FROM deleted) AS gone"
        )
    };
}

pub(crate) const WRITE: &str = write_all!("");

/// The same, if a row is at a version: `$13` to `$15` say which row, and the version, none for no row.
pub(crate) const WRITE_IF: &str = write_all!(concat!(
    "
        WHERE (
            SELECT version FROM {schema}.larder_entries
            WHERE namespace = $13 AND key = $14 AND (expires_at IS NULL OR expires_at > ",
    moment!("$11"),
    ")
        ) IS NOT DISTINCT FROM $15::bigint"
));

/// The same for a single row, which most commits write, without what the server does to run over arrays.
pub(crate) const PUT: &str = concat!(
    "
    INSERT INTO {schema}.larder_entries AS entries (namespace, key, value, expires_at, version)
    VALUES ($1, $2, $3, ",
    expiry!("$4::bigint", "$5::bigint", "$6"),
    ", nextval({sequence}))
    ON CONFLICT (namespace, key) DO UPDATE
    SET value = excluded.value, version = excluded.version, expires_at = ",
    expiry!("$4::bigint", "$5::bigint", "$6"),
    "
    RETURNING ",
    unless_expired!("entries.version", "$6", "$7", is_late!("(entries.expires_at - $5::bigint)", "1", "$6"))
);

/// The same for a single row without a time to live that the transaction has seen in its snapshot. It is there, or the
/// statement fails to serialize. An insert that runs into the row would lock it first, and log that.
pub(crate) const REPLACE: &str = concat!(
    "
    UPDATE {schema}.larder_entries AS entries
    SET value = $3, expires_at = $4, version = nextval({sequence})
    WHERE namespace = $1 AND key = $2
    RETURNING ",
    unless_expired!("entries.version", "$5", "$6", "false")
);

/// The same for a single row that the transaction has read without a snapshot of its own, where it was there.
pub(crate) const REPLACE_IF: &str = concat!(
    "
    UPDATE {schema}.larder_entries AS entries
    SET value = $3, expires_at = $4, version = nextval({sequence})
    WHERE namespace = $1 AND key = $2 AND version = $7
    RETURNING ",
    unless_expired!("entries.version", "$5", "$6", "false")
);

/// Makes the commit of a transaction that read nothing.
pub(crate) async fn blind(connections: &Arc<Connections>, commit: Arc<Commit>) -> Result<Committed> {
    connections.check_open()?;
    if commit.writes.is_empty() && commit.conditions.is_empty() {
        return Ok(Committed::default());
    }
    in_turn(connections, None, commit, Reads::default()).await
}

/// Makes the commit of a transaction that is open in a session.
///
/// `found` is a row that the transaction has read and found there.
pub(crate) async fn after_reads(
    connections: &Arc<Connections>,
    session: Session,
    commit: Arc<Commit>,
    found: Option<RowKey>,
) -> Result<Committed> {
    connections.check_open()?;
    in_turn(connections, Some(session), commit, Reads { found, first: None }).await
}

/// Makes the commit of a transaction that read one row, and has none open at the server. It may have given its session back.
pub(crate) async fn after_first_read(
    connections: &Arc<Connections>,
    session: Option<Session>,
    commit: Arc<Commit>,
    first: FirstRead,
) -> Result<Committed> {
    connections.check_open()?;
    if commit.writes.is_empty() && commit.conditions.is_empty() {
        return Ok(Committed::default());
    }
    in_turn(connections, session, commit, Reads { found: None, first: Some(first) }).await
}

/// What is known of the rows that a transaction read.
#[derive(Default)]
struct Reads {
    /// It was read in the transaction that is open, and was there.
    found: Option<RowKey>,
    /// It was read before there was a transaction.
    first: Option<FirstRead>,
}

/// Makes a commit when its turn has come, also if no caller waits for it any more. If no transaction is open at the server, it
/// is made once more if the connection was lost before.
async fn in_turn(
    connections: &Arc<Connections>,
    session: Option<Session>,
    commit: Arc<Commit>,
    reads: Reads,
) -> Result<Committed> {
    let held = connections.clone();
    let work = async move {
        let turn = held.large_turn(&commit).await?;
        let session = match session {
            Some(session) => session,
            None => held.session(&commit.share).await?,
        };
        let (is_large, is_new) = (turn.is_some(), session.is_idle());
        let making = Making { session, commit, reads };
        let (mut making, outcome) = making.make(held.runtime(), is_large).await?;
        match outcome {
            Err(failure) if is_new && failure.is_lost_before() => {
                held.renew(&mut making.session).await?;
                making.make(held.runtime(), is_large).await?.1
            }
            outcome => outcome,
        }
    };
    Ok(ToItsEnd::new(connections.runtime(), work).await?)
}

/// A commit, and the session in which it is made.
struct Making {
    session: Session,
    commit: Arc<Commit>,
    reads: Reads,
}

impl Making {
    /// Makes it; a large one on a blocking thread, as its parameters are encoded in one piece.
    async fn make(
        mut self,
        runtime: &Handle,
        is_large: bool,
    ) -> error::Result<(Self, error::Result<Committed>)> {
        let work = async move {
            let Reads { found, first } = &self.reads;
            let outcome = make(&mut self.session, &self.commit, found.as_ref(), first.as_ref()).await;
            (self, outcome)
        };
        if !is_large {
            return Ok(work.await);
        }
        let blocking = runtime.clone();
        runtime.spawn_blocking(move || blocking.block_on(work)).await.map_err(not_ended)
    }
}

/// Why a large commit gave no outcome. If it panicked, it may have been sent.
fn not_ended(error: JoinError) -> Failure {
    match error.is_panic() {
        true => Failure::CommitLost(None),
        false => Error::caused("the runtime ended before the commit was made", error).into(),
    }
}

async fn write_if(session: &mut Session, commit: &Commit, first: &FirstRead) -> error::Result<Committed> {
    let plan = commit.plan(SERVER_TELLS, |_, _| Ok(None))?;
    let (version, terms) = (first.version(), Terms::of(commit, &plan));
    let queries = session.queries();
    let (namespace, key) = (first.row.namespace.as_bytes(), first.row.key.as_bytes());
    let rows = match single_put(commit, &plan) {
        Some((row, value, Expiry { ttl: None, kept })) if *row == first.row && version.is_some() => {
            let Terms { moved, expires_at } = terms;
            let params: &Params<'_> = &[&namespace, &key, &value, &kept, &moved, &expires_at, &version];
            session.commit_alone(&queries.replace_if, params).await.map_err(expired)?
        }
        _ => {
            let changes = Changes::of(commit, &plan);
            let condition: &Params<'_> = &[&namespace, &key, &version];
            let params = [&changes.params(&terms), condition].concat();
            session.commit_alone(&queries.write_if, &params).await.map_err(expired)?
        }
    };
    match rows.first() {
        None => Err(Error::Conflict.into()),
        Some(drawn) => committed(version_of(drawn), plan.growth),
    }
}

/// Stands for the moment of a plan that no stored row is needed for: the server takes it, in the statement that writes.
const SERVER_TELLS: UnixMillis = 0;

/// What the server has to know to take the moment of a commit.
#[derive(Clone, Copy)]
struct Terms {
    /// How far its clock is moved.
    moved: i64,
    /// When the first row expires that the commit rests on.
    expires_at: Option<i64>,
}

impl Terms {
    fn of(commit: &Commit, plan: &Plan<'_>) -> Self {
        Self { moved: commit.clock.moved_millis(), expires_at: plan.expires_at.map(saturating) }
    }
}

/// When a row expires that is put: at a moment that it keeps, or so long after the commit.
#[derive(Clone, Copy, Default)]
struct Expiry {
    kept: Option<i64>,
    ttl: Option<i64>,
}

/// The longest time to live that can be added to any moment.
const TTL_MAX: i64 = i64::MAX / 2;

impl Expiry {
    fn of(commit: &Commit, row: &RowKey, expires_at: Option<UnixMillis>) -> Self {
        match commit.writes.get(row).and_then(Mutation::ttl_millis) {
            Some(ttl) => Self { kept: None, ttl: Some(saturating(ttl).min(TTL_MAX)) },
            None => Self { kept: expires_at.map(saturating), ttl: None },
        }
    }
}

/// The only write, where it is a put.
fn single_put<'a>(commit: &Commit, plan: &'a Plan<'_>) -> Option<(&'a RowKey, &'a [u8], Expiry)> {
    match plan.writes.as_slice() {
        [(row, RowWrite::Put { value, expires_at })] => {
            Some((row, value.as_ref(), Expiry::of(commit, row, *expires_at)))
        }
        _ => None,
    }
}

/// A statement that ends with [`unless_expired`] has found that it is too late.
fn expired(failure: Failure) -> Failure {
    if failure.is_division_by_zero() { Error::Conflict.into() } else { failure }
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
    let moved = commit.clock.moved_millis();
    let (current, now) = read_current(session, &commit.needs(), moved, first).await?;
    let plan = commit.plan(now, |row, _| Ok(current.get(row).cloned()))?;
    if plan.writes.is_empty() {
        if !session.is_idle() {
            session.commit().await?;
        }
        return Ok(Committed::default());
    }
    let rows = write(session, commit, &plan, found).await.map_err(expired)?;
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
    moved: i64,
    first: Option<&FirstRead>,
) -> error::Result<(BTreeMap<&'a RowKey, CurrentRow>, UnixMillis)> {
    if needs.is_empty() {
        return Ok((BTreeMap::new(), SERVER_TELLS));
    }
    let namespaces: Vec<&[u8]> = needs.keys().map(|row| row.namespace.as_bytes()).collect();
    let keys: Vec<&[u8]> = needs.keys().map(|row| row.key.as_bytes()).collect();
    let whole: Vec<bool> = needs.values().map(|need| *need == Need::Value).collect();
    let params: &Params<'_> = &[&namespaces, &keys, &whole, &moved];
    let queries = session.queries();
    let rows = match first {
        _ if session.is_in_transaction() => session.query(&queries.current, params).await?,
        Some(first) => first.begin(session, BEGIN, moved, &queries.current, params).await?,
        None => session.begin(BEGIN, &queries.current, params).await?,
    };
    let asked: Vec<&'a RowKey> = needs.keys().copied().collect();
    // The last row was locked last.
    let now = rows.last().map_or(Ok(SERVER_TELLS), |row| unsigned(row, "moment"))?;
    let current = rows.iter().map(|row| current_row(row, &asked)).collect::<error::Result<_>>()?;
    Ok((current, now))
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

async fn write(
    session: &mut Session,
    commit: &Commit,
    plan: &Plan<'_>,
    found: Option<&RowKey>,
) -> error::Result<Vec<Row>> {
    let (terms, queries) = (Terms::of(commit, plan), session.queries());
    let Some((row, value, Expiry { kept, ttl })) = single_put(commit, plan) else {
        return send(session, &queries.write, &Changes::of(commit, plan).params(&terms)).await;
    };
    let Terms { moved, expires_at } = terms;
    let (namespace, key) = (row.namespace.as_bytes(), row.key.as_bytes());
    if found == Some(row) && ttl.is_none() {
        return send(session, &queries.replace, &[&namespace, &key, &value, &kept, &moved, &expires_at])
            .await;
    }
    send(session, &queries.put, &[&namespace, &key, &value, &kept, &ttl, &moved, &expires_at]).await
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
    /// With the moments at which they expire, if they do.
    kept: Puts<'a>,
    /// With their times to live.
    lapsing: Puts<'a>,
    deleted_namespaces: Vec<&'a [u8]>,
    deleted_keys: Vec<&'a [u8]>,
}

#[derive(Default)]
struct Puts<'a> {
    namespaces: Vec<&'a [u8]>,
    keys: Vec<&'a [u8]>,
    values: Vec<&'a [u8]>,
    expiries: Vec<Option<i64>>,
}

impl<'a> Puts<'a> {
    fn push(&mut self, row: &'a RowKey, value: &'a [u8], expiry: Option<i64>) {
        self.namespaces.push(row.namespace.as_bytes());
        self.keys.push(row.key.as_bytes());
        self.values.push(value);
        self.expiries.push(expiry);
    }
}

impl<'a> Changes<'a> {
    /// In the order of the statement.
    fn params<'p>(&'p self, terms: &'p Terms) -> [&'p (dyn ToSql + Sync); 12] {
        let Self { kept, lapsing, deleted_namespaces, deleted_keys } = self;
        let Terms { moved, expires_at } = terms;
        [
            &kept.namespaces,
            &kept.keys,
            &kept.values,
            &kept.expiries,
            &lapsing.namespaces,
            &lapsing.keys,
            &lapsing.values,
            &lapsing.expiries,
            deleted_namespaces,
            deleted_keys,
            moved,
            expires_at,
        ]
    }

    fn of(commit: &Commit, plan: &'a Plan<'_>) -> Self {
        let mut changes = Self::default();
        for (row, write) in &plan.writes {
            match write {
                RowWrite::Put { value, expires_at } => match Expiry::of(commit, row, *expires_at) {
                    Expiry { ttl: None, kept } => changes.kept.push(row, value, kept),
                    Expiry { ttl, .. } => changes.lapsing.push(row, value, ttl),
                },
                RowWrite::Delete => {
                    changes.deleted_namespaces.push(row.namespace.as_bytes());
                    changes.deleted_keys.push(row.key.as_bytes());
                }
            }
        }
        changes
    }
}
