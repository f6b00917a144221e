//! The first read of an update, outside a transaction.
//!
//! Many updates read one row and write it. They need no open transaction on the server between the
//! read and the commit: the commit is one statement, which checks that the row is unchanged. If the
//! guest reads again, larder begins a transaction and checks the first row in it once more. In both
//! cases, either all reads saw one state, or the update conflicts.

use larder_core::Error;
use larder_core::name::RowKey;
use larder_core::row::StoredValue;
use tokio_postgres::Row;

use crate::error::{Failure, Result};
use crate::moment::{Read, moment, with_moment};
use crate::opening;
use crate::param::Params;
use crate::rows::version;
use crate::session::{Call, End, Session};

macro_rules! get {
    ($now:literal) => {
        concat!(
            "
    SELECT value, version, expires_at FROM {schema}.larder_entries
    WHERE namespace = $1 AND key = $2 AND (expires_at IS NULL OR expires_at > ",
            $now,
            ")"
        )
    };
}

/// Reads a live row.
pub(crate) const GET: Read<&str> = Read { first: with_moment!("$3", get!("moment.now")), next: get!("$3") };

/// Reads the version of a live row.
pub(crate) const CHECK: &str = concat!(
    "
    SELECT version FROM {schema}.larder_entries
    WHERE namespace = $1 AND key = $2 AND (expires_at IS NULL OR expires_at > ",
    moment!("$3"),
    ")"
);

/// A row as the first read saw it.
#[derive(Debug)]
pub(crate) struct FirstRead {
    pub(crate) row: RowKey,
    pub(crate) stored: Option<StoredValue>,
}

impl FirstRead {
    /// Begins a snapshot with its first statement, and checks that the row is unchanged in it.
    /// Fails with [`Error::Conflict`] if the row has changed.
    pub(crate) async fn begin(
        &self,
        session: &mut Session,
        moved: i64,
        sql: &str,
        params: &Params<'_>,
    ) -> Result<Vec<Row>> {
        let (namespace, key) = (self.row.namespace.as_bytes(), self.row.key.as_bytes());
        let queries = session.queries();
        let check: Call<'_> = (&queries.check, &[&namespace, &key, &moved]);
        let [checked, rows] = begin_snapshot(session, [check, (sql, params)]).await?;
        let found = checked.first().map(version).transpose()?;
        let is_same = found == self.stored.as_ref().map(|stored| stored.version);
        if is_same { Ok(rows) } else { Err(Error::Conflict.into()) }
    }
}

/// Begins a snapshot with its first statements. Returns the rows of each.
pub(crate) async fn begin_snapshot<const N: usize>(
    session: &mut Session,
    calls: [Call<'_>; N],
) -> Result<[Vec<Row>; N]> {
    let answers = session.run(Some(opening::SNAPSHOT), &calls, End::Open).await;
    let answers = answers.map_err(|stopped| stopped.failure)?;
    answers.try_into().map_err(|_| Failure::corrupt("the database did not respond to every statement"))
}
