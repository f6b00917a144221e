//! Backoff: growing pauses between attempts.

use std::time::Duration;

/// The number of doublings after which a pause stays constant.
const DOUBLINGS_MAX: u32 = 16;

/// Pauses between attempts, which double up to a bound.
///
/// Each pause is [`jittered`], so that callers that failed together do not retry together.
///
/// ```
/// use std::time::Duration;
/// use larder_core::backoff::Backoff;
///
/// let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// let (first, second) = (backoff.next_pause(), backoff.next_pause());
/// assert!(first >= Duration::from_millis(25) && first <= Duration::from_millis(50));
/// assert!(second >= Duration::from_millis(50) && second <= Duration::from_millis(100));
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    pauses: u32,
}

impl Backoff {
    /// Creates a backoff whose pauses are at most `first`, then twice as long each time, at most 16
    /// times, up to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, pauses: 0 }
    }

    /// Creates a backoff for attempts that another transaction's commit made fail.
    ///
    /// Its pauses are at most 2 ms to 64 ms, as commits take less than a millisecond to a few.
    pub(crate) const fn after_conflicts() -> Self {
        Self::new(Duration::from_millis(2), Duration::from_millis(64))
    }

    /// Returns the next pause.
    pub fn next_pause(&mut self) -> Duration {
        let pause = doubled(self.first, self.pauses).min(self.longest);
        self.pauses = self.pauses.saturating_add(1);
        jittered(pause)
    }

    /// Waits for the next pause. Must be called within a tokio runtime.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }

    /// Begins again with the first pause, after an attempt that succeeded.
    pub const fn reset(&mut self) {
        self.pauses = 0;
    }
}

/// Doubles a duration a number of times, at most 16 times.
pub fn doubled(duration: Duration, times: u32) -> Duration {
    duration.saturating_mul(1 << times.min(DOUBLINGS_MAX))
}

/// Returns a random duration between half of `duration` and all of it.
pub fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Checks that a pause is between half of `bound` and all of it.
    fn is_part_of(pause: Duration, bound: Duration) -> bool {
        pause >= bound / 2 && pause <= bound
    }

    #[test]
    fn pauses_double_up_to_their_bound_and_begin_again_after_a_reset() {
        let mut backoff = Backoff::new(2 * MS, 15 * MS);
        for bound in [2, 4, 8, 15, 15, 15] {
            let pause = backoff.next_pause();
            assert!(is_part_of(pause, bound * MS), "{pause:?} of {bound} ms");
        }
        backoff.reset();
        assert!(is_part_of(backoff.next_pause(), 2 * MS));
    }

    #[test]
    fn pauses_differ() {
        let pauses: std::collections::HashSet<_> = (0..100).map(|_| jittered(1_000 * MS)).collect();
        assert!(pauses.len() > 90, "{}", pauses.len());
    }

    #[test]
    fn a_duration_is_doubled_at_most_16_times_and_never_overflows() {
        assert_eq!([0, 1, 5].map(|times| doubled(3 * MS, times)), [3 * MS, 6 * MS, 96 * MS]);
        assert_eq!(doubled(MS, 16), 65_536 * MS);
        assert_eq!(doubled(MS, u32::MAX), 65_536 * MS);
        assert_eq!(doubled(Duration::MAX, 1), Duration::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_takes_as_long_as_its_pause() {
        let mut backoff = Backoff::new(100 * MS, 100 * MS);
        let start = tokio::time::Instant::now();
        backoff.wait().await;
        // The timer of tokio has a resolution of a millisecond.
        assert!(start.elapsed() >= 50 * MS && start.elapsed() <= 101 * MS, "{:?}", start.elapsed());
    }
}
