//! The state of a run, and the runner of a group.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::form::Form;
use crate::guest::Program;
use crate::measure::measure;
use crate::report::{GroupReport, RowReport, print_row};
use crate::row::Row;

/// What every group uses.
pub(crate) struct Bench {
    pub(crate) form: Form,
    /// The text that names of rows must contain.
    pub(crate) row: String,
    /// The factor of `--check`. A row with a ratio of more than this times its bound is measured
    /// again.
    pub(crate) check: Option<f64>,
    pub(crate) larder: Program,
    /// The Postgres database, or why there is none.
    pub(crate) postgres: Result<PostgresDatabase, String>,
    /// The program `larder`, built like this one, if it is in the same folder.
    pub(crate) command: Option<PathBuf>,
}

/// The database of the rows on Postgres.
#[derive(Clone, Debug)]
pub(crate) struct PostgresDatabase {
    pub(crate) dsn: String,
    /// Whether the server is private, so that its settings may be changed.
    pub(crate) is_private: bool,
}

/// How often a row that fails the check is measured, as the machine may have been disturbed.
pub(crate) const ATTEMPTS_MAX: usize = 3;

/// Measures the rows of one group.
pub(crate) struct Runner<'a> {
    pub(crate) bench: &'a Bench,
    group: GroupReport,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(bench: &'a Bench, name: &'static str, title: &'static str) -> Self {
        println!("{name}: {title}");
        Self { bench, group: GroupReport { name, title, rows: Vec::new(), skipped: Vec::new() } }
    }

    /// Measures a row, if its name matches, and prints it.
    pub(crate) async fn measure(&mut self, mut row: Row) -> Result<()> {
        if !row.name.contains(&self.bench.row) {
            return Ok(());
        }
        let mut attempts = 1;
        loop {
            let measured =
                measure(&mut row, &self.bench.form).await.with_context(|| format!("row `{}`", row.name))?;
            let fails = self.bench.check.is_some_and(|factor| measured.fails(factor));
            if !fails || attempts == ATTEMPTS_MAX {
                self.add(measured);
                return Ok(());
            }
            attempts += 1;
        }
    }

    /// Adds a row that was measured in another way.
    pub(crate) fn add(&mut self, row: RowReport) {
        print_row(&row);
        self.add_printed(row);
    }

    /// Adds a row that its group has printed itself.
    pub(crate) fn add_printed(&mut self, row: RowReport) {
        self.group.rows.push(row);
    }

    /// Returns the Postgres database. If there is none, skips the rows on it.
    pub(crate) fn postgres(&mut self) -> Option<PostgresDatabase> {
        match &self.bench.postgres {
            Ok(database) => Some(database.clone()),
            Err(reason) => {
                self.skip(format!("the rows on Postgres: {reason}"));
                None
            }
        }
    }

    /// Notes and prints what cannot be measured.
    pub(crate) fn skip(&mut self, reason: String) {
        println!("  not measured: {reason}");
        self.group.skipped.push(reason);
    }

    pub(crate) fn finish(self) -> GroupReport {
        self.group
    }
}
