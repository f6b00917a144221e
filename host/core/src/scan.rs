//! A range as a transaction sees it: the snapshot's rows with the staged writes on top.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;

use crate::backend::{Chunk, ChunkRow, ScanOptions, Snapshot};
use crate::clock::UnixMillis;
use crate::commit::Mutation;
use crate::error::Result;
use crate::held::Held;
use crate::name::{Key, KeyRange, RowKey, just_after};
use crate::pairs::Pairs;
use crate::read_set::{RangeRead, RangeState};

/// What of a range is wanted.
pub(crate) struct Scan {
    pub(crate) range: KeyRange,
    pub(crate) reverse: bool,
    pub(crate) keys_only: bool,
    pub(crate) max_entries: usize,
    pub(crate) max_bytes: u64,
    /// Whether keys that are not UTF-8 are given too, which only a repair wants.
    pub(crate) any_keys: bool,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entries: Pairs,
    /// Where there is a further entry, the bytes that it would have added.
    pub(crate) next_entry_bytes: Option<u64>,
    /// The part of the range that the answer depends on.
    pub(crate) read: RangeRead,
    /// When the first of its rows expires.
    pub(crate) earliest_expiry: Option<UnixMillis>,
    /// What is counted of it for the instance.
    pub(crate) held: Option<Held>,
}

impl Found {
    /// The answer depends on this row.
    fn note(&mut self, stored: &ChunkRow<'_>) {
        self.read.state.add(stored.version);
        self.earliest_expiry = earliest(self.earliest_expiry, stored.expires_at);
    }
}

/// Rows asked of a backend at once, at most.
const CHUNK_ROWS_MAX: usize = 1_024;

impl Scan {
    /// What an empty range holds.
    pub(crate) fn nothing(&self) -> Found {
        Found {
            entries: Pairs::default(),
            next_entry_bytes: None,
            read: RangeRead { range: self.range.clone(), state: RangeState::default() },
            earliest_expiry: None,
            held: None,
        }
    }

    /// Reads the range.
    pub(crate) async fn run(
        self,
        snapshot: &mut dyn Snapshot,
        staged: &BTreeMap<RowKey, Mutation>,
    ) -> Result<Found> {
        let mut found = self.nothing();
        let mut rest = self.range.clone();
        while !rest.is_empty() {
            let chunk = snapshot.scan(&rest, self.chunk_options(&found)).await?;
            if !self.any_keys {
                chunk.check_keys()?;
            }
            let (covered, remaining) = split(rest, &chunk, self.reverse);
            if let Some(stop) = self.merge(covered, &chunk, staged, &mut found)? {
                found.read.range = self.read_up_to(&stop);
                return Ok(found);
            }
            rest = match remaining {
                Some(remaining) => remaining,
                None => break,
            };
        }
        Ok(found)
    }

    /// One row more than is wanted shows whether there is more.
    fn chunk_options(&self, found: &Found) -> ScanOptions {
        let missing = self.max_entries.saturating_sub(found.entries.len());
        ScanOptions {
            reverse: self.reverse,
            keys_only: self.keys_only,
            max_rows: missing.saturating_add(1).min(CHUNK_ROWS_MAX),
            max_bytes: self.max_bytes.saturating_sub(found.entries.bytes()).saturating_add(1),
        }
    }

    /// Adds what lies in `covered`, and gives the key of the first entry that was one too many.
    fn merge(
        &self,
        covered: KeyRange,
        chunk: &Chunk,
        staged: &BTreeMap<RowKey, Mutation>,
        found: &mut Found,
    ) -> Result<Option<Vec<u8>>> {
        if covered.is_empty() {
            return Ok(None);
        }
        let mut staged =
            staged.range(covered.row_bounds()).map(|(row, mutation)| (&row.key, mutation)).peekable();
        if staged.peek().is_none() {
            // Most scans: nothing is to be compared.
            self.take_stored(chunk, found)
        } else if self.reverse {
            self.take(Merge::new(chunk.rows(), staged.rev(), Ordering::Greater), found)
        } else {
            self.take(Merge::new(chunk.rows(), staged, Ordering::Less), found)
        }
    }

    fn take_stored(&self, chunk: &Chunk, found: &mut Found) -> Result<Option<Vec<u8>>> {
        let pairs = chunk.pairs();
        let fits = found.entries.len() + pairs.len() <= self.max_entries
            && found.entries.bytes() + pairs.bytes() <= self.max_bytes;
        if !fits {
            return self.take(chunk.rows().map(Merged::stored), found);
        }
        chunk.rows().for_each(|row| found.note(&row));
        found.entries.extend(pairs, pairs.whole());
        Ok(None)
    }

    fn take<'a>(
        &self,
        merge: impl Iterator<Item = Merged<'a>>,
        found: &mut Found,
    ) -> Result<Option<Vec<u8>>> {
        for Merged { key, stored, staged } in merge {
            if let Some(stored) = &stored {
                found.note(stored);
            }
            let Some(value) = self.resolve(stored, staged)? else {
                continue;
            };
            let bytes = (key.len() + value.len()) as u64;
            let is_full = found.entries.len() >= self.max_entries;
            if is_full || found.entries.bytes() + bytes > self.max_bytes {
                found.next_entry_bytes = Some(bytes);
                return Ok(Some(key.to_vec()));
            }
            found.entries.push(key, &value);
        }
        Ok(None)
    }

    /// The value that the transaction sees; none for a row that it deleted.
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

    /// The part of the range up to the last key that was looked at.
    fn read_up_to(self, last: &[u8]) -> KeyRange {
        if self.reverse {
            self.range.narrowed_from(last)
        } else {
            self.range.narrowed_until(&just_after(last))
        }
    }
}

/// The part of `rest` that a chunk answers, and the part that is left.
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

/// One key that the snapshot, the transaction, or both have.
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

/// Two ordered sequences as one.
struct Merge<R: Iterator, S: Iterator> {
    stored: Peekable<R>,
    staged: Peekable<S>,
    /// How the key that comes first compares with the other.
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
