//! Checks of a read set against the current state, in one pass over the keys.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, btree_map, btree_set};
use std::iter::Peekable;

use super::allowance::Allowance;
use super::range_state::{CurrentState, RangeRead, RangeState};
use crate::error::Result;
use crate::name::{KeyRange, Namespace, RowKey};
use crate::row::Version;

/// A validation in progress: the rows and ranges that are still to be checked.
pub struct Checks<'a> {
    rows: btree_map::Iter<'a, RowKey, Version>,
    ranges: RangeChecks<'a>,
}

/// The progress of [`Checks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything that was read is unchanged.
    Holds,
    /// Something has changed.
    Changed,
    /// The allowance is used up, and more is to be checked.
    More,
}

impl<'a> Checks<'a> {
    pub(crate) fn new(rows: &'a BTreeMap<RowKey, Version>, ranges: &'a BTreeSet<RangeRead>) -> Self {
        Self { rows: rows.iter(), ranges: RangeChecks::new(ranges) }
    }

    /// Checks rows within the allowance. `current` must show the same state each time.
    ///
    /// # Errors
    /// - Any error of `current`.
    pub fn advance(&mut self, current: &mut dyn CurrentState, allowance: &mut Allowance) -> Result<Progress> {
        while allowance.spend() {
            let Some((row, read)) = self.rows.next() else { return self.ranges.advance(current, allowance) };
            if current.version(row)? != *read {
                return Ok(Progress::Changed);
            }
        }
        Ok(Progress::More)
    }
}

impl std::fmt::Debug for Checks<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Checks").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

/// Checks ranges in one pass over the keys in order.
///
/// The bounds of the ranges divide the keys into stretches. Each stretch is counted once, for all
/// ranges that contain it.
struct RangeChecks<'a> {
    /// Ranges that have not begun, ordered by their start.
    waiting: Peekable<btree_set::Iter<'a, RangeRead>>,
    /// Ranges that have begun, ordered by their end.
    open: BinaryHeap<Reverse<Open<'a>>>,
    at: Position<'a>,
    /// The stretches counted since no range was open.
    counted: Counted,
}

/// A range that has begun.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Open<'a> {
    end: End<'a>,
    /// The state that was read.
    state: RangeState,
    /// The counts before it began.
    rows_before: u64,
    digest_before: u64,
    stretches_before: usize,
}

/// The end of a range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End<'a> {
    Before(&'a [u8]),
    WithNamespace,
}

/// The next step of the pass.
enum Step<'a> {
    /// A range ends here: compare it.
    End(Open<'a>),
    /// A range begins here.
    Begin(&'a RangeRead),
    /// Count a stretch, up to this end.
    Count(KeyRange, End<'a>),
}

/// The position in the order of all keys up to which they were counted.
#[derive(Default)]
struct Position<'a> {
    namespace: Option<&'a Namespace>,
    key: Vec<u8>,
    is_end: bool,
}

impl<'a> RangeChecks<'a> {
    fn new(ranges: &'a BTreeSet<RangeRead>) -> Self {
        Self {
            waiting: ranges.iter().peekable(),
            open: BinaryHeap::new(),
            at: Position::default(),
            counted: Counted::default(),
        }
    }

    /// Each step also spends a row.
    fn advance(&mut self, current: &mut dyn CurrentState, allowance: &mut Allowance) -> Result<Progress> {
        while let Some(step) = self.next_step() {
            let holds = match step {
                Step::End(range) => self.counted.is(&range),
                Step::Begin(read) => self.begin(read),
                Step::Count(stretch, end) => {
                    let part = current.range(&stretch, allowance)?;
                    self.counted.push(part.state);
                    self.at.move_to(part.next, end);
                    true
                }
            };
            if !holds {
                return Ok(Progress::Changed);
            }
            if !allowance.spend() {
                return Ok(Progress::More);
            }
        }
        Ok(Progress::Holds)
    }

    fn next_step(&mut self) -> Option<Step<'a>> {
        if let Some(range) = self.next_to_end() {
            return Some(Step::End(range));
        }
        if let Some(read) = self.next_to_begin() {
            return Some(Step::Begin(read));
        }
        self.next_stretch().map(|(stretch, end)| Step::Count(stretch, end))
    }

    fn next_to_end(&mut self) -> Option<Open<'a>> {
        let ends = self.open.peek().is_some_and(|Reverse(range)| self.at.is_at(range.end));
        if ends { self.open.pop().map(|Reverse(range)| range) } else { None }
    }

    fn next_to_begin(&mut self) -> Option<&'a RangeRead> {
        let (is_free, at) = (self.open.is_empty(), &self.at);
        self.waiting.next_if(|read| is_free || at.is_at_start_of(&read.range))
    }

    /// False if the range has certainly changed.
    fn begin(&mut self, read: &'a RangeRead) -> bool {
        let RangeRead { range, state } = read;
        if range.is_empty() {
            return *state == RangeState::default();
        }
        if self.open.is_empty() {
            self.at =
                Position { namespace: Some(range.namespace()), key: range.start().to_vec(), is_end: false };
            self.counted = Counted::default();
        }
        let Counted { rows: rows_before, digest: digest_before, stretches: stretches_before, .. } =
            self.counted;
        let end = range.end().map_or(End::WithNamespace, End::Before);
        self.open.push(Reverse(Open { end, state: *state, rows_before, digest_before, stretches_before }));
        true
    }

    /// The stretch up to the next start or end of a range; `None` if no range is open.
    fn next_stretch(&mut self) -> Option<(KeyRange, End<'a>)> {
        let (Reverse(first), namespace) = self.open.peek().zip(self.at.namespace)?;
        let next = self.waiting.peek().filter(|read| read.range.namespace() == namespace);
        let begin = next.map_or(End::WithNamespace, |read| End::Before(read.range.start()));
        let end = first.end.min(begin);
        let bound = match end {
            End::Before(key) => Some(key.to_vec()),
            End::WithNamespace => None,
        };
        Some((KeyRange::new(namespace.clone(), self.at.key.clone(), bound), end))
    }
}

/// The stretches into which the bounds of the ranges divide the keys.
pub(crate) fn stretches(ranges: &BTreeSet<RangeRead>) -> Vec<KeyRange> {
    let mut checks = RangeChecks::new(ranges);
    let mut stretches = Vec::new();
    while let Some(step) = checks.next_step() {
        match step {
            Step::Begin(read) => drop(checks.begin(read)),
            Step::Count(stretch, end) => {
                checks.at.move_to(None, end);
                stretches.push(stretch);
            }
            Step::End(_) => {}
        }
    }
    stretches
}

/// Whether the ranges are unchanged, given the states of their stretches.
pub(crate) fn ranges_hold(
    ranges: &BTreeSet<RangeRead>,
    states: impl IntoIterator<Item = RangeState>,
) -> bool {
    let mut checks = RangeChecks::new(ranges);
    let mut states = states.into_iter();
    while let Some(step) = checks.next_step() {
        let holds = match step {
            Step::Begin(read) => checks.begin(read),
            Step::Count(_, end) => {
                checks.at.move_to(None, end);
                states.next().map(|state| checks.counted.push(state)).is_some()
            }
            Step::End(range) => checks.counted.is(&range),
        };
        if !holds {
            return false;
        }
    }
    true
}

impl<'a> Position<'a> {
    fn is_at(&self, end: End<'a>) -> bool {
        match end {
            End::Before(key) => !self.is_end && self.key == key,
            End::WithNamespace => self.is_end,
        }
    }

    fn is_at_start_of(&self, range: &KeyRange) -> bool {
        self.namespace == Some(range.namespace()) && !self.is_end && self.key == range.start()
    }

    /// Moves to the key at which counting continues, or to the end of the stretch.
    fn move_to(&mut self, next: Option<Vec<u8>>, end: End<'a>) {
        match (next, end) {
            (Some(key), _) => self.key = key,
            (None, End::Before(key)) => self.key = key.to_vec(),
            (None, End::WithNamespace) => self.is_end = true,
        }
    }
}

/// The counts of successive stretches.
#[derive(Default)]
struct Counted {
    rows: u64,
    digest: u64,
    stretches: usize,
    /// The stretches with a newer row than all later ones, each with its newest version.
    newest: Vec<(usize, Version)>,
}

impl Counted {
    fn push(&mut self, state: RangeState) {
        while self.newest.pop_if(|(_, version)| *version <= state.newest).is_some() {}
        self.newest.push((self.stretches, state.newest));
        self.stretches += 1;
        self.rows += state.rows;
        self.digest = RangeState::sum(self.digest, state.digest);
    }

    /// Whether the stretches since the range began hold the state that was read.
    fn is(&self, range: &Open<'_>) -> bool {
        let first = self.newest.partition_point(|(stretch, _)| *stretch < range.stretches_before);
        let newest = self.newest.get(first).map(|(_, version)| *version).unwrap_or_default();
        let digest = RangeState::rest(self.digest, range.digest_before);
        RangeState { rows: self.rows - range.rows_before, newest, digest } == range.state
    }
}
