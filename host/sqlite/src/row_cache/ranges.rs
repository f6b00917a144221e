//! The cache of ranges, so that a repeated scan runs no SQL statement.
//!
//! The result of a scan is kept as a segment: all rows of a namespace from a first key up to an
//! end. Segments do not overlap. A later scan takes the rows of the segments that it meets, and
//! reads the gaps between them from the database.
//!
//! A segment holds for all states from its `since` up to the newest one. A commit
//! that writes a row within a segment, present or absent, removes the whole segment: see the
//! invariants in [`super`].

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use larder_core::Result;
use larder_core::chunk::{Chunk, ScanOptions};
use larder_core::clock::UnixMillis;
use larder_core::name::{KeyRange, RowKey, just_after};
use parking_lot::{Mutex, MutexGuard};

use super::Moment;
use crate::state_number::StateNumber;

/// Approximate bytes of a segment in addition to its rows and bounds.
const OVERHEAD: u64 = 300;

/// A segment takes at most this fraction of the cache, one in 16, so that a single scan of large
/// values leaves room for others.
const PARTS_MIN: u64 = 16;

/// Empty segments that one call passes before it lets the caller yield.
const SEGMENTS_MAX: usize = 64;

/// Segments of the newest committed rows, within a bound of bytes.
pub(super) struct CachedRanges {
    bytes_max: u64,
    segments: Mutex<Segments>,
}

#[derive(Default)]
struct Segments {
    /// Segments by namespace and first key.
    by_namespace: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Segment>>,
    /// All segments in the order in which eviction considers them, by [`Segment::turn`].
    queue: BTreeMap<u64, SegmentKey>,
    bytes: u64,
    last_turn: u64,
}

/// The key of a segment in [`Segments::by_namespace`].
struct SegmentKey {
    namespace: Vec<u8>,
    start: Vec<u8>,
}

/// All live rows of a namespace from a first key up to `end`, or to the end of the namespace if
/// `end` is `None`.
struct Segment {
    end: Option<Vec<u8>>,
    rows: Arc<Chunk>,
    /// The state in which the rows were read.
    since: StateNumber,
    /// The time at which the rows were read. Rows that had expired by then are missing, so a
    /// snapshot of an earlier time must not use the segment.
    at: UnixMillis,
    /// The key of this segment in [`Segments::queue`].
    turn: u64,
    bytes: u64,
    /// Whether a scan has read it since eviction last considered it.
    is_used: bool,
}

/// What the cache knows about the beginning of a range.
pub(crate) enum Beginning {
    /// The first rows of the range.
    Cached(Chunk),
    /// This first part of the range is not cached, and no row precedes it.
    Gap(KeyRange),
    /// No row precedes this rest of the range, which the call did not look at. It passed its
    /// maximum of empty segments.
    Empty(KeyRange),
}

impl CachedRanges {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, segments: Mutex::default() }
    }

    /// Looks up the beginning of a range, which must not be empty.
    pub(super) fn beginning(
        &self,
        range: &KeyRange,
        options: ScanOptions,
        moment: Moment,
    ) -> Result<Beginning> {
        let mut rest = range.clone();
        for _ in 0..SEGMENTS_MAX {
            let (rows, end) = match self.lock().find(&rest, moment) {
                Found::Segment { rows, end } => (rows, end),
                // All segments so far were empty, so no row of the range precedes the gap.
                Found::Gap { end: None } => return Ok(Beginning::Gap(rest)),
                Found::Gap { end: Some(end) } => return Ok(Beginning::Gap(rest.narrowed_until(&end))),
            };
            let is_last = reaches(end.as_deref(), rest.end());
            let mut part = rows.part(&rest, options, moment.now);
            // A part that is not exhausted left rows out for lack of room. They precede the next
            // segment, so the result must end here.
            if !part.exhausted || is_last || !part.is_empty() {
                part.exhausted &= is_last;
                return Ok(Beginning::Cached(part));
            }
            rest = rest.narrowed_from(&end.unwrap_or_default());
        }
        Ok(Beginning::Empty(rest))
    }

    /// Whether the result of a scan is small enough to be cached.
    pub(super) fn takes(&self, range: &KeyRange, chunk: &Chunk) -> bool {
        bytes(range, chunk) <= self.bytes_max / PARTS_MIN
    }

    /// Caches the result of a forward scan of `range`. The state of `moment` must be the
    /// newest.
    pub(super) fn fill(&self, range: &KeyRange, rows: Arc<Chunk>, moment: Moment) {
        let end = match rows.last_key() {
            _ if rows.exhausted => range.end().map(<[u8]>::to_vec),
            Some(last) => Some(just_after(last)),
            // The scan found no row and did not reach the end, so it says nothing about any key.
            None => return,
        };
        let bytes = bytes(range, &rows);
        let mut segments = self.lock();
        segments.remove_within(range, end.as_deref());
        segments.insert(
            range,
            Segment { end, rows, since: moment.state, at: moment.now, turn: 0, bytes, is_used: false },
        );
        segments.shrink(self.bytes_max);
    }

    /// Whether the key of the row is within a segment.
    pub(super) fn contains(&self, row: &RowKey) -> bool {
        self.lock().covering(row.namespace.as_bytes(), row.key.as_bytes()).is_some()
    }

    /// Removes the segment that contains the key of the row.
    pub(super) fn forget(&self, row: &RowKey) {
        let mut segments = self.lock();
        let (namespace, key) = (row.namespace.as_bytes(), row.key.as_bytes());
        if let Some((start, _)) = segments.covering(namespace, key) {
            let start = start.to_vec();
            segments.remove(namespace, &start);
        }
    }

    pub(super) fn clear(&self) {
        *self.lock() = Segments::default();
    }

    /// A panic elsewhere leaves each segment correct. At worst, `bytes` counts a segment that was
    /// removed.
    fn lock(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock()
    }
}

enum Found {
    Segment {
        rows: Arc<Chunk>,
        end: Option<Vec<u8>>,
    },
    /// Ends at the next segment, or with the range if `None`.
    Gap {
        end: Option<Vec<u8>>,
    },
}

impl Segments {
    fn find(&mut self, range: &KeyRange, moment: Moment) -> Found {
        let Some(namespace) = self.by_namespace.get_mut(range.namespace().as_bytes()) else {
            return Found::Gap { end: None };
        };
        let up_to_start = (Bound::Unbounded, Bound::Included(range.start()));
        let before = namespace.range_mut::<[u8], _>(up_to_start).next_back();
        if let Some((_, segment)) = before
            && segment.has(range.start())
            && segment.since <= moment.state
            && segment.at <= moment.now
        {
            segment.is_used = true;
            return Found::Segment { rows: segment.rows.clone(), end: segment.end.clone() };
        }
        let behind_start = (Bound::Excluded(range.start()), Bound::Unbounded);
        let next = namespace.range::<[u8], _>(behind_start).next();
        Found::Gap { end: next.map(|(start, _)| start.clone()) }
    }

    /// The segment that contains a key, with its first key.
    fn covering(&self, namespace: &[u8], key: &[u8]) -> Option<(&[u8], &Segment)> {
        let up_to_key = (Bound::Unbounded, Bound::Included(key));
        let (start, segment) = self.by_namespace.get(namespace)?.range::<[u8], _>(up_to_key).next_back()?;
        segment.has(key).then_some((start.as_slice(), segment))
    }

    fn insert(&mut self, range: &KeyRange, mut segment: Segment) {
        let (namespace, start) = (range.namespace().as_bytes().to_vec(), range.start().to_vec());
        segment.turn = self.next_turn();
        self.queue.insert(segment.turn, SegmentKey { namespace: namespace.clone(), start: start.clone() });
        self.bytes += segment.bytes;
        self.by_namespace.entry(namespace).or_default().insert(start, segment);
    }

    fn next_turn(&mut self) -> u64 {
        self.last_turn += 1;
        self.last_turn
    }

    fn remove(&mut self, namespace: &[u8], start: &[u8]) {
        let Some(segments) = self.by_namespace.get_mut(namespace) else { return };
        if let Some(segment) = segments.remove(start) {
            self.bytes = self.bytes.saturating_sub(segment.bytes);
            self.queue.remove(&segment.turn);
        }
        if segments.is_empty() {
            self.by_namespace.remove(namespace);
        }
    }

    /// Removes the segments that overlap the keys from the start of `range` up to `end`.
    fn remove_within(&mut self, range: &KeyRange, end: Option<&[u8]>) {
        let namespace = range.namespace().as_bytes();
        if let Some((start, _)) = self.covering(namespace, range.start()) {
            let start = start.to_vec();
            self.remove(namespace, &start);
        }
        let Some(segments) = self.by_namespace.get(namespace) else { return };
        let behind = segments.range::<[u8], _>((Bound::Included(range.start()), Bound::Unbounded));
        let within = behind.take_while(|(start, _)| end.is_none_or(|end| start.as_slice() < end));
        let starts: Vec<_> = within.map(|(start, _)| start.clone()).collect();
        starts.iter().for_each(|start| self.remove(namespace, start));
    }

    /// Evicts segments until the others fit. A segment that a scan has read since eviction last
    /// considered it is kept once more.
    fn shrink(&mut self, bytes_max: u64) {
        while self.bytes > bytes_max
            && let Some((_, key)) = self.queue.pop_first()
        {
            let is_used = self.segment(&key).is_some_and(|segment| std::mem::take(&mut segment.is_used));
            if !is_used {
                self.remove(&key.namespace, &key.start);
                continue;
            }
            let turn = self.next_turn();
            if let Some(segment) = self.segment(&key) {
                segment.turn = turn;
            }
            self.queue.insert(turn, key);
        }
    }

    fn segment(&mut self, key: &SegmentKey) -> Option<&mut Segment> {
        self.by_namespace.get_mut(&key.namespace)?.get_mut(&key.start)
    }
}

impl Segment {
    /// Whether the segment contains a key that is not before its first key.
    fn has(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| key < end.as_slice())
    }
}

/// Approximate bytes of a segment. Its first key is counted twice, because the queue holds it too.
fn bytes(range: &KeyRange, chunk: &Chunk) -> u64 {
    let bounds = [range.namespace().as_bytes(), range.start(), range.end().unwrap_or_default()];
    let names: usize = bounds.map(<[u8]>::len).iter().sum();
    OVERHEAD + chunk.memory() + 2 * names as u64
}

/// Whether an end is at or after the end of a range.
fn reaches(end: Option<&[u8]>, range_end: Option<&[u8]>) -> bool {
    match (end, range_end) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(end), Some(range_end)) => end >= range_end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_core::Limits;
    use larder_core::chunk::ChunkRow;
    use larder_core::name::{Key, Namespace};
    use larder_core::row::Version;

    const ALL: ScanOptions = ScanOptions::new(usize::MAX, u64::MAX);

    fn range(start: &str, end: Option<&str>) -> KeyRange {
        let namespace = Namespace::new("n", &Limits::default()).unwrap();
        KeyRange::new(namespace, start.into(), end.map(Into::into))
    }

    fn row(key: &str) -> RowKey {
        let limits = Limits::default();
        RowKey { namespace: Namespace::new("n", &limits).unwrap(), key: Key::new(key, &limits).unwrap() }
    }

    fn chunk(keys: &[&str], exhausted: bool) -> Chunk {
        let mut chunk = Chunk::default();
        for key in keys {
            let row = ChunkRow { key: key.as_bytes(), value: b"v", version: Version(1), expires_at: None };
            chunk.push(row).unwrap();
        }
        chunk.exhausted = exhausted;
        chunk
    }

    fn at(state: u64) -> Moment {
        Moment { state: StateNumber::new(state), now: 50 }
    }

    fn fill(ranges: &CachedRanges, range: &KeyRange, chunk: Chunk, moment: Moment) {
        if ranges.takes(range, &chunk) {
            ranges.fill(range, Arc::new(chunk), moment);
        }
    }

    fn ranges() -> CachedRanges {
        CachedRanges::new(1 << 20)
    }

    /// Describes the result: the first keys and whether they are all, or the bounds of the gap.
    fn look(ranges: &CachedRanges, start: &str, end: Option<&str>, moment: Moment) -> String {
        match ranges.beginning(&range(start, end), ALL, moment).unwrap() {
            Beginning::Cached(chunk) => {
                let keys: Vec<_> =
                    chunk.rows().map(|row| String::from_utf8_lossy(row.key).into_owned()).collect();
                format!("{}{}", keys.join(" "), if chunk.exhausted { " all" } else { "" })
            }
            Beginning::Gap(gap) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                format!("gap {} to {}", text(gap.start()), gap.end().map_or("end".to_string(), text))
            }
            Beginning::Empty(rest) => format!("empty up to {}", String::from_utf8_lossy(rest.start())),
        }
    }

    #[test]
    fn what_was_found_is_found_again_and_so_is_every_part_of_it() {
        let ranges = ranges();
        fill(&ranges, &range("b", Some("f")), chunk(&["b", "c", "e"], true), at(1));
        assert_eq!(look(&ranges, "b", Some("f"), at(1)), "b c e all");
        assert_eq!(look(&ranges, "bb", Some("e"), at(7)), "c all");
        assert_eq!(look(&ranges, "d", Some("dd"), at(1)), " all");
        assert_eq!(look(&ranges, "c", None, at(1)), "c e");
        assert_eq!(look(&ranges, "a", None, at(1)), "gap a to b");
        assert_eq!(look(&ranges, "a", Some("aa"), at(1)), "gap a to aa");
        assert_eq!(look(&ranges, "f", None, at(1)), "gap f to end");
    }

    #[test]
    fn what_was_not_found_to_the_end_goes_up_to_its_last_row() {
        let ranges = ranges();
        fill(&ranges, &range("b", None), chunk(&["b", "c"], false), at(1));
        assert_eq!(look(&ranges, "b", None, at(1)), "b c");
        assert_eq!(look(&ranges, "c\0", None, at(1)), "gap c\0 to end");
    }

    #[test]
    fn segments_that_follow_each_other_are_read_on_where_one_has_no_rows() {
        let ranges = ranges();
        fill(&ranges, &range("a", Some("c")), chunk(&[], true), at(1));
        fill(&ranges, &range("c", Some("e")), chunk(&["d"], true), at(1));
        assert_eq!(look(&ranges, "a", None, at(1)), "d");
        assert_eq!(look(&ranges, "a", Some("e"), at(1)), "d all");
        assert_eq!(look(&ranges, "e", None, at(1)), "gap e to end");
        ranges.forget(&row("d"));
        assert_eq!(look(&ranges, "a", Some("e"), at(1)), "gap c to e");
    }

    #[test]
    fn a_look_goes_past_a_bounded_number_of_segments_without_rows() {
        let ranges = ranges();
        let key = |number: usize| format!("{number:03}");
        for number in 0..SEGMENTS_MAX + 1 {
            fill(&ranges, &range(&key(number), Some(&key(number + 1))), chunk(&[], true), at(1));
        }
        assert_eq!(look(&ranges, "000", None, at(1)), "empty up to 064");
        assert_eq!(look(&ranges, "064", None, at(1)), "gap 065 to end");
        assert_eq!(look(&ranges, "000", Some("064"), at(1)), " all");
    }

    #[test]
    fn a_segment_is_of_the_states_and_moments_since_it_was_found() {
        let ranges = ranges();
        fill(&ranges, &range("a", None), chunk(&["b"], true), at(5));
        assert_eq!(look(&ranges, "a", None, at(4)), "gap a to end");
        assert_eq!(look(&ranges, "a", None, Moment { now: 49, ..at(5) }), "gap a to end");
        assert_eq!(look(&ranges, "a", None, Moment { now: 51, ..at(6) }), "b all");
    }

    #[test]
    fn a_segment_is_forgotten_with_a_row_of_it_and_overlapping_ones_with_a_new_one() {
        let ranges = ranges();
        fill(&ranges, &range("a", Some("c")), chunk(&["b"], true), at(1));
        assert!(ranges.contains(&row("bb")) && !ranges.contains(&row("c")));
        ranges.forget(&row("c"));
        assert!(ranges.contains(&row("a")));
        ranges.forget(&row("bb"));
        assert!(!ranges.contains(&row("a")));
        fill(&ranges, &range("a", Some("c")), chunk(&["a"], true), at(1));
        fill(&ranges, &range("d", Some("f")), chunk(&["d"], true), at(1));
        fill(&ranges, &range("b", Some("e")), chunk(&["b"], true), at(2));
        assert_eq!(look(&ranges, "a", None, at(2)), "gap a to b");
        assert_eq!(look(&ranges, "b", None, at(2)), "b");
        assert_eq!(look(&ranges, "e", None, at(2)), "gap e to end");
        ranges.clear();
        assert_eq!(look(&ranges, "b", None, at(2)), "gap b to end");
        assert_eq!(ranges.lock().bytes, 0);
    }

    #[test]
    fn a_segment_that_is_gone_leaves_nothing_behind() {
        let ranges = ranges();
        for _ in 0..100 {
            fill(&ranges, &range("a", None), chunk(&["b"], true), at(1));
            ranges.forget(&row("b"));
        }
        let segments = ranges.lock();
        assert_eq!((segments.bytes, segments.queue.len(), segments.by_namespace.len()), (0, 0, 0));
    }

    #[test]
    fn the_segments_stay_within_the_bound_and_those_that_are_read_stay_longest() {
        let ranges = CachedRanges::new(100_000);
        let key = |number: u64| format!("{number:05}");
        fill(&ranges, &range("", Some("0")), chunk(&[""], true), at(1));
        for number in 0..2_000 {
            let (start, end) = (key(number), key(number + 1));
            fill(&ranges, &range(&start, Some(&end)), chunk(&[&start], true), at(1));
            assert_eq!(look(&ranges, "", Some("0"), at(1)), " all");
        }
        let segments = ranges.lock();
        assert!(segments.bytes <= 100_000 && segments.bytes > 50_000, "{}", segments.bytes);
        assert!(segments.queue.len() < 400);
        drop(segments);
        // A segment that takes more than its fraction of the cache is not kept.
        let large = vec!["x"; 1_000];
        fill(&ranges, &range("x", None), chunk(&large, true), at(1));
        assert!(!ranges.contains(&row("x")));
    }
}
