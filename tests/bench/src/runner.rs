//! What groups measure with.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::form::Form;
use crate::guest::Program;
use crate::measure::measure;
use crate::report::{GroupReport, RowReport, print_row};
use crate::row::Row;

/// What every group has.
pub(crate) struct Bench {
    pub(crate) form: Form,
    /// What the names of rows have to contain.
    pub(crate) row: String,
    /// Rows with a ratio of more than so many times its bound are measured again.
    pub(crate) check: Option<f64>,
    pub(crate) larder: Program,
    /// The Postgres database that is measured, or why there is none.
    pub(crate) postgres: Result<PostgresDatabase, String>,
    /// The command line, built as this program is, where it lies beside it.
    pub(crate) command: Option<PathBuf>,
}

/// Where the rows on Postgres are measured.
#[derive(Clone, Debug)]
pub(crate) struct PostgresDatabase {
    pub(crate) dsn: String,
    /// Nobody else has the server: its settings may be changed.
    pub(crate) is_private: bool,
}

/// How often a row that fails the check is measured: a machine that was busy with something else is not so each time.
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

    /// Measures a row, if it is asked for, and prints it.
    pub(crate) async fn measure(&mut self, mut row: Row) -> Result<()> {
        if !row.name.contains(&self.bench.row) {
            return Ok(());
        }
        let mut attempts = 1;
        loop {
            let measured = measure(&mut row, &self.bench.form)
                .await
                .with_context(|| format!("the row `{}`", row.name))?;
            let fails = self.bench.check.is_some_and(|factor| measured.fails(factor));
            if !fails || attempts == ATTEMPTS_MAX {
                self.add(measured);
                return Ok(());
            }
            attempts += 1;
        }
    }

    /// Adds what was looked at in another way.
    pub(crate) fn add(&mut self, row: RowReport) {
        print_row(&row);
        self.add_printed(row);
    }

    /// Adds what its group has printed in its own way.
    pub(crate) fn add_printed(&mut self, row: RowReport) {
        self.group.rows.push(row);
    }

    /// The Postgres database. If there is none, the rows on it are skipped.
    pub(crate) fn postgres(&mut self) -> Option<PostgresDatabase> {
        match &self.bench.postgres {
            Ok(database) => Some(database.clone()),
            Err(reason) => {
                self.skip(format!("the rows on Postgres: {reason}"));
                None
            }
        }
    }

    /// Says what can't be measured here.
    pub(crate) fn skip(&mut self, reason: String) {
        println!("  not measured: {reason}");
        self.group.skipped.push(reason);
    }

    pub(crate) fn finish(self) -> GroupReport {
        self.group
    }
}
