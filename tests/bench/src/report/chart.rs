//! A chart for each group: each figure is a point with its spread and its bound.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::table::amount;
use super::{FigureReport, GroupReport, Unit};

const WIDTH: u32 = 960;
const LINE: u32 = 34;
const MARGIN: u32 = 70;
/// The width of the labels on the left.
const LABELS: u32 = 400;

const FONT: u32 = 16;

const MET: RGBColor = RGBColor(27, 120, 55);
const MISSED: RGBColor = RGBColor(178, 24, 43);
const PLAIN: RGBColor = RGBColor(70, 70, 70);
const GRID: RGBColor = RGBColor(225, 225, 225);

/// A figure and the label of its line.
struct Mark<'a> {
    label: String,
    figure: &'a FigureReport,
}

/// Draws the chart of a group as SVG. Returns an empty text if there is nothing to show.
///
/// A chart has one unit: that of the group's first ratio, or otherwise of its first figure.
pub(super) fn chart(group: &GroupReport) -> Result<String> {
    let figures = || group.rows.iter().flat_map(|row| &row.figures);
    let has_ratio = figures().any(|figure| figure.unit == Unit::Ratio);
    let Some(unit) = (if has_ratio { Some(Unit::Ratio) } else { figures().map(|figure| figure.unit).next() })
    else {
        return Ok(String::new());
    };
    let marks: Vec<Mark<'_>> = group
        .rows
        .iter()
        .flat_map(|row| row.figures.iter().map(move |figure| (row, figure)))
        .filter(|(_, figure)| figure.unit == unit && figure.value.median > 0.0)
        .map(|(row, figure)| Mark { label: label(&row.name, &figure.label), figure })
        .collect();
    if marks.is_empty() {
        return Ok(String::new());
    }
    let mut svg = String::new();
    {
        let size = (WIDTH, MARGIN + LINE * marks.len() as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&area, &marks, unit).map_err(|error| anyhow!("cannot draw the chart: {error}"))?;
    }
    Ok(svg)
}

fn label(row: &str, figure: &str) -> String {
    if figure == "ratio" { row.to_string() } else { format!("{row}: {figure}") }
}

type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, marks: &[Mark<'_>], unit: Unit) -> Drawn<()> {
    let lines = marks.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .margin_right(24)
        .margin_top(8)
        .set_label_area_size(LabelAreaPosition::Left, LABELS)
        .set_label_area_size(LabelAreaPosition::Bottom, 44)
        .build_cartesian_2d(bounds(marks, unit).log_scale(), 0.0..lines)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .x_desc(description(unit))
        .label_style(("sans-serif", FONT))
        .axis_desc_style(("sans-serif", FONT))
        .x_label_formatter(&|value| amount(unit, *value))
        .draw()?;
    if unit == Unit::Ratio {
        chart.draw_series([PathElement::new([(1.0, 0.0), (1.0, lines)], PLAIN.stroke_width(1))])?;
    }
    for (number, mark) in marks.iter().enumerate() {
        let height = lines - number as f64 - 0.5;
        let Summary { value, color } = summary(mark.figure);
        let spread = [(value.minimum.max(f64::MIN_POSITIVE), height), (value.maximum, height)];
        chart.draw_series([PathElement::new(spread, color.stroke_width(3))])?;
        chart.draw_series([Circle::new((value.median, height), 6, color.filled())])?;
        if let Some(bound) = mark.figure.bound {
            let tick = [(bound, height - 0.38), (bound, height + 0.38)];
            chart.draw_series([PathElement::new(tick, BLACK.stroke_width(2))])?;
        }
        let (_, y) = chart.backend_coord(&(value.median, height));
        let style = ("sans-serif", FONT).into_font().color(&BLACK);
        area.draw(&Text::new(mark.label.clone(), (8, y - 8), style))?;
    }
    area.present()?;
    Ok(())
}

struct Summary {
    value: crate::statistics::Summary,
    color: RGBColor,
}

fn summary(figure: &FigureReport) -> Summary {
    let color = match figure.met {
        Some(true) => MET,
        Some(false) => MISSED,
        None => PLAIN,
    };
    Summary { value: figure.value, color }
}

fn description(unit: Unit) -> &'static str {
    match unit {
        Unit::Ratio => "larder's time divided by the baseline's; lower is better, a black tick is the bound",
        Unit::Microseconds => "microseconds",
        Unit::Milliseconds => "milliseconds",
        Unit::Mebibytes => "MiB",
        Unit::Bytes => "bytes",
        Unit::Count => "count",
    }
}

/// The range of the axis. It includes every point, spread and bound, and for ratios the 1.
fn bounds(marks: &[Mark<'_>], unit: Unit) -> std::ops::Range<f64> {
    let mut values: Vec<f64> = marks
        .iter()
        .flat_map(|mark| {
            let value = mark.figure.value;
            [value.minimum, value.median, value.maximum, mark.figure.bound.unwrap_or(value.median)]
        })
        .filter(|value| *value > 0.0)
        .collect();
    if unit == Unit::Ratio {
        values.extend([0.5, 2.0]);
    }
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(0.0, f64::max);
    lowest * 0.8..highest * 1.25
}
