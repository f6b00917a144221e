//! Formats rows as text.

use super::{FigureReport, RowReport, Unit};
use crate::statistics::Summary;

/// Prints a measured row.
pub(crate) fn print_row(row: &RowReport) {
    println!("  {}", row.name);
    for side in &row.sides {
        let Summary { median, minimum, maximum } = side.nanoseconds;
        println!(
            "    {:<28} {:>10}   {:>10} – {:<10} × {}",
            side.name,
            time(median),
            time(minimum),
            time(maximum),
            side.operations
        );
    }
    for figure in &row.figures {
        println!("    {:<28} {}", figure.label, figure_text(figure));
    }
}

/// Formats a figure, its spread and its bound.
pub(super) fn figure_text(figure: &FigureReport) -> String {
    let amount = |value| amount(figure.unit, value);
    let Summary { median, minimum, maximum } = figure.value;
    let mut text = format!("{:>10}", amount(median));
    if minimum < maximum {
        text += &format!("   {:>10} – {:<10}", amount(minimum), amount(maximum));
    }
    if let (Some(bound), Some(met)) = (figure.bound, figure.met) {
        text += &format!(" ≤ {}: {}", amount(bound), if met { "met" } else { "MISSED" });
    }
    text
}

pub(super) fn amount(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Ratio if value.abs() < 0.01 => format!("{value:.6}"),
        Unit::Ratio => format!("{value:.2}"),
        Unit::Microseconds => format!("{value:.1} µs"),
        Unit::Milliseconds => format!("{value:.1} ms"),
        Unit::Mebibytes => format!("{value:.1} MiB"),
        Unit::Bytes => format!("{value:.0} B"),
        Unit::Count => format!("{value:.0}"),
    }
}

/// Formats a time in a fitting unit.
pub(super) fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        small if small < 1e3 => format!("{small:.0} ns"),
        micro if micro < 1e6 => format!("{:.2} µs", micro / 1e3),
        milli if milli < 1e9 => format!("{:.2} ms", milli / 1e6),
        long => format!("{:.2} s", long / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_fits() {
        assert_eq!([420.4, 1_710.0, 2.5e6, 3e9].map(time), ["420 ns", "1.71 µs", "2.50 ms", "3.00 s"]);
    }

    #[test]
    fn a_figure_says_whether_its_bound_is_met() {
        let value = Summary { median: 0.9, minimum: 0.85, maximum: 1.0 };
        let figure = |bound, met| FigureReport { label: String::new(), unit: Unit::Ratio, value, bound, met };
        let text = figure_text(&figure(Some(0.8), Some(false)));
        assert!(
            text.contains("0.90") && text.contains("0.85 – 1.00") && text.ends_with("≤ 0.80: MISSED"),
            "{text}"
        );
        assert!(figure_text(&figure(Some(1.0), Some(true))).ends_with("≤ 1.00: met"));
        assert!(!figure_text(&figure(None, None)).contains('≤'));
        assert_eq!(amount(Unit::Ratio, 0.000_012), "0.000012");
    }
}
