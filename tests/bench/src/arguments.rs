//! Command-line arguments.

use std::path::PathBuf;

use clap::Parser;

use crate::form::Form;
use crate::groups::Group;

/// Compare larder, called by a guest, with what a platform engineer would write by hand
#[derive(Clone, Debug, Parser)]
#[command(name = "tests/bench/run")]
pub(crate) struct Arguments {
    /// Measure only the rows that have a bound, and for a shorter time
    #[arg(long)]
    pub(crate) short: bool,
    /// Measure only this group; repeat for several
    #[arg(long = "filter", value_name = "GROUP", value_parser = group)]
    pub(crate) groups: Vec<Group>,
    /// Measure only rows whose name contains TEXT
    #[arg(long = "row", value_name = "TEXT")]
    pub(crate) row: Option<String>,
    /// Folder for report.json and report.html
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    pub(crate) output: PathBuf,
    /// Fail if a ratio exceeds FACTOR times its bound in each of three measurements, or a row fails
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    pub(crate) check: Option<f64>,
    /// Role of a child process of the benchmark
    #[arg(long, value_name = "CASE", hide = true)]
    pub(crate) observe: Option<String>,
}

fn group(text: &str) -> Result<Group, String> {
    let names = || Group::ALL.map(Group::name).join(", ");
    let found = Group::ALL.into_iter().find(|group| group.name() == text);
    found.ok_or_else(|| format!("unknown group; use one of {}", names()))
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if f64::is_finite(factor) && factor > 0.0 => Ok(factor),
        _ => Err("expected a number greater than 0, for example 1.5".to_string()),
    }
}

impl Arguments {
    /// The form of the benchmark.
    pub(crate) fn form(&self) -> Form {
        if self.short { Form::short() } else { Form::full() }
    }

    /// The groups to measure. Groups that are named are measured in either form.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let is_asked = |group: &Group| match self.groups.is_empty() {
            true => self.form().growth || !group.is_growth(),
            false => self.groups.contains(group),
        };
        Group::ALL.into_iter().filter(is_asked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("run").chain(arguments.iter().copied()))
    }

    #[test]
    fn the_short_form_has_the_rows_with_a_bound() {
        assert_eq!(parse(&[]).unwrap().groups(), Group::ALL);
        let short = parse(&["--short"]).unwrap().groups();
        assert!(short.contains(&Group::Postgres) && !short.iter().any(|group| group.is_growth()));
    }

    #[test]
    fn a_filter_takes_groups_of_either_form() {
        let arguments = parse(&["--short", "--filter", "values", "--filter", "sqlite"]).unwrap();
        assert_eq!(arguments.groups(), [Group::Sqlite, Group::Values]);
        assert!(parse(&["--filter", "nothing"]).unwrap_err().to_string().contains("growth-rows"));
    }

    #[test]
    fn a_factor_is_a_positive_number() {
        assert_eq!(parse(&["--check", "1.5"]).unwrap().check, Some(1.5));
        for wrong in ["0", "-1", "NaN", "inf", "x"] {
            parse(&["--check", wrong]).unwrap_err();
        }
    }
}
