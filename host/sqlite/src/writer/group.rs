//! One group of commits and record writes, in one SQLite transaction.

use std::time::{Duration, Instant};

use larder_core::commit::{Commit, Committed, Plan};
use larder_core::redo::{Redo, RedoWriter};
use larder_core::row::Version;
use larder_core::validation::{Attempt, Validity};
use larder_core::{Error, Result};

use crate::commit_clock::Writing;
use crate::current_rows::CurrentRows;
use crate::journal::{GroupNumber, Reply};
use crate::state_number::StateNumber;
use crate::transaction::CommitError;
use crate::waiting::{Request, Work};
use crate::{records, rows};

/// A group commits once it has taken this long to plan and write. Its other members wait for the
/// next group.
const GROUP_TIME: Duration = Duration::from_millis(5);

/// The result of a group that was committed.
pub(super) struct Made {
    /// When the group got SQLite's write lock.
    pub(super) began: Instant,
    /// The outcomes of the members, in order. If the group reached its time limit, the members
    /// without an outcome wait for the next group.
    pub(super) outcomes: Vec<Result<Reply>>,
    /// The position of the database after the group.
    pub(super) position: Version,
    /// How many members changed something.
    pub(super) changes: u64,
    pub(super) redo: Option<Redo>,
    /// The number of the group in the journal. `None` without a journal.
    pub(super) number: Option<GroupNumber>,
}

/// Why a group was not committed as a whole.
pub(super) enum GroupError {
    /// Another process holds the lock. The group may be tried again.
    Busy,
    /// The transaction could not begin, so the error is not that of any single member.
    NotBegun(Error),
    /// The transaction was rolled back, so nothing was written.
    RolledBack(Error),
    /// The disk did not confirm the commit, so its outcome is unknown.
    Unknown(Error),
}

impl From<GroupError> for Error {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Busy => Self::Unavailable {
                reason: "another process holds the lock of the database; try again".to_string(),
                cause: None,
            },
            GroupError::NotBegun(error) | GroupError::RolledBack(error) | GroupError::Unknown(error) => error,
        }
    }
}

impl From<CommitError> for GroupError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::NotMade(error) => Self::RolledBack(error),
            CommitError::Unknown(error) => Self::Unknown(error),
        }
    }
}

/// Rules for the versions of a group.
#[derive(Clone, Copy)]
pub(super) struct Versions {
    /// The lower bound.
    pub(super) min: Version,
    /// How many versions to reserve beyond the last one.
    pub(super) reserve: u64,
    /// Whether record writes take a version too.
    pub(super) positioned: bool,
}

/// A group that is being written.
pub(super) struct GroupCommit<'a, 'w> {
    writing: &'a mut Writing<'w>,
    versions: Versions,
    redo: Option<RedoWriter>,
}

impl<'a, 'w> GroupCommit<'a, 'w> {
    /// `journaled_to` is the position of the journal; `None` without a journal.
    pub(super) fn new(
        writing: &'a mut Writing<'w>,
        journaled_to: Option<Version>,
        versions: Versions,
    ) -> Result<Self> {
        if journaled_to.is_some_and(|position| position != writing.last_version()) {
            let reason = "another process wrote to the database, so its journal lacks a commit";
            return Err(Error::other(reason));
        }
        Ok(Self { writing, versions, redo: journaled_to.map(RedoWriter::new) })
    }

    /// Plans and writes the members, until the time limit of a group.
    pub(super) fn write(mut self, group: &[Request], began: Instant) -> Result<Made> {
        let (outcomes, changes) = self.write_members(group, began)?;
        let is_moved = self.writing.last_version() != self.writing.version_before();
        if self.versions.positioned && changes > 0 && !is_moved {
            // Only records were written. The position moves all the same, so that it reflects every
            // change.
            self.writing.end_member(self.next_version(), []);
        }
        self.writing.reserve_versions(self.versions.reserve)?;
        let position = self.writing.last_version();
        let redo = self.redo.and_then(|redo| redo.finish(position));
        Ok(Made { began, outcomes, position, changes, redo, number: None })
    }

    /// Returns the outcome of each member, and how many changed something.
    ///
    /// Only a refusal by core's rules is the outcome of a single member. After an error of SQLite
    /// the members before it may be lost too, because SQLite rolls back whole transactions by
    /// itself.
    fn write_members(&mut self, group: &[Request], began: Instant) -> Result<(Vec<Result<Reply>>, u64)> {
        let mut changes = 0;
        let mut outcomes = Vec::with_capacity(group.len());
        for request in group {
            if !outcomes.is_empty() && began.elapsed() > GROUP_TIME {
                break;
            }
            let outcome = match &request.work {
                Work::Commit(commit, attempt) => match self.plan(commit, *attempt) {
                    Ok(Some(plan)) => Ok(Reply::Made(self.apply(commit, plan)?)),
                    Ok(None) => Ok(Reply::Unvalidated),
                    Err(error) if error.is_refusal() => Err(error),
                    Err(error) => return Err(error),
                },
                Work::Record(write) if records::write(self.writing.connection(), write)? => {
                    if let Some(redo) = &mut self.redo {
                        redo.record(write);
                    }
                    self.writing.wrote_page();
                    changes += 1;
                    Ok(Reply::Made(Committed::default()))
                }
                Work::Record(_) => Err(Error::Conflict),
            };
            changes +=
                u64::from(matches!(&outcome, Ok(Reply::Made(made)) if made.version != Version::ABSENT));
            outcomes.push(outcome);
        }
        Ok((outcomes, changes))
    }

    fn next_version(&self) -> Version {
        Version(self.writing.last_version().0 + 1).max(self.versions.min)
    }

    /// Validates and plans a member, without writing. `None` if its reads must be validated first.
    ///
    /// The time of the member is read here: SQLite's write lock keeps every other commit from
    /// coming before it.
    fn plan<'c>(&self, commit: &'c Commit, attempt: Attempt) -> Result<Option<Plan<'c>>> {
        let connection = self.writing.connection();
        let now = commit.clock.now();
        let newest = self.writing.state().map(StateNumber::as_version);
        let mut current = rows::Current { connection, now };
        match attempt.validate(&commit.reads, self.writing.log(), newest, &mut current)? {
            Validity::Holds => {
                let mut stored = CurrentRows::new(connection);
                commit.plan(now, |row, need| stored.get(row, need)).map(Some)
            }
            Validity::Changed => Err(Error::Conflict),
            Validity::Unknown => Ok(None),
        }
    }

    /// Writes the rows that a member planned. An error fails the whole group.
    fn apply(&mut self, commit: &Commit, plan: Plan<'_>) -> Result<Committed> {
        if plan.writes.is_empty() {
            return Ok(Committed::default());
        }
        let version = self.next_version();
        self.writing.rests_on(plan.expires_at);
        for (row, write) in &plan.writes {
            self.writing.write_row(row, write, version)?;
            if let Some(redo) = &mut self.redo {
                redo.row(row, write, version);
            }
        }
        self.writing.end_member(version, commit.writes.keys().cloned());
        Ok(Committed { version, growth: plan.growth })
    }
}
