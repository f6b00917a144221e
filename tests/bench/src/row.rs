//! A row: several sides that do the same work, and how their times are held against each other.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;

/// What one measurement does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// How often.
    pub(crate) count: u64,
    /// Which rows are drawn.
    pub(crate) seed: u64,
    /// What the written values are told from others' by; another one in each measurement.
    pub(crate) salt: u64,
}

/// Who does the work.
#[async_trait]
pub(crate) trait Side: Send {
    /// Reads rows, so that it has in memory what it keeps there; nothing where it keeps nothing.
    async fn read_rows(&mut self, gets: Work) -> Result<()> {
        let _ = gets;
        Ok(())
    }

    /// What is to be ready and is not measured.
    async fn before(&mut self) -> Result<()> {
        Ok(())
    }

    /// Does the work, and gives a sum of what it read. Only this is measured.
    async fn run(&mut self, work: Work) -> Result<u64>;

    /// The time of one operation, if the side took it itself and the time of the whole run says something else.
    fn measured(&self) -> Option<Duration> {
        None
    }

    /// What ends with the measurement and is not a part of it.
    async fn after(&mut self) -> Result<()> {
        Ok(())
    }
}

/// How often a side does its work in one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As often as the other sides, with the same sums.
    Shared,
    /// As often as fits its time: it is too slow or too quick to do as much as the others.
    Own,
}

/// One side of a row.
pub(crate) struct Entrant {
    pub(crate) name: &'static str,
    pub(crate) pace: Pace,
    pub(crate) side: Box<dyn Side>,
}

/// How sides are held against each other, by their places in the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The time of one, divided by that of another.
    Ratio { of: usize, to: usize },
    /// What one takes more than another, in microseconds.
    OnTop { of: usize, over: usize },
    /// That, divided by the time of a third.
    OnTopRatio { of: usize, over: usize, to: usize },
    /// The time of one, in milliseconds.
    Milliseconds { of: usize },
}

/// A comparison, and what it is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    pub(crate) label: &'static str,
    pub(crate) comparison: Comparison,
    pub(crate) bound: Option<f64>,
}

/// Looks whether the sides have really done the work, once all is measured.
#[async_trait]
pub(crate) trait Evidence: Send {
    /// # Errors
    /// Where they have not.
    async fn check(&mut self) -> Result<()>;
}

/// A row.
pub(crate) struct Row {
    /// What is measured: `view with one get`.
    pub(crate) name: String,
    pub(crate) sides: Vec<Entrant>,
    pub(crate) goals: Vec<Goal>,
    /// Rows that each side reads before anything is measured: what is measured is a database in use.
    pub(crate) warm_up: u64,
    pub(crate) evidence: Option<Box<dyn Evidence>>,
}

impl Row {
    /// A row without sides yet.
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), sides: Vec::new(), goals: Vec::new(), warm_up: 0, evidence: None }
    }

    /// A row of larder against one baseline.
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

    /// Adds a side that does its work as often as fits its time.
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

    /// Has each side read so many rows before.
    pub(crate) fn warm_up(mut self, gets: u64) -> Self {
        self.warm_up = gets;
        self
    }

    /// What shows that the work was done.
    pub(crate) fn evidence(mut self, evidence: impl Evidence + 'static) -> Self {
        self.evidence = Some(Box::new(evidence));
        self
    }
}
