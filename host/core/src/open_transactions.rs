//! The counter that bounds the open transactions of one user.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{LimitExceeded, LimitKind, Result};
use crate::limits::Limits;

/// A counter of open transactions with a bound. Clones share the count.
#[derive(Clone, Debug)]
pub struct OpenTransactions {
    count: Arc<AtomicU64>,
    max: u64,
}

impl OpenTransactions {
    /// Creates a counter that allows at most `max` open transactions.
    pub fn at_most(max: u64) -> Self {
        Self { count: Arc::default(), max }
    }

    pub(crate) fn permit(&self) -> Result<Permit> {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        let permit = Permit { count: self.count.clone() };
        if before < self.max {
            return Ok(permit);
        }
        let requested = before.saturating_add(1);
        Err(LimitExceeded { kind: LimitKind::OpenTransactions, max: self.max, requested }.into())
    }
}

impl Default for OpenTransactions {
    fn default() -> Self {
        Self::at_most(Limits::default().open_transactions)
    }
}

/// A permit for one open transaction. Dropping it returns the permit.
#[derive(Debug)]
pub(crate) struct Permit {
    count: Arc<AtomicU64>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
