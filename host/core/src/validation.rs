//! Validation of read sets: whether what a transaction read is unchanged.
//!
//! A database makes its commits one after the other, so each waits for the validation of those
//! before it. The log of the last commits decides most validations. If the log does not reach back
//! far enough, only a few rows may be read while other commits wait. So a larger read set is
//! validated in advance, against a newer state and in slices, and the log decides about the commits
//! since that state ([`Attempt`]). The time of a validation grows with the number of rows that were
//! read, and not with the number of ranges over the same rows.

use std::time::Duration;

use crate::commit::Commit;
use crate::commit_log::{CommitLog, Verdict};
use crate::error::{Error, Result};
use crate::read_set::{Allowance, Budget, Checks, CurrentState, Progress, ReadSet};
use crate::row::Version;
use crate::slice::give_way;

/// The largest weight of a read set that is validated while other commits wait.
const WEIGHT_MAX: u64 = 1_000;

/// The budget of a validation while other commits wait. Most of them take a millisecond; large
/// values take longer.
const ATTEMPT: Budget = Budget { rows: WEIGHT_MAX, time: Duration::from_millis(5) };

/// The budget of the last attempt. If other processes commit all the time, only this attempt can
/// succeed.
const LAST_ATTEMPT: Budget = Budget { rows: 10_000, time: Duration::from_millis(25) };

/// The number of rows that can be read in the time of writing one.
const ROWS_LOOKED_AT: u64 = 10;

/// The maximum number of validations in advance. Another one follows if the log no longer reached
/// back to the state of the last one.
const VALIDATIONS_MAX: u32 = 3;

/// The budget of a slice, after which the validation yields its thread.
const SLICE: Budget = Budget { rows: 256, time: Duration::from_millis(1) };

/// An attempt to make a commit, for engines that make commits one by one.
///
/// The engine makes the first attempt with the state that the transaction read. If the answer is
/// [`Validity::Unknown`], it validates the read set against a newer state with
/// [`validate_in_slices`], while other commits continue. Then it makes [the next
/// attempt](Self::next) with that state.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    state: Option<Version>,
    validations: u32,
    is_last: bool,
}

/// The answer of an [`Attempt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Everything that was read is unchanged.
    Holds,
    /// Something has changed, or the last attempt exceeded its budget: a conflict.
    Changed,
    /// The validation would take too long while other commits wait.
    Unknown,
}

impl Attempt {
    /// Creates the first attempt, with the state that the transaction read.
    ///
    /// `None` if that state is unknown.
    pub fn first(state: Option<Version>) -> Self {
        Self { state, validations: 0, is_last: false }
    }

    /// Creates the next attempt, after the read set was valid in a newer `state`.
    ///
    /// `None` if that state is unknown. An attempt without a state is the last one, because the log
    /// cannot decide it.
    pub fn next(self, state: Option<Version>) -> Self {
        let validations = self.validations + 1;
        Self { state, validations, is_last: state.is_none() || validations >= VALIDATIONS_MAX }
    }

    /// Checks the reads against the current state, while other commits wait.
    ///
    /// `newest` is the current state in the log's count.
    ///
    /// # Errors
    /// - Any error of `current`.
    pub fn validate(
        &self,
        reads: &ReadSet,
        log: &CommitLog,
        newest: Option<Version>,
        current: &mut dyn CurrentState,
    ) -> Result<Validity> {
        if reads.is_empty() {
            return Ok(Validity::Holds);
        }
        let verdict = self.state.zip(newest).map(|(state, newest)| log.check(reads, state, newest));
        match verdict.unwrap_or(Verdict::Unknown) {
            Verdict::Untouched => Ok(Validity::Holds),
            Verdict::Touched => Ok(Validity::Changed),
            Verdict::Unknown => self.look(reads, current),
        }
    }

    /// The maximum cost of the validation, in the unit of [`crate::pace::cost`].
    ///
    /// It counts work for which other commits wait. Only the last attempt has a cost, because the
    /// log most likely decides the others.
    pub fn cost(&self, reads: &ReadSet) -> u64 {
        if self.is_last { reads.weight().min(LAST_ATTEMPT.rows) / ROWS_LOOKED_AT } else { 0 }
    }

    /// Reads the current state within a budget. The weight alone is no bound, because it does not
    /// count expired rows of ranges.
    fn look(&self, reads: &ReadSet, current: &mut dyn CurrentState) -> Result<Validity> {
        let (budget, unknown) = match self.is_last {
            true => (LAST_ATTEMPT, Validity::Changed),
            false if reads.weight() > WEIGHT_MAX => return Ok(Validity::Unknown),
            false => (ATTEMPT, Validity::Unknown),
        };
        Ok(match reads.checks().advance(current, &mut budget.begin())? {
            Progress::Holds => Validity::Holds,
            Progress::Changed => Validity::Changed,
            Progress::More => unknown,
        })
    }
}

/// Validates what a commit read, in slices, while other commits continue.
///
/// It yields the thread between slices. `slice` advances the checks within the allowance, always in
/// the same state.
///
/// # Errors
/// - [`Error::Conflict`] if something that was read has changed.
/// - [`Error::TimedOut`] if the commit was withdrawn in the meantime.
/// - Any error of `slice`.
pub async fn validate_in_slices(
    commit: &Commit,
    mut slice: impl FnMut(&mut Checks<'_>, &mut Allowance) -> Result<Progress>,
) -> Result<()> {
    let mut checks = commit.reads.checks();
    loop {
        commit.stage.check()?;
        match slice(&mut checks, &mut SLICE.begin())? {
            Progress::Holds => return Ok(()),
            Progress::Changed => return Err(Error::Conflict),
            Progress::More => give_way().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::limits::Limits;
    use crate::name::{Key, KeyRange, Namespace, RowKey};
    use crate::read_set::{RangePart, RangeRead, RangeState, Watched};

    /// A state, and the number of its rows that were read.
    struct Rows {
        rows: BTreeMap<RowKey, Version>,
        looked_at: u64,
    }

    impl CurrentState for Rows {
        fn version(&mut self, row: &RowKey) -> Result<Version> {
            self.looked_at += 1;
            Ok(self.rows.get(row).copied().unwrap_or_default())
        }

        fn range(&mut self, range: &KeyRange, allowance: &mut Allowance) -> Result<RangePart> {
            assert!(!range.is_empty());
            let mut part = RangePart::default();
            let mut goes_on = true;
            for (row, version) in self.rows.iter().filter(|(row, _)| range.contains(row)) {
                if !goes_on {
                    part.next = Some(row.key.as_bytes().to_vec());
                    break;
                }
                part.state.add(*version);
                self.looked_at += 1;
                goes_on = allowance.spend();
            }
            Ok(part)
        }
    }

    impl Rows {
        fn state(&self, range: &KeyRange) -> RangeState {
            let mut state = RangeState::default();
            let rows = self.rows.iter().filter(|(row, _)| range.contains(row));
            rows.for_each(|(_, version)| state.add(*version));
            state
        }

        /// Whether the reads are unchanged, checked with `rows` rows at a time, and the number of
        /// steps.
        fn holds(&mut self, reads: &ReadSet, rows: u64) -> (bool, u64) {
            let mut checks = reads.checks();
            for steps in 1.. {
                match checks.advance(self, &mut allowance(rows)).unwrap() {
                    Progress::Holds => return (true, steps),
                    Progress::Changed => return (false, steps),
                    Progress::More => {}
                }
            }
            unreachable!()
        }
    }

    fn allowance(rows: u64) -> Allowance {
        Budget { rows, time: Duration::from_secs(3_600) }.begin()
    }

    fn reads(rows: &BTreeMap<RowKey, Version>, ranges: impl IntoIterator<Item = RangeRead>) -> ReadSet {
        let mut reads = ReadSet::default();
        rows.iter().for_each(|(row, version)| reads.record_row(row.clone(), *version));
        ranges.into_iter().for_each(|read| reads.record_range(read));
        reads
    }

    fn row(key: u8) -> RowKey {
        let limits = Limits::default();
        let key = Key::new(char::from(key).to_string(), &limits).unwrap();
        RowKey { namespace: Namespace::new("n", &limits).unwrap(), key }
    }

    fn numbered(number: u64) -> RowKey {
        RowKey { key: Key::new(format!("{number:06}"), &Limits::default()).unwrap(), ..row(b'a') }
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
            let read: Vec<RangeRead> =
                ranges.into_iter().map(|range| RangeRead { state: then.state(&range), range }).collect();
            let reads = reads(&BTreeMap::new(), read.clone());
            let at_once = random.u64(1..40);
            assert!(then.holds(&reads, at_once).0);
            let changed = row(random.u8(b'a'..=b'z'));
            match random.bool() {
                true => then.rows.insert(changed.clone(), Version(random.u64(1..20))),
                false => then.rows.remove(&changed),
            };
            let holds = read.iter().all(|read| then.state(&read.range) == read.state);
            assert_eq!(then.holds(&reads, at_once).0, holds, "{read:?} after {changed:?}");
            held += u32::from(holds);
        }
        assert!((1_000..19_000).contains(&held), "{held}");
    }

    #[test]
    fn a_validation_takes_steps_of_a_few_rows_and_ends_with_the_first_that_changed() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut state = rows(&mut random);
        let whole = range(b'a', None);
        let read = RangeRead { state: state.state(&whole), range: whole };
        let count = state.rows.len() as u64;
        let all = reads(&state.rows, [read]);
        assert_eq!(all.weight(), 2 * count + 1);
        assert_eq!(state.holds(&all, 1_000), (true, 1));
        let (holds, steps) = state.holds(&all, 4);
        assert!(holds && steps >= 2 * count / 4, "{steps}");
        state.rows.pop_first();
        state.looked_at = 0;
        assert_eq!(state.holds(&all, 4), (false, 1));
        assert_eq!(state.looked_at, 1);
    }

    #[test]
    fn a_heavy_read_set_is_not_looked_at_while_commits_wait_and_the_last_attempt_is_bounded() {
        let mut state = Rows { rows: BTreeMap::new(), looked_at: 0 };
        let names = |count: u64| (0..count).map(|number| (numbered(number), Version::ABSENT)).collect();
        let validate = |attempt: Attempt, count: u64, state: &mut Rows| {
            let reads = reads(&names(count), []);
            attempt.validate(&reads, &CommitLog::default(), Some(Version(9)), state).unwrap()
        };
        let first = Attempt::first(Some(Version(1)));
        assert_eq!(validate(first, WEIGHT_MAX - 1, &mut state), Validity::Holds);
        assert_eq!(state.looked_at, WEIGHT_MAX - 1);
        state.looked_at = 0;
        assert_eq!(validate(first, WEIGHT_MAX + 1, &mut state), Validity::Unknown);
        assert_eq!(state.looked_at, 0);
        assert_eq!(first.cost(&reads(&names(5_000), [])), 0);
        let mut attempt = first;
        for _ in 1..VALIDATIONS_MAX {
            attempt = attempt.next(Some(Version(2)));
            assert_eq!(validate(attempt, WEIGHT_MAX + 1, &mut state), Validity::Unknown);
        }
        for last in [attempt.next(Some(Version(2))), first.next(None)] {
            state.looked_at = 0;
            assert_eq!(validate(last, WEIGHT_MAX + 1, &mut state), Validity::Holds);
            assert_eq!(validate(last, LAST_ATTEMPT.rows + 1, &mut state), Validity::Changed);
            assert_eq!(last.cost(&reads(&names(5_000), [])), 500);
            assert!(state.looked_at <= WEIGHT_MAX + 1 + LAST_ATTEMPT.rows, "{}", state.looked_at);
        }
    }

    #[test]
    fn the_log_alone_decides_about_a_heavy_read_set_that_held_a_moment_ago() {
        let mut state = Rows { rows: BTreeMap::new(), looked_at: 0 };
        let reads = reads(&(0..5_000).map(|number| (numbered(number), Version::ABSENT)).collect(), []);
        let attempt = Attempt::first(Some(Version(1))).next(Some(Version(7)));
        let mut log = CommitLog::default();
        log.push(Version(8), [row(b'a')]);
        let validate = |log: &CommitLog, newest, state: &mut Rows| {
            attempt.validate(&reads, log, Some(Version(newest)), state).unwrap()
        };
        assert_eq!(validate(&log, 8, &mut state), Validity::Holds);
        log.push(Version(9), [numbered(4_999)]);
        assert_eq!(validate(&log, 9, &mut state), Validity::Changed);
        assert_eq!(state.looked_at, 0);
    }

    #[tokio::test]
    async fn a_validation_beforehand_lets_others_run_and_ends_once_its_commit_is_withdrawn() {
        let reads = reads(&(0..1_000).map(|number| (numbered(number), Version::ABSENT)).collect(), []);
        let commit = Commit { reads, ..Commit::default() };
        let mut state = Rows { rows: BTreeMap::new(), looked_at: 0 };
        let slices = std::cell::Cell::new(0);
        let mut validation = std::pin::pin!(validate_in_slices(&commit, |checks, allowance| {
            slices.set(slices.get() + 1);
            checks.advance(&mut state, allowance)
        }));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for slice in 1..=2 {
            assert!(validation.as_mut().poll(&mut context).is_pending());
            assert_eq!(slices.get(), slice);
        }
        assert!(commit.stage.withdraw());
        assert!(matches!(validation.await, Err(Error::TimedOut)));
        assert_eq!(slices.get(), 2);
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
    fn ranges_hold_by_the_states_of_their_stretches_as_by_their_rows() {
        let mut random = fastrand::Rng::with_seed(4);
        for _ in 0..20_000 {
            let (mut state, ranges) = (rows(&mut random), ranges(&mut random));
            let read: Vec<RangeRead> =
                ranges.into_iter().map(|range| RangeRead { state: state.state(&range), range }).collect();
            let reads = reads(&BTreeMap::new(), read);
            if random.bool() {
                state.rows.insert(row(random.u8(b'a'..=b'z')), Version(random.u64(1..20)));
            }
            let stretches = reads.stretches();
            let states: Vec<RangeState> = stretches.iter().map(|stretch| state.state(stretch)).collect();
            assert_eq!(reads.ranges_hold(states.clone()), state.holds(&reads, u64::MAX).0);
            let is_short = reads.ranges_hold(states.into_iter().skip(1));
            assert!(!is_short || stretches.is_empty());
        }
    }

    #[test]
    fn rows_that_many_ranges_share_are_looked_at_once() {
        let mut state =
            Rows { rows: (b'a'..=b'z').map(|key| (row(key), Version(1))).collect(), looked_at: 0 };
        let starts = (b'a'..=b'm').zip(b'n'..);
        let reads = reads(
            &BTreeMap::new(),
            starts.map(|(start, end)| RangeRead {
                range: range(start, Some(end)),
                state: RangeState { rows: 13, newest: Version(1), digest: 13 },
            }),
        );
        assert!(state.holds(&reads, u64::MAX).0);
        assert_eq!(state.looked_at, 25);
    }
}
