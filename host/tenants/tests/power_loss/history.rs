//! The commits of a host, and the part of them that a database has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use larder_sqlite::rusqlite::{Connection, OpenFlags};

use crate::Moment;

/// Rows by key, with value and version.
pub(crate) type Rows = BTreeMap<String, (String, u64)>;

/// The row that each commit overwrites.
pub(crate) const NEWEST: &str = "v";

/// The row that only this commit writes.
pub(crate) fn own_row(number: u64) -> String {
    format!("commit/{number:06}")
}

/// The commits of one writer.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// The commits in their order, numbered from 1.
    pub(crate) commits: Vec<Acknowledged>,
}

/// A commit that puts its number into [`NEWEST`] and into a row of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledged {
    pub(crate) at: Moment,
    pub(crate) version: u64,
}

impl History {
    /// How many commits were acknowledged by this time.
    pub(crate) fn acknowledged_by(&self, moment: Moment) -> u64 {
        self.commits.partition_point(|commit| commit.at <= moment) as u64
    }

    /// The rows after this number of commits.
    pub(crate) fn rows_after(&self, number: u64) -> Rows {
        let numbered = (1..=number).zip(&self.commits);
        let own = numbered.map(|(number, commit)| (own_row(number), (number.to_string(), commit.version)));
        let mut rows: Rows = own.collect();
        assert_eq!(rows.len() as u64, number, "commit {number} does not exist");
        if let Some((_, last)) = rows.last_key_value() {
            rows.insert(NEWEST.into(), last.clone());
        }
        rows
    }

    /// The last commit in a database. It must be one that was made, and the database must have all
    /// earlier ones.
    pub(crate) fn newest_in(&self, rows: &Rows, what: &str) -> u64 {
        let newest = rows.get(NEWEST).map_or(0, |(value, _)| value.parse().unwrap());
        assert_eq!(*rows, self.rows_after(newest), "{what}");
        newest
    }

    /// The versions of the first commits.
    pub(crate) fn versions(&self, commits: u64) -> BTreeSet<u64> {
        (0..commits).zip(&self.commits).map(|(_, commit)| commit.version).collect()
    }
}

/// All rows of an intact database file. Empty if the file does not exist or was not set up yet.
pub(crate) fn rows_of(database: &Path) -> Rows {
    if !database.exists() {
        return Rows::new();
    }
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    let intact: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(intact, "ok", "{}", database.display());
    let is_set_up = "SELECT count(*) FROM sqlite_schema WHERE name = 'larder_entries'";
    if connection.query_row(is_set_up, [], |row| row.get::<_, u64>(0)).unwrap() == 0 {
        return Rows::new();
    }
    let all = "SELECT CAST(key AS TEXT), CAST(value AS TEXT), version FROM larder_entries";
    let mut statement = connection.prepare(all).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap();
    rows.map(|row| row.unwrap()).collect()
}

/// The same for the files in a folder, which do not change.
pub(crate) fn rows_in(folder: &Path, name: &str) -> Rows {
    let copies = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        let from = folder.join(format!("{name}{suffix}"));
        if from.exists() {
            std::fs::copy(from, copies.path().join(format!("{name}{suffix}"))).unwrap();
        }
    }
    rows_of(&copies.path().join(name))
}
