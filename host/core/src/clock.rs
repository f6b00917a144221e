//! Time as the host sees it, so that tests can move it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, UTC.
pub type UnixMillis = u64;

/// What a store measures times to live and deadlines with.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time, for times to live, which outlive the process.
    fn unix_millis(&self) -> UnixMillis;
    /// Time since a fixed moment, for deadlines; it never goes back.
    fn monotonic(&self) -> Duration;
}

/// The machine's clock.
#[derive(Clone, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn unix_millis(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(UnixMillis::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The machine's clock, which a test can move forward.
#[derive(Debug, Default)]
pub struct MovableClock {
    system: SystemClock,
    ahead_millis: AtomicU64,
}

impl MovableClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX / 2);
        self.ahead_millis.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for MovableClock {
    fn unix_millis(&self) -> UnixMillis {
        self.system.unix_millis().saturating_add(self.ahead_millis.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic() + Duration::from_millis(self.ahead_millis.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_movable_clock_moves_both_of_its_times() {
        let clock = MovableClock::default();
        let (wall, monotonic) = (clock.unix_millis(), clock.monotonic());
        clock.advance(Duration::from_secs(60));
        assert!(clock.unix_millis() - wall >= 60_000);
        assert!(clock.monotonic().checked_sub(monotonic).unwrap() >= Duration::from_secs(60));
    }
}
