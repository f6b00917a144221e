//! The newest version of every row, by name.

use std::collections::HashSet;

use super::stored_row::StoredRow;
use crate::row::Version;

/// The newest version of every row. Most rows were not written since a snapshot was taken, and the
/// snapshot finds those here in a fraction of the time that its own map takes. Rows contain their
/// names, so one memory access beyond the table fetches both.
///
/// Guests choose the names. The hash must resist collision attacks, so it is the standard one.
#[derive(Default)]
pub(super) struct Latest {
    rows: HashSet<StoredRow>,
    /// Counts commits and sweeps.
    changes: u64,
}

/// A moment in the history of a store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// The version of the last commit.
    pub(super) version: Version,
    changes: u64,
}

impl Moment {
    /// The number of commits and sweeps before it.
    pub(super) fn changes(self) -> u64 {
        self.changes
    }
}

/// What is known of a row at an earlier moment.
pub(super) enum Seen<'a> {
    /// The row existed and is unchanged.
    Row(&'a StoredRow),
    /// The row did not exist.
    Absent,
    /// The row was written or removed since.
    Changed,
}

impl Latest {
    /// The present moment, at which the last commit has this version.
    pub(super) fn moment(&self, version: Version) -> Moment {
        Moment { version, changes: self.changes }
    }

    /// The newest version of a row.
    pub(super) fn get(&self, name: &[u8]) -> Option<&StoredRow> {
        self.rows.get(name)
    }

    /// The row as it was at a moment: its newest version, if that is not newer than the moment.
    pub(super) fn at(&self, moment: Moment, name: &[u8]) -> Seen<'_> {
        match self.rows.get(name) {
            Some(row) if row.version() <= moment.version => Seen::Row(row),
            None if self.changes == moment.changes => Seen::Absent,
            _ => Seen::Changed,
        }
    }

    /// Counts a commit or sweep. Call it before each.
    pub(super) fn note_change(&mut self) {
        self.changes += 1;
    }

    /// Inserts or replaces a row and returns the previous one. `HashSet::insert` would keep the
    /// previous one.
    pub(super) fn put(&mut self, row: StoredRow) -> Option<StoredRow> {
        self.rows.replace(row)
    }

    /// Removes a row and returns it.
    pub(super) fn remove(&mut self, name: &[u8]) -> Option<StoredRow> {
        self.rows.take(name)
    }

    /// Whether adding `rows` rows may make the table grow, which takes time for all rows.
    pub(super) fn may_grow(&self, rows: usize) -> bool {
        self.rows.len() > ROWS_GROWN_AT_ONCE && self.rows.capacity() - self.rows.len() < rows
    }

    /// Copies the rows into a larger table, if adding `rows` rows may make this one grow.
    pub(super) fn grown(&self, rows: usize) -> Option<Table> {
        self.may_grow(rows).then(|| {
            let capacity = self.rows.capacity().max(self.rows.len() + rows) * 2;
            let mut table = HashSet::with_capacity_and_hasher(capacity, self.rows.hasher().clone());
            table.extend(self.rows.iter().cloned());
            Table(table)
        })
    }

    /// Installs a table that [`Latest::grown`] returned after the last change. Returns the previous
    /// table.
    pub(super) fn replace_table(&mut self, table: Table) -> Table {
        Table(std::mem::replace(&mut self.rows, table.0))
    }

    /// Frees capacity that a much larger store has left.
    pub(super) fn shrink(&mut self) {
        if self.rows.capacity() / 8 > self.rows.len() + ROOM_KEPT {
            self.rows.shrink_to(self.rows.len() * 2);
        }
    }
}

/// The rows of a [`Latest`].
pub(super) struct Table(HashSet<StoredRow>);

/// A table of up to this many rows grows in less than a millisecond.
const ROWS_GROWN_AT_ONCE: usize = 8_192;

/// The number of rows for which capacity is always kept.
const ROOM_KEPT: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, version: u64) -> StoredRow {
        StoredRow::new(name.as_bytes(), b"value", Version(version), None)
    }

    fn latest(rows: &[(&str, u64)]) -> Latest {
        let mut latest = Latest::default();
        for (name, version) in rows {
            latest.note_change();
            latest.put(row(name, *version));
        }
        latest
    }

    #[test]
    fn a_row_written_since_is_not_shown() {
        let mut latest = latest(&[("a", 1), ("b", 2)]);
        let moment = latest.moment(Version(2));
        latest.note_change();
        latest.put(row("b", 3));
        assert!(matches!(latest.at(moment, b"a"), Seen::Row(row) if row.version() == Version(1)));
        assert!(matches!(latest.at(moment, b"b"), Seen::Changed));
    }

    #[test]
    fn a_row_removed_or_made_since_is_not_taken_for_absent() {
        let mut latest = latest(&[("a", 1)]);
        let moment = latest.moment(Version(1));
        assert!(matches!(latest.at(moment, b"b"), Seen::Absent));
        latest.note_change();
        latest.remove(b"a");
        assert!(matches!(latest.at(moment, b"a"), Seen::Changed));
        assert!(matches!(latest.at(moment, b"b"), Seen::Changed));
        assert!(matches!(latest.at(latest.moment(Version(2)), b"a"), Seen::Absent));
    }

    #[test]
    fn a_row_that_is_put_again_is_replaced() {
        let latest = latest(&[("a", 1), ("b", 2), ("a", 3)]);
        assert_eq!(latest.rows.len(), 2);
        assert_eq!(latest.get(b"a").unwrap().version(), Version(3));
    }

    #[test]
    fn a_large_table_grows_beside_its_readers() {
        let mut latest = Latest::default();
        let names: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
        assert!(latest.grown(1_000).is_none());
        names.iter().for_each(|name| drop(latest.put(row(name, 1))));
        let room = latest.rows.capacity() - latest.rows.len();
        assert!(!latest.may_grow(room) && latest.may_grow(room + 1));
        let grown = latest.grown(room + 1).unwrap();
        drop(latest.replace_table(grown));
        assert!(!latest.may_grow(latest.rows.len()));
        assert!(names.iter().all(|name| latest.get(name.as_bytes()).is_some()));
    }

    #[test]
    fn room_is_given_back() {
        let mut latest = Latest::default();
        let names: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
        names.iter().for_each(|name| drop(latest.put(row(name, 1))));
        names.iter().skip(10).for_each(|name| drop(latest.remove(name.as_bytes())));
        latest.shrink();
        assert!(latest.rows.capacity() < 1_000);
        assert!(names.iter().take(10).all(|name| latest.get(name.as_bytes()).is_some()));
    }

    fn of_rows(count: usize) -> Latest {
        let mut latest = Latest::default();
        (0..count).for_each(|number| drop(latest.put(row(&number.to_string(), 1))));
        latest
    }

    #[test]
    fn a_row_of_the_last_commit_before_a_moment_is_shown() {
        let latest = latest(&[("a", 1), ("b", 2)]);
        let moment = latest.moment(Version(2));
        assert!(matches!(latest.at(moment, b"b"), Seen::Row(row) if row.version() == Version(2)));
    }

    #[test]
    fn a_table_of_few_rows_may_grow_at_once() {
        let mut latest = of_rows(ROWS_GROWN_AT_ONCE);
        assert!(!latest.may_grow(usize::MAX) && latest.grown(usize::MAX).is_none());
        latest.put(row("another", 1));
        assert!(latest.may_grow(usize::MAX));
    }
}
