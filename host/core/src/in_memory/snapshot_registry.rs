//! The snapshots that are open, and how much memory is kept for nothing but them.
//!
//! A snapshot shares the rows of its state with those of now. What has been replaced or removed since is kept by snapshots
//! alone, and no quota counts it: guests that hold snapshots and write the store anew between them would fill the memory.
//! So it is counted, and over a bound the oldest snapshots are ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::latest::Moment;
use super::rows::Rows;
use super::stored_row::StoredRow;
use crate::error::{Error, Result};

/// The rows of one state, for the snapshots of that state, until they are taken away.
pub(super) struct SnapshotRows(Mutex<Option<Rows>>);

impl SnapshotRows {
    /// Looks into the rows.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the snapshot was ended.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Rows) -> T) -> Result<T> {
        self.lock().as_ref().map(look).ok_or(Error::TimedOut)
    }

    /// A panic elsewhere can't have left it half changed: it is replaced as a whole.
    fn lock(&self) -> MutexGuard<'_, Option<Rows>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The snapshots that are open, the oldest first.
pub(super) struct SnapshotRegistry {
    open: VecDeque<Open>,
    /// Bytes that are kept for them.
    kept: u64,
    kept_max: u64,
    ended: u64,
}

/// Snapshots that were ended.
pub(super) struct Ended {
    /// Their rows, to be dropped without any lock.
    _rows: Option<Rows>,
    /// How old the oldest of them was.
    pub(super) age: Duration,
}

/// The snapshots of one state.
struct Open {
    moment: Moment,
    /// When the first of them was opened.
    since: Instant,
    count: usize,
    rows: Arc<SnapshotRows>,
    /// Rows that are kept for these snapshots, and perhaps for older ones: for each state, the bytes of those rows that its
    /// snapshots and no older ones keep too. In the order of the states.
    kept: Vec<(u64, u64)>,
    /// Bytes of the nodes of the map that are kept in addition, and what they can be at most: all nodes.
    nodes: u64,
    nodes_max: u64,
}

/// What a write of one row copies at most of a map that a snapshot shares: a node of each level.
const NODES_PER_WRITE: u64 = 4 << 10;

/// What each row has of the nodes of a map at most.
const NODES_PER_ROW: u64 = 150;

/// Bytes that are kept for open snapshots at most, by default.
const KEPT_MAX: u64 = 64 << 20;

impl Default for SnapshotRegistry {
    fn default() -> Self {
        Self { open: VecDeque::new(), kept: 0, kept_max: KEPT_MAX, ended: 0 }
    }
}

impl SnapshotRegistry {
    /// Bounds what is kept.
    pub(super) fn keep_at_most(&mut self, bytes: u64) {
        self.kept_max = bytes;
    }

    /// How many snapshots were ended.
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

    /// Closes a snapshot, unless it was ended. What is given is to be dropped without any lock.
    pub(super) fn close(&mut self, moment: Moment) -> Option<Arc<SnapshotRows>> {
        let place = self.open.binary_search_by_key(&moment.changes(), |open| open.moment.changes()).ok()?;
        let open = self.open.get_mut(place)?;
        open.count -= 1;
        if open.count > 0 {
            return None;
        }
        let closed = self.open.remove(place)?;
        let before = place.checked_sub(1).and_then(|place| self.open.get_mut(place));
        self.kept -= closed.kept_bytes();
        if let Some(before) = before {
            self.kept += before.take_over(&closed);
        }
        Some(closed.rows)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Counts rows that were in the newest state and no longer are, and so many writes. Ends the oldest snapshots if too
    /// much is kept. What is given is to be dropped without any lock.
    pub(super) fn note(&mut self, replaced: &[StoredRow], writes: usize) -> Vec<Ended> {
        let Some(newest) = self.open.back() else { return Vec::new() };
        let version = newest.moment.version;
        let mut kept = 0;
        // A row that came after the newest snapshot is kept by none.
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
            Ok(place) => self.kept.get_mut(place).into_iter().for_each(|(_, bytes)| *bytes += more),
            Err(place) => self.kept.insert(place, (state, more)),
        }
    }

    /// Gives how many more there are.
    fn keep_nodes(&mut self, bytes: u64) -> u64 {
        let before = self.nodes;
        self.nodes = self.nodes.saturating_add(bytes).min(self.nodes_max);
        self.nodes - before
    }

    /// Keeps what snapshots of the next state kept, as far as these need it. Gives how many bytes that are.
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
    use crate::backend::Version;

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

        /// Rows that are kept.
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
            // The row of this generation came after the snapshot, and is kept by none.
            store.write();
            assert_eq!(store.kept(), generation);
        }
        for (place, left) in [(2, 4), (0, 3), (2, 2), (1, 1), (0, 0)] {
            assert!(store.snapshots.close(snapshots.remove(place)).is_some());
            assert_eq!(store.kept(), left);
        }
        assert_eq!((store.snapshots.kept, store.snapshots.is_empty()), (0, true));
    }

    #[test]
    fn a_row_that_several_snapshots_keep_is_kept_until_the_last_is_closed() {
        let mut store = OneRow::default();
        store.write();
        let (first, _) = store.open();
        // A change of something else.
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
