//! The forms of the benchmark, full and short.

use std::time::Duration;

use larder_bench_workload::Shape;

/// How thoroughly the benchmark measures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// The name of the form in the report.
    pub(crate) name: &'static str,
    /// How often every side of a row is measured.
    pub(crate) rounds: usize,
    /// The approximate time of one measurement.
    pub(crate) target: Duration,
    /// The pause before each measurement, in which background work of the last one ends.
    pub(crate) pause: Duration,
    /// Whether to measure the rows about the growth of cost.
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

/// The data of the rows with a bound.
pub(crate) const USUAL: Shape = Shape { rows: 100_000, namespaces: 1, value_bytes: 100 };
