//! Strategies and options for keeping conversations.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::option_setters;

/// How a conversation is kept.
///
/// ```
/// use larder_core::Strategy;
/// assert_eq!("truncation".parse::<Strategy>().unwrap(), Strategy::Truncation);
/// let error = "episodic".parse::<Strategy>().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "invalid argument: unknown strategy \"episodic\"; use none, truncation or rolling-summary"
/// );
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Turns are accepted and not kept.
    #[default]
    None,
    /// The newest turns that fit in the budget.
    Truncation,
    /// The newest turns, and a summary of those before them.
    ///
    /// The host's window and budget bound the turns that are kept in full.
    RollingSummary,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 3] = [Self::None, Self::Truncation, Self::RollingSummary];

    /// The strategy's name in the WIT.
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
                "unknown strategy {name:?}; use none, truncation or rolling-summary"
            ))
        })
    }
}

/// The options for keeping a store's conversations.
///
/// ```
/// use larder_core::{MemoryOptions, Strategy};
/// let defaults = MemoryOptions::new(Strategy::Truncation);
/// let options = defaults.budget_tokens(4_096);
/// options.validate().unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryOptions {
    /// How a conversation is kept.
    pub strategy: Strategy,
    /// The most tokens that the context of a session may have; 0 for no bound.
    ///
    /// The newest turn is kept in any case.
    pub budget_tokens: u64,
    /// The number of turns that a rolling summary keeps in full. At least 1.
    pub window_turns: usize,
    /// The number of batches of turns that may wait in the backlog. At least 1.
    ///
    /// Turns wait there while the session is degraded. One batch more drops the oldest, and the
    /// host emits [`Event::MemoryRecoveryDropped`](crate::Event::MemoryRecoveryDropped).
    pub backlog_max: usize,
    /// The number of failures in a row that degrade the session. At least 1.
    pub retry_count: u32,
    /// The pause after the first failed summary. It doubles after each further one.
    pub retry_backoff: Duration,
    /// The pause before a degraded session retries its backlog.
    pub recovery_interval: Duration,
    /// The timeout of one summary. At most [`MemoryOptions::SUMMARY_TIMEOUT_MAX`].
    pub summary_timeout: Duration,
    /// The largest record of one session, as stored, in bytes.
    ///
    /// At most [`MemoryOptions::MEMORY_BYTES_MAX`].
    pub memory_bytes: u64,
}

option_setters!(MemoryOptions {
    strategy: Strategy,
    budget_tokens: u64,
    window_turns: usize,
    backlog_max: usize,
    retry_count: u32,
    retry_backoff: Duration,
    recovery_interval: Duration,
    summary_timeout: Duration,
    memory_bytes: u64,
});

impl MemoryOptions {
    /// The largest record that every backend can hold, in bytes.
    pub const MEMORY_BYTES_MAX: u64 = 64 << 20;
    /// The longest timeout of a summary.
    ///
    /// After a host dies, another host waits for twice the timeout before it resumes the session.
    pub const SUMMARY_TIMEOUT_MAX: Duration = Duration::from_secs(600);

    /// Returns the defaults for a strategy.
    ///
    /// They are: no token budget, a window of 4 turns, a backlog of 16 batches, 3 attempts with a
    /// backoff from 100 ms, recovery every 10 s, a timeout of 30 s for a summary, and 2 MiB for a
    /// record.
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

    /// Checks that every option is in range.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if an option is out of range. It names the option and the range.
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
                "the option summary_timeout must be more than 0 and at most {max} s"
            )));
        }
        if self.memory_bytes > Self::MEMORY_BYTES_MAX {
            let max = Self::MEMORY_BYTES_MAX;
            return Err(Error::invalid_argument(format!("the option memory_bytes must be at most {max}")));
        }
        Ok(())
    }

    /// The most tokens of a summary: half of the budget; `None` without a budget.
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
            ("window_turns", options.clone().window_turns(0)),
            ("backlog_max", options.clone().backlog_max(0)),
            ("retry_count", options.clone().retry_count(0)),
            ("summary_timeout", options.clone().summary_timeout(Duration::ZERO)),
            ("summary_timeout", options.clone().summary_timeout(Duration::MAX)),
            ("memory_bytes", options.memory_bytes(u64::MAX)),
        ];
        for (name, options) in refused {
            let Err(Error::InvalidArgument(reason)) = options.validate() else { panic!("{name} accepted") };
            assert!(reason.contains(name), "{reason}");
        }
    }
}
