//! Commits in steps: a transaction that locks rows, validates the reads, and writes.

use std::collections::BTreeMap;

use larder_core::Error;
use larder_core::clock::UnixMillis;
use larder_core::commit::{Commit, Committed, CurrentRow, Mutation, Need, Plan, RowWrite, ttl_lead_max_ms};
use larder_core::name::RowKey;
use larder_core::read_set::RangeState;
use larder_core::row::Version;
use tokio_postgres::Row;

use crate::commit_puts::only_puts;
use crate::error::{self, Failure};
use crate::locking::Locking;
use crate::moment::moment;
use crate::opening;
use crate::param::Param;
use crate::rows::{column, expires_at, saturating, unsigned, version as version_of};
use crate::session::{Call, End, Session, Stopped};

/// Locks rows for writing, in the order of the arrays.
///
/// If a row does not exist, this inserts one with version 0, which no stored row has. Other
/// transactions do not see it, but wait for it like for any other row. The same transaction then
/// writes or deletes it. `WHERE false` makes the server lock an existing row without changing it.
pub(crate) const LOCK_WRITTEN: &str = "
    INSERT INTO {schema}.larder_entries (namespace, key, value, version)
    SELECT namespace, key, ''::bytea, 0 FROM unnest($1::bytea[], $2::bytea[]) AS written (namespace, key)
    ON CONFLICT (namespace, key) DO UPDATE SET version = 0 WHERE false";

/// Takes a shared lock on each row. Fails if another transaction holds an exclusive lock.
pub(crate) const SHARE_READ: &str = "
    SELECT count(*) FROM unnest($1::bytea[], $2::bytea[]) AS read (namespace, key)
    CROSS JOIN LATERAL (
        SELECT 1 FROM {schema}.larder_entries WHERE namespace = read.namespace AND key = read.key
        FOR SHARE NOWAIT
    ) AS found";

/// Reads rows as they are stored, including expired ones.
pub(crate) const CURRENT: &str = concat!("
    SELECT asked.position, found.version, found.expires_at, octet_length(found.value)::bigint AS value_bytes,
        ", moment!("$4"), " AS moment,
        CASE WHEN asked.whole THEN found.value END AS value
    FROM unnest($1::bytea[], $2::bytea[], $3::boolean[]) WITH ORDINALITY AS asked (namespace, key, whole, position)
    LEFT JOIN LATERAL (
        SELECT version, expires_at, value FROM {schema}.larder_entries
        WHERE namespace = asked.namespace AND key = asked.key AND version > 0
        LIMIT 1
    ) AS found ON true");

/// Computes the states of key ranges, as [`RangeState`] defines them. UTF-8 never contains the byte
/// 255.
pub(crate) const STRETCHES: &str = concat!("
    SELECT held.rows, held.newest, held.digest
    FROM unnest($1::bytea[], $2::bytea[], $3::bytea[]) WITH ORDINALITY AS stretch (namespace, first, behind, position)
    CROSS JOIN (SELECT ", moment!("$4"), " AS now) AS moment
    CROSS JOIN LATERAL (
        SELECT count(*) AS rows, coalesce(max(version), 0) AS newest,
            coalesce(sum(((version & 2147483647) * (version & 2147483647) % 2147483647) * (version & 2147483647))
                % 9223372036854775808, 0)::bigint AS digest
        FROM {schema}.larder_entries
        WHERE namespace = stretch.namespace AND key >= stretch.first AND key < coalesce(stretch.behind, '\\xff'::bytea)
            AND version > 0 AND (expires_at IS NULL OR expires_at > moment.now)
    ) AS held
    ORDER BY stretch.position");

/// Draws the version, checks that rows still have the versions that were read, and writes.
///
/// The transaction holds the locks of all these rows, so the statement does not wait, and every
/// earlier commit to one of the rows has drawn a smaller version. If a row nevertheless has a
/// larger version, the sequence is behind the rows, for example because a restore omitted its
/// state.
///
/// The statement fails with a division by zero if a row that the commit depends on has changed or
/// expired, and with a number out of range if the sequence is behind.
///
/// Rows are looked up one by one, because the planner might read the whole index for a join.
pub(crate) const WRITE: &str = concat!("
    WITH drawn AS MATERIALIZED (
        SELECT nextval({sequence}) AS version, ", moment!("$8"), " AS moment
    ), read AS MATERIALIZED (
        SELECT count(*) AS changed
        FROM drawn CROSS JOIN unnest($10::bytea[], $11::bytea[], $12::bigint[]) AS rested (namespace, key, version)
        LEFT JOIN LATERAL (
            SELECT version FROM {schema}.larder_entries
            WHERE namespace = rested.namespace AND key = rested.key AND version > 0
                AND (expires_at IS NULL OR expires_at > drawn.moment)
            LIMIT 1
        ) AS found ON true
        WHERE coalesce(found.version, 0) <> rested.version
    ), written AS (
        UPDATE {schema}.larder_entries AS entries
        SET value = puts.value, expires_at = coalesce(drawn.moment + puts.ttl, puts.kept), version = drawn.version
        FROM drawn
        CROSS JOIN unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[])
            AS puts (namespace, key, value, kept, ttl)
        CROSS JOIN LATERAL (
            SELECT ctid AS position FROM {schema}.larder_entries
            WHERE namespace = puts.namespace AND key = puts.key
            LIMIT 1
        ) AS found
        WHERE entries.ctid = found.position AND entries.version < drawn.version
        RETURNING 1
    ), deleted AS (
        DELETE FROM {schema}.larder_entries AS entries
        USING drawn CROSS JOIN unnest($6::bytea[], $7::bytea[]) AS deletes (namespace, key)
        CROSS JOIN LATERAL (
            SELECT ctid AS position FROM {schema}.larder_entries
            WHERE namespace = deletes.namespace AND key = deletes.key
            LIMIT 1
        ) AS found
        WHERE entries.ctid = found.position AND entries.version < drawn.version
        RETURNING 1
    )
    SELECT drawn.version / CASE WHEN read.changed > 0 OR $9::bigint <= drawn.moment THEN 0 ELSE 1 END
        + CASE WHEN put.rows + gone.rows = cardinality($1) + cardinality($6) THEN 0 ELSE 9223372036854775807 END AS version
    FROM drawn CROSS JOIN read
    CROSS JOIN (SELECT count(*) AS rows FROM written) AS put CROSS JOIN (SELECT count(*) AS rows FROM deleted) AS gone");

/// The time for a plan that needs no stored row. The server reads its clock when it writes.
pub(crate) const SERVER_TELLS: UnixMillis = 0;

/// The outcome of an attempt.
pub(crate) enum Attempt {
    Made(Committed),
    /// Other transactions held its row locks for too long.
    Contended,
    /// The version sequence is behind the versions of the rows.
    SequenceBehind,
}

/// Attempts a commit once, with these locks. It waits up to `row_wait_millis` for each row lock.
pub(crate) async fn attempt(
    session: &mut Session,
    commit: &Commit,
    locking: &Locking<'_>,
    row_wait_millis: u32,
) -> error::Result<Attempt> {
    let needs = commit.needs();
    let locks = Locks::of(locking);
    let queries = session.queries();
    let opening = opening::commit(&locking.namespaces, &queries.schema, row_wait_millis);
    if only_puts(commit) && queries.one_pass.is_worth_it() {
        if let Some(made) = put_all(session, commit, &opening).await? {
            return Ok(Attempt::Made(made));
        }
        session.roll_back_failed().await?;
    }
    let mut calls: Vec<Call<'_>> = Vec::with_capacity(5);
    let (written, shared) = (locks.written.params(), locks.shared.params());
    if !locking.written.is_empty() {
        calls.push((&queries.lock_written, &written));
    }
    let share_step = calls.len();
    if !locking.shared.is_empty() {
        calls.push((&queries.share_read, &shared));
    }
    let waits = |stopped| stopped_at(stopped, share_step, !locking.shared.is_empty());
    if needs.is_empty() && locking.stretches.is_empty() {
        let plan = commit.plan(SERVER_TELLS, |_, _| Ok(None))?;
        let changes = Changes::of(commit, &plan);
        let params = changes.params();
        calls.push((&queries.write, &params));
        return match session.run(Some(&opening), &calls, End::Commit).await {
            Ok(answers) => made(answers.last().map_or(&[], Vec::as_slice), &plan).map(Attempt::Made),
            Err(stopped) => waits(stopped),
        };
    }
    let moved = commit.clock.moved_millis();
    let asked = Asked::of(&needs);
    let (current, stretches) = (asked.params(&moved), locks.stretches(&moved));
    calls.push((&queries.current, &current));
    calls.push((&queries.stretches, &stretches));
    let mut answers = match session.run(Some(&opening), &calls, End::Open).await {
        Ok(answers) => answers,
        Err(stopped) => return waits(stopped),
    };
    let (states, rows) = (answers.pop().unwrap_or_default(), answers.pop().unwrap_or_default());
    if !commit.reads.ranges_hold(range_states(&states)?) {
        return Err(Error::Conflict.into());
    }
    let (current, now) = current_rows(&rows, &needs)?;
    let plan = commit.plan(now, |row, _| Ok(current.get(row).cloned()))?;
    let changes = Changes::of(commit, &plan);
    match session.run(None, &[(&queries.write, &changes.params())], End::Commit).await {
        Ok(answers) => made(answers.last().map_or(&[], Vec::as_slice), &plan).map(Attempt::Made),
        Err(stopped) => waits(Stopped { step: None, ..stopped }),
    }
}

/// Runs a commit that only puts rows. Returns `None` if the server refused it.
async fn put_all(session: &mut Session, commit: &Commit, opening: &str) -> error::Result<Option<Committed>> {
    let plan = commit.plan(SERVER_TELLS, |_, _| Ok(None))?;
    let changes = Changes::of(commit, &plan);
    let lead = saturating(ttl_lead_max_ms(plan.writes.len() as u64));
    let [namespaces, keys, values, kept, ttls, ..] = changes.params();
    let params: [&dyn Param; 7] = [namespaces, keys, values, kept, ttls, &changes.moved, &lead];
    let queries = session.queries();
    let outcome = session.commit_one(opening, (&queries.put_all, &params)).await;
    queries.one_pass.attempted(outcome.is_err());
    match outcome {
        Ok(answer) => made(&answer, &plan).map(Some),
        Err(failure) if failure.is_refusal() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Maps the failure of an attempt to its outcome.
fn stopped_at(Stopped { step, failure }: Stopped, share_step: usize, shares: bool) -> error::Result<Attempt> {
    // Another transaction is about to change a row that this one has read.
    if shares && step == Some(share_step) && failure.is_lock_not_available() {
        return Err(Error::Conflict.into());
    }
    if failure.is_lock_not_available() || failure.is_deadlock() {
        return Ok(Attempt::Contended);
    }
    if failure.is_out_of_range() {
        return Ok(Attempt::SequenceBehind);
    }
    Err(if failure.is_division_by_zero() { Error::Conflict.into() } else { failure })
}

/// Returns the outcome of a successful write. If the version is unreadable, the rows are written
/// nevertheless, so the outcome is unknown.
pub(crate) fn made(answer: &[Row], plan: &Plan<'_>) -> error::Result<Committed> {
    let drawn = answer.first().ok_or_else(|| Failure::corrupt("the database returned no version"));
    match drawn.and_then(version_of) {
        Ok(_) if plan.writes.is_empty() => Ok(Committed::default()),
        Ok(version) => Ok(Committed { version, growth: plan.growth }),
        Err(failure) => Err(Failure::CommitLost(Some(Box::new(failure)))),
    }
}

/// The keys of rows and ranges to lock, as parameters.
struct Locks<'a> {
    written: Names<'a>,
    shared: Names<'a>,
    stretch_namespaces: Vec<&'a [u8]>,
    firsts: Vec<&'a [u8]>,
    behinds: Vec<Option<&'a [u8]>>,
}

#[derive(Default)]
struct Names<'a> {
    namespaces: Vec<&'a [u8]>,
    keys: Vec<&'a [u8]>,
}

impl<'a> Names<'a> {
    fn push(&mut self, row: &'a RowKey) {
        self.namespaces.push(row.namespace.as_bytes());
        self.keys.push(row.key.as_bytes());
    }

    fn of(rows: &[&'a RowKey]) -> Self {
        let mut names = Self::default();
        rows.iter().for_each(|row| names.push(row));
        names
    }

    fn params(&self) -> [&dyn Param; 2] {
        [&self.namespaces, &self.keys]
    }
}

impl<'a> Locks<'a> {
    fn of(locking: &'a Locking<'_>) -> Self {
        let stretches = &locking.stretches;
        Self {
            written: Names::of(&locking.written),
            shared: Names::of(&locking.shared),
            stretch_namespaces: stretches.iter().map(|stretch| stretch.namespace().as_bytes()).collect(),
            firsts: stretches.iter().map(|stretch| stretch.start()).collect(),
            behinds: stretches.iter().map(|stretch| stretch.end()).collect(),
        }
    }

    fn stretches<'p>(&'p self, moved: &'p i64) -> [&'p dyn Param; 4] {
        [&self.stretch_namespaces, &self.firsts, &self.behinds, moved]
    }
}

/// The rows that a plan needs to read.
struct Asked<'a> {
    names: Names<'a>,
    whole: Vec<bool>,
}

impl<'a> Asked<'a> {
    fn of(needs: &BTreeMap<&'a RowKey, Need>) -> Self {
        let mut names = Names::default();
        needs.keys().for_each(|row| names.push(row));
        Self { names, whole: needs.values().map(|need| *need == Need::Value).collect() }
    }

    fn params<'p>(&'p self, moved: &'p i64) -> [&'p dyn Param; 4] {
        [&self.names.namespaces, &self.names.keys, &self.whole, moved]
    }
}

fn current_rows<'a>(
    rows: &[Row],
    needs: &BTreeMap<&'a RowKey, Need>,
) -> error::Result<(BTreeMap<&'a RowKey, CurrentRow>, UnixMillis)> {
    let asked: Vec<&'a RowKey> = needs.keys().copied().collect();
    let now = rows.last().map_or(Ok(SERVER_TELLS), |row| unsigned(row, "moment"))?;
    let mut current = BTreeMap::new();
    for row in rows {
        if column::<Option<i64>>(row, "version")?.is_none() {
            continue;
        }
        let index =
            usize::try_from(unsigned(row, "position")?).ok().and_then(|position| position.checked_sub(1));
        let key = index.and_then(|index| asked.get(index));
        let key =
            key.ok_or_else(|| Failure::corrupt("the database returned a row that was not requested"))?;
        let found = CurrentRow {
            version: version_of(row)?,
            expires_at: expires_at(row)?,
            value_bytes: unsigned(row, "value_bytes")?,
            value: column(row, "value")?,
        };
        current.insert(*key, found);
    }
    Ok((current, now))
}

fn range_states(rows: &[Row]) -> error::Result<Vec<RangeState>> {
    let state = |row| {
        let newest = Version(unsigned(row, "newest")?);
        Ok(RangeState { rows: unsigned(row, "rows")?, newest, digest: unsigned(row, "digest")? })
    };
    rows.iter().map(state).collect()
}

/// The parameters of [`WRITE`].
struct Changes<'a> {
    puts: Names<'a>,
    values: Vec<&'a [u8]>,
    /// When put rows expire: at a fixed time (`kept`), or at an offset from the commit's time
    /// (`ttls`).
    kept: Vec<Option<i64>>,
    ttls: Vec<Option<i64>>,
    deletes: Names<'a>,
    moved: i64,
    /// The earliest expiration time of the rows that the commit depends on.
    expires_at: Option<i64>,
    reads: Names<'a>,
    versions: Vec<i64>,
}

impl<'a> Changes<'a> {
    fn of(commit: &'a Commit, plan: &'a Plan<'_>) -> Self {
        let mut changes = Self {
            puts: Names::default(),
            values: Vec::new(),
            kept: Vec::new(),
            ttls: Vec::new(),
            deletes: Names::default(),
            moved: commit.clock.moved_millis(),
            expires_at: plan.expires_at.map(saturating),
            reads: Names::default(),
            versions: Vec::new(),
        };
        for (row, write) in &plan.writes {
            match write {
                RowWrite::Delete => changes.deletes.push(row),
                RowWrite::Put { value, expires_at } => {
                    let Expiry { kept, ttl } = Expiry::of(commit, row, *expires_at);
                    changes.puts.push(row);
                    changes.values.push(value);
                    changes.kept.push(kept);
                    changes.ttls.push(ttl);
                }
            }
        }
        for (row, version) in commit.reads.rows() {
            changes.reads.push(row);
            changes.versions.push(saturating(version.0));
        }
        changes
    }

    /// Returns the parameters in the order of the statement.
    fn params(&self) -> [&dyn Param; 12] {
        let Self { puts, values, kept, ttls, deletes, moved, expires_at, reads, versions } = self;
        [
            &puts.namespaces,
            &puts.keys,
            values,
            kept,
            ttls,
            &deletes.namespaces,
            &deletes.keys,
            moved,
            expires_at,
            &reads.namespaces,
            &reads.keys,
            versions,
        ]
    }
}

/// When a put row expires: at a fixed time, or at an offset from the commit's time.
#[derive(Clone, Copy, Default)]
pub(crate) struct Expiry {
    pub(crate) kept: Option<i64>,
    pub(crate) ttl: Option<i64>,
}

/// The longest time to live. Added to any time, it does not overflow.
const TTL_MAX: i64 = i64::MAX / 2;

impl Expiry {
    pub(crate) fn of(commit: &Commit, row: &RowKey, expires_at: Option<UnixMillis>) -> Self {
        match commit.writes.get(row).and_then(Mutation::ttl_ms) {
            Some(ttl) => Self { kept: None, ttl: Some(saturating(ttl).min(TTL_MAX)) },
            None => Self { kept: expires_at.map(saturating), ttl: None },
        }
    }
}
