//! Commits of one statement that needs no transaction around it.
//!
//! Most commits put one row, and have read nothing or that row. Such a statement is right in every isolation level, so it says
//! none. If the server refuses it, for whatever reason, the commit is made in a transaction, which says all that it needs: the
//! role's transactions may be read-only, or serializable and in conflict.

use larder_core::Error;
use larder_core::backend::{Committed, Version};
use larder_core::clock::UnixMillis;
use larder_core::commit::{Commit, Mutation};
use larder_core::name::RowKey;

use crate::commit_transaction::Expiry;
use crate::error::{self, Failure};
use crate::moment::moment;
use crate::namespace_lock;
use crate::param::{Param, Params};
use crate::rows::{saturating, version as version_of};
use crate::session::Session;

/// When a row that is put expires: it keeps its moment, or its time to live counts from the server's. A statement that waits
/// for a row reads the clock again once it has it, except where only a lock of the row was waited for: [`is_late!`] looks after
/// that.
macro_rules! expiry {
    ($kept:literal, $ttl:literal, $moved:literal) => {
        concat!("coalesce(", $kept, ", ", moment!($moved), " + ", $ttl, ")")
    };
}

/// Whether more than 100 ms passed since the moment from which a time to live counts.
macro_rules! is_late {
    ($expires_at:literal, $ttl:literal, $moved:literal) => {
        concat!(moment!($moved), " - (", $expires_at, " - ", $ttl, ") > 100")
    };
}

/// Has the statement share the lock of the row's namespace. The table is empty.
macro_rules! locked {
    () => {
        "WITH locked AS MATERIALIZED (SELECT 1 FROM {schema}.{lock} FOR KEY SHARE)"
    };
}

/// The version, unless the commit may not be made so; then the statement fails, by a division by zero.
macro_rules! version_unless {
    ($refused:expr) => {
        concat!("entries.version / CASE WHEN ", $refused, " THEN 0 ELSE 1 END AS version")
    };
}

/// Puts a row that was not read.
///
/// Its version is drawn before the row is locked. If the row is there, its version tells whether that was too early. A row that
/// is new has no one to tell: others could have put and deleted it in between. They would have drawn larger versions, so it is
/// certain that they have not if the version is still the last one that was drawn once the row is locked, which is when the server
/// evaluates what it returns. `xmax` is 0 for a new row only.
pub(crate) const PUT: &str = concat!(
    locked!(),
    "
    INSERT INTO {schema}.larder_entries AS entries (namespace, key, value, expires_at, version)
    SELECT $1::bytea, $2::bytea, $3::bytea, ",
    expiry!("$4::bigint", "$5::bigint", "$6"),
    ", nextval({sequence}) WHERE NOT EXISTS (SELECT FROM locked)
    ON CONFLICT (namespace, key) DO UPDATE
    SET value = excluded.value, version = excluded.version, expires_at = ",
    expiry!("$4::bigint", "$5::bigint", "$6"),
    "
    WHERE entries.version < excluded.version
    RETURNING ",
    version_unless!(concat!(
        is_late!("entries.expires_at", "$5::bigint", "$6"),
        " OR entries.xmax = 0 AND (SELECT last_value FROM {schema}.larder_commit_sequence) <> entries.version"
    ))
);

/// Puts a row that was read and found, if it is at the version at which it was read.
pub(crate) const REPLACE: &str = concat!(
    locked!(),
    "
    UPDATE {schema}.larder_entries AS entries
    SET value = $3::bytea, version = nextval({sequence}), expires_at = ",
    expiry!("$4::bigint", "$5::bigint", "$6"),
    "
    WHERE namespace = $1 AND key = $2 AND version = $8 AND NOT EXISTS (SELECT FROM locked)
    RETURNING ",
    version_unless!(concat!(
        is_late!("entries.expires_at", "$5::bigint", "$6"),
        " OR $7::bigint <= ",
        moment!("$6"),
        " OR entries.version <= $8"
    ))
);

/// A commit that one statement can make.
pub(crate) struct Alone<'a> {
    row: &'a RowKey,
    value: &'a [u8],
    expiry: Expiry,
    /// The version at which the row was read, if it was.
    read: Option<i64>,
}

impl<'a> Alone<'a> {
    /// The commit, if it is of this kind.
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

    /// Makes the commit; none if the server refused it, so that nothing was done.
    pub(crate) async fn make(
        &self,
        session: &mut Session,
        commit: &Commit,
    ) -> error::Result<Option<Committed>> {
        /// The server tells the moment.
        const UNKNOWN: UnixMillis = 0;
        let plan = commit.plan(UNKNOWN, |_, _| Ok(None))?;
        let queries = session.queries();
        let Self { row, value, expiry: Expiry { kept, ttl }, read } = self;
        let (namespace, key) = (row.namespace.as_bytes(), row.key.as_bytes());
        let (moved, expires_at) = (commit.clock.moved_millis(), plan.expires_at.map(saturating));
        let common: [&dyn Param; 8] = [&namespace, &key, value, kept, ttl, &moved, &expires_at, read];
        let all: &Params<'_> = &common;
        let statements = if read.is_some() { &queries.replace } else { &queries.put };
        let params = if read.is_some() { all } else { all.get(..6).unwrap_or(all) };
        let Some(sql) = statements.get(namespace_lock::number(&row.namespace)) else { return Ok(None) };
        match session.commit_alone(sql, params).await {
            Ok(rows) => match rows.first() {
                Some(drawn) => committed(version_of(drawn), plan.growth).map(Some),
                None if read.is_some() => Err(Error::Conflict.into()),
                None => Ok(None),
            },
            Err(failure) if failure.is_refusal() => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

/// What was committed. If the version can't be read, the row is written all the same; as what, is not known.
fn committed(drawn: error::Result<Version>, growth: i64) -> error::Result<Committed> {
    match drawn {
        Ok(version) => Ok(Committed { version, growth }),
        Err(failure) => Err(Failure::CommitLost(Some(Box::new(failure)))),
    }
}
