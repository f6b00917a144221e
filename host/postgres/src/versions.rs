//! The sequence that versions are drawn from.
//!
//! A database can lack the state of its sequence: logical replication does not copy it, and a
//! restore may leave it out. The sequence would then return versions that rows have or had.
//!
//! - The sequence follows the server's clock, in microseconds since 1970. Each new connection and
//!   each sweep moves it forward if it is behind. So a sequence that was reset continues after all
//!   versions that were drawn before, including those of deleted rows. This requires that the
//!   clocks of both servers agree, and that the store makes fewer than a million commits a second.
//! - The version of a stored row never decreases, whatever the clocks say. If a commit finds a row
//!   with a newer version than its own, larder moves the sequence past all rows.

use crate::error::{Failure, Result};
use crate::namespace_lock::NamespaceLocks;
use crate::opening;
use crate::rows::column;
use crate::session::Session;

/// Moves the sequence past the newest row, and at least to the clock.
pub(crate) const ADVANCE: &str = "
    SELECT setval({sequence}, greatest(
        sequence.last_value, newest.version, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint))
    FROM (SELECT last_value FROM {schema}.larder_commit_sequence) AS sequence
    CROSS JOIN (SELECT coalesce(max(version), 1) AS version FROM {schema}.larder_entries) AS newest";

/// SQL condition: the sequence is more than a minute behind the clock.
macro_rules! is_behind {
    () => {
        "extract(epoch FROM clock_timestamp()) * 1000000 - last_value > 60000000"
    };
}

/// Queries whether the sequence is behind the clock.
pub(crate) const IS_BEHIND: &str =
    concat!("SELECT ", is_behind!(), " AS is_behind FROM {schema}.larder_commit_sequence");

/// Moves the sequence to the clock, if it is still behind.
pub(crate) const FOLLOW: &str = concat!(
    "SELECT setval({sequence}, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
    FROM {schema}.larder_commit_sequence WHERE ",
    is_behind!()
);

/// Moves the sequence past all rows. Locks all namespaces against other commits meanwhile.
pub(crate) async fn advance(session: &mut Session) -> Result<()> {
    let queries = session.queries();
    let opening = opening::commit(&NamespaceLocks::all(), &queries.schema, 0);
    tracing::warn!("the version sequence is behind the rows; moving it past the newest row");
    session.commit_one(&opening, (&queries.advance, &[])).await.map(drop)
}

/// Moves the sequence to the clock if it is behind.
///
/// Sessions that do so exclude each other. Otherwise a session could move the sequence back after
/// another one has moved it further. Commits need not be excluded, because the versions that they
/// draw are far behind the clock.
pub(crate) async fn follow_clock(session: &mut Session) -> Result<()> {
    match follow(session).await {
        // A commit holds the lock for long. A later connection or sweep tries again.
        Err(failure) if failure.is_lock_not_available() => Ok(()),
        // The role may lack the privilege. The store works without it.
        Err(failure) if failure.is_refusal() => {
            session.queries().not_following.call_once(|| {
                tracing::warn!(%failure, "cannot move the version sequence forward to the server's clock; check the role's privileges on it");
            });
            Ok(())
        }
        outcome => outcome,
    }
}

async fn follow(session: &mut Session) -> Result<()> {
    let queries = session.queries();
    let found = session.finish_one(opening::READ, (&queries.is_behind, &[])).await?;
    let found = found.first().ok_or_else(|| Failure::corrupt("the version sequence has no row"))?;
    if column(found, "is_behind")? {
        session.finish_one(&opening::follow(&queries.schema), (&queries.follow, &[])).await?;
    }
    Ok(())
}
