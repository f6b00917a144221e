//! Foreign-key violations that a schema migration leaves.
//!
//! A violation existed before the step if the same row of the same table broke the same key with
//! the same values then. Every other violation is new. A row is identified by its row id, or by its
//! primary key if its table has no row ids. Both states are read in the order of the rows and
//! compared as they are read, so the use of memory does not depend on the number of violations.

use larder_schema::{ForeignKeyViolation, ForeignKeyViolations};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Params, Row, Rows};

use crate::error::{Result, SqliteError};

/// How a table is recognized after the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// By the root page of its B-tree, which a new name does not change. Its keys are recognized by
    /// their order. The step must not have dropped a table or an index, because another table may
    /// have got the page.
    ByRoot,
    /// By its name. Its keys are recognized by their columns.
    ByName,
}

/// A table with foreign keys.
struct Child {
    name: String,
    root: i64,
    /// The SQL expressions for a row's id, and for its primary key if it has no id.
    row: String,
    primary_key: String,
    /// In the order of their declaration.
    keys: Vec<Key>,
}

/// A foreign key.
struct Key {
    parent: String,
    has_parent: bool,
    /// The columns of the child, each with the column of the parent. `None` if the key names no
    /// column and the parent has no primary key.
    columns: Vec<(String, Option<String>)>,
}

/// The result of a check of one table.
enum Checked {
    Sound,
    HasViolations,
    /// SQLite cannot check the table, for example because its key refers to columns that are not
    /// unique.
    Mismatch(SqliteError),
}

/// The tables with violations after a step, and those that cannot be checked.
pub(crate) struct Suspects(Vec<(Child, Checked)>);

impl Suspects {
    /// Checks all rows with foreign keys, up to the first violation of each table.
    pub(crate) fn in_database(connection: &Connection) -> Result<Self> {
        let mut suspects = Vec::new();
        for child in children(connection)? {
            match check(connection, &child.name)? {
                Checked::Sound => {}
                checked => suspects.push((child, checked)),
            }
        }
        Ok(Self(suspects))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the violations that did not exist before the step.
    ///
    /// # Errors
    /// The error of SQLite for a table that can no longer be checked.
    pub(crate) fn beyond(
        self,
        before: &Connection,
        after: &Connection,
        known: Known,
    ) -> Result<ForeignKeyViolations> {
        let children = children(before)?;
        let mut violations = ForeignKeyViolations::default();
        for (child, checked) in self.0 {
            let earlier = children.iter().find(|earlier| child.is(earlier, known));
            let earlier_checked = earlier.map(|earlier| check(before, &earlier.name)).transpose()?;
            match (checked, earlier_checked) {
                // SQLite could not check the table before the step either.
                (Checked::Mismatch(_), Some(Checked::Mismatch(_))) => {}
                (Checked::Mismatch(mismatch), _) => return Err(mismatch),
                (_, Some(Checked::HasViolations)) => {
                    child.compare(after, earlier.map(|earlier| (earlier, before)), known, &mut violations)?;
                }
                _ => child.compare(after, None, known, &mut violations)?,
            }
        }
        Ok(violations)
    }
}

/// A row that breaks a key: its id, its primary key if it has no id, and its values that refer to
/// no row. The order is that in which SQLite returns them.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Violation(Option<i64>, String, String);

impl Child {
    fn is(&self, earlier: &Self, known: Known) -> bool {
        match known {
            Known::ByRoot => self.root == earlier.root,
            Known::ByName => self.name.eq_ignore_ascii_case(&earlier.name),
        }
    }

    /// Adds the violations that the earlier state of the table does not have.
    fn compare(
        &self,
        after: &Connection,
        earlier: Option<(&Self, &Connection)>,
        known: Known,
        violations: &mut ForeignKeyViolations,
    ) -> Result<()> {
        for (index, key) in self.keys.iter().enumerate() {
            let earlier_key = earlier.and_then(|(earlier, before)| {
                let earlier_key = match known {
                    Known::ByRoot => earlier.keys.get(index),
                    Known::ByName => earlier.keys.iter().find(|earlier| key.is(earlier)),
                };
                Some((before, earlier.violations(earlier_key?)))
            });
            let mut new = after.prepare(&self.violations(key))?;
            let mut new = new.query([])?;
            let mut old = earlier_key.map(|(before, sql)| before.prepare(&sql)).transpose()?;
            let mut old = old.as_mut().map(|old| old.query([])).transpose()?;
            let mut last_old = next(old.as_mut())?;
            while let Some(violation) = next(Some(&mut new))? {
                while last_old.as_ref().is_some_and(|last_old| *last_old < violation) {
                    last_old = next(old.as_mut())?;
                }
                if last_old.as_ref() == Some(&violation) {
                    last_old = next(old.as_mut())?;
                } else {
                    let (table, parent) = (self.name.clone(), key.parent.clone());
                    violations.push(ForeignKeyViolation { table, row: violation.0, parent });
                }
            }
        }
        Ok(())
    }

    /// The SQL that finds the violations of a key, in the order of [`Violation`]. Values are
    /// compared by the rules of the parent's column: the `+` removes the affinity and the collation
    /// of the child's column.
    fn violations(&self, key: &Key) -> String {
        let referring: Vec<_> = key.columns.iter().map(|(column, _)| column_of("c", column)).collect();
        let values = joined(&referring);
        let mut sql = format!(
            "SELECT {}, {}, {values} FROM main.{} AS c WHERE {}",
            self.row,
            self.primary_key,
            quoted(&self.name),
            referring.iter().map(|column| format!("{column} IS NOT NULL")).collect::<Vec<_>>().join(" AND ")
        );
        if key.has_parent {
            let equal = referring.iter().zip(&key.columns).map(|(column, (_, parents))| {
                let parents = parents.as_deref().unwrap_or_default();
                format!("{} = +{column}", column_of("p", parents))
            });
            let equal: Vec<_> = equal.collect();
            let parent = quoted(&key.parent);
            sql +=
                &format!(" AND NOT EXISTS (SELECT 1 FROM main.{parent} AS p WHERE {})", equal.join(" AND "));
        }
        sql + " ORDER BY 1, 2, 3"
    }
}

impl Key {
    fn is(&self, other: &Self) -> bool {
        self.names().eq(other.names())
    }

    /// All its names. SQLite ignores the case of ASCII letters in names.
    fn names(&self) -> impl Iterator<Item = String> {
        let columns = self.columns.iter().flat_map(|(column, parents)| [Some(column), parents.as_ref()]);
        std::iter::once(Some(&self.parent))
            .chain(columns)
            .map(|name| name.map(|name| name.to_ascii_lowercase()).unwrap_or_default())
    }
}

fn next(rows: Option<&mut Rows<'_>>) -> Result<Option<Violation>> {
    let Some(row) = rows.map(Rows::next).transpose()?.flatten() else { return Ok(None) };
    Ok(Some(Violation(row.get(0)?, row.get(1)?, row.get(2)?)))
}

/// Checks a table. SQLite finds out whether it can check the table before it reads a row.
fn check(connection: &Connection, table: &str) -> Result<Checked> {
    let sql = "SELECT 1 FROM pragma_foreign_key_check(?1, 'main') LIMIT 1";
    let found = connection.query_row(sql, [table], |_| Ok(())).optional().map_err(SqliteError::from);
    match found {
        Ok(None) => Ok(Checked::Sound),
        Ok(Some(())) => Ok(Checked::HasViolations),
        Err(error) if error.has_code(ErrorCode::Unknown) => Ok(Checked::Mismatch(error)),
        Err(error) => Err(error),
    }
}

/// The tables with foreign keys.
fn children(connection: &Connection) -> Result<Vec<Child>> {
    let sql = "SELECT tables.name, rootpage FROM main.sqlite_schema AS tables
        WHERE type = 'table' AND EXISTS (SELECT 1 FROM pragma_foreign_key_list(tables.name, 'main'))
        ORDER BY tables.name";
    let tables = all(connection, sql, [], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
    tables.into_iter().map(|(name, root)| child(connection, name, root)).collect()
}

fn child(connection: &Connection, name: String, root: i64) -> Result<Child> {
    let columns = names(connection, "SELECT name FROM pragma_table_xinfo(?1, 'main')", &name)?;
    let sql = "SELECT wr FROM pragma_table_list(?1) WHERE schema = 'main'";
    let has_no_row_ids: bool = connection.query_row(sql, [&name], |row| row.get(0))?;
    // A column may have the name of a row id, and hides it then.
    let is_free = |row_id: &&str| !columns.iter().any(|column| column.eq_ignore_ascii_case(row_id));
    let row_id = ["rowid", "_rowid_", "oid"].into_iter().find(is_free).filter(|_| !has_no_row_ids);
    let primary_key = match row_id {
        Some(_) => Vec::new(),
        None => {
            let sql = "SELECT name FROM pragma_table_xinfo(?1, 'main') WHERE pk > 0 ORDER BY pk";
            names(connection, sql, &name)?
        }
    };
    let primary_key: Vec<_> = primary_key.iter().map(|column| column_of("c", column)).collect();
    Ok(Child {
        row: row_id.map_or_else(|| "NULL".to_string(), |row_id| format!("c.{row_id}")),
        primary_key: joined(&primary_key),
        keys: keys(connection, &name)?,
        name,
        root,
    })
}

fn keys(connection: &Connection, child: &str) -> Result<Vec<Key>> {
    // SQLite numbers keys from the one that was declared last.
    let sql = "SELECT key.id, key.\"table\", key.\"from\", coalesce(key.\"to\",
            (SELECT name FROM pragma_table_xinfo(key.\"table\", 'main') WHERE pk = key.seq + 1)),
            EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = key.\"table\" COLLATE NOCASE)
        FROM pragma_foreign_key_list(?1, 'main') AS key ORDER BY key.id DESC, key.seq";
    let parts = all(connection, sql, [child], |row| {
        let key = Key { parent: row.get(1)?, has_parent: row.get(4)?, columns: Vec::new() };
        Ok((row.get::<_, i64>(0)?, key, (row.get(2)?, row.get(3)?)))
    })?;
    let mut keys: Vec<(i64, Key)> = Vec::new();
    for (id, key, columns) in parts {
        match keys.last_mut() {
            Some((last, key)) if *last == id => key.columns.push(columns),
            _ => keys.push((id, Key { columns: vec![columns], ..key })),
        }
    }
    Ok(keys.into_iter().map(|(_, key)| key).collect())
}

fn names(connection: &Connection, sql: &str, table: &str) -> Result<Vec<String>> {
    all(connection, sql, [table], |row| row.get(0))
}

fn all<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map(parameters, read)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// An SQL expression that joins the values of columns to one text. The texts of two rows differ if
/// a type or a value does.
fn joined(columns: &[String]) -> String {
    let text = |column: &String| {
        // `quote` ends a text at a NUL.
        format!(
            "iif(typeof({column}) IN ('text', 'blob'), typeof({column}) || hex({column}), quote({column}))"
        )
    };
    let texts: Vec<_> = columns.iter().map(text).collect();
    if texts.is_empty() { "''".to_string() } else { texts.join(" || ',' || ") }
}

fn column_of(table: &str, column: &str) -> String {
    format!("{table}.{}", quoted(column))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that SQLite compares by the rules of the parent's column.
    const VALUES: [&str; 14] = [
        "1",
        "'1'",
        "1.0",
        "'01'",
        "'1.0'",
        "'a'",
        "'A'",
        "'a '",
        "x'61'",
        "x'31'",
        "1.5",
        "'1.5'",
        "NULL",
        "'x' || char(0) || 'y'",
    ];

    const TYPES: [&str; 8] =
        ["INTEGER", "TEXT", "TEXT COLLATE NOCASE", "TEXT COLLATE RTRIM", "REAL", "NUMERIC", "BLOB", ""];

    /// The row ids of the violations that SQLite finds, and of those that are found here.
    fn both(connection: &Connection) -> (Vec<Option<i64>>, Vec<Option<i64>>) {
        let sql = "SELECT rowid FROM pragma_foreign_key_check('c', 'main') ORDER BY fkid DESC, rowid";
        let expected = all(connection, sql, [], |row| row.get(0)).unwrap();
        let children = children(connection).unwrap();
        let mut found = Vec::new();
        for key in &children[0].keys {
            let sql = children[0].violations(key);
            found.extend(all(connection, &sql, [], |row| row.get::<_, Option<i64>>(0)).unwrap());
        }
        (expected, found)
    }

    #[test]
    fn the_violations_are_those_that_sqlite_finds_whatever_the_types_are() {
        let mut random = fastrand::Rng::with_seed(7);
        for parent in TYPES {
            for child in TYPES {
                for table in ["", "WITHOUT ROWID"] {
                    let connection = Connection::open_in_memory().unwrap();
                    let sql = format!(
                        "PRAGMA foreign_keys = OFF;
                         CREATE TABLE \"p\"\"q\" (x {parent} UNIQUE, y {parent}, z INTEGER PRIMARY KEY, UNIQUE (y, x));
                         CREATE TABLE c (id INTEGER PRIMARY KEY, a {child} REFERENCES \"p\"\"q\" (x),
                             b {child} REFERENCES \"P\"\"Q\", d {child} REFERENCES missing,
                             FOREIGN KEY (a, d) REFERENCES \"p\"\"q\" (y, x)) {table};"
                    );
                    connection.execute_batch(&sql).unwrap();
                    let mut value = || VALUES[random.usize(..VALUES.len())];
                    for _ in 0..12 {
                        let sql = format!(
                            "INSERT OR IGNORE INTO \"p\"\"q\" (x, y) VALUES ({}, {})",
                            value(),
                            value()
                        );
                        connection.execute_batch(&sql).unwrap();
                        let values = (value(), value(), value());
                        let sql = format!(
                            "INSERT INTO c (id, a, b, d) VALUES ({}, {}, {}, {})",
                            "(SELECT count(*) FROM c)", values.0, values.1, values.2
                        );
                        connection.execute_batch(&sql).unwrap();
                    }
                    let (expected, found) = both(&connection);
                    assert_eq!(found, expected, "{parent:?}, {child:?} {table}");
                    assert!(!found.is_empty());
                }
            }
        }
    }

    #[test]
    fn columns_that_are_named_like_row_ids_do_not_hide_them() {
        for (columns, expected) in [
            ("rowid TEXT, \"_ROWID_\" REFERENCES p", Some([1, 3])),
            ("oid TEXT, a REFERENCES p, rowid", Some([1, 3])),
            ("oid TEXT, rowid REFERENCES p, _rowid_", None),
        ] {
            let connection = Connection::open_in_memory().unwrap();
            let sql = format!(
                "PRAGMA foreign_keys = OFF; CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE c ({columns});
                 INSERT INTO c SELECT *{} FROM (VALUES ('x', 1), ('y', NULL), ('z', 2))",
                ", 0".repeat(columns.matches(',').count() - 1)
            );
            connection.execute_batch(&sql).unwrap();
            let found = both(&connection).1;
            assert_eq!(found, expected.map_or([None, None], |rows| rows.map(Some)), "{columns}");
        }
    }
}
