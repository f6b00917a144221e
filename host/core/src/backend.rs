//! The seam between the semantics, which are written once above it, and the engines that keep rows.
//!
//! # The contract
//!
//! A backend keeps rows: a [`RowKey`], a value, the [`Version`] of the last write and, for some, the moment at
//! which the row expires. It gives **snapshots** and makes **commits**.
//!
//! - A snapshot is one committed state, the same for all of its reads however long it lives. It shows only
//!   rows that are live at its moment (see [`is_live`]), in the byte order of their keys. It holds
//!   nothing that a commit of another transaction would wait for. Dropping it gives back all that it held.
//! - Moments come from a clock that never goes back: that of the call ([`SnapshotOptions::clock`], [`Commit::clock`]), or
//!   the server's, plus [`ForwardClock::moved_millis`], where several hosts share it. A commit takes its moment when
//!   nothing can come before it any more. The moment of a view's snapshot is no earlier than those of the commits that it
//!   shows and no later than those of the commits that follow: within a process always, and among processes as far as their
//!   clocks agree and for a commit that is just being made.
//! - A commit is atomic: after it, every later snapshot shows all of its writes; after an error, none does,
//!   [`Error::CommitUnknown`] aside. It is made only if the transaction could have run alone at that moment:
//!   where a row or range of [`Commit::reads`] has changed since the snapshot, it gives [`Error::Conflict`].
//!   An engine that watches reads itself may leave them aside, and may find conflicts earlier, on a read.
//! - What a commit writes is decided by [`Commit::plan`] and by nothing else: conditions, counters, times to
//!   live and the quota are rules of this crate.
//! - The versions that a commit gives are larger than every version that its rows ever had, in the whole store
//!   never reused, and below 2⁶³.
//! - A commit that has begun runs to its end, also when its future is dropped.
//! - Of memory it keeps records: a [`RecordKey`], bytes, and a [`Version`] that this crate draws. A write of one is
//!   atomic, and made only where the record is at [`RecordWrite::expected`]; otherwise it gives [`Error::Conflict`]. It
//!   survives what a commit survives, and runs to its end as a commit does.
//! - Errors are put into their kind by codes and types, never by texts. What can't be reached is
//!   [`Error::Unavailable`]; stored bytes that fail a check are [`Error::Corrupt`]. Nothing read from an engine
//!   is unwrapped.
//! - After [`Backend::close`] every call gives [`Error::Closed`]; closing again does nothing.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;

use crate::clock::{ForwardClock, UnixMillis};
use crate::commit::Commit;
use crate::error::{Error, Result};
use crate::memory::records::{RecordKey, RecordWrite, StoredRecord};
use crate::name::{Key, KeyRange, Namespace, RowKey};
use crate::open_snapshots::OpenSnapshots;
use crate::pairs::{Pairs, Part};
pub use crate::quota::StoredCost;
use crate::share::Share;

/// Whether a transaction may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It reads one snapshot.
    View,
    /// It reads and writes.
    Update,
}

/// When a row was last written; 0 stands for an absent row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version of a row that is absent.
    pub const ABSENT: Self = Self(0);
}

/// What is kept under a [`RowKey`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredValue {
    /// The value.
    pub value: Vec<u8>,
    /// When it was written.
    pub version: Version,
    /// When it expires; none for a permanent row.
    pub expires_at: Option<UnixMillis>,
}

/// Whether a row that expires then is still there now.
pub fn is_live(expires_at: Option<UnixMillis>, now: UnixMillis) -> bool {
    expires_at.is_none_or(|expires_at| expires_at > now)
}

/// How a snapshot is to be taken.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// Whether its commit may carry writes.
    pub mode: Mode,
    /// What tells the moment at which rows must be live to be shown. It is asked when the state is known.
    pub clock: ForwardClock,
    /// When waiting for the engine ends with [`Error::TimedOut`].
    pub deadline: Instant,
    /// On whose behalf it is taken.
    pub share: Share,
}

/// How much of a range is read at once.
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions {
    /// From the last key to the first.
    pub reverse: bool,
    /// Values are left empty.
    pub keys_only: bool,
    /// At most so many rows.
    pub max_rows: usize,
    /// No further row once keys and values together are so large; the first row is given in any case.
    pub max_bytes: u64,
}

/// A part of a range, in order. It is empty only where `exhausted`.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    rows: Pairs,
    marks: Vec<RowMark>,
    /// Whether a key is not UTF-8.
    has_invalid_key: bool,
    /// Whether the range ends with the last of its rows.
    pub exhausted: bool,
}

/// Where a row of a chunk begins, and what its last write left beside its value.
#[derive(Clone, Copy, Debug)]
struct RowMark {
    start: usize,
    version: Version,
    expires_at: Option<UnixMillis>,
}

/// A row of a [`Chunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRow<'a> {
    /// The bytes of its key, which are UTF-8 if larder wrote the row.
    pub key: &'a [u8],
    /// Its value; empty where keys alone were asked for.
    pub value: &'a [u8],
    /// When it was written; [`Version::ABSENT`] from an engine that watches reads itself.
    pub version: Version,
    /// When it expires; none for a permanent row.
    pub expires_at: Option<UnixMillis>,
}

impl Chunk {
    /// Adds a row whose key has to be a text.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the key is not UTF-8.
    pub fn push(&mut self, row: ChunkRow<'_>) -> Result<()> {
        self.push_stored(row);
        self.check_keys()
    }

    /// Adds a row as it is stored, whatever its key is. A transaction that meets a key that is not UTF-8 fails, unless it is
    /// a repair.
    pub fn push_stored(&mut self, row: ChunkRow<'_>) {
        let ChunkRow { key, value, version, expires_at } = row;
        self.has_invalid_key |= std::str::from_utf8(key).is_err();
        self.marks.push(RowMark { start: self.rows.end(), version, expires_at });
        self.rows.push(key, value);
    }

    /// Checks that each key is a text.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a key is not UTF-8.
    pub(crate) fn check_keys(&self) -> Result<()> {
        match self.has_invalid_key {
            true => Err(Error::Corrupt("a key is not UTF-8".to_string())),
            false => Ok(()),
        }
    }

    /// Whether no further row is to be added: it would be one too many, or the chunk is large enough.
    pub fn is_full(&self, options: &ScanOptions) -> bool {
        let is_full = self.rows.len() >= options.max_rows || self.rows.bytes() >= options.max_bytes;
        is_full && !self.rows.is_empty()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of memory that it takes, about.
    pub fn memory(&self) -> u64 {
        (self.rows.end() + self.marks.len() * size_of::<RowMark>()) as u64
    }

    /// The rows, in the order of the range.
    pub fn rows(&self) -> impl Iterator<Item = ChunkRow<'_>> {
        self.rows.iter().zip(&self.marks).map(|(pair, mark)| mark.row(pair))
    }

    /// What a scan of `range`, from its first key on, finds at `now` where this chunk holds all rows of it, those that
    /// have expired since perhaps among them.
    pub fn part(&self, range: &KeyRange, options: ScanOptions, now: UnixMillis) -> Self {
        let first = self.marks.partition_point(|mark| self.key_at(mark) < range.start());
        let behind = match range.end() {
            Some(end) => self.marks.partition_point(|mark| self.key_at(mark) < end),
            None => self.marks.len(),
        };
        let marks = self.marks.get(first..behind).unwrap_or_default();
        self.copy(marks, behind, options).unwrap_or_else(|| self.select(marks, options, now))
    }

    /// All rows of those marks, which end before the row `behind`; none where they have to be looked at one by one.
    fn copy(&self, marks: &[RowMark], behind: usize, options: ScanOptions) -> Option<Self> {
        let start = marks.first().map_or(0, |mark| mark.start);
        let last = marks.last().map_or(0, |mark| mark.start);
        let end = match marks.is_empty() {
            true => start,
            false => self.marks.get(behind).map_or(self.rows.end(), |mark| mark.start),
        };
        let is_all = marks.len() <= options.max_rows
            && ((end - start) as u64) < options.max_bytes
            && !options.keys_only
            && !self.has_invalid_key
            && marks.iter().all(|mark| mark.expires_at.is_none());
        is_all.then(|| {
            let mut rows = Pairs::default();
            rows.extend(&self.rows, Part { start, end, count: marks.len(), last });
            let marks = marks.iter().map(|mark| RowMark { start: mark.start - start, ..*mark }).collect();
            Self { rows, marks, has_invalid_key: false, exhausted: true }
        })
    }

    fn select(&self, marks: &[RowMark], options: ScanOptions, now: UnixMillis) -> Self {
        let mut part = Self::default();
        for mark in marks.iter().filter(|mark| is_live(mark.expires_at, now)) {
            if part.is_full(&options) {
                return part;
            }
            let mut row = mark.row(self.rows.at(mark.start).unwrap_or_default());
            if options.keys_only {
                row.value = &[];
            }
            part.push_stored(row);
        }
        part.exhausted = true;
        part
    }

    fn key_at(&self, mark: &RowMark) -> &[u8] {
        self.rows.at(mark.start).map_or(&[], |(key, _)| key)
    }

    /// The last key.
    pub fn last_key(&self) -> Option<&[u8]> {
        self.rows.last_key()
    }

    /// All rows, as they are packed.
    pub(crate) fn pairs(&self) -> &Pairs {
        &self.rows
    }
}

impl RowMark {
    fn row<'a>(&self, (key, value): (&'a [u8], &'a [u8])) -> ChunkRow<'a> {
        ChunkRow { key, value, version: self.version, expires_at: self.expires_at }
    }
}

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The version of the rows written; [`Version::ABSENT`] where there were none.
    pub version: Version,
    /// By how many bytes the store grew; counted only where [`Commit::growth_max`] is set.
    pub growth: i64,
}

/// How expired rows are to be removed.
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// What tells the moment at which rows are no longer live.
    pub clock: ForwardClock,
    /// At most so many rows.
    pub max_rows: u32,
    /// No further row once their namespaces, keys and values together are so large, as far as the engine can tell
    /// beforehand.
    pub max_bytes: u64,
    /// Whether the store is about to be closed. Nothing is removed then if that means to wait for another process or to
    /// look at rows that have not expired.
    pub is_closing: bool,
}

impl SweepOptions {
    /// Whether a sweep that removed so much ended at a bound: more rows may have expired.
    pub fn is_reached_by(&self, swept: &Swept) -> bool {
        swept.rows >= u64::from(self.max_rows) || swept.bytes >= self.max_bytes
    }
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Expired rows.
    pub rows: u64,
    /// Bytes of their namespaces, keys and values, as [`Backend::stored_cost`] counts them.
    pub bytes: u64,
}

/// An engine that keeps rows. The module says what must hold.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Tells the backend that a store was opened on it, one of perhaps several.
    ///
    /// A backend whose snapshots pin what others wait for asks the store's open snapshots for it.
    ///
    /// [`Snapshot::pins`] says which do.
    fn attach(&self, snapshots: OpenSnapshots) {
        let _ = snapshots;
    }

    /// Takes a snapshot.
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>>;

    /// Makes the commit of a transaction that read nothing.
    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed>;

    /// What a quota counts beside values and bytes of records: what rows take where they are kept. It never changes.
    fn stored_cost(&self) -> StoredCost {
        StoredCost::default()
    }

    /// Bytes of all rows, expired ones included, and of all records, as [`Backend::stored_cost`] counts them.
    async fn stored_bytes(&self) -> Result<u64>;

    /// The same, counted beside commits, of one state.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the count ended because it would have kept too much of an old state. A later one may succeed.
    async fn recount(&self) -> Result<u64> {
        self.stored_bytes().await
    }

    /// Removes rows that have expired, up to the bounds of the options. It changes no version.
    async fn sweep(&self, options: SweepOptions) -> Result<Swept>;

    /// The record, if it is there.
    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>>;

    /// Makes one change of one record.
    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()>;

    /// Returns once the record is at this version, and that survives what an acknowledged commit survives.
    /// [`Version::ABSENT`] means that it is not there.
    ///
    /// To load it is not enough: a server may show a commit that its standby does not have, and whose outcome it left open.
    ///
    /// # Errors
    /// Any error leaves open whether it does.
    async fn confirm_record(&self, key: &RecordKey, version: Version) -> Result<()> {
        let _ = (key, version);
        Ok(())
    }

    /// The first keys of records after `after`, in their order, up to `max`. `after` need not be there.
    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>>;

    /// Keys of records with a [`StoredRecord::due_at`] of `now` or before, the longest due first, up to `max`.
    async fn due_records(&self, now: UnixMillis, max: u32) -> Result<Vec<RecordKey>>;

    /// Whether the engine can be reached.
    async fn ping(&self) -> Result<()>;

    /// Gives back connections and files.
    async fn close(&self);
}

/// One committed state of a backend.
#[async_trait]
pub trait Snapshot: Send {
    /// The row, if it is there; none where only [`Snapshot::get`] can tell. It must not block, nor take longer than a look
    /// into memory: an engine that has rows there saves most reads what a future costs.
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        let _ = row;
        None
    }

    /// The row, if it is there. It is asked where [`Snapshot::get_now`] could not tell.
    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>>;

    /// The rows of `keys`, in their order; a key may stand twice. Where the values found are together larger
    /// than `max_bytes`, their size comes instead, before they are all in memory.
    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many>;

    /// The first rows of a range. The range is not empty. It may give fewer than fit, and pauses after some
    /// [slices](crate::slice) of rows that have expired.
    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk>;

    /// The first namespace after `after` that holds a row.
    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>>;

    /// Whether it pins what others may want: a connection, or what the engine could clean up without it. It must not block.
    fn pins(&self) -> bool {
        false
    }

    /// Whether the backend keeps for it a state that is no longer the newest. It must not block.
    fn keeps_state(&self) -> bool {
        false
    }

    /// Gives back what it pins, if later reads can go on in the same state without it; otherwise it does nothing and gives
    /// false. It must not block.
    fn release(&mut self) -> bool {
        false
    }

    /// Makes the commit of the transaction that read this snapshot, and ends it.
    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed>;
}

/// What [`Snapshot::get_many`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Many {
    /// The rows.
    Rows(Vec<Option<StoredValue>>),
    /// The values are larger than was allowed: so many bytes, as far as they were counted.
    TooLarge(u64),
}

/// Gathers the answer of [`Snapshot::get_many`] for an engine that reads row by row.
#[derive(Debug)]
pub struct ManyRows {
    rows: Vec<Option<StoredValue>>,
    bytes: u64,
    max_bytes: u64,
}

impl ManyRows {
    /// Room for the rows of so many keys.
    pub fn new(keys: usize, max_bytes: u64) -> Self {
        Self { rows: Vec::with_capacity(keys), bytes: 0, max_bytes }
    }

    /// Takes the next row; false where the values have become too large.
    pub fn push(&mut self, row: Option<StoredValue>) -> bool {
        self.bytes += row.as_ref().map_or(0, |row| row.value.len() as u64);
        self.rows.push(row);
        self.bytes <= self.max_bytes
    }

    /// The answer.
    pub fn finish(self) -> Many {
        if self.bytes > self.max_bytes { Many::TooLarge(self.bytes) } else { Many::Rows(self.rows) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    fn chunk(rows: &[(&str, Option<UnixMillis>)]) -> Chunk {
        let mut chunk = Chunk::default();
        for (place, (key, expires_at)) in rows.iter().enumerate() {
            let row = ChunkRow {
                key: key.as_bytes(),
                value: b"12",
                version: Version(place as u64 + 1),
                expires_at: *expires_at,
            };
            chunk.push(row).unwrap();
        }
        chunk
    }

    fn range(start: &str, end: Option<&str>) -> KeyRange {
        let namespace = Namespace::new("n", &Limits::default()).unwrap();
        KeyRange::new(namespace, start.into(), end.map(Into::into))
    }

    const ALL: ScanOptions =
        ScanOptions { reverse: false, keys_only: false, max_rows: usize::MAX, max_bytes: u64::MAX };

    fn found(chunk: &Chunk) -> (Vec<(&str, usize, u64)>, bool) {
        assert_eq!(chunk.rows().count(), chunk.marks.len());
        let rows =
            chunk.rows().map(|row| (std::str::from_utf8(row.key).unwrap(), row.value.len(), row.version.0));
        (rows.collect(), chunk.exhausted)
    }

    #[test]
    fn a_part_of_a_chunk_is_what_a_scan_would_find() {
        let permanent = chunk(&[("a", None), ("b", None), ("c", None), ("d", None)]);
        let part = |start, end, options| permanent.part(&range(start, end), options, 0);
        assert_eq!(found(&part("b", Some("d"), ALL)), (vec![("b", 2, 2), ("c", 2, 3)], true));
        assert_eq!(found(&part("bb", None, ALL)), (vec![("c", 2, 3), ("d", 2, 4)], true));
        assert_eq!(found(&part("e", None, ALL)), (vec![], true));
        assert_eq!(found(&part("", Some("a"), ALL)), (vec![], true));
        let two = ScanOptions { max_rows: 2, ..ALL };
        assert_eq!(found(&part("", None, two)), (vec![("a", 2, 1), ("b", 2, 2)], false));
        assert_eq!(found(&part("c", None, two)), (vec![("c", 2, 3), ("d", 2, 4)], true));
        let small = ScanOptions { max_bytes: 1, ..ALL };
        assert_eq!(found(&part("b", None, small)), (vec![("b", 2, 2)], false));
        let keys = ScanOptions { keys_only: true, ..ALL };
        assert_eq!(found(&part("d", None, keys)), (vec![("d", 0, 4)], true));
        assert_eq!(part("b", Some("d"), ALL).last_key(), Some(b"c".as_slice()));
    }

    #[test]
    fn a_part_of_a_chunk_leaves_out_what_has_expired_since() {
        let chunk = chunk(&[("a", Some(10)), ("b", None), ("c", Some(20))]);
        let part = |now| chunk.part(&range("", None), ALL, now);
        assert_eq!(found(&part(9)).0, [("a", 2, 1), ("b", 2, 2), ("c", 2, 3)]);
        assert_eq!(found(&part(10)), (vec![("b", 2, 2), ("c", 2, 3)], true));
    }
}
