//! A clock that jumps.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use larder_core::{Clock, SystemClock};

use crate::history::Millis;

/// How far the clock of a store is from the machine's, at most and in either direction.
pub(crate) const JUMP_MAX: Millis = 300;

/// How far the clock that a store measures its pace with may be behind, with some room.
const TICK: Millis = 20;

/// The machine's clock, with wall-clock time moved forth and back.
#[derive(Debug)]
pub(crate) struct JumpingClock {
    system: SystemClock,
    ahead: AtomicI64,
    /// The furthest that it ever was ahead.
    ahead_max: AtomicI64,
    highest: AtomicU64,
}

impl JumpingClock {
    /// A clock that agrees with the machine's until its first jump.
    pub(crate) fn new() -> Self {
        let system = SystemClock::default();
        // The first reading may follow a jump back.
        let highest = AtomicU64::new(system.unix_millis().saturating_sub(JUMP_MAX));
        Self { system, ahead: AtomicI64::new(0), ahead_max: AtomicI64::new(0), highest }
    }

    /// Moves wall-clock time by a random amount, which replaces the one before.
    pub(crate) fn jump(&self, random: &mut fastrand::Rng) {
        let max = JUMP_MAX as i64;
        let ahead = random.i64(-max..=max);
        self.ahead_max.fetch_max(ahead, Ordering::SeqCst);
        self.ahead.store(ahead, Ordering::SeqCst);
    }

    /// The earliest time that it can be for a store, which does not go back behind what the clock has given. The clock
    /// may not have been read yet: then it is the machine's time less the longest jump.
    pub(crate) fn earliest(&self) -> Millis {
        self.highest.load(Ordering::SeqCst)
    }

    /// The latest time that it can be for a store: after a jump back, time goes on from where it was.
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
