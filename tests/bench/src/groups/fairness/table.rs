//! The rows of the group's table, as Markdown and for the report.

use super::bounds::{LOG_MEBIBYTES, MEDIAN_RATIO, RESIDENT_MEBIBYTES, TAIL_RATIO, THREAD_MILLISECONDS};
use super::cell::Outcome;
use super::victim::Latency;
use crate::report::{FigureReport, RowReport, SideReport, Unit};
use crate::statistics::Summary;

const MEBIBYTE: f64 = (1 << 20) as f64;

/// The table's first two lines.
pub(super) const HEAD: &str = "\
| attack, backend, store | read beside guests: median, p99 | beside attackers | update beside guests: median, p99 \
| beside attackers | median ratio | p99 ratio | failed calls | thread held | RSS increase | disk | log | operations, refused |
|---|---|---|---|---|---|---|---|---|---|---|---|---|";

/// The ratio at a percentile: the larger one of reads and updates.
fn ratio(outcome: &Outcome, percent: usize) -> f64 {
    let of = |attacked: &Latency, baseline: &Latency| attacked.at(percent) / baseline.at(percent);
    let read = of(&outcome.attacked.read, &outcome.baseline.read);
    read.max(of(&outcome.attacked.update, &outcome.baseline.update))
}

/// One line of the table.
pub(super) fn line(name: &str, outcome: &Outcome) -> String {
    let times =
        |latency: &Latency| format!("{}, {}", milliseconds(latency.at(50)), milliseconds(latency.at(99)));
    let mebibytes = |bytes: u64| match bytes {
        0 => "–".to_string(),
        some => format!("{:.0} MiB", some as f64 / MEBIBYTE),
    };
    let (baseline, attacked) = (&outcome.baseline, &outcome.attacked);
    let judged =
        |value: f64, bound: f64, text: String| if value > bound { format!("**{text}**") } else { text };
    let (median, tail) = (ratio(outcome, 50), ratio(outcome, 99));
    let (resident, log) = (outcome.resident as f64 / MEBIBYTE, outcome.log as f64 / MEBIBYTE);
    let cells = [
        name.to_string(),
        times(&baseline.read),
        times(&attacked.read),
        times(&baseline.update),
        times(&attacked.update),
        judged(median, MEDIAN_RATIO, format!("{median:.2}")),
        judged(tail, TAIL_RATIO, format!("{tail:.2}")),
        judged(outcome.failures as f64, 0.0, outcome.failures.to_string()),
        judged(
            thread_milliseconds(outcome),
            THREAD_MILLISECONDS,
            milliseconds(outcome.held_thread.as_nanos() as f64),
        ),
        judged(resident, RESIDENT_MEBIBYTES, mebibytes(outcome.resident)),
        mebibytes(outcome.disk),
        judged(log, LOG_MEBIBYTES, mebibytes(outcome.log)),
        format!("{}, {}", outcome.operations, outcome.refusals),
    ];
    format!("| {} |", cells.join(" | "))
}

fn thread_milliseconds(outcome: &Outcome) -> f64 {
    outcome.held_thread.as_secs_f64() * 1e3
}

fn milliseconds(nanoseconds: f64) -> String {
    match nanoseconds / 1e6 {
        small if small < 10.0 => format!("{small:.2} ms"),
        large => format!("{large:.0} ms"),
    }
}

/// The row of the report.
pub(super) fn row(name: &str, outcome: &Outcome) -> RowReport {
    let sides = [
        ("read, beside well-behaved guests", &outcome.baseline.read),
        ("read, beside attackers", &outcome.attacked.read),
        ("update, beside well-behaved guests", &outcome.baseline.update),
        ("update, beside attackers", &outcome.attacked.update),
    ];
    let figures = vec![
        bounded("median", Unit::Ratio, ratio(outcome, 50), MEDIAN_RATIO),
        bounded("p99", Unit::Ratio, ratio(outcome, 99), TAIL_RATIO),
        bounded("failed calls", Unit::Count, outcome.failures as f64, 0.0),
        bounded("thread held", Unit::Milliseconds, thread_milliseconds(outcome), THREAD_MILLISECONDS),
        bounded("RSS increase", Unit::Mebibytes, outcome.resident as f64 / MEBIBYTE, RESIDENT_MEBIBYTES),
        bounded("write-ahead log", Unit::Mebibytes, outcome.log as f64 / MEBIBYTE, LOG_MEBIBYTES),
        FigureReport::observed("disk", Unit::Mebibytes, outcome.disk as f64 / MEBIBYTE),
        FigureReport::observed("operations of the attack", Unit::Count, outcome.operations as f64),
        FigureReport::observed("refused operations", Unit::Count, outcome.refusals as f64),
    ];
    let sides = sides.into_iter().map(|(name, latency)| side(name, latency)).collect();
    RowReport { name: name.to_string(), sides, figures }
}

/// One side of the report. Its samples are the percentiles from the 0th to the 100th.
fn side(name: &str, latency: &Latency) -> SideReport {
    let nanoseconds = Summary { median: latency.at(50), minimum: latency.at(0), maximum: latency.at(100) };
    let samples = latency.percentiles.clone();
    SideReport { name: name.to_string(), operations: latency.requests, nanoseconds, samples }
}

fn bounded(label: &str, unit: Unit, value: f64, bound: f64) -> FigureReport {
    FigureReport {
        bound: Some(bound),
        met: Some(value <= bound),
        ..FigureReport::observed(label, unit, value)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::cell::Latencies;
    use super::*;

    fn outcome(factor: f64, failures: u64, log: u64) -> Outcome {
        let latency = |scale: f64| Latency {
            requests: 101,
            percentiles: (0..=100).map(|percent| f64::from(percent + 1) * scale).collect(),
        };
        Outcome {
            baseline: Latencies { read: latency(1e6), update: latency(1e6) },
            attacked: Latencies { read: latency(1e6), update: latency(1e6 * factor) },
            failures,
            first_failure: None,
            operations: 7,
            refusals: 1,
            first_refusal: None,
            held_thread: Duration::from_millis(3),
            resident: 1 << 20,
            disk: log,
            log,
        }
    }

    #[test]
    fn the_slower_kind_of_request_decides() {
        assert_eq!((ratio(&outcome(3.0, 0, 0), 50), ratio(&outcome(0.5, 0, 0), 99)), (3.0, 1.0));
    }

    #[test]
    fn a_row_fails_by_its_latency_its_failed_calls_or_its_log() {
        assert!(!row("r", &outcome(1.4, 0, 0)).fails(1.0));
        assert!(row("r", &outcome(1.6, 0, 0)).fails(1.0) && !row("r", &outcome(1.6, 0, 0)).fails(1.5));
        assert!(row("r", &outcome(1.0, 1, 0)).fails(9.0), "no factor excuses a failed call");
        assert!(row("r", &outcome(1.0, 0, 400 << 20)).fails(1.0));
    }

    #[test]
    fn what_passes_its_bound_is_set_in_bold() {
        let line = line("name", &outcome(20.0, 2, 400 << 20));
        assert!(line.starts_with("| name | 51 ms, 100 ms |"), "{line}");
        for bold in ["**20.00**", "**2**", "**400 MiB**"] {
            assert!(line.contains(bold), "{line}");
        }
        assert!(line.ends_with("| 7, 1 |") && !line.contains("**1 MiB**"), "{line}");
        assert_eq!(HEAD.lines().map(|line| line.matches('|').count()).collect::<Vec<_>>(), [14, 14]);
    }
}
