//! The last commits of this process, which decide most validations without a read in the engine.

use std::collections::VecDeque;

use crate::name::RowKey;
use crate::read_set::ReadSet;
use crate::row::Version;

/// The log's answer about a read set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No commit since the snapshot wrote what was read.
    Untouched,
    /// A commit since the snapshot wrote something that was read.
    Touched,
    /// The log does not reach back to the snapshot, or another process committed in between.
    Unknown,
}

/// The rows that the last commits wrote.
///
/// It is for an engine that numbers its commits without gaps, by their versions or otherwise.
///
/// ```
/// use larder_core::Version;
/// use larder_core::commit_log::{CommitLog, Verdict};
/// use larder_core::read_set::ReadSet;
///
/// let mut log = CommitLog::default();
/// log.push(Version(5), []);
/// assert_eq!(log.check(&ReadSet::default(), Version(4), Version(5)), Verdict::Untouched);
/// ```
#[derive(Debug, Default)]
pub struct CommitLog {
    /// Ordered by version, without gaps.
    commits: VecDeque<(Version, Vec<RowKey>)>,
    rows: usize,
}

impl CommitLog {
    /// The maximum number of rows in the log, over all commits. A commit without rows counts as
    /// one.
    const ROWS_MAX: usize = 16_384;

    /// Adds a commit. If it does not follow the last one, the log forgets all earlier commits.
    pub fn push(&mut self, version: Version, written: impl IntoIterator<Item = RowKey>) {
        let follows = self.commits.back().is_none_or(|(last, _)| last.0 + 1 == version.0);
        if !follows {
            self.commits.clear();
            self.rows = 0;
        }
        let written: Vec<RowKey> = written.into_iter().collect();
        self.rows += written.len().max(1);
        self.commits.push_back((version, written));
        while self.rows > Self::ROWS_MAX {
            let Some((_, forgotten)) = self.commits.pop_front() else {
                break;
            };
            self.rows -= forgotten.len().max(1);
        }
    }

    /// Whether a commit after `snapshot`, up to and including `current`, wrote what was read.
    pub fn check(&self, reads: &ReadSet, snapshot: Version, current: Version) -> Verdict {
        if snapshot == current || reads.is_empty() {
            return Verdict::Untouched;
        }
        let reaches_back = self.commits.front().is_some_and(|(first, _)| first.0 <= snapshot.0 + 1);
        let is_current = self.commits.back().is_some_and(|(last, _)| *last == current);
        if !reaches_back || !is_current {
            return Verdict::Unknown;
        }
        let watched = reads.watched();
        let mut since = self.commits.iter().rev().take_while(|(version, _)| *version > snapshot);
        if since.any(|(_, written)| watched.is_touched_by(written)) {
            Verdict::Touched
        } else {
            Verdict::Untouched
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::name::{Key, Namespace};

    fn row(key: &str) -> RowKey {
        let limits = Limits::default();
        RowKey { namespace: Namespace::new("n", &limits).unwrap(), key: Key::new(key, &limits).unwrap() }
    }

    fn reads(key: &str) -> ReadSet {
        let mut reads = ReadSet::default();
        reads.record_row(row(key), Version(1));
        reads
    }

    #[test]
    fn only_commits_after_the_snapshot_count() {
        let mut log = CommitLog::default();
        log.push(Version(5), [row("a")]);
        log.push(Version(6), [row("b")]);
        assert_eq!(log.check(&reads("a"), Version(5), Version(6)), Verdict::Untouched);
        assert_eq!(log.check(&reads("a"), Version(4), Version(6)), Verdict::Touched);
        assert_eq!(log.check(&reads("b"), Version(6), Version(6)), Verdict::Untouched);
    }

    #[test]
    fn a_gap_or_a_foreign_commit_is_unknown() {
        let mut log = CommitLog::default();
        assert_eq!(log.check(&reads("a"), Version(4), Version(5)), Verdict::Unknown);
        log.push(Version(5), [row("a")]);
        assert_eq!(log.check(&reads("b"), Version(3), Version(5)), Verdict::Unknown);
        assert_eq!(log.check(&reads("b"), Version(4), Version(6)), Verdict::Unknown);
        log.push(Version(9), [row("a")]);
        assert_eq!(log.check(&reads("b"), Version(4), Version(9)), Verdict::Unknown);
        assert_eq!(log.check(&reads("b"), Version(8), Version(9)), Verdict::Untouched);
    }

    #[test]
    fn the_log_forgets_the_oldest_first() {
        let mut log = CommitLog::default();
        for version in 1..=(CommitLog::ROWS_MAX as u64 + 1) {
            log.push(Version(version), [row("a")]);
        }
        let current = Version(CommitLog::ROWS_MAX as u64 + 1);
        assert_eq!(log.check(&reads("b"), Version(0), current), Verdict::Unknown);
        assert_eq!(log.check(&reads("b"), Version(1), current), Verdict::Untouched);
    }

    fn numbered(rows: usize) -> impl Iterator<Item = RowKey> {
        (0..rows).map(|number| row(&number.to_string()))
    }

    #[test]
    fn the_log_holds_its_rows_and_forgets_the_oldest_commit_for_one_more() {
        let mut log = CommitLog::default();
        log.push(Version(1), numbered(CommitLog::ROWS_MAX - 1));
        log.push(Version(2), [row("a")]);
        assert_eq!(log.check(&reads("b"), Version(0), Version(2)), Verdict::Untouched);
        log.push(Version(3), [row("a")]);
        assert_eq!(log.check(&reads("b"), Version(0), Version(3)), Verdict::Unknown);
        assert_eq!(log.check(&reads("b"), Version(1), Version(3)), Verdict::Untouched);
        // The rows of the forgotten commit are free again.
        log.push(Version(4), numbered(CommitLog::ROWS_MAX - 2));
        assert_eq!(log.check(&reads("b"), Version(1), Version(4)), Verdict::Untouched);
        log.push(Version(5), []);
        assert_eq!(log.check(&reads("b"), Version(1), Version(5)), Verdict::Unknown);
        assert_eq!(log.check(&reads("b"), Version(2), Version(5)), Verdict::Untouched);
    }

    #[test]
    fn a_commit_without_rows_counts_as_one() {
        let mut log = CommitLog::default();
        let all = CommitLog::ROWS_MAX as u64;
        (1..=all).for_each(|version| log.push(Version(version), []));
        assert_eq!(log.check(&reads("b"), Version(0), Version(all)), Verdict::Untouched);
        log.push(Version(all + 1), []);
        assert_eq!(log.check(&reads("b"), Version(0), Version(all + 1)), Verdict::Unknown);
        assert_eq!(log.check(&reads("b"), Version(1), Version(all + 1)), Verdict::Untouched);
        log.push(Version(all + 2), []);
        assert_eq!(log.check(&reads("b"), Version(1), Version(all + 2)), Verdict::Unknown);
    }

    #[test]
    fn a_log_that_began_anew_has_room_for_all_its_rows() {
        let mut log = CommitLog::default();
        log.push(Version(1), numbered(CommitLog::ROWS_MAX));
        log.push(Version(5), numbered(CommitLog::ROWS_MAX - 1));
        log.push(Version(6), [row("a")]);
        assert_eq!(log.check(&reads("b"), Version(4), Version(6)), Verdict::Untouched);
    }

    #[test]
    fn what_read_nothing_or_is_of_the_newest_state_needs_no_log() {
        let log = CommitLog::default();
        assert_eq!(log.check(&ReadSet::default(), Version(3), Version(9)), Verdict::Untouched);
        assert_eq!(log.check(&reads("a"), Version(9), Version(9)), Verdict::Untouched);
    }
}
