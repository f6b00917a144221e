//! Clocks, including one that tests can move.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Milliseconds since 1970, UTC.
pub type UnixMillis = u64;

/// A source of time for times to live and deadlines.
pub trait Clock: Send + Sync + 'static {
    /// Returns the wall-clock time, for times to live, which outlive the process.
    ///
    /// A store never lets it go back: see [`ForwardClock`].
    fn unix_millis(&self) -> UnixMillis;
    /// Returns the time since a fixed moment, for deadlines; it never goes back.
    ///
    /// Every call of a guest reads it, so it must be cheap. It may lag by some milliseconds.
    fn monotonic(&self) -> Duration;
    /// Returns how far [`Clock::unix_millis`] was deliberately moved ahead of the machine's clock.
    ///
    /// In milliseconds. A test may move its clock, for example. An engine that uses its server's
    /// clock adds this to the server's time. The default is the difference between the two clocks.
    fn moved_millis(&self) -> i64 {
        signed(self.unix_millis()).saturating_sub(signed(machine_millis()))
    }
}

fn signed(millis: UnixMillis) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}

/// The machine's wall-clock time, which may step back.
fn machine_millis() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(UnixMillis::MAX)
}

/// A clock whose wall-clock time never goes back; clones share it.
///
/// All stores of a process that use the same clock agree on the time, including stores opened
/// later. If the clock steps back, time continues from the latest time returned, at the pace of
/// [`Clock::monotonic`], until the clock has caught up.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use larder_core::{ForwardClock, MovableClock};
///
/// let movable = Arc::new(MovableClock::default());
/// let clock = ForwardClock::new(movable.clone());
/// let before = clock.now();
/// movable.step_back(Duration::from_secs(60));
/// assert!(clock.now() >= before);
/// ```
#[derive(Clone)]
pub struct ForwardClock {
    clock: Arc<dyn Clock>,
    floor: Arc<Floor>,
}

/// The clocks in use, each with its latest time.
static FLOORS: Mutex<Vec<Known>> = Mutex::new(Vec::new());

type Known = (Weak<dyn Clock>, Arc<Floor>);

/// The machine's clock, for stores without another clock.
static MACHINE: LazyLock<ForwardClock> =
    LazyLock::new(|| ForwardClock::new(Arc::new(SystemClock::default())));

impl ForwardClock {
    /// Wraps a clock, so that it no longer steps back.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let mut floors = FLOORS.lock();
        floors.retain(|(clock, _)| clock.strong_count() > 0);
        let known = floors.iter().find(|(known, _)| std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(&clock)));
        let floor = match known {
            Some((_, floor)) => floor.clone(),
            None => {
                let floor = Arc::<Floor>::default();
                floors.push((Arc::downgrade(&clock), floor.clone()));
                floor
            }
        };
        Self { clock, floor }
    }

    /// Returns the present time, never earlier than a time that this clock returned before.
    pub fn now(&self) -> UnixMillis {
        self.floor.raise(self.clock.unix_millis(), || self.clock.monotonic())
    }

    /// Returns [`Clock::monotonic`].
    pub fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Returns [`Clock::moved_millis`], adjusted so that a server's time does not go back.
    ///
    /// Without the adjustment, it would go back if the clock is moved back.
    pub fn moved_millis(&self) -> i64 {
        let is_moved = self.clock.moved_millis() != 0;
        if is_moved {
            self.floor.was_moved.store(true, Ordering::Release);
        }
        if !is_moved && !self.floor.was_moved.load(Ordering::Acquire) {
            return 0;
        }
        signed(self.now()).saturating_sub(signed(machine_millis()))
    }
}

impl Default for ForwardClock {
    fn default() -> Self {
        MACHINE.clone()
    }
}

impl std::fmt::Debug for ForwardClock {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ForwardClock").field("latest", &self.floor.latest).finish_non_exhaustive()
    }
}

/// The latest time of a clock.
#[derive(Debug, Default)]
struct Floor {
    /// The latest time that was returned.
    latest: AtomicU64,
    /// The most by which the wall clock was ahead of the monotonic one.
    lead: AtomicU64,
    /// Whether the clock was ever deliberately moved away from the machine's.
    was_moved: AtomicBool,
}

/// Concurrent threads may record their readings out of order. Up to this many milliseconds behind
/// the latest time, time stands still.
const DISORDER_MAX: UnixMillis = 50;

impl Floor {
    /// The time for a reading of the wall clock. While the clock moves forward, this costs one
    /// load, and one store for each millisecond that passes.
    fn raise(&self, wall: UnixMillis, monotonic: impl Fn() -> Duration) -> UnixMillis {
        let latest = self.latest.load(Ordering::Acquire);
        if wall == latest {
            return wall;
        }
        if wall > latest {
            self.lead.fetch_max(wall.saturating_sub(millis(monotonic())), Ordering::AcqRel);
            return self.latest.fetch_max(wall, Ordering::AcqRel).max(wall);
        }
        if latest - wall <= DISORDER_MAX {
            return latest;
        }
        let gone_on = self.lead.load(Ordering::Acquire).saturating_add(millis(monotonic()));
        self.latest.fetch_max(gone_on, Ordering::AcqRel).max(gone_on)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The machine's clock, whose wall-clock time never goes back within a process.
#[derive(Clone, Debug, Default)]
pub struct SystemClock {
    monotonic: Monotonic,
}

impl Clock for SystemClock {
    fn unix_millis(&self) -> UnixMillis {
        static FLOOR: LazyLock<Floor> = LazyLock::new(Floor::default);
        FLOOR.raise(machine_millis(), || self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        self.monotonic.now()
    }

    fn moved_millis(&self) -> i64 {
        0
    }
}

/// The time of the kernel's last tick, at most 10 ms ago. Reading the hardware's counter takes
/// several times as long.
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

/// A clock for tests: the machine's clock, moved by an offset.
#[derive(Debug, Default)]
pub struct MovableClock {
    system: SystemClock,
    ahead_millis: AtomicU64,
    back_millis: AtomicU64,
}

impl MovableClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.ahead_millis.fetch_add(millis(by).min(u64::MAX / 2), Ordering::Relaxed);
    }

    /// Sets the wall-clock time back, as when a person corrects the clock.
    ///
    /// Monotonic time is not affected.
    pub fn step_back(&self, by: Duration) {
        self.back_millis.fetch_add(millis(by).min(u64::MAX / 2), Ordering::Relaxed);
    }
}

impl Clock for MovableClock {
    fn unix_millis(&self) -> UnixMillis {
        self.system.unix_millis().saturating_add_signed(self.moved_millis())
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic() + Duration::from_millis(self.ahead_millis.load(Ordering::Relaxed))
    }

    fn moved_millis(&self) -> i64 {
        let ahead = signed(self.ahead_millis.load(Ordering::Relaxed));
        ahead.saturating_sub(signed(self.back_millis.load(Ordering::Relaxed)))
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

    /// A clock that shows the times that a test sets.
    #[derive(Default)]
    struct Hands {
        wall: AtomicU64,
        monotonic: AtomicU64,
    }

    impl Hands {
        fn set(&self, wall: u64, monotonic: u64) {
            self.wall.store(wall, Ordering::Relaxed);
            self.monotonic.store(monotonic, Ordering::Relaxed);
        }
    }

    impl Clock for Hands {
        fn unix_millis(&self) -> UnixMillis {
            self.wall.load(Ordering::Relaxed)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.monotonic.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn time_goes_on_from_the_latest_moment_while_the_clock_is_behind() {
        let hands = Arc::new(Hands::default());
        let clock = ForwardClock::new(hands.clone());
        hands.set(1_000_000, 100);
        assert_eq!(clock.now(), 1_000_000);
        hands.set(400_000, 600);
        assert_eq!(clock.now(), 1_000_500);
        hands.set(400_000, 500);
        assert_eq!(clock.now(), 1_000_500);
        hands.set(1_000_600, 700);
        assert_eq!(clock.now(), 1_000_600);
    }

    #[test]
    fn time_stands_still_where_a_clock_is_read_a_little_out_of_order() {
        let hands = Arc::new(Hands::default());
        let clock = ForwardClock::new(hands.clone());
        for (wall, expected) in [(1_000_000, 1_000_000), (999_999, 1_000_000), (1_000_001, 1_000_001)] {
            hands.set(wall, 10 * wall);
            assert_eq!(clock.now(), expected);
        }
    }

    #[test]
    fn stores_with_the_same_clock_agree_on_the_time() {
        let hands = Arc::new(Hands::default());
        let first = ForwardClock::new(hands.clone());
        hands.set(1_000_000, 0);
        assert_eq!(first.now(), 1_000_000);
        drop(first);
        hands.set(400_000, 0);
        assert_eq!(ForwardClock::new(hands.clone()).now(), 1_000_000);
        let other = Arc::new(Hands::default());
        other.set(400_000, 0);
        assert_eq!(ForwardClock::new(other).now(), 400_000);
    }

    #[test]
    fn a_clock_says_how_far_it_was_moved() {
        let clock = MovableClock::default();
        assert_eq!((SystemClock::default().moved_millis(), clock.moved_millis()), (0, 0));
        clock.advance(Duration::from_secs(60));
        clock.step_back(Duration::from_secs(90));
        assert_eq!(clock.moved_millis(), -30_000);
        let standing = Hands::default();
        assert!(standing.moved_millis() < -1_000_000);
    }
}
