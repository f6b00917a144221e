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
#[derive(Debug, Default)]
pub(crate) struct JumpingClock {
    system: SystemClock,
    ahead: AtomicI64,
    /// The furthest that it ever was ahead.
    ahead_max: AtomicI64,
    highest: AtomicU64,
}

impl JumpingClock {
    /// Moves wall-clock time by a random amount, which replaces the one before.
    pub(crate) fn jump(&self, random: &mut fastrand::Rng) {
        let max = JUMP_MAX as i64;
        let ahead = random.i64(-max..=max);
        self.ahead_max.fetch_max(ahead, Ordering::SeqCst);
        self.ahead.store(ahead, Ordering::SeqCst);
    }

    /// The latest time that the clock has given: a store does not go back behind it.
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
