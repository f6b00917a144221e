//! Whether what a transaction read still holds. Commits wait for the answer, so it takes time for the rows that were read,
//! and not for how often ranges over them were.

use std::collections::{BTreeMap, BTreeSet};

use crate::backend::Version;
use crate::error::Result;
use crate::name::{KeyRange, Namespace, RowKey};
use crate::read_set::{CurrentState, RangeRead, RangeState};

/// What was read, to be held against the rows that many commits wrote.
pub(crate) struct Watched<'a> {
    rows: &'a BTreeMap<RowKey, Version>,
    /// Everything within some range, in order, and nothing twice.
    intervals: Vec<Interval<'a>>,
}

/// Keys of one namespace from `start` on, and before `end` if there is one.
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

    /// Whether a commit that wrote these rows changed what was read.
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

    /// Whether a range that begins no earlier begins within, or right behind.
    fn is_met_by(&self, range: &KeyRange) -> bool {
        self.namespace == range.namespace() && self.end.is_none_or(|end| range.start() <= end)
    }
}

fn later<'a>(one: Option<&'a [u8]>, other: Option<&'a [u8]>) -> Option<&'a [u8]> {
    Some(one?.max(other?))
}

/// Whether each range holds what it held. Rows that several ranges share are looked at once.
///
/// # Errors
/// Those of reading `current`.
pub(crate) fn ranges_hold(ranges: &BTreeSet<RangeRead>, current: &mut dyn CurrentState) -> Result<bool> {
    let mut reads = ranges.iter().peekable();
    while let Some(first) = reads.next() {
        let mut end = first.range.end();
        let mut overlapping = vec![first];
        while let Some(read) = reads.next_if(|read| {
            read.range.namespace() == first.range.namespace()
                && end.is_none_or(|end| read.range.start() < end)
        }) {
            end = later(end, read.range.end());
            overlapping.push(read);
        }
        if !overlapping_hold(&overlapping, current)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The same for ranges of one namespace, in order, of which each overlaps with one before it.
fn overlapping_hold(reads: &[&RangeRead], current: &mut dyn CurrentState) -> Result<bool> {
    if let [read] = reads {
        return Ok(current.range(&read.range)? == read.state);
    }
    let Some(segments) = Segments::read(reads, current)? else { return Ok(true) };
    Ok(reads.iter().all(|read| segments.state(&read.range) == read.state))
}

/// What lies between each two neighbours among the bounds of some ranges.
struct Segments<'a> {
    /// Where they begin, in order. Behind the last one is the end of all ranges.
    starts: Vec<&'a [u8]>,
    /// The rows before each segment, and before the end.
    rows_before: Vec<u64>,
    /// The newest version of 1, 2, 4 and so on segments from each one on.
    newest: Vec<Vec<Version>>,
}

impl<'a> Segments<'a> {
    /// `None` if there are no ranges.
    fn read(reads: &[&'a RangeRead], current: &mut dyn CurrentState) -> Result<Option<Self>> {
        let Some(first) = reads.first() else { return Ok(None) };
        let bounds = reads.iter().flat_map(|read| [Some(read.range.start()), read.range.end()]);
        let bounds: BTreeSet<&[u8]> = bounds.flatten().collect();
        let has_end = reads.iter().all(|read| read.range.end().is_some());
        let mut starts: Vec<&[u8]> = bounds.into_iter().collect();
        let end = if has_end { starts.pop() } else { None };
        let mut rows_before = vec![0];
        let mut newest = Vec::with_capacity(starts.len());
        for (index, start) in starts.iter().enumerate() {
            let until = starts.get(index + 1).copied().or(end);
            let segment =
                KeyRange::new(first.range.namespace().clone(), start.to_vec(), until.map(Into::into));
            let RangeState { rows, newest: version } = current.range(&segment)?;
            rows_before.push(rows_before.last().copied().unwrap_or_default() + rows);
            newest.push(version);
        }
        Ok(Some(Self { starts, rows_before, newest: of_powers(newest) }))
    }

    /// What lies in a range whose bounds are among those of the segments.
    fn state(&self, range: &KeyRange) -> RangeState {
        let index = |bound: &[u8]| self.starts.partition_point(|start| *start < bound);
        let (from, to) = (index(range.start()), range.end().map_or(self.starts.len(), index));
        let before = |index: usize| self.rows_before.get(index).copied().unwrap_or_default();
        RangeState { rows: before(to).saturating_sub(before(from)), newest: self.newest(from, to) }
    }

    /// Two overlapping runs whose lengths are a power of two cover every other one.
    fn newest(&self, from: usize, to: usize) -> Version {
        let Some(power) = to.saturating_sub(from).checked_ilog2() else { return Version::ABSENT };
        let runs = self.newest.get(power as usize);
        let run = |from: usize| runs.and_then(|runs| runs.get(from)).copied().unwrap_or_default();
        run(from).max(run(to - (1 << power)))
    }
}

/// The newest of 1, 2, 4 and so on neighbours.
fn of_powers(single: Vec<Version>) -> Vec<Vec<Version>> {
    let mut powers = vec![single];
    loop {
        let step = 1 << (powers.len() - 1);
        let Some(last) = powers.last() else { return powers };
        let doubled: Vec<Version> =
            last.iter().zip(last.iter().skip(step)).map(|(one, other)| *one.max(other)).collect();
        if doubled.is_empty() {
            return powers;
        }
        powers.push(doubled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::name::Key;

    /// Rows named by a letter, and how many of them ranges were made of.
    struct Rows {
        rows: BTreeMap<RowKey, Version>,
        looked_at: u64,
    }

    impl CurrentState for Rows {
        fn version(&mut self, row: &RowKey) -> Result<Version> {
            Ok(self.rows.get(row).copied().unwrap_or_default())
        }

        fn range(&mut self, range: &KeyRange) -> Result<RangeState> {
            let mut state = RangeState::default();
            for version in self.rows.iter().filter(|(row, _)| range.contains(row)).map(|(_, version)| version)
            {
                state.add(*version);
                self.looked_at += 1;
            }
            Ok(state)
        }
    }

    fn row(key: u8) -> RowKey {
        let limits = Limits::default();
        let key = Key::new(char::from(key).to_string(), &limits).unwrap();
        RowKey { namespace: Namespace::new("n", &limits).unwrap(), key }
    }

    fn range(start: u8, end: Option<u8>) -> KeyRange {
        KeyRange::new(row(b'a').namespace, vec![start], end.map(|end| vec![end]))
    }

    fn rows(random: &mut fastrand::Rng) -> Rows {
        let versions = (b'a'..=b'z').map(|key| (row(key), Version(random.u64(0..16))));
        Rows { rows: versions.filter(|(_, version)| version.0 < 8).collect(), looked_at: 0 }
    }

    fn ranges(random: &mut fastrand::Rng) -> Vec<KeyRange> {
        let count = random.usize(0..8);
        let bound = |random: &mut fastrand::Rng| random.u8(b'a'..=b'{');
        (0..count)
            .map(|_| {
                let start = bound(random);
                range(start, random.bool().then(|| bound(random).max(start)))
            })
            .collect()
    }

    #[test]
    fn ranges_hold_as_long_as_each_of_them_holds_by_itself() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut held = 0;
        for _ in 0..20_000 {
            let (mut then, ranges) = (rows(&mut random), ranges(&mut random));
            let read: BTreeSet<RangeRead> = ranges
                .into_iter()
                .map(|range| RangeRead { state: then.range(&range).unwrap(), range })
                .collect();
            assert!(ranges_hold(&read, &mut then).unwrap());
            let changed = row(random.u8(b'a'..=b'z'));
            match random.bool() {
                true => then.rows.insert(changed.clone(), Version(random.u64(1..20))),
                false => then.rows.remove(&changed),
            };
            let holds = read.iter().all(|read| then.range(&read.range).unwrap() == read.state);
            assert_eq!(ranges_hold(&read, &mut then).unwrap(), holds, "{read:?} after {changed:?}");
            held += u32::from(holds);
        }
        assert!((1_000..19_000).contains(&held), "{held}");
    }

    #[test]
    fn a_write_touches_what_was_read_exactly_if_a_range_or_a_row_has_it() {
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..20_000 {
            let (read_rows, read_ranges) = (rows(&mut random).rows, ranges(&mut random));
            let reads = read_ranges
                .iter()
                .map(|range| RangeRead { range: range.clone(), state: RangeState::default() });
            let reads: BTreeSet<RangeRead> = reads.collect();
            let mut written = vec![row(random.u8(b'a'..=b'z')), row(random.u8(b'a'..=b'z'))];
            written.sort();
            let touched = written.iter().any(|row| {
                read_rows.contains_key(row) || read_ranges.iter().any(|range| range.contains(row))
            });
            assert_eq!(Watched::new(&read_rows, &reads).is_touched_by(&written), touched);
        }
    }

    #[test]
    fn rows_that_many_ranges_share_are_looked_at_once() {
        let mut state =
            Rows { rows: (b'a'..=b'z').map(|key| (row(key), Version(1))).collect(), looked_at: 0 };
        let mut reads = BTreeSet::new();
        for (start, end) in (b'a'..=b'm').zip(b'n'..) {
            let range = range(start, Some(end));
            reads.insert(RangeRead { state: RangeState { rows: 13, newest: Version(1) }, range });
        }
        assert!(ranges_hold(&reads, &mut state).unwrap());
        assert_eq!(state.looked_at, 25);
    }
}
