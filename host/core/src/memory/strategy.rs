//! How a conversation is kept, as the host declares it.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How a conversation is kept.
///
/// ```
/// use larder_core::Strategy;
/// assert_eq!("truncation".parse::<Strategy>().unwrap(), Strategy::Truncation);
/// let error = "episodic".parse::<Strategy>().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "invalid argument: no strategy is named \"episodic\"; there are none, truncation and rolling-summary"
/// );
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Not at all.
    #[default]
    None,
    /// The newest turns, as many as the budget holds.
    Truncation,
    /// The newest turns, and a summary of those before them.
    RollingSummary,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 3] = [Self::None, Self::Truncation, Self::RollingSummary];

    /// The name that the WIT gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Truncation => "truncation",
            Self::RollingSummary => "rolling-summary",
        }
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name).ok_or_else(|| {
            Error::invalid_argument(format!(
                "no strategy is named {name:?}; there are none, truncation and rolling-summary"
            ))
        })
    }
}

/// How a store keeps conversations.
///
/// ```
/// use larder_core::{MemoryOptions, Strategy};
/// let options = MemoryOptions { budget_tokens: 4_096, ..MemoryOptions::new(Strategy::Truncation) };
/// options.validate().unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// How a conversation is kept.
    pub strategy: Strategy,
    /// How many tokens the context of a session may have; 0 for no bound. The newest turn is kept in any case.
    pub budget_tokens: u64,
    /// With a rolling summary: how many turns are kept in full. At least 1.
    pub window_turns: usize,
    /// With a rolling summary: how many batches of turns wait while summarising fails for good. One more drops the
    /// oldest, and the platform is told. At least 1.
    pub backlog_max: usize,
    /// How often a summary is asked for before the session is degraded. At least 1.
    pub retry_count: u32,
    /// How long to wait after the first failed summary; doubled after each further one.
    pub retry_backoff: Duration,
    /// How long a degraded session waits before its backlog is tried again.
    pub recovery_interval: Duration,
    /// How long a summary may take. At most [`MemoryOptions::SUMMARY_TIMEOUT_MAX`].
    pub summary_timeout: Duration,
    /// How large the record of one session may be, as it is stored, in bytes. At most
    /// [`MemoryOptions::MEMORY_BYTES_MAX`].
    pub memory_bytes: u64,
}

impl MemoryOptions {
    /// The largest record that every backend can hold.
    pub const MEMORY_BYTES_MAX: u64 = 64 << 20;
    /// The longest time for a summary: for as long another host leaves a session alone whose host has died.
    pub const SUMMARY_TIMEOUT_MAX: Duration = Duration::from_secs(600);

    /// The defaults with a strategy: no budget, a window of 4 turns, a backlog of 16, 3 attempts from 100 ms on,
    /// recovery every 10 s, 30 s for a summary, and 2 MiB for a record.
    pub fn new(strategy: Strategy) -> Self {
        Self {
            strategy,
            budget_tokens: 0,
            window_turns: 4,
            backlog_max: 16,
            retry_count: 3,
            retry_backoff: Duration::from_millis(100),
            recovery_interval: Duration::from_secs(10),
            summary_timeout: Duration::from_secs(30),
            memory_bytes: 2 << 20,
        }
    }

    /// Refuses options that can't be kept.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] says which one, and what it may be.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("window_turns", self.window_turns > 0),
            ("backlog_max", self.backlog_max > 0),
            ("retry_count", self.retry_count > 0),
        ];
        for (name, holds) in at_least_one {
            if !holds {
                return Err(Error::invalid_argument(format!("the option {name} must be at least 1")));
            }
        }
        if self.summary_timeout.is_zero() || self.summary_timeout > Self::SUMMARY_TIMEOUT_MAX {
            let max = Self::SUMMARY_TIMEOUT_MAX.as_secs();
            return Err(Error::invalid_argument(format!(
                "the option summary_timeout must be more than 0, and at most {max} s"
            )));
        }
        if self.memory_bytes > Self::MEMORY_BYTES_MAX {
            let max = Self::MEMORY_BYTES_MAX;
            return Err(Error::invalid_argument(format!("the option memory_bytes can be at most {max}")));
        }
        Ok(())
    }

    /// How many tokens a summary may have: half of the budget.
    pub fn summary_tokens_max(&self) -> Option<u64> {
        (self.budget_tokens > 0).then_some(self.budget_tokens / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_can_not_be_kept_are_refused_by_name() {
        let options = MemoryOptions::new(Strategy::RollingSummary);
        options.validate().unwrap();
        let refused = [
            ("window_turns", MemoryOptions { window_turns: 0, ..options.clone() }),
            ("backlog_max", MemoryOptions { backlog_max: 0, ..options.clone() }),
            ("retry_count", MemoryOptions { retry_count: 0, ..options.clone() }),
            ("summary_timeout", MemoryOptions { summary_timeout: Duration::ZERO, ..options.clone() }),
            ("summary_timeout", MemoryOptions { summary_timeout: Duration::MAX, ..options.clone() }),
            ("memory_bytes", MemoryOptions { memory_bytes: u64::MAX, ..options }),
        ];
        for (name, options) in refused {
            let Err(Error::InvalidArgument(reason)) = options.validate() else { panic!("{name} accepted") };
            assert!(reason.contains(name), "{reason}");
        }
    }
}
