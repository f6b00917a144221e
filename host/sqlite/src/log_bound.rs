//! The bound of the write-ahead log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The bound of a database's write-ahead log.
///
/// Once a commit leaves the log at the bound, the following commits wait until the log can restart,
/// or until an attempt to restart it has failed.
pub(crate) struct LogBound {
    bytes_max: u64,
    is_full: AtomicBool,
    full: Arc<Notify>,
    /// Until this time commits do not wait, because a reader that larder cannot end keeps the log
    /// from restarting.
    in_vain_until: Mutex<Option<Instant>>,
}

/// How long commits go on past the bound after a failed attempt to restart the log.
const IN_VAIN: Duration = Duration::from_millis(500);

impl LogBound {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            is_full: AtomicBool::new(false),
            full: Arc::default(),
            in_vain_until: Mutex::default(),
        }
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Whether commits wait.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    /// Notified when commits begin to wait.
    pub(crate) fn full(&self) -> Arc<Notify> {
        self.full.clone()
    }

    /// Records that a commit left a log of `log_bytes`.
    pub(crate) fn committed(&self, log_bytes: u64) {
        if log_bytes < self.bytes_max {
            return;
        }
        let in_vain = *self.in_vain_until.lock();
        if in_vain.is_none_or(|until| until <= Instant::now()) {
            self.is_full.store(true, Ordering::Release);
            self.full.notify_one();
        }
    }

    /// Lets commits go on: the next one restarts the log, or an attempt to restart it has failed.
    pub(crate) fn go_on(&self, begins_anew: bool) {
        let in_vain = (!begins_anew).then(|| Instant::now() + IN_VAIN);
        *self.in_vain_until.lock() = in_vain;
        self.is_full.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_wait_from_the_bound_on_until_the_log_begins_anew() {
        let bound = LogBound::new(100);
        bound.committed(99);
        assert!(!bound.is_full());
        bound.committed(100);
        assert!(bound.is_full());
        bound.go_on(true);
        assert!(!bound.is_full());
    }

    #[test]
    fn commits_go_on_for_a_while_if_the_log_can_not_begin_anew() {
        let bound = LogBound::new(100);
        bound.committed(100);
        bound.go_on(false);
        bound.committed(101);
        assert!(!bound.is_full());
        *bound.in_vain_until.lock() = Some(Instant::now());
        bound.committed(102);
        assert!(bound.is_full());
    }
}
