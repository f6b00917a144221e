//! What the holder of the writer works on: the connection, the write lock and the log of commits.

use std::sync::Arc;
use std::time::Instant;

use larder_core::backend::SweepOptions;
use larder_core::clock::ForwardClock;
use larder_core::commit_log::CommitLog;
use larder_core::redo::Group;
use larder_core::row::Version;
use larder_core::{Error, Result};
use rusqlite::Connection;

use super::group::{GroupCommit, GroupError, Made, Versions};
use super::write_lock::{COMPANY, WriteLock};
use crate::commit_clock::{CommitClock, Writing};
use crate::journal::{GroupNumber, Queue, Status};
use crate::transaction::{CommitError, forget_pages, roll_back};
use crate::waiting::Request;
use crate::{redo, rows};

/// How many versions are reserved at once. Only one commit in this many writes the bound in the
/// table.
const RESERVED_VERSIONS: u64 = 1_000;

/// Makes one transaction after another.
pub(super) struct State {
    pub(super) connection: Option<Connection>,
    pub(super) lock: WriteLock,
    pub(super) log: CommitLog,
    pub(super) journal: Option<Journaled>,
    /// Whether record writes move the position too.
    pub(super) positioned: bool,
    pub(super) min_version: Version,
    /// Set after a commit whose outcome is unknown. The contents of the file are unknown until the
    /// database is reopened.
    pub(super) failed: bool,
}

/// The state of a database whose commits are kept in a journal.
pub(super) struct Journaled {
    pub(super) queue: Queue,
    pub(super) status: Arc<Status>,
    /// The position at which the last redo ended. A commit of another process after it would be a
    /// gap in the journal.
    pub(super) position: Version,
}

/// Whether the writer may wait for another process's lock, which blocks its thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    None,
    BusyTimeout,
}

impl State {
    /// Commits a group in one transaction, and returns the outcome of each member. A member that
    /// conflicts, or whose request is invalid, fails alone.
    pub(super) fn commit_group(
        &mut self,
        group: &[Request],
        clock: &CommitClock,
        patience: Patience,
    ) -> Result<Made, GroupError> {
        if !self.begin(clock, patience).map_err(GroupError::NotBegun)? {
            return Err(GroupError::Busy);
        }
        let began = Instant::now();
        // Taken before the commit, because the commit is visible as soon as it is made.
        let number = self.journal.as_ref().map(|journal| journal.status.begin());
        let journaled_to = self.journal.as_ref().map(|journal| journal.position);
        // A positioned database writes the exact version with every commit, because it is the
        // position.
        let reserve = if self.positioned { 0 } else { RESERVED_VERSIONS };
        let versions = Versions { min: self.min_version, reserve, positioned: self.positioned };
        let times = group.iter().find_map(|request| request.work.clock());
        let made = self.commit(clock, times, |writing| {
            GroupCommit::new(writing, journaled_to, versions)?.write(group, began)
        });
        match made {
            Ok(made) => {
                self.move_to(made.position);
                Ok(Made { number, ..made })
            }
            Err(error) => {
                if let (Some(journal), Some(number)) = (&self.journal, number) {
                    journal.gave_up(number, &error);
                }
                Err(error.into())
            }
        }
    }

    /// Replays the groups that the database does not hold yet. Returns the position of the
    /// database, and how many groups were replayed.
    pub(super) fn replay(&mut self, clock: &CommitClock, groups: &[Group]) -> Result<(Version, u64)> {
        if !self.positioned {
            // The sequence in the table then counts reserved versions, so a redo that the database
            // lacks would look like one that it holds.
            let reason =
                "cannot replay a redo: the database does not count positions; open it as a positioned one";
            return Err(Error::invalid_argument(reason));
        }
        self.begin(clock, Patience::BusyTimeout)?;
        let (position, made) = self.commit(clock, None, |writing| redo::replay(writing, groups))?;
        self.move_to(position);
        Ok((position, made))
    }

    /// Removes expired rows. Returns the bytes of each, and when SQLite's write lock was obtained.
    ///
    /// The sweep leaves a state of its own: a snapshot that has read a row at a time before its
    /// expiry must still find it.
    pub(super) fn sweep(
        &mut self,
        clock: &CommitClock,
        options: &SweepOptions,
    ) -> Result<(Vec<u64>, Instant)> {
        let patience = if options.is_closing { Patience::None } else { Patience::BusyTimeout };
        if !self.begin(clock, patience)? {
            return Ok((Vec::new(), Instant::now()));
        }
        let began = Instant::now();
        // A sweep changes nothing that a read could observe, so it has no time of its own.
        let sizes = self.commit(clock, None, |writing| {
            let swept = rows::sweep(writing.connection(), options.clock.now(), options)?;
            if swept.is_empty() {
                return Ok(Vec::new());
            }
            let mut sizes = Vec::with_capacity(swept.len());
            for (name, bytes) in swept {
                if let Some(row) = name.row() {
                    writing.removed_row(&row);
                }
                sizes.push(bytes);
            }
            writing.wrote_page();
            writing.end_state([]);
            Ok(sizes)
        })?;
        Ok((sizes, began))
    }

    /// Writes down the exact last version, so that the next process does not skip the reserved
    /// ones.
    pub(super) fn give_back_versions(&mut self, clock: &CommitClock) -> Result<()> {
        if self.positioned || !clock.has_reserved() || !self.begin(clock, Patience::None)? {
            return Ok(());
        }
        Ok(self.commit(clock, None, |writing| writing.give_back_versions())?)
    }

    /// Begins a transaction that holds SQLite's write lock. False if another process holds the lock
    /// or waits for it, and the caller has no patience.
    fn begin(&mut self, clock: &CommitClock, patience: Patience) -> Result<bool> {
        self.check_usable()?;
        let connection = self.connection.as_ref().ok_or(Error::Closed)?;
        let others_commit = clock.has_company(COMPANY);
        Ok(match patience {
            Patience::None => self.lock.try_begin(connection, others_commit)?,
            Patience::BusyTimeout => {
                self.lock.begin(connection, others_commit)?;
                true
            }
        })
    }

    /// Has `write` write the transaction that has begun, and commits it, or rolls it back.
    fn commit<T>(
        &mut self,
        clock: &CommitClock,
        times: Option<&ForwardClock>,
        write: impl FnOnce(&mut Writing<'_>) -> Result<T>,
    ) -> Result<T, CommitError> {
        let connection = self.connection.as_ref().ok_or(CommitError::NotMade(Error::Closed))?;
        let made = clock.commit(connection, &mut self.log, times, write);
        if let Err(error) = &made {
            self.failed |= matches!(error, CommitError::Unknown(_)) | roll_back(connection).is_err();
            forget_pages(connection);
        }
        made
    }

    /// After a failure, nothing is written until the database is reopened.
    fn check_usable(&self) -> Result<()> {
        if self.failed {
            return Err(Error::Unavailable {
                reason: "the disk did not confirm an earlier commit; open the store again".to_string(),
                cause: None,
            });
        }
        self.journal.as_ref().and_then(|journal| journal.status.failure()).map_or(Ok(()), Err)
    }

    fn move_to(&mut self, position: Version) {
        if let Some(journal) = &mut self.journal {
            journal.position = position;
        }
    }
}

impl Journaled {
    /// Records that a group was not committed, or that its outcome is unknown.
    fn gave_up(&self, number: GroupNumber, error: &CommitError) {
        if let CommitError::Unknown(error) = error {
            self.status.fail(error.clone());
        }
        self.queue.push(number, None, Vec::new());
    }
}
