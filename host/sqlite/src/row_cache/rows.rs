//! The cache of single rows.
//!
//! Each entry says how a row is, present or absent, in all states from its `since` up to the newest
//! one. Only a commit changes or removes that knowledge: see the invariants in [`super`]. Eviction
//! may remove any entry at any time.

use std::sync::Arc;

use larder_core::clock::UnixMillis;
use larder_core::commit::RowWrite;
use larder_core::name::RowKey;
use larder_core::row::{StoredValue, Version, is_live};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::{Moment, Written};
use crate::state_number::StateNumber;

/// Approximate bytes of an entry in addition to its names and value: the entry itself, and the
/// overhead of its allocations.
const OVERHEAD: u64 = 160;

/// Larger values are not cached: copying them costs more than finding them in the file.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// The newest committed rows, including absent ones, within a bound of bytes.
pub(super) struct CachedRows {
    rows: Cache<RowKey, CachedRow, Bytes>,
}

/// A row as it has been from the state `since` up to the newest one.
#[derive(Clone)]
struct CachedRow {
    since: StateNumber,
    state: State,
}

#[derive(Clone)]
enum State {
    Present {
        value: Arc<[u8]>,
        version: Version,
        expires_at: Option<UnixMillis>,
    },
    /// The row was absent for a read at this time, and is absent for all later ones. A read at an
    /// earlier time may see a row that expired in between.
    Absent {
        at: UnixMillis,
    },
}

#[derive(Clone)]
struct Bytes;

impl Weighter<RowKey, CachedRow> for Bytes {
    fn weight(&self, row: &RowKey, cached: &CachedRow) -> u64 {
        let value = match &cached.state {
            State::Present { value, .. } => value.len() as u64,
            State::Absent { .. } => 0,
        };
        OVERHEAD + row.bytes() + value
    }
}

/// The new contents of the cached rows that a commit writes. `None` for a row that is too large to
/// be cached.
#[derive(Default)]
pub(super) struct ChangedRows(Vec<(RowKey, Option<CachedRow>)>);

impl CachedRows {
    pub(super) fn new(bytes: u64) -> Self {
        let rows = usize::try_from(bytes / (2 * OVERHEAD)).unwrap_or(usize::MAX);
        Self { rows: Cache::with_weighter(rows, bytes, Bytes) }
    }

    /// The row as a snapshot sees it. `None` if the caller must read the database.
    ///
    /// An entry from a later state does not answer. Nor does a row that has expired at the
    /// snapshot's time: its absence is cached only once a read of the database has found it.
    pub(super) fn get(&self, row: &RowKey, moment: Moment) -> Option<Option<StoredValue>> {
        let cached = self.rows.get(row).filter(|cached| cached.since <= moment.state)?;
        match cached.state {
            State::Present { value, version, expires_at } => is_live(expires_at, moment.now)
                .then(|| Some(StoredValue { value: value.to_vec(), version, expires_at })),
            State::Absent { at } => (at <= moment.now).then_some(None),
        }
    }

    /// Caches what a snapshot read. The state of `moment` must be the newest.
    ///
    /// The entry holds from that state on. The version of the row cannot tell how much longer it
    /// has been so, because versions that other processes allocated do not map to states of this
    /// process.
    pub(super) fn fill(&self, row: &RowKey, moment: Moment, found: Option<&StoredValue>) {
        let state = match found {
            None => State::Absent { at: moment.now },
            Some(found) if found.value.len() > VALUE_BYTES_MAX => return,
            Some(StoredValue { value, version, expires_at }) => {
                State::Present { value: value.as_slice().into(), version: *version, expires_at: *expires_at }
            }
        };
        self.rows.insert(row.clone(), CachedRow { since: moment.state, state });
    }

    /// Records a write of the commit under way, if the row is cached.
    ///
    /// A row that is not cached does not enter the cache: writers would otherwise evict the rows
    /// that readers use.
    pub(super) fn note(
        &self,
        changes: &mut ChangedRows,
        row: &RowKey,
        write: &RowWrite<'_>,
        written: Written,
    ) {
        if self.rows.contains_key(row) {
            changes.0.push((row.clone(), CachedRow::new(write, written)));
        }
    }

    pub(super) fn apply(&self, changes: ChangedRows) {
        for (row, cached) in changes.0 {
            match cached {
                Some(cached) => {
                    // If the cache refuses the new row as too large, the old entry must not stay.
                    if let Err((row, _)) = self.rows.replace(row, cached, true) {
                        self.rows.remove(&row);
                    }
                }
                None => drop(self.rows.remove(&row)),
            }
        }
    }

    pub(super) fn clear(&self) {
        self.rows.clear();
    }
}

impl CachedRow {
    fn new(write: &RowWrite<'_>, written: Written) -> Option<Self> {
        let state = match write {
            RowWrite::Put { value, .. } if value.len() > VALUE_BYTES_MAX => return None,
            RowWrite::Put { value, expires_at } => {
                let version = written.version;
                State::Present { value: value.as_ref().into(), version, expires_at: *expires_at }
            }
            RowWrite::Delete => State::Absent { at: 0 },
        };
        Some(Self { since: written.state, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_core::Limits;
    use larder_core::name::{Key, Namespace};

    fn row(key: &str) -> RowKey {
        let limits = Limits::default();
        RowKey { namespace: Namespace::new("n", &limits).unwrap(), key: Key::new(key, &limits).unwrap() }
    }

    fn at(state: u64, now: UnixMillis) -> Moment {
        Moment { state: StateNumber::new(state), now }
    }

    /// A commit whose version is far above its state number.
    fn written(state: u64) -> Written {
        Written { state: StateNumber::new(state), version: Version(1_000 + state) }
    }

    fn stored(bytes: usize, version: u64, expires_at: Option<UnixMillis>) -> StoredValue {
        StoredValue { value: vec![7; bytes], version: Version(version), expires_at }
    }

    #[test]
    fn a_row_is_of_the_states_since_it_was_found() {
        let rows = CachedRows::new(1 << 20);
        rows.fill(&row("a"), at(9, 50), Some(&stored(3, 5, None)));
        assert_eq!(rows.get(&row("a"), at(9, 0)), Some(Some(stored(3, 5, None))));
        assert_eq!(rows.get(&row("a"), at(8, 50)), None);
        rows.fill(&row("b"), at(9, 50), None);
        assert_eq!(rows.get(&row("b"), at(9, 50)), Some(None));
        assert_eq!(rows.get(&row("b"), at(8, 50)), None);
    }

    #[test]
    fn a_row_that_expires_is_there_until_then_and_absence_is_no_earlier_than_it_was_seen() {
        let rows = CachedRows::new(1 << 20);
        rows.fill(&row("a"), at(9, 50), Some(&stored(3, 5, Some(60))));
        assert!(rows.get(&row("a"), at(9, 59)).flatten().is_some());
        assert_eq!(rows.get(&row("a"), at(9, 60)), None);
        rows.fill(&row("a"), at(9, 60), None);
        assert_eq!(rows.get(&row("a"), at(9, 59)), None);
        assert_eq!(rows.get(&row("a"), at(9, 61)), Some(None));
    }

    #[test]
    fn a_commit_changes_what_is_cached_and_nothing_else() {
        let rows = CachedRows::new(1 << 20);
        rows.fill(&row("a"), at(1, 0), Some(&stored(3, 1, None)));
        rows.fill(&row("large"), at(1, 0), Some(&stored(3, 1, None)));
        let mut changes = ChangedRows::default();
        let put = |bytes| RowWrite::Put { value: vec![7; bytes].into(), expires_at: None };
        rows.fill(&row("b"), at(1, 0), Some(&stored(3, 1, None)));
        rows.note(&mut changes, &row("a"), &RowWrite::Delete, written(2));
        rows.note(&mut changes, &row("b"), &put(4), written(2));
        rows.note(&mut changes, &row("large"), &put(VALUE_BYTES_MAX + 1), written(2));
        rows.note(&mut changes, &row("unknown"), &put(1), written(2));
        rows.apply(changes);
        assert_eq!(rows.get(&row("b"), at(2, 0)), Some(Some(stored(4, 1_002, None))));
        assert_eq!(rows.get(&row("b"), at(1, 0)), None);
        assert_eq!(rows.get(&row("a"), at(2, 0)), Some(None));
        assert_eq!(rows.get(&row("a"), at(1, 0)), None);
        assert_eq!(rows.get(&row("large"), at(2, 0)), None);
        assert_eq!(rows.get(&row("unknown"), at(2, 0)), None);
    }

    #[test]
    fn the_rows_stay_within_the_bound() {
        const BOUND: u64 = 100_000;
        let rows = CachedRows::new(BOUND);
        for number in 0..5_000 {
            rows.fill(&row(&number.to_string()), at(1, 0), Some(&stored(number % 500, 1, None)));
        }
        assert!(rows.rows.weight() <= BOUND && rows.rows.weight() > BOUND / 2, "{}", rows.rows.weight());
    }
}
