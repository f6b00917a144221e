//! The sequence that versions are drawn from.
//!
//! A database can come to be without its sequence: logical replication carries none, and a restore may leave it out. Then it would give
//! versions again that rows have or had. A commit that finds its rows to be newer than the version that it drew has the sequence
//! moved past all rows.

use crate::error::Result;
use crate::namespace_lock::NamespaceLocks;
use crate::opening;
use crate::session::{End, Session};

/// Moves the sequence past the newest row.
pub(crate) const ADVANCE: &str = "
    SELECT setval({sequence}, greatest(sequence.last_value, newest.version))
    FROM (SELECT last_value FROM {schema}.larder_commit_sequence) AS sequence
    CROSS JOIN (SELECT coalesce(max(version), 1) AS version FROM {schema}.larder_entries) AS newest";

/// Moves the sequence past all rows, while no commit is under way.
pub(crate) async fn advance(session: &mut Session) -> Result<()> {
    let queries = session.queries();
    let opening = opening::commit(&NamespaceLocks::all(), &queries.schema, 0);
    tracing::warn!("the sequence of versions was behind the rows; larder moves it past the newest row");
    match session.run(Some(&opening), &[(&queries.advance, &[])], End::Commit).await {
        Ok(_) => Ok(()),
        Err(stopped) => Err(stopped.failure),
    }
}
