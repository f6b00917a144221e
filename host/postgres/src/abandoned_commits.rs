//! Commits that no caller waits for any more and that the server has not answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Failure, Result};

/// Counts the abandoned commits of a store. Clones share the count.
///
/// Each of them holds a session of the server. It holds no permit of the store, so reads go on if all commits wait, for example
/// for a missing synchronous standby.
#[derive(Clone, Debug)]
pub(crate) struct AbandonedCommits {
    count: Arc<AtomicUsize>,
    max: usize,
}

impl AbandonedCommits {
    /// A count that refuses further commits from `max` on.
    pub(crate) fn at_most(max: usize) -> Self {
        Self { count: Arc::default(), max }
    }

    /// Refuses a commit if the store has too many abandoned ones.
    pub(crate) fn check(&self) -> Result<()> {
        match self.count.load(Ordering::Relaxed) < self.max {
            true => Ok(()),
            false => Err(Failure::Stalled("the database has not answered earlier commits")),
        }
    }

    /// Counts a commit until the result is dropped.
    pub(crate) fn add(&self) -> AbandonedCommit {
        self.count.fetch_add(1, Ordering::Relaxed);
        AbandonedCommit(self.count.clone())
    }
}

/// An abandoned commit. Dropping it ends its count.
pub(crate) struct AbandonedCommit(Arc<AtomicUsize>);

impl Drop for AbandonedCommit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_refused_while_too_many_are_abandoned() {
        let abandoned = AbandonedCommits::at_most(2);
        let first = abandoned.add();
        assert!(abandoned.check().is_ok());
        let _second = abandoned.clone().add();
        assert!(matches!(abandoned.check(), Err(Failure::Stalled(_))));
        drop(first);
        assert!(abandoned.check().is_ok());
    }
}
