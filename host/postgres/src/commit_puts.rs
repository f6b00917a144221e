//! Commits in one pass, for commits that only put rows and have read none.
//!
//! A commit in steps looks up each row twice, and writes new rows twice. If a commit only puts
//! rows, the server can write them while it locks them, with a version that it drew before. That
//! version is too small if another commit has drawn a larger one and changed a row before it was
//! locked. So the pass is valid only if no other version has been drawn by the time all rows are
//! locked. Otherwise it is rolled back, and the commit is made in steps.

use std::sync::atomic::{AtomicU32, Ordering};

use larder_core::commit::{Commit, Mutation};

use crate::moment::moment;

/// Draws a version and writes the rows.
///
/// Fails with a division by zero if the version is too small, or if the statement waited so long
/// that times to live would start too early.
pub(crate) const PUT_ALL: &str = concat!("
    WITH drawn AS MATERIALIZED (
        SELECT nextval({sequence}) AS version, ", moment!("$6"), " AS moment
    ), written AS (
        INSERT INTO {schema}.larder_entries AS entries (namespace, key, value, expires_at, version)
        SELECT puts.namespace, puts.key, puts.value, coalesce(drawn.moment + puts.ttl, puts.kept), drawn.version
        FROM drawn
        CROSS JOIN unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[])
            AS puts (namespace, key, value, kept, ttl)
        ON CONFLICT (namespace, key) DO UPDATE
        SET value = excluded.value, expires_at = excluded.expires_at, version = excluded.version
        WHERE entries.version < excluded.version
        RETURNING 1
    )
    SELECT drawn.version / CASE
        WHEN put.rows <> cardinality($1)
            OR ", moment!("$6"), " - drawn.moment > $7::bigint
            OR (SELECT last_value FROM {schema}.larder_commit_sequence) <> drawn.version
        THEN 0 ELSE 1 END AS version
    FROM drawn CROSS JOIN (SELECT count(*) AS rows FROM written) AS put");

/// Whether a commit only puts rows, and depends on no row.
pub(crate) fn only_puts(commit: &Commit) -> bool {
    commit.reads.is_empty()
        && commit.needs().is_empty()
        && commit.writes.values().all(|mutation| matches!(mutation, Mutation::Put { .. }))
}

/// Decides whether to attempt a commit in one pass.
///
/// While other commits draw versions, the server refuses most attempts.
#[derive(Debug, Default)]
pub(crate) struct OnePass {
    /// Consecutive attempts that were refused.
    refused: AtomicU32,
    /// Commits to make in steps before the next attempt.
    skipped: AtomicU32,
}

/// The maximum number of commits to make in steps after a refusal, as a power of two.
const SKIPPED_MAX: u32 = 6;

impl OnePass {
    pub(crate) fn is_worth_it(&self) -> bool {
        self.skipped.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }

    /// Records the outcome of an attempt.
    pub(crate) fn attempted(&self, was_refused: bool) {
        if !was_refused {
            return self.refused.store(0, Ordering::Relaxed);
        }
        let before = self.refused.fetch_add(1, Ordering::Relaxed);
        self.skipped.store(1 << before.min(SKIPPED_MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_were_refused_in_a_row_the_more_are_skipped() {
        let one_pass = OnePass::default();
        let skipped = || (0..).take_while(|_| !one_pass.is_worth_it()).count();
        assert_eq!(skipped(), 0);
        for expected in [1, 2, 4, 8, 16, 32, 64, 64] {
            one_pass.attempted(true);
            assert_eq!(skipped(), expected);
        }
        one_pass.attempted(false);
        assert_eq!(skipped(), 0);
        one_pass.attempted(true);
        assert_eq!(skipped(), 1);
    }
}
