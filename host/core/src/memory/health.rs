//! The health of summarising.

use serde::{Deserialize, Serialize};

/// The health of summarising in one session.
///
/// | from | to |
/// |---|---|
/// | healthy | retry |
/// | retry | healthy, degraded |
/// | degraded | recovering |
/// | recovering | healthy, degraded |
///
/// Each state can also stay as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Every summary so far has succeeded, or the last failure has been recovered from.
    #[default]
    Healthy,
    /// The last summary failed and will be retried.
    Retry,
    /// Summarising failed too many times in a row.
    ///
    /// Turns wait in a backlog, and the summary is not shown.
    Degraded,
    /// A batch of the backlog is being summarised.
    Recovering,
}

impl Health {
    /// The state's name in the WIT.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Retry => "retry",
            Self::Degraded => "degraded",
            Self::Recovering => "recovering",
        }
    }

    /// Whether the state can become `next` in one step.
    pub const fn can_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Healthy, Self::Healthy | Self::Retry)
                | (Self::Retry, Self::Retry | Self::Healthy | Self::Degraded)
                | (Self::Degraded, Self::Degraded | Self::Recovering)
                | (Self::Recovering, Self::Recovering | Self::Healthy | Self::Degraded)
        )
    }

    /// Whether turns wait in the backlog. The summary lacks them and is not shown.
    pub const fn is_behind(self) -> bool {
        matches!(self, Self::Degraded | Self::Recovering)
    }
}

#[cfg(test)]
mod tests {
    use super::Health::*;

    #[test]
    fn sixteen_steps_are_decided_one_by_one() {
        let rows = [
            (Healthy, [true, true, false, false]),
            (Retry, [true, true, true, false]),
            (Degraded, [false, false, true, true]),
            (Recovering, [true, false, true, true]),
        ];
        for (from, row) in rows {
            let found = [Healthy, Retry, Degraded, Recovering].map(|to| from.can_become(to));
            assert_eq!(found, row, "from {from:?}");
        }
    }
}
