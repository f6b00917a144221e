//! How summarising goes.

use serde::{Deserialize, Serialize};

/// How summarising goes in one session.
///
/// | from | to |
/// |---|---|
/// | healthy | retry |
/// | retry | healthy, degraded |
/// | degraded | recovering |
/// | recovering | healthy, degraded |
///
/// and from each to itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Every summary came, as yet.
    #[default]
    Healthy,
    /// The last summary did not come, and is asked for again.
    Retry,
    /// Summaries did not come often enough to go on: turns wait in the backlog, and the summary is not shown.
    Degraded,
    /// A part of the backlog is being summarised.
    Recovering,
}

impl Health {
    /// The name that the WIT gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Retry => "retry",
            Self::Degraded => "degraded",
            Self::Recovering => "recovering",
        }
    }

    /// Whether it can become the other in one step.
    pub const fn can_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Healthy, Self::Healthy | Self::Retry)
                | (Self::Retry, Self::Retry | Self::Healthy | Self::Degraded)
                | (Self::Degraded, Self::Degraded | Self::Recovering)
                | (Self::Recovering, Self::Recovering | Self::Healthy | Self::Degraded)
        )
    }

    /// Whether turns wait in the backlog: the summary lacks them, and is not shown.
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
