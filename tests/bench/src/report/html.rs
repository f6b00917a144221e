//! The report as one self-contained page.

use std::fmt::Write as _;

use anyhow::Result;

use super::table::{amount, time};
use super::{FigureReport, GroupReport, Report, RowReport, SideReport, chart};
use crate::statistics::Summary;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1a1a1a }
h2 { margin-top: 2.5rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
td.number, th.number { text-align: right }
td.spread { color: #666 }
.met { color: #1b7837 } .missed { color: #b2182b; font-weight: 600 }
svg { width: 100%; height: auto }
code { background: #f4f4f4; padding: .1rem .3rem }
";

/// Formats the page.
pub(crate) fn page(report: &Report) -> Result<String> {
    let mut page = String::new();
    let (bounds, met) = report.met();
    write!(page, "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">")?;
    write!(page, "<title>larder compared with code written by hand</title><style>{STYLE}</style>\n<body>")?;
    write!(page, "<h1>larder compared with code written by hand</h1>")?;
    let machine = &report.machine;
    write!(
        page,
        "<p><code>{}</code>, {} form, {} rounds. {} cores, {}, Linux {}; load before {}, after {}; Unix time \
         {}.</p>",
        escape(&report.command),
        report.form,
        report.rounds,
        machine.cores,
        escape(&machine.processor),
        escape(&machine.kernel),
        escape(&machine.load_before),
        escape(&machine.load_after),
        machine.unix_seconds
    )?;
    write!(
        page,
        "<p>Times are of one operation: the median, and the range from the shortest to the longest round. A ratio is \
         larder's median divided by the baseline's, so lower is better and 1.00 is the program without larder; its \
         range is of single rounds. {met} of {bounds} bounds are met.</p>"
    )?;
    for group in &report.groups {
        write_group(&mut page, group)?;
    }
    page += "</body></html>\n";
    Ok(page)
}

fn write_group(page: &mut String, group: &GroupReport) -> Result<()> {
    write!(page, "\n<h2 id=\"{0}\">{1}</h2>", escape(group.name), escape(group.title))?;
    *page += &chart::chart(group)?;
    *page += "<table><tr><th>row</th><th>side</th><th class=\"number\">median</th><th>from – to</th>\
        <th class=\"number\">bound</th><th></th></tr>";
    for row in &group.rows {
        write_row(page, row)?;
    }
    *page += "</table>";
    for reason in &group.skipped {
        write!(page, "<p class=\"missed\">Not measured: {}</p>", escape(reason))?;
    }
    Ok(())
}

fn write_row(page: &mut String, row: &RowReport) -> Result<()> {
    let lines = row.sides.iter().map(side_cells).chain(row.figures.iter().map(figure_cells));
    for (number, cells) in lines.enumerate() {
        let name = if number == 0 { row.name.as_str() } else { "" };
        write!(page, "<tr><td>{}</td>{cells}</tr>", escape(name))?;
    }
    Ok(())
}

fn side_cells(side: &SideReport) -> String {
    let Summary { median, minimum, maximum } = side.nanoseconds;
    format!(
        "<td>{}</td><td class=\"number\">{}</td><td class=\"spread\">{} – {}</td><td></td><td></td>",
        escape(&side.name),
        time(median),
        time(minimum),
        time(maximum)
    )
}

fn figure_cells(figure: &FigureReport) -> String {
    let amount = |value| amount(figure.unit, value);
    let Summary { median, minimum, maximum } = figure.value;
    let spread = match minimum < maximum {
        true => format!("{} – {}", amount(minimum), amount(maximum)),
        false => String::new(),
    };
    let bound = figure.bound.map(|bound| format!("≤ {}", amount(bound))).unwrap_or_default();
    let met = match figure.met {
        Some(true) => "<span class=\"met\">met</span>",
        Some(false) => "<span class=\"missed\">missed</span>",
        None => "",
    };
    format!(
        "<td><b>{}</b></td><td class=\"number\"><b>{}</b></td><td class=\"spread\">{spread}</td>\
         <td class=\"number\">{bound}</td><td>{met}</td>",
        escape(&figure.label),
        amount(median)
    )
}

/// Escapes text for the page.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
