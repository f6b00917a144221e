//! Pauses between attempts.

use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The remaining attempts, and the pause before the next one. Pauses grow, and have jitter so that
/// hosts that failed together do not retry together.
pub(crate) struct Backoff {
    left: u32,
    pause: Duration,
}

impl Backoff {
    pub(crate) fn new(attempts: u32) -> Self {
        Self { left: attempts.saturating_sub(1), pause: FIRST_PAUSE }
    }

    /// Waits before the next attempt. Returns `false` if no attempt remains.
    pub(crate) async fn wait(&mut self) -> bool {
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        tokio::time::sleep(jittered(self.pause)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        true
    }
}

/// A random duration between half of `duration` and all of it.
pub(crate) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_are_bounded_and_pauses_grow() {
        let mut backoff = Backoff::new(3);
        let start = tokio::time::Instant::now();
        assert!(backoff.wait().await && backoff.wait().await);
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(75) && waited <= Duration::from_millis(152), "{waited:?}");
        assert!(!backoff.wait().await);
        assert!(!Backoff::new(0).wait().await);
    }
}
