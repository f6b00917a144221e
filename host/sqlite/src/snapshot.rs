//! Snapshots of one committed state, which read the cache first and the database second.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use larder_core::chunk::{Chunk, ScanOptions};
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::commit::{Commit, Committed};
use larder_core::name::{Key, KeyRange, Namespace, RowKey};
use larder_core::row::StoredValue;
use larder_core::slice::{STATEMENT, STORED_ROW, Slice, give_way};
use larder_core::snapshot::{Many, ManyRows, Snapshot, SnapshotOptions};
use larder_core::{Error, Result, Share};
use rusqlite::Connection;

use crate::commit_clock::{CommittedState, Seen};
use crate::readers::{Reader, Readers};
use crate::row_cache::{Beginning, Moment};
use crate::rows::{NextNamespace, Scanned};
use crate::writer::Writer;
use crate::{blocking, rows, validation};

/// A snapshot of one committed state. It reads on the caller's thread, because a switch to another
/// thread costs more than a read.
pub(crate) struct SqliteSnapshot {
    base: Base,
    /// The number of the state. `None` if it is unknown.
    seen: Option<Seen>,
    /// Whether the snapshot has returned anything that depends on its state. Until then it may move
    /// to another state.
    is_seen: bool,
    clock: ForwardClock,
    /// The time at which the snapshot decides which rows have expired. It belongs to the state: see
    /// [`crate::commit_clock`].
    now: UnixMillis,
    deadline: Instant,
    share: Share,
    readers: Arc<Readers>,
    writer: Arc<Writer>,
}

/// Where the snapshot reads rows that are not cached.
enum Base {
    /// No connection yet. The state may be pinned later.
    Unpinned(Arc<CommittedState>),
    /// A read transaction of its own.
    Reader(Reader),
    /// The read transaction that all snapshots on the state share.
    Pinned(Arc<CommittedState>),
}

impl SqliteSnapshot {
    pub(crate) async fn take(
        readers: &Arc<Readers>,
        writer: &Arc<Writer>,
        options: SnapshotOptions,
    ) -> Result<Self> {
        let (readers, writer) = (readers.clone(), writer.clone());
        let SnapshotOptions { clock, deadline, share, .. } = options;
        let (base, seen, now) = match writer.clock().newest(&clock) {
            Some((state, now)) => {
                let seen = Seen { state: state.number, is_cached: true };
                (Base::Unpinned(state), Some(seen), now)
            }
            None => {
                let (reader, seen, now) = begin(&readers, &writer, &clock, &share, deadline).await?;
                (Base::Reader(reader), seen, now)
            }
        };
        Ok(Self { base, seen, is_seen: false, clock, now, deadline, share, readers, writer })
    }

    /// Reads the database in the snapshot's state, if that is still possible.
    ///
    /// `work` gets the time of the snapshot, because it may change together with the state on the
    /// first read.
    async fn read<T>(&mut self, work: impl FnOnce(&Connection, UnixMillis) -> Result<T> + Send) -> Result<T> {
        if let Base::Unpinned(state) = &self.base {
            let state = state.clone();
            self.connect(state).await?;
        }
        self.is_seen = true;
        let now = self.now;
        let work = |connection: &Connection| work(connection, now);
        let read = match &self.base {
            Base::Reader(reader) => reader.read_in_transaction(work),
            Base::Pinned(state) => state.pin().and_then(|pin| pin.read_in_transaction(work)),
            Base::Unpinned(_) => None,
        };
        // A failed read, possibly of another snapshot, has ended the transaction, so the state can
        // no longer be read.
        read.unwrap_or(Err(Error::Conflict))
    }

    /// Moves to a connection that sees the state. While it is the newest state, any new connection
    /// does.
    async fn connect(&mut self, state: Arc<CommittedState>) -> Result<()> {
        if !state.is_pinned() {
            let (reader, seen, now) =
                begin(&self.readers, &self.writer, &self.clock, &self.share, self.deadline).await?;
            let is_same = seen.is_some_and(|seen| seen.state == state.number);
            if is_same {
                (self.base, self.seen) = (Base::Reader(reader), seen);
                return Ok(());
            }
            if !self.is_seen {
                self.writer.kept_until(self.deadline).await?;
                (self.base, self.seen, self.now) = (Base::Reader(reader), seen, now);
                return Ok(());
            }
            // If another process committed, the state was not pinned.
            if !state.is_pinned() {
                return Err(Error::Conflict);
            }
        }
        self.base = Base::Pinned(state);
        Ok(())
    }

    fn cached(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        let cached = self.writer.clock().rows().get(row, self.cached_moment()?)?;
        self.is_seen = true;
        Some(cached)
    }

    fn fill(&self, row: &RowKey, found: Option<&StoredValue>) {
        if let Some(moment) = self.moment() {
            self.writer.clock().fill(moment.state, |rows, right| rows.fill(right, row, moment, found));
        }
    }

    async fn scan_database(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        let mut rest = Cow::Borrowed(range);
        loop {
            let slice = self.read(|connection, now| rows::scan(connection, &rest, options, now)).await?;
            match slice {
                Scanned::Rows(chunk) => return Ok(chunk),
                Scanned::Expired(behind) => rest = Cow::Owned(behind),
            }
            give_way().await;
        }
    }

    /// The beginning of a range in the cache. If cached rows do not hold for this state, the whole
    /// range is a gap.
    fn cached_beginning(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Beginning> {
        let Some(moment) = self.cached_moment() else { return Ok(Beginning::Gap(range.clone())) };
        let beginning = self.writer.clock().rows().beginning(range, options, moment)?;
        // A gap that begins later means that no row precedes it, which depends on the state.
        self.is_seen |= !matches!(&beginning, Beginning::Gap(gap) if gap.start() == range.start());
        Ok(beginning)
    }

    fn fill_range(&self, range: &KeyRange, chunk: &Chunk) {
        let clock = self.writer.clock();
        if let Some(moment) = self.moment()
            && clock.rows().takes(range, chunk)
        {
            // Copy before the lock is taken.
            let chunk = Arc::new(chunk.clone());
            clock.fill(moment.state, |rows, right| rows.fill_range(right, range, chunk, moment));
        }
    }

    /// The state and time of the snapshot, if cached rows hold for its state.
    fn cached_moment(&self) -> Option<Moment> {
        self.moment().filter(|_| self.seen.is_some_and(|seen| seen.is_cached))
    }

    fn moment(&self) -> Option<Moment> {
        self.seen.map(|seen| Moment { state: seen.state, now: self.now })
    }
}

/// How often a transaction is begun again if its state has no known number, because a commit came
/// at the same time.
const BEGINS_MAX: usize = 3;

/// Begins a read transaction. Returns the state that it sees, if it has a known number, and the
/// time that belongs to it.
pub(crate) async fn begin(
    readers: &Arc<Readers>,
    writer: &Arc<Writer>,
    clock: &ForwardClock,
    share: &Share,
    deadline: Instant,
) -> Result<(Reader, Option<Seen>, UnixMillis)> {
    let reader = readers.take(share, deadline).await?;
    for _ in 0..BEGINS_MAX {
        let commits = writer.clock();
        let mark = commits.mark();
        if mark.is_none() && !commits.sees_others() {
            break;
        }
        let reserved = reader.begin()?;
        if let Some((seen, now)) = commits.saw(reserved, mark, clock) {
            return Ok((reader, Some(seen), now));
        }
        reader.end()?;
    }
    begin_between_commits(reader, writer, clock).await
}

/// Begins a read transaction while this process makes no commit, so that the time belongs to the
/// state that it sees.
async fn begin_between_commits(
    reader: Reader,
    writer: &Arc<Writer>,
    clock: &ForwardClock,
) -> Result<(Reader, Option<Seen>, UnixMillis)> {
    let (writer, clock) = (writer.clone(), clock.clone());
    blocking(move || {
        writer.between_commits(|_| {
            reader.begin()?;
            let now = clock.now();
            Ok((reader, None, now))
        })
    })
    .await
}

#[async_trait]
impl Snapshot for SqliteSnapshot {
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        self.cached(row)
    }

    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        let found = self.read(|connection, now| rows::get(connection, row, now)).await?;
        self.fill(row, found.as_ref());
        Ok(found)
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        let mut rows = ManyRows::new(keys.len(), max_bytes);
        let mut slice = Slice::default();
        for key in keys {
            let row = RowKey { namespace: namespace.clone(), key: key.clone() };
            let (found, work) = match self.cached(&row) {
                Some(cached) => (cached, STORED_ROW),
                None => (self.get(&row).await?, STATEMENT),
            };
            slice.count(work, found.as_ref().map_or(0, |found| found.value.len()));
            if !rows.push(found) {
                break;
            }
            slice.pause().await;
        }
        Ok(rows.finish())
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        // The range cache holds only results of forward scans with values.
        if options.reverse || options.keys_only {
            return self.scan_database(range, options).await;
        }
        let mut rest = range.clone();
        loop {
            let gap = match self.cached_beginning(&rest, options)? {
                Beginning::Cached(chunk) => return Ok(chunk),
                Beginning::Empty(behind) => {
                    rest = behind;
                    give_way().await;
                    continue;
                }
                Beginning::Gap(gap) => gap,
            };
            let mut chunk = self.scan_database(&gap, options).await?;
            self.fill_range(&gap, &chunk);
            let is_rest = gap.end() == rest.end();
            if !chunk.is_empty() || is_rest {
                chunk.exhausted &= is_rest;
                return Ok(chunk);
            }
            rest = rest.narrowed_from(gap.end().unwrap_or_default());
            give_way().await;
        }
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        let mut position = rows::position_after(after);
        loop {
            match self.read(|connection, now| rows::next_namespace(connection, &position, now)).await? {
                NextNamespace::Found(namespace) => return Ok(namespace),
                NextNamespace::Expired(behind) => position = behind,
            }
            give_way().await;
        }
    }

    fn pins(&self) -> bool {
        match &self.base {
            Base::Reader(_) | Base::Pinned(_) => true,
            Base::Unpinned(state) => state.has_pin(),
        }
    }

    fn keeps_state(&self) -> bool {
        match &self.base {
            Base::Reader(_) => false,
            Base::Pinned(_) => true,
            Base::Unpinned(state) => state.has_pin(),
        }
    }

    /// Succeeds while the state is the newest and cached: any new connection sees it then.
    fn release(&mut self) -> bool {
        let state = match (&self.base, self.seen) {
            (Base::Reader(_), Some(seen)) if seen.is_cached => self.writer.clock().newest_at(seen.state),
            _ => None,
        };
        let Some(state) = state else { return false };
        self.base = Base::Unpinned(state);
        true
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        let Self { base, seen, deadline, readers, writer, .. } = *self;
        // An open read transaction keeps the write-ahead log from restarting, so it ends before the
        // commit waits.
        drop(base);
        if commit.writes.is_empty() && commit.conditions.is_empty() {
            return Ok(Committed::default());
        }
        validation::commit(&readers, &writer, commit, seen.map(|seen| seen.state), deadline).await
    }
}

impl std::fmt::Debug for SqliteSnapshot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SqliteSnapshot").field("seen", &self.seen).finish_non_exhaustive()
    }
}
