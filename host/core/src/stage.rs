//! The stage of a commit. Until a commit starts, it can be withdrawn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};

/// The stage of a commit: waiting, started, withdrawn or abandoned. Clones share it.
///
/// The backend starts the commit once it may be made, and the caller withdraws it when its deadline
/// passes. The first of the two wins.
#[derive(Clone, Debug, Default)]
pub struct Stage(Arc<AtomicU8>);

const WAITING: u8 = 0;
const STARTED: u8 = 1;
const WITHDRAWN: u8 = 2;
/// The caller gave up during an attempt. The attempt may succeed, but no other may begin, because
/// by then the caller may have seen that the commit was not made.
const ABANDONED: u8 = 3;

impl Stage {
    /// Starts the commit. From now on it may be made.
    ///
    /// # Errors
    /// - [`Error::TimedOut`] if the caller no longer waits. The commit must not be made.
    pub(crate) fn start(&self) -> Result<()> {
        match self.change(WAITING, STARTED) {
            WITHDRAWN | ABANDONED => Err(Error::TimedOut),
            _ => Ok(()),
        }
    }

    /// Checks that the caller still waits, before work to prepare the commit.
    ///
    /// # Errors
    /// - [`Error::TimedOut`] if the caller no longer waits.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Acquire) {
            WITHDRAWN | ABANDONED => Err(Error::TimedOut),
            _ => Ok(()),
        }
    }

    /// Records that the attempt did not make the commit, so that another attempt may start.
    pub fn wait_again(&self) {
        self.change(STARTED, WAITING);
    }

    /// Records that the caller no longer waits. Returns whether the commit is certain not to be
    /// made.
    pub(crate) fn withdraw(&self) -> bool {
        match self.change(WAITING, WITHDRAWN) {
            // If the attempt has ended since, the commit can still be withdrawn.
            STARTED => self.change(STARTED, ABANDONED) == WAITING && self.withdraw(),
            before => before != ABANDONED,
        }
    }

    /// Returns the stage before the change.
    fn change(&self, from: u8, to: u8) -> u8 {
        match self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire) {
            Ok(before) | Err(before) => before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_two_decides() {
        let (made, withdrawn) = (Stage::default(), Stage::default());
        made.start().unwrap();
        made.start().unwrap();
        assert!(!made.withdraw());
        assert!(withdrawn.withdraw());
        assert!(withdrawn.withdraw());
        assert!(matches!(withdrawn.start(), Err(Error::TimedOut)));
    }

    #[test]
    fn a_commit_whose_caller_gave_up_while_it_was_made_is_not_tried_again() {
        let stage = Stage::default();
        stage.start().unwrap();
        assert!(!stage.withdraw());
        stage.wait_again();
        assert!(matches!(stage.check(), Err(Error::TimedOut)));
        assert!(matches!(stage.start(), Err(Error::TimedOut)));
        assert!(!stage.withdraw());
    }

    #[test]
    fn a_commit_that_is_tried_again_can_be_withdrawn_in_between() {
        let stage = Stage::default();
        stage.start().unwrap();
        stage.wait_again();
        assert!(stage.withdraw());
        stage.wait_again();
        assert!(matches!(stage.start(), Err(Error::TimedOut)));
    }
}
