//! The open snapshots, and the memory that only they keep.
//!
//! A snapshot shares its rows with the newest state. Rows that were replaced or removed since are
//! kept for snapshots alone, and no quota counts them. Guests that hold snapshots and rewrite the
//! store between them could fill the memory. So this registry counts these rows and ends the oldest
//! snapshots over a bound.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::latest::Moment;
use super::rows::Rows;
use super::stored_row::StoredRow;
use crate::error::{Error, Result};

/// The rows of one state, shared by its snapshots; `None` once they are ended.
pub(super) struct SnapshotRows(Mutex<Option<Rows>>);

impl SnapshotRows {
    /// Calls `look` with the rows.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] if the snapshot was ended.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Rows) -> T) -> Result<T> {
        self.lock().as_ref().map(look).ok_or(Error::TimedOut)
    }

    /// A panic of its holder leaves a valid value, because each change replaces it as a whole.
    fn lock(&self) -> MutexGuard<'_, Option<Rows>> {
        self.0.lock()
    }
}

/// The open snapshots, the oldest first.
pub(super) struct SnapshotRegistry {
    open: VecDeque<Open>,
    /// Bytes that are kept for snapshots alone.
    kept: u64,
    kept_max: u64,
    ended: u64,
}

/// The ended snapshots of one state.
pub(super) struct Ended {
    /// Their rows. The caller must drop them while it holds no lock.
    _rows: Option<Rows>,
    /// The age of the oldest one.
    pub(super) age: Duration,
}

/// The snapshots of one state.
struct Open {
    moment: Moment,
    /// When the first one was opened.
    since: Instant,
    count: usize,
    rows: Arc<SnapshotRows>,
    /// Bytes of old rows that these snapshots keep and no newer ones, by the oldest state whose
    /// snapshots need the rows too. Ordered by state.
    kept: Vec<(u64, u64)>,
    /// Bytes of old map nodes that are kept too, and their largest number: all nodes of the map.
    nodes: u64,
    nodes_max: u64,
}

/// The most that one write copies of a map that a snapshot shares: a node of each level.
const NODES_PER_WRITE: u64 = 4 << 10;

/// The largest share of map nodes that one row has.
const NODES_PER_ROW: u64 = 150;

/// The default bound of the bytes that are kept for open snapshots.
const KEPT_MAX: u64 = 64 << 20;

impl Default for SnapshotRegistry {
    fn default() -> Self {
        Self { open: VecDeque::new(), kept: 0, kept_max: KEPT_MAX, ended: 0 }
    }
}

impl SnapshotRegistry {
    /// Sets the bound.
    pub(super) fn keep_at_most(&mut self, bytes: u64) {
        self.kept_max = bytes;
    }

    /// The number of snapshots that were ended.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    /// Opens a snapshot of the newest state.
    pub(super) fn open(&mut self, moment: Moment, rows: &Rows) -> Arc<SnapshotRows> {
        if let Some(newest) = self.open.back_mut().filter(|newest| newest.moment == moment) {
            newest.count += 1;
            return newest.rows.clone();
        }
        let nodes_max = NODES_PER_WRITE + NODES_PER_ROW * rows.len() as u64;
        let rows = Arc::new(SnapshotRows(Mutex::new(Some(rows.clone()))));
        let (kept, nodes) = (Vec::new(), 0);
        let since = Instant::now();
        self.open.push_back(Open { moment, since, count: 1, rows: rows.clone(), kept, nodes, nodes_max });
        rows
    }

    /// Closes a snapshot, unless it was ended. The caller must drop the returned rows while it
    /// holds no lock.
    pub(super) fn close(&mut self, moment: Moment) -> Option<Arc<SnapshotRows>> {
        let index = self.open.binary_search_by_key(&moment.changes(), |open| open.moment.changes()).ok()?;
        let open = self.open.get_mut(index)?;
        open.count -= 1;
        if open.count > 0 {
            return None;
        }
        let closed = self.open.remove(index)?;
        let before = index.checked_sub(1).and_then(|index| self.open.get_mut(index));
        self.kept -= closed.kept_bytes();
        if let Some(before) = before {
            self.kept += before.take_over(&closed);
        }
        Some(closed.rows)
    }

    /// Whether no snapshot is open.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Counts rows that a commit replaced or removed, and the map nodes that its writes copied.
    /// Ends the oldest snapshots over the bound. The caller must drop the returned values while it
    /// holds no lock.
    pub(super) fn note(&mut self, replaced: &[StoredRow], writes: usize) -> Vec<Ended> {
        let Some(newest) = self.open.back() else { return Vec::new() };
        let version = newest.moment.version;
        let mut kept = 0;
        // No snapshot keeps a row that was written after the newest snapshot.
        for row in replaced.iter().filter(|row| row.version() <= version) {
            let oldest = self.open.partition_point(|open| open.moment.version < row.version());
            let Some(state) = self.open.get(oldest).map(|open| open.moment.changes()) else { continue };
            let bytes = row.memory_bytes();
            kept += bytes;
            if let Some(newest) = self.open.back_mut() {
                newest.keep(state, bytes);
            }
        }
        if let Some(newest) = self.open.back_mut() {
            kept += newest.keep_nodes(NODES_PER_WRITE.saturating_mul(writes as u64));
        }
        self.kept += kept;
        self.end_oldest()
    }

    fn end_oldest(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        while self.kept > self.kept_max {
            let Some(oldest) = self.open.pop_front() else { break };
            self.kept -= oldest.kept_bytes();
            self.ended += oldest.count as u64;
            ended.push(Ended { _rows: oldest.rows.lock().take(), age: oldest.since.elapsed() });
        }
        ended
    }
}

impl Open {
    fn kept_bytes(&self) -> u64 {
        self.nodes + self.kept.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    fn keep(&mut self, state: u64, more: u64) {
        match self.kept.binary_search_by_key(&state, |(state, _)| *state) {
            Ok(index) => self.kept.get_mut(index).into_iter().for_each(|(_, bytes)| *bytes += more),
            Err(index) => self.kept.insert(index, (state, more)),
        }
    }

    /// Counts copied nodes and returns the increase.
    fn keep_nodes(&mut self, bytes: u64) -> u64 {
        let before = self.nodes;
        self.nodes = self.nodes.saturating_add(bytes).min(self.nodes_max);
        self.nodes - before
    }

    /// Takes over what the closed snapshots of the next state kept and these need too. Returns its
    /// bytes.
    fn take_over(&mut self, next: &Self) -> u64 {
        let mut taken = self.keep_nodes(next.nodes);
        let own = self.moment.changes();
        for (state, bytes) in next.kept.iter().filter(|(state, _)| *state <= own) {
            self.keep(*state, *bytes);
            taken += bytes;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::super::latest::Latest;
    use super::*;
    use crate::row::Version;

    /// A store of one row, whose value has 1,000 bytes.
    #[derive(Default)]
    struct OneRow {
        latest: Latest,
        rows: Rows,
        version: u64,
        snapshots: SnapshotRegistry,
    }

    impl OneRow {
        fn write(&mut self) -> Vec<Ended> {
            self.version += 1;
            self.latest.note_change();
            let row = StoredRow::new(b"n\0\0key", &[0; 1_000], Version(self.version), None);
            let replaced = self.latest.put(row.clone());
            self.rows.put(row);
            self.snapshots.note(replaced.as_slice(), 1)
        }

        fn open(&mut self) -> (Moment, Arc<SnapshotRows>) {
            let moment = self.latest.moment(Version(self.version));
            (moment, self.snapshots.open(moment, &self.rows))
        }

        /// The number of kept rows.
        fn kept(&self) -> u64 {
            (self.snapshots.kept - self.snapshots.open.iter().map(|open| open.nodes).sum::<u64>()) / 1_000
        }
    }

    #[test]
    fn each_snapshot_keeps_the_row_of_its_state_and_gives_it_back() {
        let mut store = OneRow::default();
        store.write();
        let mut snapshots = Vec::new();
        for generation in 1..=5 {
            snapshots.push(store.open().0);
            store.write();
            // This replaces a row that was written after the snapshot, so no snapshot keeps it.
            store.write();
            assert_eq!(store.kept(), generation);
        }
        for (index, left) in [(2, 4), (0, 3), (2, 2), (1, 1), (0, 0)] {
            assert!(store.snapshots.close(snapshots.remove(index)).is_some());
            assert_eq!(store.kept(), left);
        }
        assert_eq!((store.snapshots.kept, store.snapshots.is_empty()), (0, true));
    }

    #[test]
    fn a_row_that_several_snapshots_keep_is_kept_until_the_last_is_closed() {
        let mut store = OneRow::default();
        store.write();
        let (first, _) = store.open();
        // A change of another row.
        store.latest.note_change();
        let (second, _) = store.open();
        let (third, _) = store.open();
        store.write();
        for (snapshot, left) in [(second, 1), (first, 1), (third, 0)] {
            store.snapshots.close(snapshot);
            assert_eq!(store.kept(), left);
        }
    }

    #[test]
    fn over_the_bound_the_oldest_snapshots_are_ended() {
        let mut store = OneRow::default();
        store.snapshots.keep_at_most(3 * (1_100 + NODES_PER_WRITE));
        store.write();
        let mut snapshots = Vec::new();
        for _ in 0..5 {
            snapshots.push(store.open());
            store.write();
        }
        assert_eq!((store.kept(), store.snapshots.ended()), (3, 2));
        let is_open: Vec<bool> =
            snapshots.iter().map(|(_, rows)| rows.look(|rows| assert_eq!(rows.len(), 1)).is_ok()).collect();
        assert_eq!(is_open, [false, false, true, true, true]);
        for (moment, _) in snapshots {
            store.snapshots.close(moment);
        }
        assert_eq!((store.snapshots.kept, store.snapshots.open.len()), (0, 0));
    }

    #[test]
    fn nodes_of_a_map_count_until_all_of_them_are_copied() {
        let mut store = OneRow::default();
        store.write();
        let (older, _) = store.open();
        let written = store.latest.moment(Version(1));
        assert!(written == older);
        for _ in 0..10 {
            store.write();
        }
        assert_eq!(store.snapshots.kept, 1_000 + 62 + NODES_PER_WRITE + NODES_PER_ROW);
    }
}
