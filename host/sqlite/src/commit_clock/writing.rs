//! One commit of this process, from the write lock to the new state.
//!
//! [`CommitClock::commit`] is the only way to commit. It makes the steps in the order that the
//! invariants of the clock need: it begins the commit before anything is written, announces it
//! before SQLite is asked for it, and moves the newest state once it is made.

use std::sync::Arc;

use larder_core::Result;
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::commit::RowWrite;
use larder_core::commit_log::CommitLog;
use larder_core::name::RowKey;
use larder_core::row::Version;
use rusqlite::Connection;

use super::version_block::VersionBlock;
use super::{CommitClock, Committing, Mark, UnderWay};
use crate::row_cache::{Changes, Written};
use crate::rows as statements;
use crate::state_number::StateNumber;
use crate::transaction::{self, CommitError};

/// A commit that is under way: what it writes, and the state that it will leave.
///
/// Unless it is made, it has failed, and the newest state stays as it was.
pub(crate) struct Writing<'a> {
    clock: &'a CommitClock,
    connection: &'a Connection,
    /// The rows that each state changed.
    log: &'a mut CommitLog,
    /// The state before the commit.
    before: StateNumber,
    versions_before: VersionBlock,
    mark: Option<Mark>,
    /// Whether the WAL index shows commits of other processes.
    sees_others: bool,
    /// The state that the members leave that have written so far.
    pub(super) state: StateNumber,
    pub(super) versions: VersionBlock,
    /// When the first row expires that a member rests on.
    pub(super) expires_at: Option<UnixMillis>,
    /// Whether any page was written.
    pub(super) wrote: bool,
    changes: Changes,
    is_made: bool,
}

impl CommitClock {
    /// Makes a commit: has `write` write it in the transaction that has begun on `connection`, and
    /// commits the transaction.
    ///
    /// The transaction holds SQLite's write lock, so no other process commits until it ends.
    /// `times` is the clock that the members read; `None` if no member has a time. `log` holds the
    /// rows of the last commits.
    ///
    /// # Errors
    /// - [`CommitError::NotMade`] with the error of `write`, or if SQLite refused the commit. The
    ///   caller rolls the transaction back.
    /// - [`CommitError::Unknown`] if the disk did not confirm the commit.
    pub(crate) fn commit<T>(
        &self,
        connection: &Connection,
        log: &mut CommitLog,
        times: Option<&ForwardClock>,
        write: impl FnOnce(&mut Writing<'_>) -> Result<T>,
    ) -> Result<T, CommitError> {
        let mut writing = self.begin(connection, log, times).map_err(CommitError::NotMade)?;
        let written = write(&mut writing).map_err(CommitError::NotMade)?;
        writing.announce();
        transaction::commit(connection)?;
        writing.made();
        Ok(written)
    }

    /// Notices what other processes have committed, and pins the state that snapshots stand on.
    pub(super) fn begin<'a>(
        &'a self,
        connection: &'a Connection,
        log: &'a mut CommitLog,
        times: Option<&ForwardClock>,
    ) -> Result<Writing<'a>> {
        let mut state = self.state.lock();
        if !state.is_newest() {
            let reserved = statements::last_version(connection)?;
            let mark = state.read_mark();
            self.move_to_foreign(&mut state, VersionBlock::read(reserved));
            state.mark = mark;
        }
        state.committing = Some(UnderWay { step: Committing::Begun, moment: times.map(ForwardClock::now) });
        let (before, versions, mark) = (state.newest.number, state.newest.versions, state.mark);
        let sees_others = state.index.is_some();
        let is_read = Arc::strong_count(&state.newest) > 1 && !state.newest.has_pin();
        let pinned = is_read.then(|| state.newest.clone());
        drop(state);
        if let Some(pinned) = pinned
            && let Some(reader) = self.readers.take_now()
        {
            pinned.set_pin(reader);
        }
        Ok(Writing {
            clock: self,
            connection,
            log,
            before,
            versions_before: versions,
            mark,
            sees_others,
            state: before,
            versions,
            expires_at: None,
            wrote: false,
            changes: Changes::default(),
            is_made: false,
        })
    }
}

impl Writing<'_> {
    pub(crate) fn connection(&self) -> &Connection {
        self.connection
    }

    /// The rows that each state changed, for validations against [`Writing::state`].
    pub(crate) fn log(&self) -> &CommitLog {
        self.log
    }

    /// The state that the members leave that have written so far. `None` without a WAL index.
    pub(crate) fn state(&self) -> Option<StateNumber> {
        self.sees_others.then_some(self.state)
    }

    /// The last version that was allocated before the commit.
    pub(crate) fn version_before(&self) -> Version {
        self.versions_before.last
    }

    /// The last version that is allocated, including those of the members so far.
    pub(crate) fn last_version(&self) -> Version {
        self.versions.last
    }

    /// Writes a row for the next member.
    pub(crate) fn write_row(&mut self, row: &RowKey, write: &RowWrite<'_>, version: Version) -> Result<()> {
        self.wrote |= statements::write(self.connection, row, write, version)?;
        self.note(row, write, version);
        Ok(())
    }

    /// Records that the next member removed a row, in addition to [`Writing::wrote_page`].
    pub(crate) fn removed_row(&mut self, row: &RowKey) {
        self.note(row, &RowWrite::Delete, Version::ABSENT);
    }

    pub(super) fn note(&mut self, row: &RowKey, write: &RowWrite<'_>, version: Version) {
        let written = Written { state: self.state.next(), version };
        self.clock.rows.note(&mut self.changes, row, write, written);
    }

    /// Records that the database was changed otherwise than by [`Writing::write_row`].
    pub(crate) fn wrote_page(&mut self) {
        self.wrote = true;
    }

    /// Records that the commit rests on a row that expires at this time.
    pub(crate) fn rests_on(&mut self, expires_at: Option<UnixMillis>) {
        self.expires_at = self.expires_at.into_iter().chain(expires_at).min();
    }

    /// Allocates the version of a member that has written all of its rows.
    pub(crate) fn end_member(&mut self, version: Version, written: impl IntoIterator<Item = RowKey>) {
        self.versions.last = version;
        self.end_state(written);
    }

    /// Records that a state is complete that has no version of its own. `written` are the rows that
    /// a transaction can have read otherwise before.
    pub(crate) fn end_state(&mut self, written: impl IntoIterator<Item = RowKey>) {
        self.state = self.state.next();
        if self.sees_others {
            self.log.push(self.state.as_version(), written);
        }
    }

    /// Writes the bound of the allocated versions to the table if they have passed it, with this
    /// many reserved ones.
    ///
    /// None are reserved without a WAL index: a commit of another process would go unnoticed, so
    /// they could be allocated twice.
    pub(crate) fn reserve_versions(&mut self, count: u64) -> Result<()> {
        let VersionBlock { last, reserved } = self.versions;
        if last > reserved {
            let count = if self.sees_others { count } else { 0 };
            self.set_reserved(Version(last.0 + count))?;
        }
        Ok(())
    }

    /// Writes the exact last version to the table if more are reserved, so that the next process
    /// does not skip them.
    pub(crate) fn give_back_versions(&mut self) -> Result<()> {
        let VersionBlock { last, reserved } = self.versions;
        if last < reserved {
            self.set_reserved(last)?;
        }
        Ok(())
    }

    fn set_reserved(&mut self, reserved: Version) -> Result<()> {
        self.versions.reserved = reserved;
        self.wrote = true;
        statements::set_last_version(self.connection, reserved)?;
        Ok(())
    }

    /// Announces that SQLite is about to be asked to commit.
    ///
    /// A commit that wrote nothing moves no header. If it were announced, a commit that another
    /// process makes right after it would be taken for it.
    pub(super) fn announce(&self) {
        let mut state = self.clock.state.lock();
        if self.wrote
            && let Some(under_way) = &mut state.committing
        {
            under_way.step = Committing::Asked(self.state, self.expires_at);
        }
        state.highest = state.highest.max(self.state);
    }

    /// Records that the commit is made, and moves the newest state to it.
    pub(super) fn made(mut self) {
        self.is_made = true;
        let mut state = self.clock.state.lock();
        self.clock.rows.apply(&mut state.right, std::mem::take(&mut self.changes));
        state.highest = state.highest.max(self.state);
        let before = state.move_on(self.state, self.versions);
        // Another process may have committed after this commit released the write lock. The header
        // then is not that of our state. If this commit wrote nothing, it did not move the header,
        // so one commit's difference is another process's commit.
        let now = state.read_mark();
        let is_ours = self.mark.zip(now).is_some_and(|(before, now)| match self.wrote {
            true => now.is_one_commit_after(&before),
            false => now == before,
        });
        state.mark = now.filter(|_| is_ours);
        state.committing = None;
        // Dropping a state may close its connection. That must not happen under the lock.
        drop(state);
        drop(before);
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.is_made {
            return;
        }
        // The log holds members that are not committed.
        *self.log = CommitLog::default();
        let mut state = self.clock.state.lock();
        // SQLite may have made the commit in spite of the error. The mark is kept, so the header
        // shows it: it equals the mark only if nothing was committed.
        state.committing = None;
        let before = state.move_on(self.before, self.versions_before);
        drop(state);
        drop(before);
    }
}
