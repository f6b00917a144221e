//! The report of a run.

mod chart;
mod html;
mod machine;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

pub(crate) use machine::Machine;
pub(crate) use table::print_row;

use crate::row::{Comparison, Goal};
use crate::statistics::Summary;

/// All measurements of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) command: String,
    pub(crate) form: &'static str,
    pub(crate) rounds: usize,
    pub(crate) machine: Machine,
    pub(crate) groups: Vec<GroupReport>,
}

/// The rows of one group.
#[derive(Debug, Serialize)]
pub(crate) struct GroupReport {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) rows: Vec<RowReport>,
    /// What could not be measured, and why.
    pub(crate) skipped: Vec<String>,
}

/// The measurements of one row.
#[derive(Debug, Serialize)]
pub(crate) struct RowReport {
    pub(crate) name: String,
    pub(crate) sides: Vec<SideReport>,
    pub(crate) figures: Vec<FigureReport>,
}

/// The measurements of one side.
#[derive(Debug, Serialize)]
pub(crate) struct SideReport {
    pub(crate) name: String,
    /// The number of operations in one measurement.
    pub(crate) operations: u64,
    /// The time of one operation.
    pub(crate) nanoseconds: Summary,
    pub(crate) samples: Vec<f64>,
}

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    Ratio,
    Microseconds,
    Milliseconds,
    Mebibytes,
    Bytes,
    Count,
}

/// A comparison, or another figure.
#[derive(Debug, Serialize)]
pub(crate) struct FigureReport {
    pub(crate) label: String,
    pub(crate) unit: Unit,
    pub(crate) value: Summary,
    /// The largest value that meets the bound.
    pub(crate) bound: Option<f64>,
    pub(crate) met: Option<bool>,
}

impl RowReport {
    /// Whether a ratio exceeds `factor` times its bound.
    pub(crate) fn fails(&self, factor: f64) -> bool {
        self.figures.iter().any(|figure| figure.limit_passed(factor).is_some())
    }
}

impl FigureReport {
    pub(crate) fn new(goal: &Goal, value: Summary) -> Self {
        let unit = match goal.comparison {
            Comparison::Ratio { .. } | Comparison::OnTopRatio { .. } => Unit::Ratio,
            Comparison::OnTop { .. } => Unit::Microseconds,
            Comparison::Milliseconds { .. } => Unit::Milliseconds,
        };
        let met = goal.bound.map(|bound| value.median <= bound);
        Self { label: goal.label.to_string(), unit, value, bound: goal.bound, met }
    }

    /// `factor` times the bound, if the figure exceeds it. Always `None` for times, which depend
    /// more on the machine than on larder.
    fn limit_passed(&self, factor: f64) -> Option<f64> {
        let is_time = matches!(self.unit, Unit::Microseconds | Unit::Milliseconds);
        let limit = self.bound.filter(|_| !is_time)? * factor;
        (self.value.median > limit).then_some(limit)
    }

    /// A figure that was observed once.
    pub(crate) fn observed(label: impl Into<String>, unit: Unit, value: f64) -> Self {
        let value = Summary { median: value, minimum: value, maximum: value };
        Self { label: label.into(), unit, value, bound: None, met: None }
    }
}

impl Report {
    /// Writes `report.json` and `report.html`.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let json = serde_json::to_string_pretty(self)?;
        fs::write(folder.join("report.json"), json + "\n")?;
        fs::write(folder.join("report.html"), html::page(self)?)?;
        Ok(())
    }

    /// All figures, each with its group and its row.
    fn figures(&self) -> impl Iterator<Item = (&GroupReport, &RowReport, &FigureReport)> {
        let rows = self.groups.iter().flat_map(|group| group.rows.iter().map(move |row| (group, row)));
        rows.flat_map(|(group, row)| row.figures.iter().map(move |figure| (group, row, figure)))
    }

    /// Lists the figures that exceed `factor` times their bounds, except times, and everything that
    /// could not be measured.
    pub(crate) fn failures(&self, factor: f64) -> Vec<String> {
        let over = self.figures().filter_map(|(group, row, figure)| {
            let (limit, ratio) = (figure.limit_passed(factor)?, figure.value.median);
            let name = format!("{}, {}, {}", group.name, row.name, figure.label);
            Some(format!("{name}: {ratio:.3} is more than {limit:.3}"))
        });
        let skipped = self.groups.iter().flat_map(|group| &group.skipped);
        over.chain(skipped.map(|reason| format!("not measured: {reason}"))).collect()
    }

    /// The number of bounds, and how many of them are met.
    pub(crate) fn met(&self) -> (usize, usize) {
        let met: Vec<bool> = self.figures().filter_map(|(_, _, figure)| figure.met).collect();
        (met.len(), met.iter().filter(|met| **met).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn report() -> Report {
        let goal = |label, comparison, bound| Goal { label, comparison, bound: Some(bound) };
        let at = |median| Summary { median, minimum: median - 0.1, maximum: median + 0.1 };
        let time = Summary { median: 1_500.0, minimum: 1_000.0, maximum: 2_000_000.0 };
        let side = |name: &str| SideReport {
            name: name.to_string(),
            operations: 10,
            nanoseconds: time,
            samples: vec![1_000.0, 1_500.0, 2_000_000.0],
        };
        let ratio = Comparison::Ratio { of: 0, to: 1 };
        let row = RowReport {
            name: "get <in> a view".to_string(),
            sides: vec![side("larder"), side("rusqlite")],
            figures: vec![
                FigureReport::new(&goal("ratio", ratio, 0.8), at(0.9)),
                FigureReport::new(&goal("list", ratio, 1.4), at(1.2)),
                FigureReport::new(&goal("whole", Comparison::Milliseconds { of: 0 }, 1.0), at(900.0)),
            ],
        };
        let memory = RowReport {
            name: "rows".to_string(),
            sides: Vec::new(),
            figures: vec![FigureReport::observed("in all", Unit::Mebibytes, 12.5)],
        };
        let group = |name, rows| GroupReport { name, title: "a title", rows, skipped: Vec::new() };
        Report {
            command: "tests/bench/run".to_string(),
            form: "short",
            rounds: 7,
            machine: Machine::look(),
            groups: vec![group("reads", vec![row]), group("memory", vec![memory])],
        }
    }

    #[test]
    fn a_ratio_fails_beyond_its_bound_and_the_factor() {
        let report = report();
        assert_eq!(report.met(), (3, 1));
        assert_eq!(report.failures(1.5), Vec::<String>::new());
        assert_eq!(report.failures(1.0), ["reads, get <in> a view, ratio: 0.900 is more than 0.800"]);
        assert_eq!(report.failures(0.5).len(), 2);
    }

    #[test]
    fn a_row_that_was_not_measured_fails() {
        let mut report = report();
        report.groups[0].skipped.push("no Postgres".to_string());
        assert_eq!(report.failures(9.0), ["not measured: no Postgres"]);
    }

    #[test]
    fn a_report_is_written_in_both_forms() {
        let folder = tempfile::tempdir().unwrap();
        report().write(&folder.path().join("new")).unwrap();
        let read = |name| fs::read_to_string(folder.path().join("new").join(name)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&read("report.json")).unwrap();
        let figure = &json["groups"][0]["rows"][0]["figures"][0];
        assert_eq!((&figure["unit"], &figure["met"]), (&"ratio".into(), &false.into()));
        assert_eq!(json["groups"][0]["rows"][0]["sides"][1]["nanoseconds"]["median"], 1_500.0);
        let html = read("report.html");
        assert_eq!(html.matches("<svg").count(), 2);
        assert!(html.contains("get &lt;in&gt; a view") && !html.contains("<in>"));
        assert!(html.contains("tests/bench/run") && !html.contains("http://localhost"));
        assert!(!html.contains("<script") && !html.contains("src="), "the page loads nothing");
    }
}
