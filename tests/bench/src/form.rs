//! How thorough the benchmark is.

use std::time::Duration;

use larder_bench_workload::Shape;

/// How thorough the benchmark is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// Its name, for the report.
    pub(crate) name: &'static str,
    /// How often every side of a row is measured.
    pub(crate) rounds: usize,
    /// How long one measurement takes, about.
    pub(crate) target: Duration,
    /// The pause before each measurement: what the one before left running in the background is over by then.
    pub(crate) pause: Duration,
    /// Whether the rows are measured that tell how cost grows.
    pub(crate) growth: bool,
}

impl Form {
    /// Every row.
    pub(crate) fn full() -> Self {
        Self {
            name: "full",
            rounds: 11,
            target: Duration::from_millis(300),
            pause: Duration::from_millis(120),
            growth: true,
        }
    }

    /// The rows that have a bound.
    pub(crate) fn short() -> Self {
        Self {
            name: "short",
            rounds: 7,
            target: Duration::from_millis(120),
            pause: Duration::from_millis(100),
            growth: false,
        }
    }
}

/// What the rows with a bound are measured on.
pub(crate) const USUAL: Shape = Shape { rows: 100_000, namespaces: 1, value_bytes: 100 };
