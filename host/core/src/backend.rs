//! The contract between larder's semantics and the engines that store rows.
//!
//! The semantics are implemented once, above this contract. Each engine implements [`Backend`] and
//! [`Snapshot`].
//!
//! # The contract
//!
//! A backend stores rows. A row has a [`RowKey`], a value, the [`Version`] of its last write and,
//! optionally, the time at which it expires. A backend takes **snapshots** and makes **commits**.
//!
//! - A snapshot is one committed state. All of its reads see the same state, however long it lives.
//!   It returns only rows that are live at its moment (see [`is_live`]), in the byte order of their
//!   keys. It holds nothing that a commit of another transaction would wait for. Dropping it
//!   releases all that it holds.
//! - Each snapshot and each commit has a moment. Moments come from a clock that never goes back:
//!   the clock of the call ([`SnapshotOptions::clock`], [`Commit::clock`]) or, if several hosts
//!   share a server, the server's clock plus [`ForwardClock::moved_millis`]. A commit takes its
//!   moment when no other commit can precede it any more. The moment of a view's snapshot is no
//!   earlier than those of the commits that it shows, and no later than those of the commits that
//!   follow. Within a process this always holds. Between processes it holds only as far as their
//!   clocks agree, and not while another process is making a commit.
//! - A commit is atomic. After it, every later snapshot shows all of its writes. After an error,
//!   none does, except perhaps after [`Error::CommitUnknown`]. A commit succeeds only if the
//!   transaction could have run alone at that moment. If a row or range of [`Commit::reads`] has
//!   changed since the snapshot, it fails with [`Error::Conflict`]. An engine that tracks reads
//!   itself may ignore [`Commit::reads`], and may report conflicts earlier, on a read.
//! - [`Commit::plan`] alone decides what a commit writes. Conditions, counters, times to live and
//!   the quota are rules of this crate.
//! - The version of a commit is larger than every version that its rows ever had, below 2⁶³, and
//!   never reused within the store.
//! - A commit that has begun runs to its end, even if its future is dropped.
//! - A backend also stores records of conversations. A record has a [`RecordKey`], bytes, and a
//!   [`Version`] that this crate draws. A write of a record is atomic. It succeeds only if the
//!   record is at [`RecordWrite::expected`], and otherwise fails with [`Error::Conflict`]. It is as
//!   durable as a commit, and runs to its end as a commit does.
//! - A backend classifies errors by codes and types, never by texts. [`Error::Unavailable`] means
//!   that the engine cannot be reached, and [`Error::Corrupt`] that stored bytes failed a check. A
//!   backend never unwraps data that it read from its engine.
//! - After [`Backend::close`], every call fails with [`Error::Closed`]. Closing again does nothing.

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
    /// The transaction reads one snapshot.
    View,
    /// The transaction reads and writes.
    Update,
}

/// The version of a row's last write; 0 if the row does not exist.
///
/// A later write of the same row has a larger version, also after a delete. A version is never
/// reused within a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version of a row that does not exist.
    pub const ABSENT: Self = Self(0);
}

/// A stored row without its [`RowKey`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredValue {
    /// The value.
    pub value: Vec<u8>,
    /// The version of its last write.
    pub version: Version,
    /// When the row expires; `None` for a permanent row.
    pub expires_at: Option<UnixMillis>,
}

/// Whether a row with this expiry is live at `now`.
pub fn is_live(expires_at: Option<UnixMillis>, now: UnixMillis) -> bool {
    expires_at.is_none_or(|expires_at| expires_at > now)
}

/// Options of [`Backend::snapshot`].
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// Whether the transaction may write.
    pub mode: Mode,
    /// The clock for the moment of the snapshot. The backend reads it once the state is fixed.
    pub clock: ForwardClock,
    /// When a wait for the engine fails with [`Error::TimedOut`].
    pub deadline: Instant,
    /// The share that the snapshot counts against.
    pub share: Share,
}

/// Options of [`Snapshot::scan`].
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions {
    /// Whether to read from the last key to the first.
    pub reverse: bool,
    /// Whether to leave the values empty.
    pub keys_only: bool,
    /// The maximum number of rows.
    pub max_rows: usize,
    /// The size of keys and values at which the scan stops. The first row is returned whatever its
    /// size.
    pub max_bytes: u64,
}

/// A part of a range, in the order of the scan.
///
/// A chunk without rows must be [exhausted](Self::exhausted).
///
/// ```
/// use larder_core::Version;
/// use larder_core::backend::{Chunk, ChunkRow};
///
/// let mut chunk = Chunk::default();
/// chunk.push(ChunkRow { key: b"a", value: b"1", version: Version(7), expires_at: None })?;
/// chunk.exhausted = true;
/// assert_eq!(chunk.last_key(), Some(b"a".as_slice()));
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    rows: Pairs,
    marks: Vec<RowMark>,
    /// Whether at least one key is not valid UTF-8.
    has_invalid_key: bool,
    /// Whether the range has no rows after this chunk.
    pub exhausted: bool,
}

/// The start of a row in its chunk, and the version and expiry of the row.
#[derive(Clone, Copy, Debug)]
struct RowMark {
    start: usize,
    version: Version,
    expires_at: Option<UnixMillis>,
}

/// A row of a [`Chunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRow<'a> {
    /// The bytes of its key. They are UTF-8 if larder wrote the row.
    pub key: &'a [u8],
    /// Its value; empty if only keys were requested.
    pub value: &'a [u8],
    /// The version of its last write; [`Version::ABSENT`] from an engine that tracks reads itself.
    pub version: Version,
    /// When the row expires; `None` for a permanent row.
    pub expires_at: Option<UnixMillis>,
}

impl Chunk {
    /// Adds a row whose key must be UTF-8.
    ///
    /// # Errors
    /// - [`Error::Corrupt`] if the key, or that of an earlier row, is not valid UTF-8.
    pub fn push(&mut self, row: ChunkRow<'_>) -> Result<()> {
        self.push_stored(row);
        self.check_keys()
    }

    /// Adds a row as it is stored, with any bytes as its key.
    ///
    /// A transaction that reads a key that is not valid UTF-8 fails, unless it is a repair.
    pub fn push_stored(&mut self, row: ChunkRow<'_>) {
        let ChunkRow { key, value, version, expires_at } = row;
        self.has_invalid_key |= std::str::from_utf8(key).is_err();
        self.marks.push(RowMark { start: self.rows.end(), version, expires_at });
        self.rows.push(key, value);
    }

    /// Checks that each key is valid UTF-8.
    ///
    /// # Errors
    /// - [`Error::Corrupt`] if a key is not valid UTF-8.
    pub(crate) fn check_keys(&self) -> Result<()> {
        match self.has_invalid_key {
            true => Err(Error::Corrupt("a key is not valid UTF-8".to_string())),
            false => Ok(()),
        }
    }

    /// Whether the chunk has reached a bound of the options.
    ///
    /// No row should then be added. An empty chunk is never full.
    pub fn is_full(&self, options: &ScanOptions) -> bool {
        let is_full = self.rows.len() >= options.max_rows || self.rows.bytes() >= options.max_bytes;
        is_full && !self.rows.is_empty()
    }

    /// Whether the chunk has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The approximate size of the chunk in memory, in bytes.
    pub fn memory(&self) -> u64 {
        (self.rows.end() + self.marks.len() * size_of::<RowMark>()) as u64
    }

    /// The rows, in the order of the scan.
    pub fn rows(&self) -> impl Iterator<Item = ChunkRow<'_>> {
        self.rows.iter().zip(&self.marks).map(|(pair, mark)| mark.row(pair))
    }

    /// Returns what a forward scan of `range` would find at `now`.
    ///
    /// The chunk must hold all rows of the range. It may also hold rows that have expired since.
    pub fn part(&self, range: &KeyRange, options: ScanOptions, now: UnixMillis) -> Self {
        let first = self.marks.partition_point(|mark| self.key_at(mark) < range.start());
        let behind = match range.end() {
            Some(end) => self.marks.partition_point(|mark| self.key_at(mark) < end),
            None => self.marks.len(),
        };
        let marks = self.marks.get(first..behind).unwrap_or_default();
        self.copy(marks, behind, options).unwrap_or_else(|| self.select(marks, options, now))
    }

    /// Copies all rows of these marks, which end before the row `behind`; `None` if the rows have
    /// to be filtered one by one.
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

    /// The key of the last row; `None` if the chunk has no rows.
    pub fn last_key(&self) -> Option<&[u8]> {
        self.rows.last_key()
    }

    /// The packed keys and values of all rows.
    pub(crate) fn pairs(&self) -> &Pairs {
        &self.rows
    }
}

impl RowMark {
    fn row<'a>(&self, (key, value): (&'a [u8], &'a [u8])) -> ChunkRow<'a> {
        ChunkRow { key, value, version: self.version, expires_at: self.expires_at }
    }
}

/// The result of a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The version of the rows written; [`Version::ABSENT`] if there were none.
    pub version: Version,
    /// The growth of the store in bytes. Counted only if [`Commit::growth_max`] is set.
    pub growth: i64,
}

/// Options of [`Backend::sweep`].
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// The clock for the moment at which rows must have expired.
    pub clock: ForwardClock,
    /// The maximum number of rows.
    pub max_rows: u32,
    /// The size of namespaces, keys and values at which the sweep stops.
    ///
    /// An engine respects it as far as it knows the sizes in advance.
    pub max_bytes: u64,
    /// Whether the store is about to close.
    ///
    /// The sweep then removes nothing if it would have to wait for another process, or to read rows
    /// that have not expired.
    pub is_closing: bool,
}

impl SweepOptions {
    /// Whether this result reached a bound, so that more rows may have expired.
    pub fn is_reached_by(&self, swept: &Swept) -> bool {
        swept.rows >= u64::from(self.max_rows) || swept.bytes >= self.max_bytes
    }
}

/// The result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The number of removed rows.
    pub rows: u64,
    /// The size of the removed rows in bytes, as [`Backend::stored_cost`] counts them.
    pub bytes: u64,
}

/// An engine that stores rows.
///
/// The [module](self) documentation has the contract. [`InMemory`](crate::InMemory) is the backend
/// of this crate.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use larder_core::{InMemory, Store};
///
/// // Any backend makes a store.
/// let store = Store::builder(InMemory::new()).build()?;
/// store.ping().await?;
/// # Ok(()) }
/// ```
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Attaches the open snapshots of a store that was opened on this backend.
    ///
    /// Several stores may be opened on one backend. If a snapshot can pin resources that other
    /// calls need ([`Snapshot::pins`]), the backend reclaims them through `snapshots`.
    fn attach(&self, snapshots: OpenSnapshots) {
        let _ = snapshots;
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// - [`Error::TimedOut`] if the engine is not available by [`SnapshotOptions::deadline`].
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>>;

    /// Makes the commit of a transaction that read nothing.
    ///
    /// # Errors
    /// - Any error of [`Commit::plan`], such as [`Error::Conflict`] or [`Error::TimedOut`].
    /// - [`Error::AccessDenied`] if the backend was opened for reading only.
    /// - [`Error::CommitUnknown`] if the outcome is unknown.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed>;

    /// The overhead that a quota counts for each row and record. It never changes.
    fn stored_cost(&self) -> StoredCost {
        StoredCost::default()
    }

    /// The size of all rows and records in bytes, as [`Backend::stored_cost`] counts them. Expired
    /// rows count too.
    ///
    /// # Errors
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn stored_bytes(&self) -> Result<u64>;

    /// Counts [`Backend::stored_bytes`] in one state while commits continue.
    ///
    /// # Errors
    /// - [`Error::TimedOut`] if the count was ended because its snapshot kept too much old data. A
    ///   later one may succeed.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn recount(&self) -> Result<u64> {
        self.stored_bytes().await
    }

    /// Removes expired rows, up to the bounds of the options. It changes no version.
    ///
    /// # Errors
    /// - [`Error::AccessDenied`] if the backend was opened for reading only.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn sweep(&self, options: SweepOptions) -> Result<Swept>;

    /// Loads a record; `None` if it does not exist.
    ///
    /// # Errors
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>>;

    /// Writes or deletes one record.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if the record is not at [`RecordWrite::expected`].
    /// - [`Error::AccessDenied`] if the backend was opened for reading only.
    /// - [`Error::CommitUnknown`] if the outcome is unknown.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()>;

    /// Confirms that the record durably is at this version.
    ///
    /// Durably means that it survives whatever an acknowledged commit survives. [`Version::ABSENT`]
    /// means that the record does not exist.
    ///
    /// Loading the record is not enough. A server may show a commit whose outcome it left open,
    /// before its standby has it.
    ///
    /// # Errors
    /// - Any error means that this is unknown.
    async fn confirm_record(&self, key: &RecordKey, version: Version) -> Result<()> {
        let _ = (key, version);
        Ok(())
    }

    /// Lists the first keys of records after `after`, in their order, up to `max`. `after` itself
    /// need not exist.
    ///
    /// # Errors
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>>;

    /// Lists the keys of due records, the longest due first, up to `max`.
    ///
    /// A record is due if its [`StoredRecord::due_at`] is `now` or earlier.
    ///
    /// # Errors
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn due_records(&self, now: UnixMillis, max: u32) -> Result<Vec<RecordKey>>;

    /// Checks that the engine can be reached.
    ///
    /// # Errors
    /// - [`Error::Unavailable`] if it cannot be reached.
    /// - [`Error::Closed`], [`Error::Corrupt`] or [`Error::Other`], as the contract defines them.
    async fn ping(&self) -> Result<()>;

    /// Closes connections and files. Closing again does nothing.
    async fn close(&self);
}

/// One committed state of a backend, for the reads and the commit of one transaction.
#[async_trait]
pub trait Snapshot: Send {
    /// Reads a row without waiting, if the engine can.
    ///
    /// The outer `None` means that the caller must use [`Snapshot::get`]. The inner `None` means
    /// that the row does not exist. Must not block, or take longer than a lookup in memory. An
    /// engine with rows in memory thereby saves most reads the cost of a future.
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        let _ = row;
        None
    }

    /// Reads a row; `None` if it does not exist. The caller has tried [`Snapshot::get_now`] before.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if an engine that tracks reads finds a conflict.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>>;

    /// Reads the rows of `keys`, in their order. A key may occur twice.
    ///
    /// If the values are larger than `max_bytes` in total, returns [`Many::TooLarge`] before all of
    /// them are in memory.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if an engine that tracks reads finds a conflict.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many>;

    /// Reads the first rows of a range, which is not empty.
    ///
    /// It may return fewer rows than the options allow. After a few [slices](crate::slice) of
    /// expired rows it yields its thread.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if an engine that tracks reads finds a conflict.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk>;

    /// Returns the first namespace after `after` that holds a row; `None` if there is none.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if an engine that tracks reads finds a conflict.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>>;

    /// Whether the snapshot pins a connection, or data that the engine could otherwise clean up.
    /// Must not block.
    fn pins(&self) -> bool {
        false
    }

    /// Whether the backend keeps an old state for this snapshot. Must not block.
    fn keeps_state(&self) -> bool {
        false
    }

    /// Releases what the snapshot pins, if it can read on without it.
    ///
    /// Later reads see the same state. Returns false, and does nothing, if the snapshot cannot read
    /// on. Must not block.
    fn release(&mut self) -> bool {
        false
    }

    /// Makes the commit of the transaction that read this snapshot.
    ///
    /// # Errors
    /// - Any error of [`Commit::plan`], such as [`Error::TimedOut`].
    /// - [`Error::Conflict`] if something that the transaction read has changed.
    /// - [`Error::AccessDenied`] if the backend was opened for reading only.
    /// - [`Error::CommitUnknown`] if the outcome is unknown.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed>;
}

/// The result of [`Snapshot::get_many`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Many {
    /// The rows, in the order of the keys.
    Rows(Vec<Option<StoredValue>>),
    /// The values exceed the maximum: their size in bytes, as far as it was counted.
    TooLarge(u64),
}

/// Collects the result of [`Snapshot::get_many`], for an engine that reads row by row.
///
/// ```
/// use larder_core::backend::{Many, ManyRows};
///
/// let mut rows = ManyRows::new(1, 100);
/// assert!(rows.push(None));
/// assert_eq!(rows.finish(), Many::Rows(vec![None]));
/// ```
#[derive(Debug)]
pub struct ManyRows {
    rows: Vec<Option<StoredValue>>,
    bytes: u64,
    max_bytes: u64,
}

impl ManyRows {
    /// Creates a collector for the rows of `keys` keys.
    pub fn new(keys: usize, max_bytes: u64) -> Self {
        Self { rows: Vec::with_capacity(keys), bytes: 0, max_bytes }
    }

    /// Adds the next row. Returns false if the values now exceed the maximum.
    pub fn push(&mut self, row: Option<StoredValue>) -> bool {
        self.bytes += row.as_ref().map_or(0, |row| row.value.len() as u64);
        self.rows.push(row);
        self.bytes <= self.max_bytes
    }

    /// Returns the result.
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
        for (index, (key, expires_at)) in rows.iter().enumerate() {
            let row = ChunkRow {
                key: key.as_bytes(),
                value: b"12",
                version: Version(index as u64 + 1),
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
