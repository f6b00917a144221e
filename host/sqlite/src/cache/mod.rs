//! The committed state as this process knows it.
//!
//! Most snapshots need no transaction of SQLite, and most reads no statement: a snapshot stands on an [`Epoch`], the version
//! of the last commit, and reads cached rows. Only a row that is not cached has it take a connection. What keeps that right:
//!
//! - An epoch is given out only while the index of the log says that nobody has committed since: neither this process nor
//!   another one.
//! - A cached row holds from the version that wrote it up to the current epoch's. Commits of this process change it
//!   before there is an epoch of theirs; a commit of another process empties the cache.
//! - Before this process commits, it opens a connection at the epoch that snapshots stand on: they all read there what
//!   is not cached. Where another process commits, such a snapshot has nowhere to read from: that is a conflict, which
//!   costs a run again, and for a while snapshots are transactions of SQLite from the beginning.

mod log_index;
mod rows;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use larder_core::backend::{StoredValue, Version};
use larder_core::commit::RowWrite;
use larder_core::name::RowKey;
use rusqlite::Connection;

pub(crate) use log_index::{LogIndex, Mark};
pub(crate) use rows::Moment;
use rows::{CachedRows, Changes};

use crate::readers::{Reader, Readers};

/// How long snapshots are taken in SQLite after another process has committed, which may do so again.
const WARY: Duration = Duration::from_millis(100);

/// What is known of the committed state of one database.
pub(crate) struct Cache {
    rows: CachedRows,
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
    committing: bool,
    /// When another process was last seen to have committed.
    foreign: Option<Instant>,
}

/// The state that a commit left, for all who read it.
pub(crate) struct Epoch {
    pub(crate) version: Version,
    /// A connection that still sees it, once it is no longer the newest. It goes with the last who needs it.
    pin: OnceLock<Mutex<Reader>>,
}

impl Epoch {
    fn new(version: Version) -> Arc<Self> {
        Arc::new(Self { version, pin: OnceLock::new() })
    }

    /// The connection that still sees it.
    pub(crate) fn pin(&self) -> Option<MutexGuard<'_, Reader>> {
        self.pin.get().map(lock)
    }
}

impl Cache {
    /// The cache of the database that a writer's connection has open at `version`; none where nothing may be cached.
    ///
    /// # Safety
    /// The connection has read, and stays open until [`Cache::close`] is called.
    pub(crate) unsafe fn new(
        readers: Arc<Readers>,
        connection: &Connection,
        version: Version,
        bytes: u64,
    ) -> Option<Self> {
        if bytes == 0 {
            return None;
        }
        // SAFETY: as promised; the mark is read under the lock that `close` takes.
        let index = unsafe { LogIndex::of(connection) }?;
        let state = State {
            index: Some(index),
            epoch: Epoch::new(version),
            // Somebody may have committed since the version was read.
            mark: None,
            committing: false,
            foreign: None,
        };
        Some(Self { rows: CachedRows::new(bytes), readers, state: Mutex::new(state) })
    }

    /// The newest state, where it is known which one that is and somebody can read on at it once it is no longer the
    /// newest.
    pub(crate) fn epoch(&self) -> Option<Arc<Epoch>> {
        let state = lock(&self.state);
        let is_newest = state.is_newest();
        let is_readable = !state.committing || state.epoch.pin.get().is_some();
        let is_calm = state.foreign.is_none_or(|foreign| foreign.elapsed() >= WARY);
        (is_newest && is_readable && is_calm).then(|| state.epoch.clone())
    }

    /// The version that the database is at, where that is known without a look into it. It stays so only while somebody
    /// holds the lock that keeps others from committing.
    pub(crate) fn version(&self) -> Option<Version> {
        let state = lock(&self.state);
        state.is_newest().then_some(state.epoch.version)
    }

    /// What [`Cache::saw`] is to be told.
    pub(crate) fn mark(&self) -> Option<Mark> {
        lock(&self.state).read_mark()
    }

    /// A snapshot was taken at `version`, after the mark was read. Says whether it may read here.
    pub(crate) fn saw(&self, version: Version, mark: Option<Mark>) -> bool {
        let mut state = lock(&self.state);
        if state.committing || version < state.epoch.version {
            // The commit that is being made is seen before its rows are here.
            return version <= state.epoch.version;
        }
        if version > state.epoch.version {
            self.move_to_foreign(&mut state, version);
        }
        if state.mark != mark && mark == state.read_mark() {
            state.mark = mark;
        }
        true
    }

    /// The row as a snapshot sees it; none where only the database can tell.
    pub(crate) fn get(&self, row: &RowKey, moment: Moment) -> Option<Option<StoredValue>> {
        self.rows.get(row, moment)
    }

    /// Keeps what a snapshot found in the database.
    pub(crate) fn fill(&self, row: &RowKey, moment: Moment, found: Option<&StoredValue>) {
        let state = lock(&self.state);
        if !state.committing && state.epoch.version == moment.version {
            self.rows.fill(row, moment, found);
        }
    }

    /// This process is about to commit, and holds the lock that keeps others from it; the database is at `before`.
    pub(crate) fn begin_commit(&self, before: Version) -> CommitUnderWay<'_> {
        let mut state = lock(&self.state);
        if state.epoch.version != before {
            self.move_to_foreign(&mut state, before);
        }
        state.committing = true;
        let mark = state.read_mark();
        state.mark = mark;
        let is_read = Arc::strong_count(&state.epoch) > 1 && state.epoch.pin.get().is_none();
        let pinned = is_read.then(|| state.epoch.clone());
        drop(state);
        if let Some(epoch) = pinned
            && let Some(reader) = self.readers.take_at(epoch.version)
        {
            let _ = epoch.pin.set(Mutex::new(reader));
        }
        CommitUnderWay { cache: self, mark, changes: Changes::default(), done: false }
    }

    /// Lets go of the connection's memory. Later snapshots are taken in SQLite.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.index = None;
        let epoch = Epoch::new(state.epoch.version);
        let before = std::mem::replace(&mut state.epoch, epoch);
        drop(state);
        drop(before);
        self.rows.clear();
    }

    fn move_to_foreign(&self, state: &mut State, version: Version) {
        self.rows.clear();
        state.epoch = Epoch::new(version);
        state.mark = None;
        state.foreign = Some(Instant::now());
    }
}

impl State {
    /// Moves on to a version. A connection that was opened for those who stand on the epoch is theirs alone then.
    fn leave_epoch(&mut self, version: Version) -> Option<Arc<Epoch>> {
        let is_same = self.epoch.version == version && self.epoch.pin.get().is_none();
        (!is_same).then(|| std::mem::replace(&mut self.epoch, Epoch::new(version)))
    }

    /// Whether nobody has committed since the epoch.
    fn is_newest(&self) -> bool {
        self.mark.is_some() && self.mark == self.read_mark()
    }

    fn read_mark(&self) -> Option<Mark> {
        self.index.as_ref().and_then(LogIndex::mark)
    }
}

/// A commit of this process. Unless it is done, nothing of it counts.
pub(crate) struct CommitUnderWay<'a> {
    cache: &'a Cache,
    /// Of the state before it.
    mark: Option<Mark>,
    changes: Changes,
    done: bool,
}

impl CommitUnderWay<'_> {
    /// A row is written.
    pub(crate) fn note(&mut self, row: &RowKey, write: &RowWrite<'_>, version: Version) {
        self.cache.rows.note(&mut self.changes, row, write, version);
    }

    /// It is made, and the database is at `version`.
    pub(crate) fn done(mut self, version: Version) {
        self.done = true;
        let mut state = lock(&self.cache.state);
        self.cache.rows.apply(std::mem::take(&mut self.changes));
        let wrote = state.epoch.version != version;
        let before = state.leave_epoch(version);
        // Others may have committed once this commit was made: then the mark is not of this state. One that moved no
        // version may have written nothing at all, and what one commit moved the mark by is then somebody else's.
        let now = state.read_mark();
        let is_ours = match self.mark.zip(now) {
            Some((before, now)) if wrote => now.is_one_commit_after(&before),
            marks => marks.is_some_and(|(before, now)| now == before),
        };
        state.mark = now.filter(|_| is_ours);
        state.committing = false;
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
        state.committing = false;
        // Whether anything is in the file after all, the next snapshot sees.
        state.mark = None;
        let version = state.epoch.version;
        let before = state.leave_epoch(version);
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
    use crate::{SqliteOptions, connection, rows as statements};

    /// A cache, with a connection of its own process and one of another.
    fn cache(folder: &std::path::Path) -> (Cache, Connection, Connection) {
        let path = folder.join("a.db");
        let options = SqliteOptions::default();
        let mut ours = connection::open(&path, options).unwrap();
        crate::migrate::migrate(&mut ours).unwrap();
        let version = statements::last_version(&ours).unwrap();
        let theirs = connection::open(&path, options).unwrap();
        let readers = Arc::new(Readers::new(path, options));
        // SAFETY: it has just read, and the tests keep it as long as the cache.
        let cache = unsafe { Cache::new(readers, &ours, version, 1 << 20) }.unwrap();
        cache.saw(version, cache.mark());
        (cache, ours, theirs)
    }

    fn commit(connection: &Connection, version: u64) {
        statements::set_last_version(connection, Version(version)).unwrap();
    }

    #[test]
    fn an_epoch_stands_until_somebody_commits() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, theirs) = cache(folder.path());
        assert_eq!(cache.epoch().unwrap().version, Version(0));
        let under_way = cache.begin_commit(Version(0));
        assert!(cache.epoch().is_none());
        commit(&ours, 1);
        under_way.done(Version(1));
        assert_eq!(cache.epoch().unwrap().version, Version(1));
        assert_eq!(cache.version(), Some(Version(1)));
        commit(&theirs, 2);
        assert!(cache.epoch().is_none() && cache.version().is_none());
        cache.saw(Version(2), cache.mark());
        assert_eq!(cache.version(), Some(Version(2)));
        // For a while there may be more of them.
        assert!(cache.epoch().is_none());
    }

    #[test]
    fn a_commit_of_another_process_behind_one_of_this_process_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, theirs) = cache(folder.path());
        let under_way = cache.begin_commit(Version(0));
        commit(&ours, 1);
        commit(&theirs, 2);
        under_way.done(Version(1));
        assert!(cache.epoch().is_none());
    }

    #[test]
    fn a_commit_of_another_process_behind_one_that_wrote_nothing_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, _ours, theirs) = cache(folder.path());
        let under_way = cache.begin_commit(Version(0));
        commit(&theirs, 1);
        under_way.done(Version(0));
        assert!(cache.epoch().is_none());
    }

    #[test]
    fn who_stands_on_an_epoch_reads_on_there_and_others_do_not_hold_it() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        let held = cache.epoch().unwrap();
        let under_way = cache.begin_commit(Version(0));
        commit(&ours, 1);
        under_way.done(Version(1));
        let version = statements::last_version(held.pin().unwrap().connection().unwrap()).unwrap();
        assert_eq!(version, Version(0));
        let weak = Arc::downgrade(&held);
        drop(held);
        assert!(weak.upgrade().is_none());
        // Nobody stands on this one.
        drop(cache.begin_commit(Version(1)));
        assert!(lock(&cache.state).epoch.pin.get().is_none());
    }

    #[test]
    fn a_closed_cache_reads_nothing_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, ours, _theirs) = cache(folder.path());
        cache.close();
        drop(ours);
        assert!(cache.epoch().is_none() && cache.mark().is_none());
    }
}
