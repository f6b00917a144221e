//! A read set, prepared to be compared with the writes of commits.

use std::collections::{BTreeMap, BTreeSet};

use super::range_state::RangeRead;
use crate::name::{KeyRange, Namespace, RowKey};
use crate::row::Version;

/// A read set, prepared to be compared with the writes of many commits.
pub(crate) struct Watched<'a> {
    rows: &'a BTreeMap<RowKey, Version>,
    /// The union of all ranges, as ordered and disjoint intervals.
    intervals: Vec<Interval<'a>>,
}

/// The keys of one namespace from `start` to before `end`.
struct Interval<'a> {
    namespace: &'a Namespace,
    start: &'a [u8],
    end: Option<&'a [u8]>,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(rows: &'a BTreeMap<RowKey, Version>, ranges: &'a BTreeSet<RangeRead>) -> Self {
        let mut intervals: Vec<Interval<'_>> = Vec::new();
        for range in ranges.iter().map(|read| &read.range).filter(|range| !range.is_empty()) {
            match intervals.last_mut() {
                Some(last) if last.is_met_by(range) => last.end = later(last.end, range.end()),
                _ => intervals.push(Interval::of(range)),
            }
        }
        Self { rows, intervals }
    }

    /// Whether a commit that wrote these rows changed something that was read.
    pub(crate) fn is_touched_by(&self, written: &[RowKey]) -> bool {
        written.iter().any(|row| self.rows.contains_key(row) || self.contains(row))
    }

    fn contains(&self, row: &RowKey) -> bool {
        let key = row.key.as_bytes();
        let after = self
            .intervals
            .partition_point(|interval| (interval.namespace, interval.start) <= (&row.namespace, key));
        let interval = after.checked_sub(1).and_then(|index| self.intervals.get(index));
        interval.is_some_and(|interval| {
            *interval.namespace == row.namespace && interval.end.is_none_or(|end| key < end)
        })
    }
}

impl<'a> Interval<'a> {
    fn of(range: &'a KeyRange) -> Self {
        Self { namespace: range.namespace(), start: range.start(), end: range.end() }
    }

    /// Whether `range`, which starts no earlier, starts within this interval or right at its end.
    fn is_met_by(&self, range: &KeyRange) -> bool {
        self.namespace == range.namespace() && self.end.is_none_or(|end| range.start() <= end)
    }
}

fn later<'a>(one: Option<&'a [u8]>, other: Option<&'a [u8]>) -> Option<&'a [u8]> {
    Some(one?.max(other?))
}
