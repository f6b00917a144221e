//! The stored rows that the plan of a commit asks for.
//!
//! A lookup by name descends the whole B-tree. If a row does not fit into a page, each comparison
//! on the way reads its overflow pages too. A plan asks in the order of the names, so most rows of
//! a large commit are found by reading on from the previous one, at a quarter of the cost.

use std::collections::VecDeque;

use larder_core::Result;
use larder_core::commit::{CurrentRow, Need};
use larder_core::name::{Namespace, RowKey};
use rusqlite::Connection;

use crate::error::SqliteError;
use crate::rows::{bytes, current_row, expiry, prepare, version};
use crate::unsigned::Unsigned;

/// How many rows are looked up by name before any are read ahead. Small commits need no more.
const LOOKUPS: usize = 8;

/// The most rows that are read ahead at once.
const AHEAD_MAX: usize = 128;

/// The longest value that is read ahead: longer than that of any counter.
const VALUE_BYTES_MAX: u64 = 64;

/// Finds stored rows, most cheaply in the order of their names. No row may be written while it is
/// used.
pub(crate) struct CurrentRows<'c> {
    connection: &'c Connection,
    lookups: usize,
    ahead: Option<Ahead>,
}

/// Rows of one namespace that were read ahead.
struct Ahead {
    namespace: Namespace,
    /// How much of each row was read.
    need: Need,
    /// The key that was asked for last. The rows cover all keys after it, up to the last row.
    asked: Vec<u8>,
    /// In the order of their keys.
    rows: VecDeque<(Vec<u8>, CurrentRow)>,
    /// Whether the namespace has no row after these.
    is_end: bool,
    /// How many lookups these rows have answered.
    answers: usize,
}

/// The answer of rows that were read ahead.
enum Answer {
    Row(CurrentRow),
    Absent,
    Unknown,
}

impl Ahead {
    fn covers(&self, row: &RowKey, need: Need) -> bool {
        self.namespace == row.namespace && need <= self.need && row.key.as_bytes() > self.asked.as_slice()
    }

    fn answer(&mut self, key: &[u8]) -> Answer {
        self.asked.clear();
        self.asked.extend_from_slice(key);
        while self.rows.front().is_some_and(|(found, _)| found.as_slice() < key) {
            self.rows.pop_front();
        }
        let is_known = self.is_end || !self.rows.is_empty();
        self.answers += usize::from(is_known);
        match self.rows.pop_front_if(|(found, _)| found.as_slice() == key) {
            Some((_, row)) => Answer::Row(row),
            None if is_known => Answer::Absent,
            None => Answer::Unknown,
        }
    }
}

impl<'c> CurrentRows<'c> {
    pub(crate) fn new(connection: &'c Connection) -> Self {
        Self { connection, lookups: 0, ahead: None }
    }

    /// The row as it is stored, live or not.
    pub(crate) fn get(&mut self, row: &RowKey, need: Need) -> Result<Option<CurrentRow>> {
        if self.lookups < LOOKUPS {
            self.lookups += 1;
            return current_row(self.connection, row, need);
        }
        let mut answers = 0;
        if let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.covers(row, need)) {
            match ahead.answer(row.key.as_bytes()) {
                Answer::Unknown => answers = ahead.answers,
                answer => return self.whole(row, need, answer),
            }
        }
        // Reading ahead is wasted on sparse rows, so it reads twice as many rows as the last ones
        // answered.
        let ahead = self.ahead.insert(read(self.connection, row, need, (2 * answers).clamp(1, AHEAD_MAX))?);
        let answer = ahead.answer(row.key.as_bytes());
        self.whole(row, need, answer)
    }

    /// Completes an answer with its value, if that was too long to be read ahead.
    fn whole(&self, row: &RowKey, need: Need, answer: Answer) -> Result<Option<CurrentRow>> {
        match answer {
            Answer::Row(found) if need == Need::Header || found.value.is_some() => Ok(Some(found)),
            Answer::Row(_) | Answer::Unknown => current_row(self.connection, row, need),
            Answer::Absent => Ok(None),
        }
    }
}

const HEADERS: &str = "
    SELECT key, version, expires_at, length(value), NULL FROM larder_entries
    WHERE namespace = ?1 AND key >= ?2 ORDER BY key LIMIT ?3";

const VALUES: &str = "
    SELECT key, version, expires_at, length(value), CASE WHEN length(value) <= ?4 THEN value END
    FROM larder_entries
    WHERE namespace = ?1 AND key >= ?2 ORDER BY key LIMIT ?3";

/// Reads rows ahead, beginning with this one.
fn read(connection: &Connection, row: &RowKey, need: Need, count: usize) -> Result<Ahead> {
    let (namespace, key) = (row.namespace.as_bytes(), row.key.as_bytes());
    let limit = Unsigned(count as u64);
    let mut statement;
    let found = match need {
        Need::Header => {
            statement = prepare(connection, HEADERS)?;
            statement.query((namespace, key, limit))
        }
        Need::Value => {
            statement = prepare(connection, VALUES)?;
            statement.query((namespace, key, limit, Unsigned(VALUE_BYTES_MAX)))
        }
    };
    let mut found = found.map_err(SqliteError::from)?;
    let mut rows = VecDeque::with_capacity(count);
    while let Some(found) = found.next().map_err(SqliteError::from)? {
        let current = || -> rusqlite::Result<CurrentRow> {
            Ok(CurrentRow {
                version: version(found, 1)?,
                expires_at: expiry(found, 2)?,
                value_bytes: found.get::<_, Unsigned>(3)?.0,
                value: found.get(4)?,
            })
        };
        rows.push_back((bytes(found, 0)?.to_vec(), current().map_err(SqliteError::from)?));
    }
    let (namespace, asked, is_end) = (row.namespace.clone(), Vec::new(), rows.len() < count);
    Ok(Ahead { namespace, need, asked, rows, is_end, answers: 0 })
}

#[cfg(test)]
mod tests {
    use larder_core::Version;
    use std::sync::Arc;

    use larder_core::Limits;
    use larder_core::commit::RowWrite;
    use larder_core::name::Key;
    use rusqlite::StatementStatus;

    use super::*;
    use crate::location::Location;
    use crate::{SqliteOptions, connection, migrate, rows};

    fn database(folder: &std::path::Path) -> Connection {
        let location = Arc::new(Location::resolve(&folder.join("a.db")).unwrap());
        let options = SqliteOptions::default();
        let connection = connection::open_for_larder(&location, options, connection::BUSY_TIMEOUT).unwrap();
        migrate::migrate(&connection, &location, options).unwrap();
        connection
    }

    fn row(namespace: &str, number: u64) -> RowKey {
        let limits = Limits::default();
        let namespace = Namespace::new(namespace, &limits).unwrap();
        RowKey { namespace, key: Key::new(format!("{number:06}"), &limits).unwrap() }
    }

    fn put(connection: &Connection, row: &RowKey, value: &[u8], version: u64) {
        let write = RowWrite::Put { value: value.into(), expires_at: Some(version + 7) };
        rows::write(connection, row, &write, Version(version)).unwrap();
    }

    fn runs(connection: &Connection, sql: &str) -> i32 {
        connection.prepare_cached(sql).unwrap().get_status(StatementStatus::Run)
    }

    #[test]
    fn rows_are_found_as_by_name_in_whatever_order_they_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let connection = database(folder.path());
        for number in (0..600).filter(|number| number % 7 != 3) {
            let value = if number % 50 == 0 { vec![1; 3_000] } else { number.to_string().into_bytes() };
            put(&connection, &row("a", number), &value, number + 1);
            put(&connection, &row("b", number * 40), &value, number + 1);
        }
        let ordered = || (0..700).map(|number| row("a", number));
        let sparse = || (0..700).map(|number| row("b", number * 37));
        let asked: Vec<RowKey> = ordered()
            .chain(sparse())
            .chain(ordered().rev())
            .chain(ordered().flat_map(|row| [row.clone(), row]))
            .chain([row("c", 1), row("a", 5), row("c", 2)])
            .collect();
        for need in [Need::Header, Need::Value] {
            let mut current = CurrentRows::new(&connection);
            for row in &asked {
                let by_name = current_row(&connection, row, need).unwrap();
                assert_eq!(current.get(row, need).unwrap(), by_name, "{row:?}, {need:?}");
            }
        }
        let mut current = CurrentRows::new(&connection);
        for (index, row) in asked.iter().enumerate() {
            let need = if index % 3 == 0 { Need::Value } else { Need::Header };
            let found = current.get(row, need).unwrap();
            let by_name = current_row(&connection, row, Need::Value).unwrap();
            let header = |row: CurrentRow| (row.version, row.expires_at, row.value_bytes);
            assert_eq!(found.clone().map(header), by_name.clone().map(header), "{row:?}");
            if need == Need::Value {
                assert_eq!(found, by_name);
            }
        }
    }

    #[test]
    fn rows_in_order_are_read_ahead_and_those_of_small_commits_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let connection = database(folder.path());
        (0..2_000).for_each(|number| put(&connection, &row("a", number), b"1", 1));
        let ask = |rows: &mut dyn Iterator<Item = RowKey>| {
            let before = runs(&connection, HEADERS);
            let mut current = CurrentRows::new(&connection);
            rows.for_each(|row| drop(current.get(&row, Need::Header).unwrap()));
            runs(&connection, HEADERS) - before
        };
        assert_eq!(ask(&mut (0..8).map(|number| row("a", number))), 0);
        let dense = ask(&mut (0..2_000).map(|number| row("a", number)));
        assert!((1..30).contains(&dense), "{dense}");
        // One row proves that all of these are absent.
        assert_eq!(ask(&mut (3_000..5_000).map(|number| row("a", number))), 1);
        let sparse = ask(&mut (0..20).map(|number| row("a", number * 100)));
        assert!((1..=12).contains(&sparse), "{sparse}");
    }
}
