//! The committed state as this process knows it.
//!
//! Most snapshots need no transaction of SQLite, and most reads no statement: a snapshot stands on an [`Epoch`], the state that
//! the last commit left, and reads cached rows. Only a row that is not cached has it take a connection. What keeps that right:
//!
//! - An epoch is given out only while the index of the log says that nobody has committed since: neither this process nor
//!   another one.
//! - States are counted within this process, and no number is given twice. A cached row holds from the state that wrote it,
//!   or in which it was found, up to the current epoch's. Commits of this process change it before there is an epoch of
//!   theirs; a commit of another process empties the cache.
//! - Before this process commits, it opens a connection at the epoch that snapshots stand on: they all read there what
//!   is not cached. Where another process commits, such a snapshot has nowhere to read from: that is a conflict, which
//!   costs a run again, and for a while snapshots are transactions of SQLite from the beginning.
//! - A snapshot's moment is taken under the lock that says which state it sees. While a commit is under way that the
//!   snapshot doesn't see, what the commit rests on has not expired for the snapshot either: its moment is that of the commit
//!   until it is decided, and after that it is before the first row expires on which the commit rests.
//! - As long as nobody else commits, this process knows which versions were given, and the table need not: it says only
//!   up to which they may have been (see [`Given`]). Writing that with every commit would be one page more for each.

mod log_index;
mod ranges;
mod rows;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use larder_core::Result;
use larder_core::backend::{Chunk, ScanOptions, StoredValue, Version};
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::commit::RowWrite;
use larder_core::name::{KeyRange, RowKey};
use rusqlite::Connection;

pub(crate) use log_index::{LogIndex, Mark};
pub(crate) use ranges::Beginning;
use ranges::CachedRanges;
pub(crate) use rows::Moment;
use rows::{CachedRows, Changes, Written};

use crate::readers::{Reader, Readers};
use crate::rows as statements;

/// How long snapshots are taken in SQLite after another process has committed, which may do so again.
const WARY: Duration = Duration::from_millis(100);

/// Which part of the bytes is for ranges.
const RANGES_PART: u64 = 4;

/// What is known of the committed state of one database.
pub(crate) struct Cache {
    keeps_rows: bool,
    rows: CachedRows,
    ranges: CachedRanges,
    readers: Arc<Readers>,
    state: Mutex<State>,
}

struct State {
    /// None once the connection that has it mapped is closed.
    index: Option<LogIndex>,
    epoch: Arc<Epoch>,
    /// The index's mark for as long as the database is at the epoch; none where it isn't known.
    mark: Option<Mark>,
    /// A commit of this process is being made.
    committing: Option<UnderWay>,
    /// The highest number that a state was given.
    highest: StateNumber,
    /// When another process was last seen to have committed.
    foreign: Option<Instant>,
}

/// How far a commit has come.
#[derive(Clone, Copy)]
enum Committing {
    /// It is not asked of SQLite yet.
    Begun,
    /// It may be made any moment, and leaves this state. The first row on which it rests expires then.
    Asked(StateNumber, Option<UnixMillis>),
}

/// A commit of this process that is being made.
#[derive(Clone, Copy)]
struct UnderWay {
    step: Committing,
    /// No member's moment is before it; none where rows are not what is committed.
    moment: Option<UnixMillis>,
}

/// A state of the database, as this process counts them: each commit of its own is one more, and so is whatever others did
/// in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StateNumber(u64);

impl StateNumber {
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// For the log of commits, which counts in versions.
    pub(crate) fn as_version(self) -> Version {
        Version(self.0)
    }
}

/// Which versions were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// None above this one.
    pub(crate) last: Version,
    /// Up to which one the table says that they may have been: who knows no better goes on from there.
    pub(crate) reserved: Version,
}

impl Given {
    /// As the table says it.
    pub(crate) fn read(reserved: Version) -> Self {
        Self { last: reserved, reserved }
    }
}

/// The state that a commit left, for all who read it.
pub(crate) struct Epoch {
    pub(crate) state: StateNumber,
    given: Given,
    /// A connection that still sees it, once it is no longer the newest. It goes with the last who needs it.
    pin: OnceLock<Mutex<Reader>>,
}

impl Epoch {
    fn new(state: StateNumber, given: Given) -> Arc<Self> {
        Arc::new(Self { state, given, pin: OnceLock::new() })
    }

    /// The connection that still sees it.
    pub(crate) fn pin(&self) -> Option<MutexGuard<'_, Reader>> {
        self.pin.get().map(lock)
    }

    /// Whether a connection was opened for it.
    pub(crate) fn has_pin(&self) -> bool {
        self.pin.get().is_some()
    }

    /// Whether a connection still sees it: a failed read ends the transaction for all who share it.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pin().is_some_and(|pin| pin.is_in_transaction())
    }
}

/// Which state a transaction of SQLite sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) state: StateNumber,
    /// Whether what is cached is of this state too.
    pub(crate) is_cached: bool,
}

impl Cache {
    /// The cache of the database that a writer's connection has open; none where SQLite shows no index of its log. With 0
    /// bytes no rows are kept, and snapshots are transactions of SQLite; which states they see is known all the same.
    ///
    /// # Safety
    /// The connection has read, and stays open until [`Cache::close`] is called.
    pub(crate) unsafe fn new(
        readers: Arc<Readers>,
        connection: &Connection,
        bytes: u64,
    ) -> Result<Option<Self>> {
        // SAFETY: as promised; the mark is read under the lock that `close` takes.
        let Some(index) = (unsafe { LogIndex::of(connection) }) else { return Ok(None) };
        let mark = index.mark();
        let given = Given::read(statements::last_version(connection)?);
        // Where somebody has committed meanwhile, it is not known of which state this is.
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

    /// The newest state, where it is known which one that is and somebody can read on at it once it is no longer the
    /// newest; with the moment of a snapshot that stands on it.
    pub(crate) fn epoch(&self, clock: &ForwardClock) -> Option<(Arc<Epoch>, UnixMillis)> {
        let state = lock(&self.state);
        let is_newest = state.is_newest();
        let is_readable = state.committing.is_none() || state.epoch.pin.get().is_some();
        let is_calm = state.foreign.is_none_or(|foreign| foreign.elapsed() >= WARY);
        (self.keeps_rows && is_newest && is_readable && is_calm)
            .then(|| (state.epoch.clone(), state.moment_before_commit(clock)))
    }

    /// The newest state, if it is this one, is known to be the newest, and no commit is under way.
    pub(crate) fn epoch_at(&self, number: StateNumber) -> Option<Arc<Epoch>> {
        let state = lock(&self.state);
        let is_it = state.epoch.state == number && state.committing.is_none() && state.is_newest();
        (self.keeps_rows && is_it).then(|| state.epoch.clone())
    }

    /// Whether another process was seen to commit within that time.
    pub(crate) fn has_company(&self, within: Duration) -> bool {
        lock(&self.state).foreign.is_some_and(|foreign| foreign.elapsed() < within)
    }

    /// How long the log is.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.mark().map_or(0, |mark| mark.log_bytes())
    }

    /// Whether versions are reserved that were not given yet.
    pub(crate) fn has_reserved(&self) -> bool {
        let Given { last, reserved } = lock(&self.state).epoch.given;
        last < reserved
    }

    /// What [`Cache::saw`] is to be told.
    pub(crate) fn mark(&self) -> Option<Mark> {
        lock(&self.state).read_mark()
    }

    /// A transaction of SQLite was begun after the mark was read, and found the table to say `reserved`. Gives the state
    /// that it sees, and the moment of its snapshot; none where that can't be told, as somebody has committed meanwhile.
    pub(crate) fn saw(
        &self,
        reserved: Version,
        mark: Option<Mark>,
        clock: &ForwardClock,
    ) -> Option<(Seen, UnixMillis)> {
        let mut state = lock(&self.state);
        let mark = mark.filter(|mark| state.read_mark() == Some(*mark))?;
        if state.mark == Some(mark) {
            let seen = Seen { state: state.epoch.state, is_cached: self.keeps_rows };
            return Some((seen, state.moment_before_commit(clock)));
        }
        match state.committing.map(|under_way| under_way.step) {
            // Nobody else can have committed in between. Its rows are not here yet.
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

    /// The row as a snapshot sees it; none where only the database can tell.
    pub(crate) fn get(&self, row: &RowKey, moment: Moment) -> Option<Option<StoredValue>> {
        self.rows.get(row, moment)
    }

    /// Keeps what a snapshot found in the database.
    pub(crate) fn fill(&self, row: &RowKey, moment: Moment, found: Option<&StoredValue>) {
        let state = lock(&self.state);
        if self.keeps_rows && state.committing.is_none() && state.epoch.state == moment.state {
            self.rows.fill(row, moment, found);
        }
    }

    /// The rows that a range begins with, as a snapshot sees them, or the part of it that only the database can tell of. The
    /// range is not empty.
    pub(crate) fn beginning(
        &self,
        range: &KeyRange,
        options: ScanOptions,
        moment: Moment,
    ) -> Result<Beginning> {
        self.ranges.beginning(range, options, moment)
    }

    /// Keeps what a snapshot found in the database, scanning forward with values.
    pub(crate) fn fill_range(&self, range: &KeyRange, chunk: &Chunk, moment: Moment) {
        if !self.keeps_rows || !self.ranges.takes(range, chunk) {
            return;
        }
        // Copied before anybody has to wait.
        let rows = Arc::new(chunk.clone());
        let state = lock(&self.state);
        if state.committing.is_none() && state.epoch.state == moment.state {
            self.ranges.fill(range, rows, moment);
        }
    }

    /// This process is about to commit, on `connection`, which holds the lock that keeps others from it. The clock tells its
    /// moment, where it has one.
    pub(crate) fn begin_commit(
        &self,
        connection: &Connection,
        clock: Option<&ForwardClock>,
    ) -> Result<CommitUnderWay<'_>> {
        let mut state = lock(&self.state);
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

    /// Lets go of the connection's memory. Later snapshots are taken in SQLite.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
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
    /// Moves on. A connection that was opened for those who stand on the epoch is theirs alone then.
    fn leave_epoch(&mut self, number: StateNumber, given: Given) -> Option<Arc<Epoch>> {
        let is_same = self.epoch.state == number && self.epoch.pin.get().is_none();
        (!is_same).then(|| std::mem::replace(&mut self.epoch, Epoch::new(number, given)))
    }

    /// Whether nobody has committed since the epoch.
    fn is_newest(&self) -> bool {
        self.mark.is_some() && self.mark == self.read_mark()
    }

    /// The moment of a snapshot of the state before the commit under way, if there is one.
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

/// A commit of this process. Unless it is done, nothing of it counts.
pub(crate) struct CommitUnderWay<'a> {
    cache: &'a Cache,
    /// Before it.
    before: StateNumber,
    /// That its members leave, as far as they have written.
    pub(crate) state: StateNumber,
    /// Before it.
    pub(crate) given: Given,
    mark: Option<Mark>,
    changes: Changes,
    /// Rows that it writes within cached ranges.
    changed_ranges: Vec<RowKey>,
    done: bool,
}

impl CommitUnderWay<'_> {
    /// The next member writes a row.
    pub(crate) fn note(&mut self, row: &RowKey, write: &RowWrite<'_>, version: Version) {
        let written = Written { state: self.state.next(), version };
        self.cache.rows.note(&mut self.changes, row, write, written);
        if self.cache.ranges.contains(row) {
            self.changed_ranges.push(row.clone());
        }
    }

    /// The next member has written all of its rows. Gives the state that it leaves.
    pub(crate) fn move_on(&mut self) -> StateNumber {
        self.state = self.state.next();
        self.state
    }

    /// SQLite is about to be asked for it. The first row on which it rests expires at `expires_at`.
    pub(crate) fn asked(&self, expires_at: Option<UnixMillis>) {
        let mut state = lock(&self.cache.state);
        if let Some(under_way) = &mut state.committing {
            under_way.step = Committing::Asked(self.state, expires_at);
        }
        state.highest = state.highest.max(self.state);
    }

    /// It is made. `wrote` says whether any page was written.
    pub(crate) fn done(mut self, given: Given, wrote: bool) {
        self.done = true;
        let number = self.state;
        let mut state = lock(&self.cache.state);
        self.cache.rows.apply(std::mem::take(&mut self.changes));
        self.changed_ranges.iter().for_each(|row| self.cache.ranges.forget(row));
        state.highest = state.highest.max(number);
        let before = state.leave_epoch(number, given);
        // Others may have committed once this commit was made: then the mark is not of this state. Where nothing was
        // written, what one commit moved the mark by is somebody else's.
        let now = state.read_mark();
        let is_ours = self.mark.zip(now).is_some_and(|(before, now)| match wrote {
            true => now.is_one_commit_after(&before),
            false => now == before,
        });
        state.mark = now.filter(|_| is_ours);
        state.committing = None;
        // The connections of an epoch are given back without the lock.
        drop(state);
        drop(before);
    }
}

impl Drop for CommitUnderWay<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = lock(&self.cache.state);
        // Whether anything is in the file after all, the mark shows: it is the one of before only where nothing is.
        state.committing = None;
        let before = state.leave_epoch(self.before, self.given);
        drop(state);
        drop(before);
    }
}

/// A panic elsewhere can't have left any of it half changed: that is done by assignments.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_core::MovableClock;

    use crate::location::Location;
    use crate::{SqliteOptions, connection};

    /// A cache, with a connection of its own process and one of another.
    fn cache(folder: &std::path::Path) -> (Cache, Connection, Connection) {
        let location = Arc::new(Location::resolve(&folder.join("a.db")).unwrap());
        let options = SqliteOptions::default();
        let ours = connection::open_for_larder(&location, options, connection::BUSY_TIMEOUT).unwrap();
        crate::migrate::migrate(&ours, &location, options).unwrap();
        statements::last_version(&ours).unwrap();
        let theirs = connection::open(&location, options).unwrap();
        let readers = Arc::new(Readers::new(location, options));
        // SAFETY: it has just read, and the tests keep it as long as the cache.
        let cache = unsafe { Cache::new(readers, &ours, 1 << 20) }.unwrap().unwrap();
        (cache, ours, theirs)
    }

    fn commit(connection: &Connection, version: u64) {
        statements::set_last_version(connection, Version(version)).unwrap();
    }

    /// Commits in this process.
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
    fn an_epoch_stands_until_somebody_commits() {
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
        // For a while there may be more of them.
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
        // It goes on from what it finds reserved.
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
            // Within what it has reserved.
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
        // Nobody stands on this one.
        drop(cache.begin_commit(&ours, None).unwrap());
        assert!(lock(&cache.state).epoch.pin.get().is_none());
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
}
