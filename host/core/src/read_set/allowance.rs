//! Budgets of a validation: how many rows it may read, and for how long.

use std::time::{Duration, Instant};

/// The bounds of one slice or attempt.
#[derive(Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) rows: u64,
    pub(crate) time: Duration,
}

impl Budget {
    pub(crate) fn begin(self) -> Allowance {
        Allowance { rows: self.rows, until: Instant::now() + self.time }
    }
}

/// The rest of a budget.
#[derive(Debug)]
pub struct Allowance {
    rows: u64,
    until: Instant,
}

impl Allowance {
    /// Takes one row from the allowance.
    ///
    /// Returns false if no row or time is left. The first row is granted however late it is.
    pub fn spend(&mut self) -> bool {
        let is_granted = self.rows > 0;
        self.rows = self.rows.saturating_sub(1);
        if Instant::now() >= self.until {
            self.rows = 0;
        }
        is_granted
    }
}
