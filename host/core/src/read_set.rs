//! Read sets: what a transaction read, and whether it is unchanged.

mod allowance;
mod checks;
mod range_state;
mod watched;

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::UnixMillis;
use crate::limits::Limits;
use crate::name::{KeyRange, RowKey};
use crate::row::Version;

pub use allowance::Allowance;
pub(crate) use allowance::Budget;
pub use checks::{Checks, Progress};
pub use range_state::{CurrentState, RangePart, RangeRead, RangeState};
pub(crate) use watched::Watched;

/// The rows, absent rows and ranges that one transaction read.
#[derive(Clone, Debug, Default)]
pub struct ReadSet {
    rows: BTreeMap<RowKey, Version>,
    ranges: BTreeSet<RangeRead>,
    /// The weight of the ranges: one for each range, and one for each of its rows.
    ranges_weight: u64,
    earliest_expiry: Option<UnixMillis>,
}

impl ReadSet {
    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.ranges.is_empty()
    }

    /// Whether a row that was read has expired by `now`.
    pub fn has_expired(&self, now: UnixMillis) -> bool {
        self.earliest_expiry.is_some_and(|expiry| expiry <= now)
    }

    /// The earliest expiry of the rows that were read; `None` if none of them expires.
    pub fn earliest_expiry(&self) -> Option<UnixMillis> {
        self.earliest_expiry
    }

    /// The read set, prepared to be compared with the writes of commits.
    pub(crate) fn watched(&self) -> Watched<'_> {
        Watched::new(&self.rows, &self.ranges)
    }

    /// The approximate number of rows that a validation looks at.
    ///
    /// It is one for each row and range, and one for each row of a range.
    pub fn weight(&self) -> u64 {
        (self.rows.len() as u64).saturating_add(self.ranges_weight)
    }

    /// The rows that were read, with their versions; [`Version::ABSENT`] for a row that did not
    /// exist.
    pub fn rows(&self) -> impl Iterator<Item = (&RowKey, Version)> {
        self.rows.iter().map(|(row, version)| (row, *version))
    }

    /// Whether a range was read.
    pub fn has_ranges(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// The disjoint stretches between the bounds of the ranges, in key order.
    pub fn stretches(&self) -> Vec<KeyRange> {
        checks::stretches(&self.ranges)
    }

    /// Whether every range is unchanged, given the states of the [stretches](Self::stretches) in
    /// order.
    pub fn ranges_hold(&self, states: impl IntoIterator<Item = RangeState>) -> bool {
        checks::ranges_hold(&self.ranges, states)
    }

    /// The checks that show whether everything that was read is unchanged.
    pub fn checks(&self) -> Checks<'_> {
        Checks::new(&self.rows, &self.ranges)
    }

    /// The size of a recorded row; 0 if it is already recorded.
    pub(crate) fn row_cost(&self, row: &RowKey) -> u64 {
        if self.rows.contains_key(row) { 0 } else { row.bytes() + Limits::ENTRY_OVERHEAD }
    }

    /// Records a row.
    pub(crate) fn record_row(&mut self, row: RowKey, version: Version) {
        self.rows.insert(row, version);
    }

    /// The size of a recorded range; 0 if it is already recorded.
    pub(crate) fn range_cost(&self, read: &RangeRead) -> u64 {
        if self.ranges.contains(read) {
            return 0;
        }
        let range = &read.range;
        let names =
            range.namespace().as_bytes().len() + range.start().len() + range.end().map_or(0, <[u8]>::len);
        names as u64 + Limits::ENTRY_OVERHEAD
    }

    /// Records a range.
    pub(crate) fn record_range(&mut self, read: RangeRead) {
        let weight = read.state.rows.saturating_add(1);
        if self.ranges.insert(read) {
            self.ranges_weight = self.ranges_weight.saturating_add(weight);
        }
    }

    /// Records the expiry of a row that was read.
    pub(crate) fn record_expiry(&mut self, expires_at: Option<UnixMillis>) {
        self.earliest_expiry = match (self.earliest_expiry, expires_at) {
            (Some(earliest), Some(expiry)) => Some(earliest.min(expiry)),
            (earliest, expiry) => earliest.or(expiry),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{Key, Namespace};

    fn row(namespace: &str, key: &str) -> RowKey {
        let limits = Limits::default();
        RowKey {
            namespace: Namespace::new(namespace, &limits).unwrap(),
            key: Key::new(key, &limits).unwrap(),
        }
    }

    fn range(namespace: &str, prefix: &str) -> KeyRange {
        KeyRange::prefix(row(namespace, "").namespace, prefix.as_bytes())
    }

    #[test]
    fn a_write_to_a_row_that_was_read_as_absent_touches_the_read_set() {
        let mut reads = ReadSet::default();
        reads.record_row(row("n", "b"), Version::ABSENT);
        assert!(reads.watched().is_touched_by(&[row("n", "a"), row("n", "b")]));
        assert!(!reads.watched().is_touched_by(&[row("m", "b"), row("n", "c")]));
    }

    #[test]
    fn a_write_within_a_range_touches_it_and_one_beside_it_does_not() {
        let mut reads = ReadSet::default();
        reads.record_range(RangeRead { range: range("n", "k"), state: RangeState::default() });
        assert!(reads.watched().is_touched_by(&[row("a", "k"), row("n", "kz"), row("z", "k")]));
        assert!(!reads.watched().is_touched_by(&[row("n", "j"), row("n", "l"), row("o", "k")]));
    }

    #[test]
    fn a_read_recorded_twice_costs_once() {
        let mut reads = ReadSet::default();
        assert_eq!(reads.row_cost(&row("n", "key")), 4 + Limits::ENTRY_OVERHEAD);
        reads.record_row(row("n", "key"), Version(1));
        assert_eq!(reads.row_cost(&row("n", "key")), 0);
        let read = RangeRead {
            range: range("n", "k"),
            state: RangeState { rows: 3, newest: Version(2), digest: 8 },
        };
        assert_eq!(reads.range_cost(&read), 3 + Limits::ENTRY_OVERHEAD);
        assert_eq!(reads.weight(), 1);
        for _ in 0..2 {
            reads.record_range(read.clone());
            assert_eq!((reads.range_cost(&read), reads.weight()), (0, 1 + 1 + 3));
        }
    }

    #[test]
    fn a_digest_tells_a_change_that_count_and_newest_version_do_not() {
        let state = |versions: &[u64]| {
            let mut state = RangeState::default();
            versions.iter().for_each(|version| state.add(Version(*version)));
            state
        };
        assert_eq!(state(&[3, 9]), state(&[9, 3]));
        for others in [[4, 9], [9, 9]] {
            let (one, other) = (state(&[3, 9]), state(&others));
            assert_eq!((one.rows, one.newest), (other.rows, other.newest));
            assert_ne!(one.digest, other.digest);
        }
        // The same count, newest version, sum and sum of squares.
        assert_ne!(state(&[1, 5, 6, 9]).digest, state(&[2, 3, 7, 9]).digest);
    }

    #[test]
    fn the_digest_is_the_documented_one() {
        let digest = |version| RangeState::digest_of(Version(version));
        assert_eq!([digest(0), digest(1), digest(2), digest(3)], [0, 1, 8, 27]);
        assert_eq!(digest(100_000), 10_000_000_000 % 2_147_483_647 * 100_000);
        assert_eq!(digest((1 << 31) + 2), 8);
        assert!(digest(u64::MAX) < 1 << 62);
        let mut state = RangeState { digest: (1 << 63) - 1, ..RangeState::default() };
        state.add(Version(2));
        assert_eq!(state.digest, 7);
        assert_eq!(RangeState::rest(state.digest, (1 << 63) - 1), 8);
    }

    #[test]
    fn the_earliest_expiry_counts() {
        let mut reads = ReadSet::default();
        reads.record_expiry(Some(50));
        reads.record_expiry(Some(20));
        reads.record_expiry(None);
        assert!(!reads.has_expired(19));
        assert!(reads.has_expired(20));
    }

    #[test]
    fn a_read_set_is_empty_until_a_row_or_a_range_is_read() {
        use crate::limits::Limits;
        use crate::name::{Key, Namespace};

        let limits = Limits::default();
        let namespace = Namespace::new("n", &limits).unwrap();
        let mut reads = ReadSet::default();
        assert!(reads.is_empty() && !reads.has_ranges());
        let key = Key::new("k", &limits).unwrap();
        reads.record_row(RowKey { namespace: namespace.clone(), key }, Version(1));
        assert!(!reads.is_empty() && !reads.has_ranges());
        let mut reads = ReadSet::default();
        let read = RangeRead { range: KeyRange::prefix(namespace, b"k"), state: RangeState::default() };
        reads.record_range(read.clone());
        assert!(!reads.is_empty() && reads.has_ranges());
        assert_eq!(reads.weight(), 1);
        reads.record_range(read);
        assert_eq!(reads.weight(), 1, "a range counts once");
    }
}
