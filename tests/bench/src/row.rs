//! A row: several sides that do the same work, and the comparisons of their times.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;

/// The work of one measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// The number of operations.
    pub(crate) count: u64,
    /// The seed from which the rows are drawn.
    pub(crate) seed: u64,
    /// Distinguishes the written values of one measurement from those of others.
    pub(crate) salt: u64,
}

/// One side of a row.
#[async_trait]
pub(crate) trait Side: Send {
    /// Reads rows, so that a side that caches rows has them cached.
    async fn read_rows(&mut self, gets: Work) -> Result<()> {
        let _ = gets;
        Ok(())
    }

    /// Prepares a measurement. Its time does not count.
    async fn before(&mut self) -> Result<()> {
        Ok(())
    }

    /// Does the work, and returns a digest of what it read. Only this is measured.
    async fn run(&mut self, work: Work) -> Result<u64>;

    /// The time of one operation, if the side measures it itself instead.
    fn measured(&self) -> Option<Duration> {
        None
    }

    /// Ends a measurement. Its time does not count.
    async fn after(&mut self) -> Result<()> {
        Ok(())
    }
}

/// How many operations a side makes in one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As many as the other sides, with the same digests.
    Shared,
    /// As many as fit into its time, because it is much slower or faster than the others.
    Own,
}

/// A side and its name.
pub(crate) struct Entrant {
    pub(crate) name: &'static str,
    pub(crate) pace: Pace,
    pub(crate) side: Box<dyn Side>,
}

/// A comparison of sides, which are given by their index in the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The time of one side divided by that of another.
    Ratio { of: usize, to: usize },
    /// How much longer one side takes than another, in microseconds.
    OnTop { of: usize, over: usize },
    /// The same, divided by the time of a third side.
    OnTopRatio { of: usize, over: usize, to: usize },
    /// The time of one side, in milliseconds.
    Milliseconds { of: usize },
}

/// A comparison and its bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    pub(crate) label: &'static str,
    pub(crate) comparison: Comparison,
    pub(crate) bound: Option<f64>,
}

/// Checks after all measurements that the sides have done the work.
#[async_trait]
pub(crate) trait Evidence: Send {
    /// Checks the work.
    ///
    /// # Errors
    ///
    /// If the sides did different work.
    async fn check(&mut self) -> Result<()>;
}

/// A row of the benchmark.
pub(crate) struct Row {
    /// What is measured, for example `view with one get`.
    pub(crate) name: String,
    pub(crate) sides: Vec<Entrant>,
    pub(crate) goals: Vec<Goal>,
    /// How many rows each side reads before any measurement, as in a database in use.
    pub(crate) warm_up: u64,
    pub(crate) evidence: Option<Box<dyn Evidence>>,
}

impl Row {
    /// A row without sides.
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), sides: Vec::new(), goals: Vec::new(), warm_up: 0, evidence: None }
    }

    /// A row that compares larder with one baseline.
    pub(crate) fn against(
        name: impl Into<String>,
        larder: impl Side + 'static,
        baseline: (&'static str, impl Side + 'static),
        bound: impl Into<Option<f64>>,
    ) -> Self {
        let row = Self::named(name).side("larder", larder).side(baseline.0, baseline.1);
        row.goal("ratio", Comparison::Ratio { of: 0, to: 1 }, bound)
    }

    /// Adds a side.
    pub(crate) fn side(self, name: &'static str, side: impl Side + 'static) -> Self {
        self.entrant(name, Pace::Shared, side)
    }

    /// Adds a side that makes as many operations as fit into its time.
    pub(crate) fn side_at_own_pace(self, name: &'static str, side: impl Side + 'static) -> Self {
        self.entrant(name, Pace::Own, side)
    }

    fn entrant(mut self, name: &'static str, pace: Pace, side: impl Side + 'static) -> Self {
        self.sides.push(Entrant { name, pace, side: Box::new(side) });
        self
    }

    /// Adds a comparison.
    pub(crate) fn goal(
        mut self,
        label: &'static str,
        comparison: Comparison,
        bound: impl Into<Option<f64>>,
    ) -> Self {
        self.goals.push(Goal { label, comparison, bound: bound.into() });
        self
    }

    /// Lets each side read `gets` rows before any measurement.
    pub(crate) fn warm_up(mut self, gets: u64) -> Self {
        self.warm_up = gets;
        self
    }

    /// Sets the check of the work.
    pub(crate) fn evidence(mut self, evidence: impl Evidence + 'static) -> Self {
        self.evidence = Some(Box::new(evidence));
        self
    }
}
