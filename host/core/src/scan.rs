//! Scans: the rows of a snapshot merged with the staged writes.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;

use crate::chunk::{Chunk, ChunkRow, ScanOptions};
use crate::clock::UnixMillis;
use crate::commit::Mutation;
use crate::error::{Error, Result};
use crate::held::Held;
use crate::name::{Key, KeyRange, RowKey, just_after};
use crate::pairs::Pairs;
use crate::read_set::{RangeRead, RangeState};
use crate::slice::{ROW, Slice};
use crate::snapshot::Snapshot;

/// A scan of a range in a transaction.
pub(crate) struct Scan {
    pub(crate) range: KeyRange,
    pub(crate) reverse: bool,
    pub(crate) keys_only: bool,
    pub(crate) max_entries: usize,
    pub(crate) max_bytes: u64,
    /// The bytes that each entry counts for `max_bytes` beside its key and value.
    pub(crate) entry_bytes: u64,
    /// Whether to return keys that are not valid UTF-8, which only a repair needs.
    pub(crate) any_keys: bool,
}

/// The result of a scan.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entries: Pairs,
    /// The bytes that the entries count for `max_bytes`.
    pub(crate) bytes: u64,
    /// The bytes that the next entry would have counted; `None` if there is no further entry.
    pub(crate) next_entry_bytes: Option<u64>,
    /// The part of the range that the result depends on.
    pub(crate) read: RangeRead,
    /// The earliest expiry of its rows.
    pub(crate) earliest_expiry: Option<UnixMillis>,
    /// The memory that the result counts for the instance.
    pub(crate) held: Option<Held>,
}

impl Found {
    /// Adds a stored row on which the result depends.
    fn note(&mut self, stored: &ChunkRow<'_>) {
        self.read.state.add(stored.version);
        self.earliest_expiry = earliest(self.earliest_expiry, stored.expires_at);
    }
}

/// The maximum number of rows to request from a backend at once.
const CHUNK_ROWS_MAX: usize = 1_024;

impl Scan {
    /// The result for an empty range.
    pub(crate) fn nothing(&self) -> Found {
        Found {
            entries: Pairs::default(),
            bytes: 0,
            next_entry_bytes: None,
            read: RangeRead { range: self.range.clone(), state: RangeState::default() },
            earliest_expiry: None,
            held: None,
        }
    }

    /// Runs the scan.
    pub(crate) async fn run(
        self,
        snapshot: &mut dyn Snapshot,
        staged: &BTreeMap<RowKey, Mutation>,
    ) -> Result<Found> {
        let mut found = self.nothing();
        let mut slice = Slice::default();
        let mut rest = self.range.clone();
        while !rest.is_empty() {
            let chunk = snapshot.scan(&rest, self.chunk_options(&found)).await?;
            if !self.any_keys {
                chunk.check_rows()?;
            }
            let (covered, remaining) = split(rest, &chunk, self.reverse);
            if let Some(stop) = self.merge(covered, &chunk, staged, &mut found, &mut slice).await? {
                found.read.range = self.read_up_to(&stop);
                return Ok(found);
            }
            slice.pause().await;
            rest = match remaining {
                Some(remaining) => remaining,
                None => break,
            };
        }
        Ok(found)
    }

    /// The options for the next chunk. It requests one row more than needed, which shows whether
    /// the range has more.
    fn chunk_options(&self, found: &Found) -> ScanOptions {
        let missing = self.max_entries.saturating_sub(found.entries.len());
        ScanOptions::new(
            missing.saturating_add(1).min(CHUNK_ROWS_MAX),
            self.max_bytes.saturating_sub(found.bytes).saturating_add(1),
        )
        .reverse(self.reverse)
        .keys_only(self.keys_only)
    }

    /// Adds the entries in `covered`. Returns the key of the first entry that exceeded a bound, if
    /// any.
    async fn merge(
        &self,
        covered: KeyRange,
        chunk: &Chunk,
        staged: &BTreeMap<RowKey, Mutation>,
        found: &mut Found,
        slice: &mut Slice,
    ) -> Result<Option<Vec<u8>>> {
        if covered.is_empty() || self.take_all(&covered, chunk, staged, found, slice) {
            return Ok(None);
        }
        self.take(self.merging(&covered, chunk, staged), found, slice).await
    }

    /// Adds all rows of a chunk as they are, if they fit and no write is staged among them. Most
    /// chunks take this path.
    fn take_all(
        &self,
        covered: &KeyRange,
        chunk: &Chunk,
        staged: &BTreeMap<RowKey, Mutation>,
        found: &mut Found,
        slice: &mut Slice,
    ) -> bool {
        let pairs = chunk.pairs();
        let bytes = found.bytes + pairs.bytes() + self.entry_bytes * pairs.len() as u64;
        let fits = found.entries.len() + pairs.len() <= self.max_entries && bytes <= self.max_bytes;
        let is_apart = staged.is_empty() || staged.range(covered.row_bounds()).next().is_none();
        if !fits || !is_apart {
            return false;
        }
        chunk.rows().for_each(|row| found.note(&row));
        found.entries.extend(pairs, pairs.whole());
        found.bytes = bytes;
        slice.count(ROW * pairs.len() as u64, pairs.end());
        true
    }

    fn merging<'a>(
        &self,
        covered: &KeyRange,
        chunk: &'a Chunk,
        staged: &'a BTreeMap<RowKey, Mutation>,
    ) -> Merging<'a> {
        let staged = staged.range(covered.row_bounds()).map(|(row, mutation)| (&row.key, mutation));
        match self.reverse {
            true => Box::new(Merge::new(chunk.rows(), staged.rev(), Ordering::Greater)),
            false => Box::new(Merge::new(chunk.rows(), staged, Ordering::Less)),
        }
    }

    async fn take<'a>(
        &self,
        merge: Merging<'a>,
        found: &mut Found,
        slice: &mut Slice,
    ) -> Result<Option<Vec<u8>>> {
        for Merged { key, stored, staged } in merge {
            slice.count(ROW, key.len());
            slice.pause().await;
            if let Some(stored) = &stored {
                found.note(stored);
            }
            let Some(value) = self.resolve(stored, staged)? else {
                continue;
            };
            slice.count(0, value.len());
            let bytes = (key.len() + value.len()) as u64 + self.entry_bytes;
            let is_full = found.entries.len() >= self.max_entries;
            if is_full || found.bytes + bytes > self.max_bytes {
                found.next_entry_bytes = Some(bytes);
                return Ok(Some(key.to_vec()));
            }
            let packed = found.entries.push(key, &value);
            packed.map_err(|error| Error::Corrupt(error.to_string()))?;
            found.bytes += bytes;
        }
        Ok(None)
    }

    /// The value that the transaction sees; `None` for a row that it deleted.
    fn resolve<'a>(
        &self,
        stored: Option<ChunkRow<'a>>,
        staged: Option<&Mutation>,
    ) -> Result<Option<Cow<'a, [u8]>>> {
        match staged {
            None => Ok(stored.map(|stored| stored.value.into())),
            Some(Mutation::Delete) => Ok(None),
            Some(_) if self.keys_only => Ok(Some(Cow::default())),
            Some(mutation) => {
                let value = mutation.applied_to(stored.map(|stored| stored.value.to_vec()))?;
                Ok(value.map(Cow::from))
            }
        }
    }

    /// The part of the range up to and including `last`, the last key that the scan looked at.
    fn read_up_to(self, last: &[u8]) -> KeyRange {
        if self.reverse {
            self.range.narrowed_from(last)
        } else {
            self.range.narrowed_until(&just_after(last))
        }
    }
}

/// Splits `rest` into the part that the chunk covers and the part after it.
fn split(rest: KeyRange, chunk: &Chunk, reverse: bool) -> (KeyRange, Option<KeyRange>) {
    let last = match chunk.last_key() {
        Some(last) if !chunk.exhausted => last,
        _ => return (rest, None),
    };
    if reverse {
        (rest.clone().narrowed_from(last), Some(rest.narrowed_until(last)))
    } else {
        let next = just_after(last);
        (rest.clone().narrowed_until(&next), Some(rest.narrowed_from(&next)))
    }
}

pub(crate) fn earliest(first: Option<UnixMillis>, second: Option<UnixMillis>) -> Option<UnixMillis> {
    match (first, second) {
        (Some(first), Some(second)) => Some(first.min(second)),
        (first, second) => first.or(second),
    }
}

/// A key from the snapshot, the staged writes, or both.
struct Merged<'a> {
    key: &'a [u8],
    stored: Option<ChunkRow<'a>>,
    staged: Option<&'a Mutation>,
}

impl<'a> Merged<'a> {
    fn stored(row: ChunkRow<'a>) -> Self {
        Self { key: row.key, stored: Some(row), staged: None }
    }

    fn staged((key, staged): (&'a Key, &'a Mutation)) -> Self {
        Self { key: key.as_bytes(), stored: None, staged: Some(staged) }
    }
}

/// The merged entries of a part of a range.
///
/// The type is dynamic, because the compiler cannot prove that closures held across an await are
/// `Send`.
type Merging<'a> = Box<dyn Iterator<Item = Merged<'a>> + Send + 'a>;

/// A merge of two ordered iterators.
struct Merge<R: Iterator, S: Iterator> {
    stored: Peekable<R>,
    staged: Peekable<S>,
    /// How the next key in scan order compares with a later one.
    first: Ordering,
}

impl<R: Iterator, S: Iterator> Merge<R, S> {
    fn new(stored: R, staged: S, first: Ordering) -> Self {
        Self { stored: stored.peekable(), staged: staged.peekable(), first }
    }
}

impl<'a, R, S> Iterator for Merge<R, S>
where
    R: Iterator<Item = ChunkRow<'a>>,
    S: Iterator<Item = (&'a Key, &'a Mutation)>,
{
    type Item = Merged<'a>;

    fn next(&mut self) -> Option<Merged<'a>> {
        let order = match (self.stored.peek(), self.staged.peek()) {
            (Some(stored), Some((staged, _))) => stored.key.cmp(staged.as_bytes()),
            (Some(_), None) => self.first,
            (None, _) => self.first.reverse(),
        };
        if order == Ordering::Equal {
            let staged = self.staged.next().map(|(_, mutation)| mutation);
            return self.stored.next().map(|stored| Merged { staged, ..Merged::stored(stored) });
        }
        if order == self.first {
            self.stored.next().map(Merged::stored)
        } else {
            self.staged.next().map(Merged::staged)
        }
    }
}
