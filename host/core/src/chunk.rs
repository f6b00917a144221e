//! Chunks: the rows that one scan of a snapshot returns.

use crate::clock::UnixMillis;
use crate::error::{Error, Result};
use crate::name::KeyRange;
use crate::option_setters;
use crate::pairs::{Pairs, Part};
use crate::row::{Version, is_live};

/// Options of [`Snapshot::scan`](crate::snapshot::Snapshot::scan).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
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

option_setters!(ScanOptions { reverse: bool, keys_only: bool, max_rows: usize, max_bytes: u64 });

impl ScanOptions {
    /// Creates options that read keys and values in order, up to a number of rows and a size.
    pub const fn new(max_rows: usize, max_bytes: u64) -> Self {
        Self { reverse: false, keys_only: false, max_rows, max_bytes }
    }
}

/// A part of a range, in the order of the scan.
///
/// A chunk without rows must be [exhausted](Self::exhausted).
///
/// ```
/// use larder_core::Version;
/// use larder_core::chunk::{Chunk, ChunkRow};
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
    /// Whether at least one row was left out because it cannot be packed.
    has_too_long_row: bool,
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
    /// - [`Error::Corrupt`] if the key, or that of an earlier row, is not valid UTF-8, or if a key
    ///   or a value has 4 GiB or more.
    pub fn push(&mut self, row: ChunkRow<'_>) -> Result<()> {
        self.push_stored(row);
        self.check_rows()
    }

    /// Adds a row as it is stored, with any bytes as its key.
    ///
    /// A transaction that reads a key that is not valid UTF-8, or a row with a key or a value of 4
    /// GiB or more, fails, unless it is a repair. The chunk leaves such a long row out.
    pub fn push_stored(&mut self, row: ChunkRow<'_>) {
        let ChunkRow { key, value, version, expires_at } = row;
        let start = self.rows.end();
        if self.rows.push(key, value).is_err() {
            self.has_too_long_row = true;
            return;
        }
        self.has_invalid_key |= std::str::from_utf8(key).is_err();
        self.marks.push(RowMark { start, version, expires_at });
    }

    /// Checks that each key is valid UTF-8 and that each row can be packed.
    ///
    /// # Errors
    /// - [`Error::Corrupt`] if a key is not valid UTF-8, or a key or a value has 4 GiB or more.
    pub(crate) fn check_rows(&self) -> Result<()> {
        if self.has_invalid_key {
            return Err(Error::Corrupt("a key is not valid UTF-8".to_string()));
        }
        if self.has_too_long_row {
            return Err(Error::Corrupt("a key or a value has 4 GiB or more".to_string()));
        }
        Ok(())
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
            && !self.has_too_long_row
            && marks.iter().all(|mark| mark.expires_at.is_none());
        is_all.then(|| {
            let mut rows = Pairs::default();
            rows.extend(&self.rows, Part { start, end, count: marks.len(), last });
            let marks = marks.iter().map(|mark| RowMark { start: mark.start - start, ..*mark }).collect();
            Self { rows, marks, exhausted: true, ..Self::default() }
        })
    }

    fn select(&self, marks: &[RowMark], options: ScanOptions, now: UnixMillis) -> Self {
        let mut part = Self { has_too_long_row: self.has_too_long_row, ..Self::default() };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::name::Namespace;

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

    const ALL: ScanOptions = ScanOptions::new(usize::MAX, u64::MAX);

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
        let two = ALL.max_rows(2);
        assert_eq!(found(&part("", None, two)), (vec![("a", 2, 1), ("b", 2, 2)], false));
        assert_eq!(found(&part("c", None, two)), (vec![("c", 2, 3), ("d", 2, 4)], true));
        let small = ALL.max_bytes(1);
        assert_eq!(found(&part("b", None, small)), (vec![("b", 2, 2)], false));
        let keys = ALL.keys_only(true);
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
