//! The newest committed state as this process knows it: the cache of rows, and the commit clock.
//!
//! Most snapshots begin without a SQLite transaction, and most reads run no SQL statement. A
//! snapshot stands on an [`Epoch`], which is the state that the last known commit left, and reads
//! cached rows. It takes a connection only for a row that is not cached.
//!
//! The following invariants make this correct. All fields of [`State`] are guarded by one lock, the
//! state lock.
//!
//! # Epochs
//!
//! - The cache hands out the epoch only while the WAL-index header equals [`State::mark`], the
//!   header as it was at the state of the epoch. Every commit of every process changes the header,
//!   so no commit has followed the epoch.
//! - Before this process commits, it pins the epoch if any snapshot stands on it: it opens a read
//!   transaction at that state, which these snapshots share for rows that are not cached. During a
//!   commit the epoch is handed out only if it is pinned.
//! - An epoch may be superseded without a pin: if another process commits, or if no connection is
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
//! - A cached row or range holds for every state from its `since` up to the state of the current
//!   epoch. A snapshot of a state before `since` does not use it.
//! - A commit of this process updates the cached rows that it writes, and removes the ranges around
//!   them, under the state lock and together with the epoch. So no snapshot of the new state finds
//!   an old row. A transaction that sees the commit before that does not use the cache
//!   ([`Seen::is_cached`]).
//! - A commit of another process, once noticed, empties the cache and begins a new epoch. Until
//!   then, snapshots on the old epoch read what is cached, which is right for their state.
//! - A row that was read from the database is cached only if no commit of this process is under
//!   way, and only if it was read in the state of the current epoch. Otherwise a row could enter
//!   the cache after the commit that writes it has looked up which cached rows it must update.
//!
//! # Commit clock
//!
//! - The time of a snapshot, at which it decides which rows have expired, is read under the state
//!   lock together with its state. So a snapshot that sees a commit does not have an earlier time
//!   than that commit.
//! - A commit may rest on rows that expire: it read them, and they were live at its time. A
//!   snapshot of the state before the commit must not find them expired, because it would then have
//!   a later time than a commit that it does not see. While a commit is under way, the time of such
//!   a snapshot is therefore bounded. Until SQLite is asked for the commit, the bound is the time
//!   at which the commit began, because each member reads the clock after that. From then on, the
//!   bound is 1 ms before the first of these rows expires.
//!
//! # Versions
//!
//! - As long as no other process commits, this process knows which versions are allocated, and the
//!   table in the file holds only an upper bound ([`Given`]). Writing the exact version would cost
//!   one more page per commit.

mod log_index;
mod ranges;
mod rows;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use larder_core::Result;
use larder_core::chunk::{Chunk, ScanOptions};
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::commit::RowWrite;
use larder_core::name::{KeyRange, RowKey};
use larder_core::row::{StoredValue, Version};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;

pub(crate) use log_index::{LogIndex, Mark};
pub(crate) use ranges::Beginning;
use ranges::CachedRanges;
pub(crate) use rows::Moment;
use rows::{CachedRows, Changes, Written};

use crate::readers::{Reader, Readers};
use crate::rows as statements;

/// How long snapshots begin as SQLite transactions after a commit of another process, which may
/// commit again.
const WARY: Duration = Duration::from_millis(100);

/// One in this many bytes of the cache is for ranges.
const RANGES_PART: u64 = 4;

/// What this process knows about the committed state of one database.
pub(crate) struct Cache {
    keeps_rows: bool,
    rows: CachedRows,
    ranges: CachedRanges,
    readers: Arc<Readers>,
    state: Mutex<State>,
}

struct State {
    /// `None` once the connection that maps the WAL index is closed.
    index: Option<LogIndex>,
    epoch: Arc<Epoch>,
    /// The WAL-index header at the state of the epoch. `None` if it is unknown, and the epoch is
    /// then never known to be the newest.
    mark: Option<Mark>,
    /// The commit of this process that is under way.
    committing: Option<UnderWay>,
    /// The highest number of any state, including commits that SQLite was asked for and that
    /// failed.
    highest: StateNumber,
    /// When this process last noticed a commit of another one.
    foreign: Option<Instant>,
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

/// The number of a state of the database, counted by this process. No two states get the same
/// number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StateNumber(u64);

impl StateNumber {
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number in the type that the commit log counts in.
    pub(crate) fn as_version(self) -> Version {
        Version(self.0)
    }
}

/// Which versions are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// The highest version that was allocated.
    pub(crate) last: Version,
    /// The bound in the table: no version above it is allocated. A process that does not know
    /// `last` continues after this bound.
    pub(crate) reserved: Version,
}

impl Given {
    /// What is known from the table alone: every version up to the bound may be allocated.
    pub(crate) fn read(reserved: Version) -> Self {
        Self { last: reserved, reserved }
    }
}

/// The state that a commit left, shared by the snapshots that stand on it.
pub(crate) struct Epoch {
    pub(crate) state: StateNumber,
    given: Given,
    /// A connection whose read transaction sees this state. It is set before the state is
    /// superseded, if snapshots need it, and is dropped with the last of them.
    pin: OnceLock<Mutex<Reader>>,
}

impl Epoch {
    fn new(state: StateNumber, given: Given) -> Arc<Self> {
        Arc::new(Self { state, given, pin: OnceLock::new() })
    }

    /// Locks the connection that was opened for this state. Its transaction may have ended.
    pub(crate) fn pin(&self) -> Option<MutexGuard<'_, Reader>> {
        self.pin.get().map(Mutex::lock)
    }

    /// Whether a connection was opened for this state.
    pub(crate) fn has_pin(&self) -> bool {
        self.pin.get().is_some()
    }

    /// Whether the connection still sees this state. A failed read ends its transaction for all
    /// snapshots that share it.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pin().is_some_and(|pin| pin.is_in_transaction())
    }
}

/// The state that a SQLite transaction sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) state: StateNumber,
    /// Whether cached rows hold for this state. False for a commit that has not updated the cache
    /// yet.
    pub(crate) is_cached: bool,
}

impl Cache {
    /// The cache of a database, which watches the WAL index that the writer's connection maps.
    ///
    /// `None` if the connection has no WAL index. With 0 bytes, no rows are cached and each
    /// snapshot is a SQLite transaction; the states that they see are still known.
    ///
    /// # Safety
    /// The connection must have read in WAL mode, and must stay open until [`Cache::close`] is
    /// called.
    pub(crate) unsafe fn new(
        readers: Arc<Readers>,
        connection: &Connection,
        bytes: u64,
    ) -> Result<Option<Self>> {
        // SAFETY: the caller keeps the connection open until `close`, which clears `index` under
        // the lock under which the header is read.
        let Some(index) = (unsafe { LogIndex::of(connection) }) else { return Ok(None) };
        let mark = index.mark();
        let given = Given::read(statements::last_version(connection)?);
        // If another process committed between the two looks at the header, the table may be of
        // either state, so the mark is unknown.
        let mark = mark.filter(|mark| index.mark() == Some(*mark));
        let first = StateNumber::default();
        let state = State {
            index: Some(index),
            epoch: Epoch::new(first, given),
            mark,
            committing: None,
            highest: first,
            foreign: None,
        };
        let for_ranges = bytes / RANGES_PART;
        let (rows, ranges) = (CachedRows::new(bytes - for_ranges), CachedRanges::new(for_ranges));
        Ok(Some(Self { keeps_rows: bytes > 0, rows, ranges, readers, state: Mutex::new(state) }))
    }

    /// The newest state, with the time of a snapshot that stands on it.
    ///
    /// `None` if a snapshot must begin with a SQLite transaction: the newest state is unknown, a
    /// commit is under way that has not pinned it, or another process has committed within
    /// [`WARY`].
    pub(crate) fn epoch(&self, clock: &ForwardClock) -> Option<(Arc<Epoch>, UnixMillis)> {
        let state = self.state.lock();
        let is_newest = state.is_newest();
        let is_readable = state.committing.is_none() || state.epoch.pin.get().is_some();
        let is_calm = state.foreign.is_none_or(|foreign| foreign.elapsed() >= WARY);
        (self.keeps_rows && is_newest && is_readable && is_calm)
            .then(|| (state.epoch.clone(), state.moment_before_commit(clock)))
    }

    /// The epoch, if it has this number, is the newest state and no commit is under way.
    pub(crate) fn epoch_at(&self, number: StateNumber) -> Option<Arc<Epoch>> {
        let state = self.state.lock();
        let is_it = state.epoch.state == number && state.committing.is_none() && state.is_newest();
        (self.keeps_rows && is_it).then(|| state.epoch.clone())
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
        let Given { last, reserved } = self.state.lock().epoch.given;
        last < reserved
    }

    /// The current WAL-index header. The caller reads it before it begins a transaction, and passes
    /// it to [`Cache::saw`].
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
            let seen = Seen { state: state.epoch.state, is_cached: self.keeps_rows };
            return Some((seen, state.moment_before_commit(clock)));
        }
        match state.committing.map(|under_way| under_way.step) {
            // The commit under way holds the write lock. If the header has moved by one commit
            // since the epoch, that commit is ours. Its rows are not cached yet.
            Some(Committing::Asked(number, _)) => {
                let is_made = state.mark.is_some_and(|before| mark.is_one_commit_after(&before));
                is_made.then(|| (Seen { state: number, is_cached: false }, clock.now()))
            }
            Some(Committing::Begun) => None,
            None => {
                self.move_to_foreign(&mut state, Given::read(reserved));
                state.mark = Some(mark);
                Some((Seen { state: state.epoch.state, is_cached: self.keeps_rows }, clock.now()))
            }
        }
    }

    /// The row as a snapshot sees it. `None` if the caller must read the database.
    pub(crate) fn get(&self, row: &RowKey, moment: Moment) -> Option<Option<StoredValue>> {
        self.rows.get(row, moment)
    }

    /// Caches a row, or its absence, that a snapshot read from the database.
    pub(crate) fn fill(&self, row: &RowKey, moment: Moment, found: Option<&StoredValue>) {
        let state = self.state.lock();
        if self.keeps_rows && state.committing.is_none() && state.epoch.state == moment.state {
            self.rows.fill(row, moment, found);
        }
    }

    /// The first rows of a range as a snapshot sees them, or the first part of it that the caller
    /// must read from the database. The range must not be empty.
    pub(crate) fn beginning(
        &self,
        range: &KeyRange,
        options: ScanOptions,
        moment: Moment,
    ) -> Result<Beginning> {
        self.ranges.beginning(range, options, moment)
    }

    /// Caches the rows that a snapshot read from the database in a forward scan with values.
    pub(crate) fn fill_range(&self, range: &KeyRange, chunk: &Chunk, moment: Moment) {
        if !self.keeps_rows || !self.ranges.takes(range, chunk) {
            return;
        }
        // Copy before the lock is taken.
        let rows = Arc::new(chunk.clone());
        let state = self.state.lock();
        if state.committing.is_none() && state.epoch.state == moment.state {
            self.ranges.fill(range, rows, moment);
        }
    }

    /// Begins a commit of this process.
    ///
    /// `connection` holds SQLite's write lock, so no other process commits until the transaction
    /// ends. `clock` is the commit clock of the members; `None` if no member has a time.
    pub(crate) fn begin_commit(
        &self,
        connection: &Connection,
        clock: Option<&ForwardClock>,
    ) -> Result<CommitUnderWay<'_>> {
        let mut state = self.state.lock();
        if !state.is_newest() {
            let reserved = statements::last_version(connection)?;
            let mark = state.read_mark();
            self.move_to_foreign(&mut state, Given::read(reserved));
            state.mark = mark;
        }
        state.committing = Some(UnderWay { step: Committing::Begun, moment: clock.map(ForwardClock::now) });
        let (number, given, mark) = (state.epoch.state, state.epoch.given, state.mark);
        let is_read = Arc::strong_count(&state.epoch) > 1 && state.epoch.pin.get().is_none();
        let pinned = is_read.then(|| state.epoch.clone());
        drop(state);
        if let Some(epoch) = pinned
            && let Some(reader) = self.readers.take_now()
        {
            let _ = epoch.pin.set(Mutex::new(reader));
        }
        Ok(CommitUnderWay {
            cache: self,
            before: number,
            state: number,
            given,
            mark,
            changes: Changes::default(),
            changed_ranges: Vec::new(),
            done: false,
        })
    }

    /// Stops using the memory of the connection. From then on, snapshots begin as SQLite
    /// transactions.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.index = None;
        let (number, given) = (state.epoch.state, state.epoch.given);
        let before = std::mem::replace(&mut state.epoch, Epoch::new(number, given));
        drop(state);
        drop(before);
        self.clear();
    }

    fn clear(&self) {
        self.rows.clear();
        self.ranges.clear();
    }

    fn move_to_foreign(&self, state: &mut State, given: Given) {
        self.clear();
        state.highest = state.highest.next();
        state.epoch = Epoch::new(state.highest, given);
        state.mark = None;
        state.foreign = Some(Instant::now());
    }
}

impl State {
    /// Replaces the epoch, and returns the old one, to be dropped without the lock.
    ///
    /// An epoch with a pin is replaced even if the state stays the same: then only the snapshots
    /// that stand on it keep its connection open.
    fn leave_epoch(&mut self, number: StateNumber, given: Given) -> Option<Arc<Epoch>> {
        let is_same = self.epoch.state == number && self.epoch.pin.get().is_none();
        (!is_same).then(|| std::mem::replace(&mut self.epoch, Epoch::new(number, given)))
    }

    /// Whether no process has committed since the epoch.
    fn is_newest(&self) -> bool {
        self.mark.is_some() && self.mark == self.read_mark()
    }

    /// The time of a snapshot of the epoch, bounded if a commit is under way that the snapshot does
    /// not see.
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
        self.index.as_ref().and_then(LogIndex::mark)
    }
}

/// A commit of this process that is under way. Unless [`CommitUnderWay::done`] is called, it has
/// failed.
pub(crate) struct CommitUnderWay<'a> {
    cache: &'a Cache,
    /// The state before the commit.
    before: StateNumber,
    /// The state that the members leave that have written so far.
    pub(crate) state: StateNumber,
    /// The allocated versions before the commit.
    pub(crate) given: Given,
    mark: Option<Mark>,
    changes: Changes,
    /// The rows of the commit that are within cached ranges.
    changed_ranges: Vec<RowKey>,
    done: bool,
}

impl CommitUnderWay<'_> {
    /// Records a row that the next member writes.
    pub(crate) fn note(&mut self, row: &RowKey, write: &RowWrite<'_>, version: Version) {
        let written = Written { state: self.state.next(), version };
        self.cache.rows.note(&mut self.changes, row, write, written);
        if self.cache.ranges.contains(row) {
            self.changed_ranges.push(row.clone());
        }
    }

    /// Records that the next member has written all of its rows. Returns the state that it leaves.
    pub(crate) fn move_on(&mut self) -> StateNumber {
        self.state = self.state.next();
        self.state
    }

    /// Records that SQLite is about to be asked to commit. The first row that the commit rests on
    /// expires at `expires_at`.
    pub(crate) fn asked(&self, expires_at: Option<UnixMillis>) {
        let mut state = self.cache.state.lock();
        if let Some(under_way) = &mut state.committing {
            under_way.step = Committing::Asked(self.state, expires_at);
        }
        state.highest = state.highest.max(self.state);
    }

    /// Records that the commit is made, and begins its epoch. `wrote` says whether it wrote any
    /// page.
    pub(crate) fn done(mut self, given: Given, wrote: bool) {
        self.done = true;
        let number = self.state;
        let mut state = self.cache.state.lock();
        self.cache.rows.apply(std::mem::take(&mut self.changes));
        self.changed_ranges.iter().for_each(|row| self.cache.ranges.forget(row));
        state.highest = state.highest.max(number);
        let before = state.leave_epoch(number, given);
        // Another process may have committed after this commit released the write lock. The header
        // then is not that of our state. If this commit wrote nothing, it did not move the header,
        // so one commit's difference is another process's commit.
        let now = state.read_mark();
        let is_ours = self.mark.zip(now).is_some_and(|(before, now)| match wrote {
            true => now.is_one_commit_after(&before),
            false => now == before,
        });
        state.mark = now.filter(|_| is_ours);
        state.committing = None;
        // Dropping an epoch may close its connection. That must not happen under the lock.
        drop(state);
        drop(before);
    }
}

impl Drop for CommitUnderWay<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.cache.state.lock();
        // SQLite may have made the commit in spite of the error. The mark is kept, so the header
        // shows it: it equals the mark only if nothing was committed.
        state.committing = None;
        let before = state.leave_epoch(self.before, self.given);
        drop(state);
        drop(before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_core::MovableClock;

    use crate::location::Location;
    use crate::{SqliteOptions, connection};

    /// A cache, a connection of its process, and a connection that stands for another process.
    fn cache(folder: &std::path::Path) -> (Cache, Connection, Connection) {
        let location = Arc::new(Location::resolve(&folder.join("a.db")).unwrap());
        let options = SqliteOptions::default();
        let ours = connection::open_for_larder(&location, options, connection::BUSY_TIMEOUT).unwrap();
        crate::migrate::migrate(&ours, &location, options).unwrap();
        statements::last_version(&ours).unwrap();
        let theirs = connection::open(&location, options).unwrap();
        let readers = Arc::new(Readers::new(location, options));
        // SAFETY: the connection has just read, and the tests keep it for as long as the cache.
        let cache = unsafe { Cache::new(readers, &ours, 1 << 20) }.unwrap().unwrap();
        (cache, ours, theirs)
    }

    fn commit(connection: &Connection, version: u64) {
        statements::set_last_version(connection, Version(version)).unwrap();
    }

    /// Makes a commit of this process.
    fn commit_here(cache: &Cache, ours: &Connection, version: u64) -> StateNumber {
        let mut under_way = cache.begin_commit(ours, None).unwrap();
        let number = under_way.move_on();
        under_way.asked(None);
        commit(ours, version);
        under_way.done(Given::read(Version(version)), true);
        number
    }

    fn epoch(cache: &Cache) -> Option<Arc<Epoch>> {
        cache.epoch(&ForwardClock::default()).map(|(epoch, _)| epoch)
    }

    fn saw(cache: &Cache, reserved: Version, mark: Option<Mark>) -> Option<Seen> {
        cache.saw(reserved, mark, &ForwardClock::default()).map(|(seen, _)| seen)
    }

    #[test]
    fn an_epoch_is_valid_until_the_next_commit() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, theirs) = cache(folder.path());
        let first = epoch(&cache).unwrap().state;
        let mut under_way = cache.begin_commit(&ours, None).unwrap();
        assert!(epoch(&cache).is_none());
        let second = under_way.move_on();
        under_way.asked(None);
        commit(&ours, 1);
        under_way.done(Given::read(Version(1)), true);
        assert!(epoch(&cache).unwrap().state > first);
        commit(&theirs, 2);
        assert!(epoch(&cache).is_none());
        let seen = saw(&cache, Version(2), cache.mark()).unwrap();
        assert!(seen.is_cached && seen.state > second);
        // Right after a foreign commit, another one may follow.
        assert!(epoch(&cache).is_none());
    }

    #[test]
    fn who_commits_knows_the_versions_given_until_another_process_commits() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, theirs) = cache(folder.path());
        let given = Given { last: Version(1), reserved: Version(100) };
        let mut under_way = cache.begin_commit(&ours, None).unwrap();
        let number = under_way.move_on();
        commit(&ours, 100);
        under_way.done(given, true);
        let next = cache.begin_commit(&ours, None).unwrap();
        assert_eq!(next.given, given);
        drop(next);
        assert_eq!(cache.begin_commit(&ours, None).unwrap().given, given);
        // The next commit continues after the versions that it finds reserved.
        commit(&theirs, 200);
        let next = cache.begin_commit(&ours, None).unwrap();
        assert_eq!(next.given, Given::read(Version(200)));
        assert!(next.state > number);
    }

    #[test]
    fn a_state_that_another_process_left_has_a_number_of_its_own_even_where_the_table_did_not_change() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, _ours, theirs) = cache(folder.path());
        let mut numbers = vec![epoch(&cache).unwrap().state];
        for key in ["a", "b"] {
            // Within the block of versions that is reserved.
            theirs
                .execute("INSERT INTO larder_entries VALUES (x'', CAST(?1 AS BLOB), x'', 1, NULL)", [key])
                .unwrap();
            numbers.push(saw(&cache, Version(0), cache.mark()).unwrap().state);
        }
        assert!(numbers.is_sorted_by(|before, after| before < after), "{numbers:?}");
    }

    #[test]
    fn a_transaction_sees_the_commit_under_way_or_the_state_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        let mut under_way = cache.begin_commit(&ours, None).unwrap();
        let (before, after) = (under_way.state, under_way.move_on());
        let seen = saw(&cache, Version(0), cache.mark());
        assert_eq!(seen, Some(Seen { state: before, is_cached: true }));
        under_way.asked(None);
        let old = cache.mark();
        commit(&ours, 1);
        assert_eq!(saw(&cache, Version(0), old), None);
        let seen = saw(&cache, Version(1), cache.mark());
        assert_eq!(seen, Some(Seen { state: after, is_cached: false }));
        under_way.done(Given::read(Version(1)), true);
        assert_eq!(saw(&cache, Version(1), cache.mark()), Some(Seen { state: after, is_cached: true }));
    }

    #[test]
    fn the_number_of_a_commit_that_failed_is_not_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, theirs) = cache(folder.path());
        let mut under_way = cache.begin_commit(&ours, None).unwrap();
        let failed = under_way.move_on();
        under_way.asked(None);
        drop(under_way);
        commit(&theirs, 1);
        assert!(saw(&cache, Version(1), cache.mark()).unwrap().state > failed);
    }

    #[test]
    fn a_commit_of_another_process_behind_one_of_this_process_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, theirs) = cache(folder.path());
        let mut under_way = cache.begin_commit(&ours, None).unwrap();
        under_way.move_on();
        commit(&ours, 1);
        commit(&theirs, 2);
        under_way.done(Given::read(Version(1)), true);
        assert!(epoch(&cache).is_none());
    }

    #[test]
    fn a_commit_of_another_process_behind_one_that_wrote_nothing_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, theirs) = cache(folder.path());
        let under_way = cache.begin_commit(&ours, None).unwrap();
        let given = under_way.given;
        commit(&theirs, 1);
        under_way.done(given, false);
        assert!(epoch(&cache).is_none());
    }

    #[test]
    fn who_stands_on_an_epoch_reads_on_there_and_others_do_not_hold_it() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        let held = epoch(&cache).unwrap();
        commit_here(&cache, &ours, 1);
        let read = held.pin().unwrap().read_in_transaction(statements::last_version);
        assert_eq!(read.unwrap().unwrap(), Version(0));
        let weak = Arc::downgrade(&held);
        drop(held);
        assert!(weak.upgrade().is_none());
        // No snapshot stands on this epoch, so it is not pinned.
        drop(cache.begin_commit(&ours, None).unwrap());
        assert!(cache.state.lock().epoch.pin.get().is_none());
    }

    #[test]
    fn a_closed_cache_reads_nothing_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        cache.close();
        drop(ours);
        assert!(epoch(&cache).is_none() && cache.mark().is_none());
    }

    #[test]
    fn what_a_commit_rests_on_has_not_expired_for_a_snapshot_of_the_state_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        let moving = Arc::new(MovableClock::default());
        let clock = ForwardClock::new(moving.clone());
        let held = cache.epoch(&clock).unwrap();
        let begun = clock.now();
        let mut under_way = cache.begin_commit(&ours, Some(&clock)).unwrap();
        moving.advance(Duration::from_secs(60));
        let (epoch, moment) = cache.epoch(&clock).unwrap();
        assert_eq!(epoch.state, held.0.state);
        assert!((begun..begun + 30_000).contains(&moment), "{begun} {moment}");
        assert_eq!(cache.saw(Version(0), cache.mark(), &clock).unwrap().1, moment);
        under_way.move_on();
        let (until, later) = (begun + 30_000, begun + 600_000);
        for (expires_at, expected) in [(None, None), (Some(until), Some(until - 1)), (Some(later), None)] {
            under_way.asked(expires_at);
            let moment = cache.epoch(&clock).unwrap().1;
            assert!(expected.map_or(moment >= begun + 60_000, |expected| moment == expected), "{moment}");
        }
        commit(&ours, 1);
        assert!(cache.saw(Version(1), cache.mark(), &clock).unwrap().1 >= begun + 60_000);
        under_way.done(Given::read(Version(1)), true);
        assert!(cache.epoch(&clock).unwrap().1 >= begun + 60_000);
    }

    fn row(key: &str) -> RowKey {
        let limits = larder_core::Limits::default();
        let namespace = larder_core::name::Namespace::new("n", &limits).unwrap();
        RowKey { namespace, key: larder_core::name::Key::new(key, &limits).unwrap() }
    }

    fn stored(value: &[u8], version: u64) -> StoredValue {
        StoredValue { value: value.to_vec(), version: Version(version), expires_at: None }
    }

    fn all_rows() -> KeyRange {
        KeyRange::prefix(row("").namespace, b"")
    }

    /// One row, as a scan of all rows finds it.
    fn chunk(key: &[u8], version: u64) -> Chunk {
        let mut chunk = Chunk::default();
        let row =
            larder_core::chunk::ChunkRow { key, value: b"v", version: Version(version), expires_at: None };
        chunk.push(row).unwrap();
        chunk.exhausted = true;
        chunk
    }

    fn moment(state: StateNumber) -> Moment {
        Moment { state, now: 1_000 }
    }

    /// The version of the first row that a cached scan gives; `None` if it is not cached.
    fn scanned(cache: &Cache, state: StateNumber) -> Option<u64> {
        let options = ScanOptions { reverse: false, keys_only: false, max_rows: 9, max_bytes: 9_999 };
        match cache.beginning(&all_rows(), options, moment(state)).unwrap() {
            Beginning::Cached(found) => found.rows().next().map(|row| row.version.0),
            _ => None,
        }
    }

    fn got(cache: &Cache, key: &str, state: StateNumber) -> Option<Option<u64>> {
        cache.get(&row(key), moment(state)).map(|found| found.map(|found| found.version.0))
    }

    #[test]
    fn what_is_read_between_commits_is_cached_and_what_is_read_during_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        let state = epoch(&cache).unwrap().state;
        cache.fill(&row("a"), moment(state), Some(&stored(b"v", 7)));
        cache.fill(&row("b"), moment(state), None);
        assert_eq!((got(&cache, "a", state), got(&cache, "b", state)), (Some(Some(7)), Some(None)));
        cache.fill_range(&all_rows(), &chunk(b"a", 7), moment(state));
        assert_eq!(scanned(&cache, state), Some(7));

        // The commit has looked up which cached rows it changes, and does not change these.
        let mut under_way = cache.begin_commit(&ours, None).unwrap();
        cache.fill(&row("c"), moment(state), Some(&stored(b"v", 7)));
        let other = KeyRange::prefix(row("").namespace, b"z");
        cache.fill_range(&other, &chunk(b"z", 7), moment(state));
        let number = under_way.move_on();
        under_way.asked(None);
        commit(&ours, 1);
        under_way.done(Given::read(Version(1)), true);
        assert_eq!(got(&cache, "c", number), None);
        assert_eq!(got(&cache, "a", number), Some(Some(7)), "what was cached before holds");
        assert_eq!(scanned(&cache, number), Some(7));

        // A read of the state before the commit says nothing about the state after it.
        cache.fill(&row("d"), moment(state), Some(&stored(b"v", 7)));
        cache.fill_range(&other, &chunk(b"z", 7), moment(state));
        assert_eq!(got(&cache, "d", number), None);
        cache.fill(&row("d"), moment(number), Some(&stored(b"v", 8)));
        assert_eq!(got(&cache, "d", number), Some(Some(8)));
        assert_eq!(got(&cache, "d", state), None, "the earlier state may differ");
    }

    #[test]
    fn a_commit_changes_the_cached_rows_that_it_writes_and_forgets_the_ranges_around_them() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        let state = epoch(&cache).unwrap().state;
        for key in ["a", "b", "c"] {
            cache.fill(&row(key), moment(state), Some(&stored(b"v", 7)));
        }
        cache.fill_range(&all_rows(), &chunk(b"a", 7), moment(state));
        let mut under_way = cache.begin_commit(&ours, None).unwrap();
        let put = RowWrite::Put { value: b"new".as_slice().into(), expires_at: None };
        under_way.note(&row("a"), &put, Version(8));
        under_way.note(&row("b"), &RowWrite::Delete, Version(8));
        under_way.note(&row("not cached"), &put, Version(8));
        let number = under_way.move_on();
        under_way.asked(None);
        assert_eq!(got(&cache, "a", state), Some(Some(7)), "not before it is made");
        commit(&ours, 8);
        under_way.done(Given::read(Version(8)), true);
        let after = ["a", "b", "c", "not cached"].map(|key| got(&cache, key, number));
        assert_eq!(after, [Some(Some(8)), Some(None), Some(Some(7)), None]);
        assert_eq!((got(&cache, "a", state), scanned(&cache, number)), (None, None));
    }

    #[test]
    fn a_commit_that_failed_leaves_what_is_cached_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        let state = epoch(&cache).unwrap().state;
        cache.fill(&row("a"), moment(state), Some(&stored(b"v", 7)));
        cache.fill_range(&all_rows(), &chunk(b"a", 7), moment(state));
        let mut under_way = cache.begin_commit(&ours, None).unwrap();
        under_way.note(&row("a"), &RowWrite::Delete, Version(8));
        under_way.move_on();
        under_way.asked(None);
        drop(under_way);
        assert_eq!(epoch(&cache).unwrap().state, state);
        assert_eq!((got(&cache, "a", state), scanned(&cache, state)), (Some(Some(7)), Some(7)));
        // The header shows that SQLite did not make it, so its number is free.
        assert_eq!(commit_here(&cache, &ours, 8), state.next());
    }

    #[test]
    fn a_commit_of_another_process_empties_the_cache_once_it_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, _ours, theirs) = cache(folder.path());
        let state = epoch(&cache).unwrap().state;
        assert!(!cache.has_company(Duration::from_secs(3_600)));
        cache.fill(&row("a"), moment(state), Some(&stored(b"v", 7)));
        cache.fill_range(&all_rows(), &chunk(b"a", 7), moment(state));
        assert!(cache.epoch_at(state).is_some());
        commit(&theirs, 9);
        assert!(cache.epoch_at(state).is_none(), "it is not the newest state");
        let seen = saw(&cache, Version(9), cache.mark()).unwrap().state;
        assert_eq!((got(&cache, "a", seen), scanned(&cache, seen)), (None, None));
        assert!(cache.epoch_at(seen).is_some() && cache.epoch_at(state).is_none());
        assert!(cache.has_company(Duration::from_secs(3_600)) && !cache.has_company(Duration::ZERO));
    }

    #[test]
    fn an_epoch_is_not_given_by_its_number_while_a_commit_is_under_way() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        let state = epoch(&cache).unwrap().state;
        let under_way = cache.begin_commit(&ours, None).unwrap();
        assert!(cache.epoch_at(state).is_none());
        drop(under_way);
        assert!(cache.epoch_at(state).is_some() && cache.epoch_at(state.next()).is_none());
    }

    #[test]
    fn versions_are_reserved_until_the_last_of_them_is_allocated() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        for (last, is_reserved) in [(99, true), (100, false)] {
            let mut under_way = cache.begin_commit(&ours, None).unwrap();
            under_way.move_on();
            under_way.asked(None);
            commit(&ours, 100 + last);
            let given = Given { last: Version(100 + last), reserved: Version(200) };
            under_way.done(given, true);
            assert_eq!(cache.has_reserved(), is_reserved);
        }
    }
}
