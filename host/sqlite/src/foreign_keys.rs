//! Rows that refer to rows that are not there, which a step of a schema must not leave.

use std::collections::HashMap;

use larder_core::schema::{ForeignKeyViolation, ForeignKeyViolations};
use rusqlite::{Connection, ErrorCode};

use crate::error::{Result, SqliteError};

/// The tables that refer to others.
const TABLES: &str = "
    SELECT DISTINCT tables.name FROM main.sqlite_schema AS tables, pragma_foreign_key_list(tables.name, 'main')
    WHERE tables.type = 'table' ORDER BY tables.name";

const CHECK: &str = "SELECT rowid, parent FROM pragma_foreign_key_check(?1, 'main')";

/// What is found by a check of all tables.
#[derive(Default)]
pub(crate) struct Found {
    violations: Vec<ForeignKeyViolation>,
    /// Why a table can't be checked, as when what its key refers to is not unique.
    mismatches: HashMap<String, SqliteError>,
}

impl Found {
    /// Reads every row that refers to another.
    pub(crate) fn in_database(connection: &Connection) -> Result<Self> {
        let mut found = Self::default();
        let mut tables = connection.prepare(TABLES)?;
        let tables = tables.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        for table in tables {
            match found.check(connection, &table) {
                Err(error) if error.has_code(ErrorCode::Unknown) => {
                    drop(found.mismatches.insert(table, error))
                }
                checked => checked?,
            }
        }
        Ok(found)
    }

    fn check(&mut self, connection: &Connection, table: &str) -> Result<()> {
        let mut statement = connection.prepare(CHECK)?;
        let rows = statement.query_map([table], |row| {
            Ok(ForeignKeyViolation { table: table.to_string(), row: row.get(0)?, parent: row.get(1)? })
        })?;
        for row in rows {
            self.violations.push(row?);
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.violations.is_empty() && self.mismatches.is_empty()
    }

    /// What was not there before.
    ///
    /// # Errors
    /// Why a table can't be checked any more.
    pub(crate) fn beyond(self, before: Self) -> Result<ForeignKeyViolations> {
        let is_new = |(table, _): &(String, SqliteError)| !before.mismatches.contains_key(table);
        if let Some((_, mismatch)) = self.mismatches.into_iter().find(is_new) {
            return Err(mismatch);
        }
        // Rows without an id are alike, so they are counted.
        let mut known: HashMap<ForeignKeyViolation, u64> = HashMap::new();
        for violation in before.violations {
            *known.entry(violation).or_default() += 1;
        }
        let is_new = |violation: &ForeignKeyViolation| match known.get_mut(violation) {
            Some(count) if *count > 0 => {
                *count -= 1;
                false
            }
            _ => true,
        };
        Ok(self.violations.into_iter().filter(is_new).collect())
    }
}
