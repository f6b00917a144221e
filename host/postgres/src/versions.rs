//! The sequence that versions are drawn from.
//!
//! A database can lack the state of its sequence: logical replication does not copy it, and a
//! restore may leave it out. The sequence would then return versions that rows have or had. If a
//! commit finds that a row is newer than the version that it drew, larder moves the sequence past
//! all rows.

use crate::error::Result;
use crate::namespace_lock::NamespaceLocks;
use crate::opening;
use crate::session::Session;

/// Moves the sequence past the newest row.
pub(crate) const ADVANCE: &str = "
    SELECT setval({sequence}, greatest(sequence.last_value, newest.version))
    FROM (SELECT last_value FROM {schema}.larder_commit_sequence) AS sequence
    CROSS JOIN (SELECT coalesce(max(version), 1) AS version FROM {schema}.larder_entries) AS newest";

/// Moves the sequence past all rows, with every namespace locked against other commits.
pub(crate) async fn advance(session: &mut Session) -> Result<()> {
    let queries = session.queries();
    let opening = opening::commit(&NamespaceLocks::all(), &queries.schema, 0);
    tracing::warn!("the sequence of versions is behind the rows; moving it past the newest row");
    session.commit_one(&opening, (&queries.advance, &[])).await.map(drop)
}
