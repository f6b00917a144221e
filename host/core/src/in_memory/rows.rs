//! The ordered map of rows.

use std::ops::{Bound, Range};
use std::sync::Arc;

use imbl::OrdMap;

use super::row_name;
use super::stored_row::StoredRow;
use crate::name::{KeyRange, Namespace};

/// The rows, ordered by name. Cloning is cheap: clones share what neither has changed since.
///
/// The map's keys are copies of the names that the rows contain. The map keeps copies of some keys
/// as separators, even after their rows are replaced or removed. If the rows were the keys, old
/// values would stay in memory with them, and guests could fill the memory beyond every quota.
#[derive(Clone, Default)]
pub(super) struct Rows(OrdMap<Arc<[u8]>, StoredRow>);

impl Rows {
    /// The number of rows.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The row of a name.
    pub(super) fn get(&self, name: &[u8]) -> Option<&StoredRow> {
        self.0.get(name)
    }

    /// Inserts or replaces a row.
    pub(super) fn put(&mut self, row: StoredRow) {
        match self.0.get_mut(row.name()) {
            Some(stored) => *stored = row,
            None => drop(self.0.insert(row.name().into(), row)),
        }
    }

    /// Removes a row.
    pub(super) fn remove(&mut self, name: &[u8]) {
        self.0.remove(name);
    }

    /// The rows after a name. No row has the empty name, so it stands for the start.
    pub(super) fn beyond(&self, name: &[u8]) -> impl Iterator<Item = &StoredRow> {
        self.0.range::<_, [u8]>((Bound::Excluded(name), Bound::Unbounded)).map(|(_, row)| row)
    }

    /// All rows.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &StoredRow> {
        self.0.values()
    }

    /// The rows of a range. The range must not be empty: the map panics if the bounds cross.
    pub(super) fn within(&self, range: &KeyRange) -> impl DoubleEndedIterator<Item = &StoredRow> {
        let Range { start, end } = row_name::bounds(range);
        let bounds = (Bound::Included(start.as_slice()), Bound::Excluded(end.as_slice()));
        self.0.range::<_, [u8]>(bounds).map(|(_, row)| row)
    }

    /// The rows of all namespaces after this one, or all rows for `None`.
    pub(super) fn after(&self, namespace: Option<&Namespace>) -> impl Iterator<Item = &StoredRow> {
        let start = namespace.map(row_name::after_namespace).unwrap_or_default();
        let bounds = (Bound::Included(start.as_slice()), Bound::Unbounded);
        self.0.range::<_, [u8]>(bounds).map(|(_, row)| row)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;
    use crate::row::Version;

    fn row(name: &[u8], version: u64) -> StoredRow {
        StoredRow::new(name, b"value", Version(version), None)
    }

    /// Enough rows for a map with branches.
    fn many() -> Vec<Vec<u8>> {
        (0..1_000).map(|number| format!("n\0\0{number:04}").into_bytes()).collect()
    }

    #[test]
    fn a_row_that_is_put_again_is_replaced_and_a_clone_keeps_the_one_of_before() {
        let mut rows = Rows::default();
        many().iter().for_each(|name| rows.put(row(name, 1)));
        let before = rows.clone();
        many().iter().for_each(|name| rows.put(row(name, 2)));
        assert_eq!(rows.iter().count(), 1_000);
        assert!(rows.iter().all(|row| row.version() == Version(2)));
        assert!(before.iter().all(|row| row.version() == Version(1)));
        assert!(many().iter().all(|name| rows.get(name).unwrap().version() == Version(2)));
    }

    #[test]
    fn a_row_that_is_replaced_or_removed_leaves_nothing_behind() {
        let mut rows = Rows::default();
        let mut memory: Vec<Weak<[u8]>> = Vec::new();
        for name in many() {
            let row = row(&name, 1);
            memory.push(Arc::downgrade(row.memory()));
            rows.put(row);
        }
        for (number, name) in many().iter().enumerate() {
            if number % 2 == 0 { rows.put(row(name, 2)) } else { rows.remove(name) }
        }
        assert!(memory.iter().all(|memory| memory.strong_count() == 0));
    }

    #[test]
    fn rows_are_in_the_order_of_their_names() {
        let mut rows = Rows::default();
        many().iter().rev().for_each(|name| rows.put(row(name, 1)));
        assert!(rows.iter().map(StoredRow::name).eq(many().iter().map(Vec::as_slice)));
    }
}
