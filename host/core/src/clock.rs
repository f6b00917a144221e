//! Time as the host sees it, so that tests can move it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, UTC.
pub type UnixMillis = u64;

/// What a store measures times to live and deadlines with.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time, for times to live, which outlive the process.
    fn unix_millis(&self) -> UnixMillis;
    /// Time since a fixed moment, for deadlines; it never goes back. Every call of a guest asks for it: it should cost
    /// little, and may be some milliseconds behind.
    fn monotonic(&self) -> Duration;
}

/// The machine's clock.
#[derive(Clone, Debug, Default)]
pub struct SystemClock {
    monotonic: Monotonic,
}

impl Clock for SystemClock {
    fn unix_millis(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(UnixMillis::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.monotonic.now()
    }
}

/// Time as of the kernel's last tick, at most 10 ms ago. To read the hardware's counter takes several times as long.
#[cfg(target_os = "linux")]
#[derive(Clone, Debug, Default)]
struct Monotonic;

#[cfg(target_os = "linux")]
impl Monotonic {
    fn now(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        Duration::try_from(now).unwrap_or_default()
    }
}

#[cfg(not(target_os = "linux"))]
#[derive(Clone, Debug)]
struct Monotonic(std::time::Instant);

#[cfg(not(target_os = "linux"))]
impl Default for Monotonic {
    fn default() -> Self {
        Self(std::time::Instant::now())
    }
}

#[cfg(not(target_os = "linux"))]
impl Monotonic {
    fn now(&self) -> Duration {
        self.0.elapsed()
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
    fn the_machines_clock_goes_on() {
        let clock = SystemClock::default();
        let before = clock.monotonic();
        std::thread::sleep(Duration::from_millis(40));
        let passed = clock.monotonic().checked_sub(before).unwrap();
        assert!(passed >= Duration::from_millis(20), "{passed:?}");
    }

    #[test]
    fn a_movable_clock_moves_both_of_its_times() {
        let clock = MovableClock::default();
        let (wall, monotonic) = (clock.unix_millis(), clock.monotonic());
        clock.advance(Duration::from_secs(60));
        assert!(clock.unix_millis() - wall >= 60_000);
        assert!(clock.monotonic().checked_sub(monotonic).unwrap() >= Duration::from_secs(60));
    }
}
