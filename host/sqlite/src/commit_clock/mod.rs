//! The commit clock: which committed state is the newest, as far as this process knows.
//!
//! Most snapshots begin without a SQLite transaction, and most reads run no SQL statement. A
//! snapshot stands on a [`CommittedState`], which is the state that the last known commit left, and
//! reads cached rows. It takes a connection only for a row that is not cached.
//!
//! Every writer of this process commits through [`CommitClock::commit`], which keeps the order that
//! the invariants below need. All fields of [`State`] are guarded by one lock, the state lock.
//!
//! # The newest state
//!
//! - The clock hands out the newest state only while the WAL-index header equals [`State::mark`],
//!   the header as it was at that state. Every commit of every process changes the header, so no
//!   commit has followed the state.
//! - Before this process commits, it pins the newest state if any snapshot stands on it: it opens a
//!   read transaction at that state, which these snapshots share for rows that are not cached.
//!   During a commit the state is handed out only if it is pinned.
//! - A state may be superseded without a pin: if another process commits, or if no connection is
//!   free for the pin. A snapshot on it then fails with a conflict on the first row that is not
//!   cached, and the caller runs the transaction again. A snapshot that has read nothing yet moves
//!   to the newest state instead. For [`WARY`] after a foreign commit, snapshots are SQLite
//!   transactions from the start, so that this does not repeat.
//!
//! # State numbers
//!
//! - Each commit of this process takes the next [`StateNumber`]; in a group, each member that
//!   writes does. All that other processes committed in between takes one number.
//! - No two states get the same number. A snapshot gets the number of a commit only after SQLite
//!   was asked for it, and once the header shows that it was made. [`State::highest`] includes all
//!   numbers that were asked for, and the next foreign state continues after it. So a commit that
//!   was made in spite of an error keeps its number for itself.
//!
//! # Cached rows
//!
//! - The clock owns the [`ChangeRight`] of the row cache and keeps it under the state lock.
//! - A commit of this process updates the cached rows that it writes, and removes the ranges around
//!   them, together with the newest state. So no snapshot of the new state finds an old row. A
//!   transaction that sees the commit before that does not use the cache ([`Seen::is_cached`]).
//! - A commit of another process, once noticed, empties the cache and begins a new state. Until
//!   then, snapshots on the old state read what is cached, which is right for them.
//! - A row that was read from the database is cached only if no commit of this process is under
//!   way, and only if it was read in the newest state. Otherwise a row could enter the cache after
//!   the commit that writes it has looked up which cached rows it must update.
//!
//! # Times
//!
//! - The time of a snapshot, at which it decides which rows have expired, is read under the state
//!   lock together with its state. So a snapshot that sees a commit does not have an earlier time
//!   than that commit.
//! - A commit may rest on rows that expire: it read them, and they were live at its time. A
//!   snapshot of the state before the commit must not find them expired, because it would then have
//!   a later time than a commit that it does not see. While a commit is under way, the time of such
//!   a snapshot is therefore bounded. Until SQLite is asked for the commit, the bound is the time
//!   at which the commit began, because each member reads the time after that. From then on, the
//!   bound is 1 ms before the first of these rows expires.
//!
//! # Without a WAL index
//!
//! A VFS without shared memory has no WAL index, so no commit of another process is noticed. The
//! clock then takes every commit for one after a foreign commit, gives no state a number that a
//! snapshot sees, and reserves no versions.

mod committed_state;
#[cfg(test)]
mod tests;
mod version_block;
mod wal_index;
mod writing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_core::Result;
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::row::Version;
use parking_lot::Mutex;
use rusqlite::Connection;

pub(crate) use committed_state::CommittedState;
use version_block::VersionBlock;
pub(crate) use wal_index::Mark;
use wal_index::WalIndex;
pub(crate) use writing::Writing;

use crate::readers::Readers;
use crate::row_cache::{ChangeRight, RowCache};
use crate::rows as statements;
use crate::state_number::StateNumber;

/// How long snapshots begin as SQLite transactions after a commit of another process, which may
/// commit again.
const WARY: Duration = Duration::from_millis(100);

/// What this process knows about the committed states of one database.
pub(crate) struct CommitClock {
    rows: RowCache,
    readers: Arc<Readers>,
    state: Mutex<State>,
}

struct State {
    /// `None` if the database has no WAL index, and once the connection that maps it is closed.
    index: Option<WalIndex>,
    newest: Arc<CommittedState>,
    /// The WAL-index header at the newest state. `None` if it is unknown, and the state is then
    /// never known to be the newest.
    mark: Option<Mark>,
    /// The commit of this process that is under way.
    committing: Option<UnderWay>,
    /// The highest number of any state, including commits that SQLite was asked for and that
    /// failed.
    highest: StateNumber,
    /// When this process last noticed a commit of another one.
    foreign: Option<Instant>,
    /// The right to change the cached rows.
    right: ChangeRight,
}

/// The progress of a commit.
#[derive(Clone, Copy)]
enum Committing {
    /// SQLite has not been asked to commit yet. The database is at the state before the commit.
    Begun,
    /// SQLite may make the commit at any moment. It leaves this state. The first row that it rests
    /// on expires at this time.
    Asked(StateNumber, Option<UnixMillis>),
}

/// A commit of this process that is under way.
#[derive(Clone, Copy)]
struct UnderWay {
    step: Committing,
    /// A lower bound of the times of its members. `None` for work whose effect does not depend on
    /// time.
    moment: Option<UnixMillis>,
}

/// The state that a SQLite transaction sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) state: StateNumber,
    /// Whether cached rows hold for this state. False for a commit that has not updated the cache
    /// yet.
    pub(crate) is_cached: bool,
}

impl CommitClock {
    /// The clock of a database, which watches the WAL index that the writer's connection maps, with
    /// a cache of rows within a bound of bytes.
    ///
    /// With 0 bytes, no rows are cached and each snapshot is a SQLite transaction; the states that
    /// they see are still known.
    ///
    /// # Safety
    /// The connection must have read in WAL mode, and must stay open until [`CommitClock::close`]
    /// is called or the clock is dropped.
    pub(crate) unsafe fn new(
        readers: Arc<Readers>,
        connection: &Connection,
        cache_bytes: u64,
    ) -> Result<Self> {
        // SAFETY: the caller keeps the connection open until `close`, which clears `index` under
        // the lock under which the header is read.
        let index = unsafe { WalIndex::of(connection) };
        let before = index.as_ref().and_then(WalIndex::mark);
        let versions = VersionBlock::read(statements::last_version(connection)?);
        // If another process committed between the two looks at the header, the table may be of
        // either state, so the mark is unknown.
        let mark = before.filter(|before| index.as_ref().and_then(WalIndex::mark) == Some(*before));
        let first = StateNumber::default();
        let (rows, right) = RowCache::new(cache_bytes);
        let state = State {
            index,
            newest: CommittedState::new(first, versions),
            mark,
            committing: None,
            highest: first,
            foreign: None,
            right,
        };
        Ok(Self { rows, readers, state: Mutex::new(state) })
    }

    /// The newest state, with the time of a snapshot that stands on it.
    ///
    /// `None` if a snapshot must begin with a SQLite transaction: the newest state is unknown, a
    /// commit is under way that has not pinned it, or another process has committed within
    /// [`WARY`].
    pub(crate) fn newest(&self, clock: &ForwardClock) -> Option<(Arc<CommittedState>, UnixMillis)> {
        let state = self.state.lock();
        let is_newest = state.is_newest();
        let is_readable = state.committing.is_none() || state.newest.has_pin();
        let is_calm = state.foreign.is_none_or(|foreign| foreign.elapsed() >= WARY);
        (self.rows.is_on() && is_newest && is_readable && is_calm)
            .then(|| (state.newest.clone(), state.moment_before_commit(clock)))
    }

    /// The newest state, if it has this number and no commit is under way.
    pub(crate) fn newest_at(&self, number: StateNumber) -> Option<Arc<CommittedState>> {
        let state = self.state.lock();
        let is_it = state.newest.number == number && state.committing.is_none() && state.is_newest();
        (self.rows.is_on() && is_it).then(|| state.newest.clone())
    }

    /// Whether this process noticed a commit of another one within the duration.
    pub(crate) fn has_company(&self, within: Duration) -> bool {
        self.state.lock().foreign.is_some_and(|foreign| foreign.elapsed() < within)
    }

    /// The length of the write-ahead log in bytes; 0 if it is unknown.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.mark().map_or(0, |mark| mark.log_bytes())
    }

    /// Whether versions are reserved that were not allocated.
    pub(crate) fn has_reserved(&self) -> bool {
        let VersionBlock { last, reserved } = self.state.lock().newest.versions;
        last < reserved
    }

    /// The current WAL-index header. The caller reads it before it begins a transaction, and passes
    /// it to [`CommitClock::saw`].
    pub(crate) fn mark(&self) -> Option<Mark> {
        self.state.lock().read_mark()
    }

    /// Finds the state that a SQLite transaction sees, and the time of its snapshot.
    ///
    /// The caller read `mark` before the transaction began, and `reserved` from the table within
    /// the transaction. The header is read again here: if it is unchanged, the transaction sees the
    /// state that belongs to `mark`. `None` if the header has changed, or if the state is one that
    /// has no number.
    pub(crate) fn saw(
        &self,
        reserved: Version,
        mark: Option<Mark>,
        clock: &ForwardClock,
    ) -> Option<(Seen, UnixMillis)> {
        let mut state = self.state.lock();
        let mark = mark.filter(|mark| state.read_mark() == Some(*mark))?;
        if state.mark == Some(mark) {
            let seen = Seen { state: state.newest.number, is_cached: self.rows.is_on() };
            return Some((seen, state.moment_before_commit(clock)));
        }
        match state.committing.map(|under_way| under_way.step) {
            // The commit under way holds the write lock. If the header has moved by one commit
            // since the newest state, that commit is ours. Its rows are not cached yet.
            Some(Committing::Asked(number, _)) => {
                let is_made = state.mark.is_some_and(|before| mark.is_one_commit_after(&before));
                is_made.then(|| (Seen { state: number, is_cached: false }, clock.now()))
            }
            Some(Committing::Begun) => None,
            None => {
                self.move_to_foreign(&mut state, VersionBlock::read(reserved));
                state.mark = Some(mark);
                Some((Seen { state: state.newest.number, is_cached: self.rows.is_on() }, clock.now()))
            }
        }
    }

    /// Whether the WAL index shows commits of other processes.
    pub(crate) fn sees_others(&self) -> bool {
        self.state.lock().index.is_some()
    }

    /// The cached rows, to be looked up.
    pub(crate) fn rows(&self) -> &RowCache {
        &self.rows
    }

    /// Calls `fill` with the right to change the cached rows, if this state is the newest and no
    /// commit of this process is under way. `fill` must be quick.
    pub(crate) fn fill(&self, number: StateNumber, fill: impl FnOnce(&RowCache, &mut ChangeRight)) {
        let mut state = self.state.lock();
        if self.rows.is_on() && state.committing.is_none() && state.newest.number == number {
            fill(&self.rows, &mut state.right);
        }
    }

    /// Stops using the memory of the connection. From then on, snapshots begin as SQLite
    /// transactions.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.index = None;
        let (number, versions) = (state.newest.number, state.newest.versions);
        let before = std::mem::replace(&mut state.newest, CommittedState::new(number, versions));
        self.rows.clear(&mut state.right);
        drop(state);
        drop(before);
    }

    fn move_to_foreign(&self, state: &mut State, versions: VersionBlock) {
        self.rows.clear(&mut state.right);
        state.highest = state.highest.next();
        state.newest = CommittedState::new(state.highest, versions);
        state.mark = None;
        // Without the index, nothing tells whether there is another process.
        if state.index.is_some() {
            state.foreign = Some(Instant::now());
        }
    }
}

impl State {
    /// Replaces the newest state, and returns the old one, to be dropped without the lock.
    ///
    /// A state with a pin is replaced even if the number stays the same: then only the snapshots
    /// that stand on it keep its connection open. So is one whose versions were given back.
    fn move_on(&mut self, number: StateNumber, versions: VersionBlock) -> Option<Arc<CommittedState>> {
        let is_same =
            self.newest.number == number && self.newest.versions == versions && !self.newest.has_pin();
        (!is_same).then(|| std::mem::replace(&mut self.newest, CommittedState::new(number, versions)))
    }

    /// Whether no process has committed since the newest known state.
    fn is_newest(&self) -> bool {
        self.mark.is_some() && self.mark == self.read_mark()
    }

    /// The time of a snapshot of the newest state, bounded if a commit is under way that the
    /// snapshot does not see.
    fn moment_before_commit(&self, clock: &ForwardClock) -> UnixMillis {
        let now = clock.now();
        match self.committing {
            Some(UnderWay { step: Committing::Begun, moment: Some(moment) }) => moment,
            Some(UnderWay { step: Committing::Asked(_, Some(expires_at)), .. }) => {
                now.min(expires_at.saturating_sub(1))
            }
            _ => now,
        }
    }

    fn read_mark(&self) -> Option<Mark> {
        self.index.as_ref().and_then(WalIndex::mark)
    }
}
