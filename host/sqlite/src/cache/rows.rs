//! Committed rows in memory, so that most reads need no statement.

use std::sync::Arc;

use larder_core::backend::{StoredValue, Version, is_live};
use larder_core::clock::UnixMillis;
use larder_core::commit::RowWrite;
use larder_core::name::RowKey;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::StateNumber;

/// Bytes that a row takes beside its names and value, about: the entry, and what each allocation costs.
const OVERHEAD: u64 = 160;

/// Larger values are read from the database: copying them costs more than finding them.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// The newest committed rows, absent ones too, within a bound of bytes.
pub(super) struct CachedRows {
    rows: Cache<RowKey, CachedRow, Bytes>,
}

/// A row as it has been since a state, up to now.
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
    /// It was not there for who read at that moment, and is not for who reads later. Who reads at an earlier one may see
    /// a row that has expired in between.
    Absent {
        at: UnixMillis,
    },
}

/// Which state is read, and which of its rows are live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) state: StateNumber,
    pub(crate) now: UnixMillis,
}

/// Which commit wrote a row: the state that it leaves, and the version that it gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) state: StateNumber,
    pub(crate) version: Version,
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

/// What a commit makes of rows that are cached; none for one that can't be cached any more.
#[derive(Default)]
pub(super) struct Changes(Vec<(RowKey, Option<CachedRow>)>);

impl CachedRows {
    pub(super) fn new(bytes: u64) -> Self {
        let rows = usize::try_from(bytes / (2 * OVERHEAD)).unwrap_or(usize::MAX);
        Self { rows: Cache::with_weighter(rows, bytes, Bytes) }
    }

    /// The row as it is at a moment; none where only the database can tell.
    pub(super) fn get(&self, row: &RowKey, moment: Moment) -> Option<Option<StoredValue>> {
        let cached = self.rows.get(row).filter(|cached| cached.since <= moment.state)?;
        match cached.state {
            State::Present { value, version, expires_at } => is_live(expires_at, moment.now)
                .then(|| Some(StoredValue { value: value.to_vec(), version, expires_at })),
            State::Absent { at } => (at <= moment.now).then_some(None),
        }
    }

    /// Takes what was found at a moment, whose state must still be the newest. For how long the row has been so is not
    /// known: versions of other processes say nothing about the states of this one.
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

    /// Notes a write that is about to be committed. A row that is not cached does not become so: who only writes
    /// would drive out what others read.
    pub(super) fn note(&self, changes: &mut Changes, row: &RowKey, write: &RowWrite<'_>, written: Written) {
        if self.rows.contains_key(row) {
            changes.0.push((row.clone(), CachedRow::new(write, written)));
        }
    }

    pub(super) fn apply(&self, changes: Changes) {
        for (row, cached) in changes.0 {
            match cached {
                Some(cached) => {
                    // What is not taken, because it has become too large, must not stay as it was.
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
        Moment { state: StateNumber(state), now }
    }

    /// By a commit whose version is far above the number of its state.
    fn written(state: u64) -> Written {
        Written { state: StateNumber(state), version: Version(1_000 + state) }
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
        let mut changes = Changes::default();
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
