//! Commits by a single statement, outside a transaction.
//!
//! Most commits put one row, and have read nothing or only that row. Such a statement is correct at
//! every isolation level, so it sets none. If the server refuses it, for example because the role's
//! transactions are read-only by default, larder makes the commit in a transaction that overrides
//! the settings.

use larder_core::Error;
use larder_core::commit::{Commit, Committed, Mutation, ttl_lead_max_ms};
use larder_core::name::RowKey;
use larder_core::row::Version;

use crate::commit_transaction::{Expiry, SERVER_TELLS, made};
use crate::error;
use crate::moment::moment;
use crate::namespace_lock;
use crate::param::Params;
use crate::rows::saturating;
use crate::session::Session;

/// SQL for the expiration time of a put row: a fixed time, or an offset from the server's clock.
///
/// A statement that waits for another writer of the row reads the clock again after the wait. If it
/// waits for a mere lock on the row, it does not. [`is_late!`] detects that.
macro_rules! expiry {
    () => {
        concat!("coalesce($4::bigint, ", moment!("$6"), " + $5::bigint)")
    };
}

/// SQL condition: the time to live began more than [`ttl_lead_max_ms`] ago.
macro_rules! is_late {
    () => {
        concat!(moment!("$6"), " - (entries.expires_at - $5::bigint) > $7::bigint")
    };
}

/// Common table expressions that take a shared lock for the row's namespace, and set options.
///
/// The lock table is empty. The options are the timeout for row locks, and that warnings reach the
/// client. They end with the statement. A commit in a transaction sets them when it begins.
macro_rules! locked {
    () => {
        "WITH locked AS MATERIALIZED (SELECT 1 FROM {schema}.{lock} FOR KEY SHARE),
    settings AS MATERIALIZED (
        SELECT set_config('lock_timeout', '{row_wait}', true), set_config('client_min_messages', 'warning', true)
    )"
    };
}

/// SQL condition that is always true and makes the server evaluate both parts of [`locked!`].
macro_rules! is_locked {
    () => {
        "NOT EXISTS (SELECT FROM locked) AND EXISTS (SELECT FROM settings)"
    };
}

/// SQL for the version. If `$refused` holds, the statement fails with a division by zero.
macro_rules! version_unless {
    ($refused:expr) => {
        concat!("entries.version / CASE WHEN ", $refused, " THEN 0 ELSE 1 END AS version")
    };
}

/// Puts a row that was not read.
///
/// The server draws the version before it locks the row, so another commit may have drawn a larger
/// version and changed the row in between. If the row exists, its version shows that. If the row is
/// new (only then is `xmax` 0), other commits may have put and deleted it. They have not if no
/// larger version was drawn. The server evaluates that condition after it has locked the row.
pub(crate) const PUT: &str = concat!(
    locked!(),
    "
    INSERT INTO {schema}.larder_entries AS entries (namespace, key, value, expires_at, version)
    SELECT $1::bytea, $2::bytea, $3::bytea, ",
    expiry!(),
    ", nextval({sequence}) WHERE ",
    is_locked!(),
    "
    ON CONFLICT (namespace, key) DO UPDATE
    SET value = excluded.value, version = excluded.version, expires_at = ",
    expiry!(),
    "
    WHERE entries.version < excluded.version
    RETURNING ",
    version_unless!(concat!(
        is_late!(),
        " OR entries.xmax = 0 AND (SELECT last_value FROM {schema}.larder_commit_sequence) <> entries.version"
    ))
);

/// Puts a row that was read, if it still has the version that was read.
pub(crate) const REPLACE: &str = concat!(
    locked!(),
    "
    UPDATE {schema}.larder_entries AS entries
    SET value = $3::bytea, version = nextval({sequence}), expires_at = ",
    expiry!(),
    "
    WHERE namespace = $1 AND key = $2 AND version = $9 AND ",
    is_locked!(),
    "
    RETURNING ",
    version_unless!(concat!(is_late!(), " OR $8::bigint <= ", moment!("$6"), " OR entries.version <= $9"))
);

/// A commit that a single statement can make.
pub(crate) struct Alone<'a> {
    row: &'a RowKey,
    value: &'a [u8],
    expiry: Expiry,
    /// The version that was read, or `None` if the row was not read.
    read: Option<i64>,
}

impl<'a> Alone<'a> {
    /// Returns the commit in this form, or `None` if it needs a transaction.
    pub(crate) fn of(commit: &'a Commit) -> Option<Self> {
        let mut writes = commit.writes.iter();
        let (Some((row, Mutation::Put { value, .. })), None) = (writes.next(), writes.next()) else {
            return None;
        };
        if !commit.needs().is_empty() || commit.reads.has_ranges() {
            return None;
        }
        let mut reads = commit.reads.rows();
        let read = match (reads.next(), reads.next()) {
            (None, _) => None,
            (Some((read, version)), None) if read == row && version != Version::ABSENT => {
                Some(saturating(version.0))
            }
            _ => return None,
        };
        Some(Self { row, value: value.as_bytes(), expiry: Expiry::of(commit, row, None), read })
    }

    /// Runs the statement. Returns `None` if the server refused it and nothing was written.
    pub(crate) async fn make(
        &self,
        session: &mut Session,
        commit: &Commit,
    ) -> error::Result<Option<Committed>> {
        let plan = commit.plan(SERVER_TELLS, |_, _| Ok(None))?;
        let queries = session.queries();
        let Self { row, value, expiry: Expiry { kept, ttl }, read } = self;
        let (namespace, key) = (row.namespace.as_bytes(), row.key.as_bytes());
        let (moved, lead) = (commit.clock.moved_millis(), saturating(ttl_lead_max_ms(1)));
        let expires_at = plan.expires_at.map(saturating);
        let put: &Params<'_> = &[&namespace, &key, value, kept, ttl, &moved, &lead];
        let replace = [put, &[&expires_at, read]].concat();
        let (statements, params) = match read {
            None => (&queries.put, put),
            Some(_) => (&queries.replace, replace.as_slice()),
        };
        let Some(sql) = statements.get(namespace_lock::number(&row.namespace)) else { return Ok(None) };
        match session.commit_alone(sql, params).await {
            Ok(rows) if rows.is_empty() && read.is_some() => Err(Error::Conflict.into()),
            Ok(rows) if rows.is_empty() => Ok(None),
            Ok(rows) => made(&rows, &plan).map(Some),
            Err(failure) if failure.is_refusal() => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}
