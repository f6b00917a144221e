//! Running a transaction again after a conflict.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use crate::error::Error;

/// How often a transaction runs at most, and the pauses between the runs.
///
/// The default is 64 runs, with pauses from 1 ms to 100 ms: at most 5.7 s of pauses in total, and
/// half of that on average.
///
/// The number of runs is a bound, not a guarantee: a transaction that lost gets no priority. If a
/// transaction reads many rows for some milliseconds, while other transactions write these rows all
/// the time, it can lose every run and fail with [`Error::Conflict`]. More runs help only if the
/// other writers pause. Otherwise, make the transaction shorter:
///
/// - Read fewer of the rows that others write.
/// - Count with `increment`, which never conflicts with another `increment`.
/// - Read in a view first, and write with `if_version` on the rows that matter.
///
/// ```
/// use larder_guest::RetryPolicy;
/// let only_once = RetryPolicy::default().attempts(1);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// The largest number of runs, including the first; 0 counts as 1.
    pub attempts: u32,
    /// The longest pause after the first run.
    ///
    /// It doubles from run to run. Each pause is a random part of it, so that transactions that
    /// collided do not collide again.
    pub first_pause: Duration,
    /// The upper bound of every pause.
    pub longest_pause: Duration,
}

impl RetryPolicy {
    /// Sets [`attempts`](#structfield.attempts).
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets [`first_pause`](#structfield.first_pause).
    #[must_use]
    pub fn first_pause(mut self, first_pause: Duration) -> Self {
        self.first_pause = first_pause;
        self
    }

    /// Sets [`longest_pause`](#structfield.longest_pause).
    #[must_use]
    pub fn longest_pause(mut self, longest_pause: Duration) -> Self {
        self.longest_pause = longest_pause;
        self
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 64,
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(100),
        }
    }
}

/// The outcome of one run.
pub(crate) enum Attempt<T, E> {
    /// The transaction has succeeded or failed.
    Done(Result<T, E>),
    /// Another transaction committed first.
    Conflict,
}

// The pauses are not those of `larder_core::backoff`: a guest would compile the host's core with
// tokio for a few lines, and has no async runtime to sleep in.

/// Runs `attempt` until it is done. Returns [`Error::Conflict`] once the policy's runs are used up,
/// whatever error a closure made of the conflict.
pub(crate) fn run<T, E: From<Error>>(
    policy: &RetryPolicy,
    mut pause: impl FnMut(Duration),
    mut attempt: impl FnMut() -> Attempt<T, E>,
) -> Result<T, E> {
    let mut longest = policy.first_pause.min(policy.longest_pause);
    let mut left = policy.attempts.max(1);
    loop {
        left -= 1;
        match attempt() {
            Attempt::Done(outcome) => return outcome,
            Attempt::Conflict if left == 0 => return Err(Error::Conflict.into()),
            Attempt::Conflict => {}
        }
        pause(random_part(longest));
        longest = longest.saturating_mul(2).min(policy.longest_pause);
    }
}

/// The standard library seeds each `RandomState` with new random keys, so no crate is needed.
fn random_part(longest: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    longest.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(attempts: u32) -> RetryPolicy {
        RetryPolicy::default().attempts(attempts)
    }

    /// The pauses of a transaction that always meets a conflict.
    fn pauses(policy: &RetryPolicy) -> Vec<Duration> {
        let mut pauses = Vec::new();
        let outcome: Result<(), Error> = run(policy, |pause| pauses.push(pause), || Attempt::Conflict);
        assert_eq!(outcome, Err(Error::Conflict));
        pauses
    }

    #[test]
    fn a_conflict_is_run_again_until_it_is_done() {
        let mut runs = 0;
        let outcome: Result<_, Error> = run(
            &policy(5),
            |_| (),
            || {
                runs += 1;
                if runs < 3 { Attempt::Conflict } else { Attempt::Done(Ok(runs)) }
            },
        );
        assert_eq!(outcome, Ok(3));
    }

    #[test]
    fn a_conflict_is_given_when_the_runs_are_used_up() {
        let mut runs = 0;
        let outcome: Result<(), Error> = run(
            &policy(4),
            |_| (),
            || {
                runs += 1;
                Attempt::Conflict
            },
        );
        assert_eq!((outcome, runs), (Err(Error::Conflict), 4));
    }

    #[test]
    fn another_error_is_not_run_again() {
        let unknown = Error::CommitUnknown("the connection was lost".to_string());
        let mut runs = 0;
        let outcome: Result<(), _> = run(
            &policy(4),
            |_| (),
            || {
                runs += 1;
                Attempt::Done(Err(unknown.clone()))
            },
        );
        assert_eq!((outcome, runs), (Err(unknown), 1));
    }

    #[test]
    fn pauses_grow_up_to_their_bound() {
        let pauses = pauses(&policy(40));
        assert_eq!(pauses.len(), 39);
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(100)));
        assert!(pauses.first().is_some_and(|pause| *pause <= Duration::from_millis(1)));
    }

    #[test]
    fn a_transaction_that_loses_every_run_ends_within_the_documented_bound() {
        let pauses = pauses(&RetryPolicy::default());
        assert_eq!(pauses.len(), 63);
        assert!(pauses.iter().sum::<Duration>() <= Duration::from_millis(5_727));
        // Each pause is a part of its run's longest pause: 1, 2, 4, … up to 100 ms.
        let longest = |run: u32| Duration::from_millis(100.min(1_u64 << run.min(7)));
        assert!(pauses.iter().zip(0..).all(|(pause, run)| *pause <= longest(run)));
        assert_eq!((0..63).map(longest).sum::<Duration>(), Duration::from_millis(5_727));
    }

    #[test]
    fn the_first_pause_is_bounded_too() {
        let longest_pause = Duration::from_nanos(1);
        let policy = RetryPolicy::default()
            .attempts(9)
            .first_pause(Duration::from_secs(9))
            .longest_pause(longest_pause);
        assert!(pauses(&policy).iter().all(|pause| *pause <= longest_pause));
    }
}
