//! Commits that no caller waits for any more, and that the server works on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Failure, Result};

/// Counts the abandoned commits of a store. Clones share the count.
///
/// Each of them holds a session of the server and none of the store's permits, so that reads go on. For example, all commits wait
/// if a synchronous standby is missing.
#[derive(Clone, Debug)]
pub(crate) struct AbandonedCommits {
    count: Arc<AtomicUsize>,
    max: usize,
}

impl AbandonedCommits {
    /// Lets a store make no further commit while there are so many.
    pub(crate) fn at_most(max: usize) -> Self {
        Self { count: Arc::default(), max }
    }

    /// Refuses a commit if the server has not answered too many others.
    pub(crate) fn check(&self) -> Result<()> {
        match self.count.load(Ordering::Relaxed) < self.max {
            true => Ok(()),
            false => Err(Failure::Stalled("the database has not answered earlier commits")),
        }
    }

    /// Counts one until it is dropped.
    pub(crate) fn add(&self) -> AbandonedCommit {
        self.count.fetch_add(1, Ordering::Relaxed);
        AbandonedCommit(self.count.clone())
    }
}

/// A commit that counts.
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
