//! Commits whose callers have stopped waiting, and whose outcome the server has not reported.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Failure, Result};

/// Counts the abandoned commits of a store. Clones share the count.
///
/// Each one occupies a session of the server, but holds no permit of the store. So reads continue
/// if all commits hang, for example because a synchronous standby is missing.
#[derive(Clone, Debug)]
pub(crate) struct AbandonedCommits {
    count: Arc<AtomicUsize>,
    max: usize,
}

impl AbandonedCommits {
    /// Creates a count that refuses further commits once it has reached `max`.
    pub(crate) fn at_most(max: usize) -> Self {
        Self { count: Arc::default(), max }
    }

    /// Fails if the store has too many abandoned commits.
    pub(crate) fn check(&self) -> Result<()> {
        match self.count.load(Ordering::Relaxed) < self.max {
            true => Ok(()),
            false => {
                Err(Failure::Stalled("too many earlier commits are still without a response of the database"))
            }
        }
    }

    /// Counts a commit until the guard is dropped.
    pub(crate) fn add(&self) -> AbandonedCommit {
        self.count.fetch_add(1, Ordering::Relaxed);
        AbandonedCommit(self.count.clone())
    }
}

/// A guard that counts an abandoned commit.
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
