//! A clock that jumps.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use larder_core::{Clock, SystemClock};

use crate::history::Millis;

/// The largest difference between the clock of a store and the machine's, in either direction.
pub(crate) const JUMP_MAX: Millis = 300;

/// How far a store's coarse monotonic clock may lag behind, with a margin.
const TICK: Millis = 20;

/// The machine's clock, with its wall-clock time moved forward and back.
#[derive(Debug)]
pub(crate) struct JumpingClock {
    system: SystemClock,
    ahead: AtomicI64,
    /// The largest lead so far.
    ahead_max: AtomicI64,
    highest: AtomicU64,
}

impl JumpingClock {
    /// A clock that agrees with the machine's until the first jump.
    pub(crate) fn new() -> Self {
        let system = SystemClock::default();
        // The first reading may follow a jump back.
        let highest = AtomicU64::new(system.unix_millis().saturating_sub(JUMP_MAX));
        Self { system, ahead: AtomicI64::new(0), ahead_max: AtomicI64::new(0), highest }
    }

    /// Moves wall-clock time by a new random amount, which replaces the last one.
    pub(crate) fn jump(&self, random: &mut fastrand::Rng) {
        let max = JUMP_MAX as i64;
        let ahead = random.i64(-max..=max);
        self.ahead_max.fetch_max(ahead, Ordering::SeqCst);
        self.ahead.store(ahead, Ordering::SeqCst);
    }

    /// The earliest time for a store, whose time never goes back behind a reading of the clock.
    /// Before the first reading, it is the machine's time minus the longest jump.
    pub(crate) fn earliest(&self) -> Millis {
        self.highest.load(Ordering::SeqCst)
    }

    /// The latest time for a store, whose time continues from its latest reading after a jump back.
    pub(crate) fn latest(&self) -> Millis {
        let now = self.system.unix_millis().saturating_add_signed(self.ahead_max.load(Ordering::SeqCst));
        now.max(self.earliest()) + TICK
    }
}

impl Clock for JumpingClock {
    fn unix_millis(&self) -> Millis {
        let now = self.system.unix_millis().saturating_add_signed(self.ahead.load(Ordering::SeqCst));
        self.highest.fetch_max(now, Ordering::SeqCst);
        now
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_clock_that_was_never_read_is_known_within_a_jump() {
        let machine = SystemClock::default().unix_millis();
        let clock = JumpingClock::new();
        clock.jump(&mut fastrand::Rng::with_seed(1));
        let earliest = clock.earliest();
        assert!(machine <= earliest + JUMP_MAX);
        let read = clock.unix_millis();
        assert!(earliest <= read && read <= clock.latest());
        assert!(clock.earliest() >= read);
    }
}
