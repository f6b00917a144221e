//! A bounded number of attempts, with pauses between them.

use std::time::Duration;

use larder_core::backoff::Backoff;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The remaining attempts, and the pauses before them.
pub(crate) struct Attempts {
    left: u32,
    backoff: Backoff,
}

impl Attempts {
    pub(crate) fn new(attempts: u32) -> Self {
        Self { left: attempts.saturating_sub(1), backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE) }
    }

    /// Waits before the next attempt. Returns `false` if no attempt remains.
    pub(crate) async fn wait(&mut self) -> bool {
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        self.backoff.wait().await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_are_bounded_and_pauses_grow() {
        let mut attempts = Attempts::new(3);
        let start = tokio::time::Instant::now();
        assert!(attempts.wait().await && attempts.wait().await);
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(75) && waited <= Duration::from_millis(152), "{waited:?}");
        assert!(!attempts.wait().await);
        assert!(!Attempts::new(0).wait().await);
    }
}
