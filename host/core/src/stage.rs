//! How far a commit has come: until it is being made, it can be withdrawn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};

/// Whether a commit is being made. A backend asks at the moment from which it may be made, and whoever waits for it
/// withdraws it when its time is over; one of the two is first. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stage(Arc<AtomicU8>);

const WAITING: u8 = 0;
const STARTED: u8 = 1;
const WITHDRAWN: u8 = 2;
/// The caller gave up while an attempt was being made. This attempt may succeed, and no other one may begin: by then, the caller
/// may have found that the commit was not made.
const ABANDONED: u8 = 3;

impl Stage {
    /// From now on, the commit may be made.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the caller no longer waits for it: it must not be made.
    pub(crate) fn start(&self) -> Result<()> {
        match self.change(WAITING, STARTED) {
            WITHDRAWN | ABANDONED => Err(Error::TimedOut),
            _ => Ok(()),
        }
    }

    /// Whether it makes sense to prepare the commit.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the caller no longer waits for it.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Acquire) {
            WITHDRAWN | ABANDONED => Err(Error::TimedOut),
            _ => Ok(()),
        }
    }

    /// The commit was not made, and may be tried again.
    pub fn wait_again(&self) {
        self.change(STARTED, WAITING);
    }

    /// Notes that the caller no longer waits. Returns whether the commit is certain not to be made.
    pub(crate) fn withdraw(&self) -> bool {
        match self.change(WAITING, WITHDRAWN) {
            // If the attempt has ended since, the commit can still be withdrawn.
            STARTED => self.change(STARTED, ABANDONED) == WAITING && self.withdraw(),
            before => before != ABANDONED,
        }
    }

    /// The stage before.
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
    fn whoever_comes_first_decides() {
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
