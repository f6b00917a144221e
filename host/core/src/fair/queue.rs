//! A queue that serves shares in turn.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::share::Share;

/// A start-time fair queue: it serves equal cost to each share that waits.
///
/// Each request has a cost. The number of a share's requests does not matter. Requests of one share
/// keep their order. A share without requests saves up no credit.
///
/// ```
/// use larder_core::Share;
/// use larder_core::fair::FairQueue;
///
/// let (busy, other) = (Share::own(), Share::own());
/// let mut queue = FairQueue::default();
/// queue.push(&busy, 10, "first");
/// queue.push(&busy, 10, "second");
/// queue.push(&other, 1, "other");
/// let served: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, request)| request).collect();
/// assert_eq!(served, ["first", "other", "second"]);
/// ```
#[derive(Debug)]
pub struct FairQueue<T> {
    waiting: BTreeMap<Position, Waiting<T>>,
    /// The start tag of each share's next request. A share without an entry starts at `now`.
    next: HashMap<Share, u128>,
    /// The virtual time: the start tag of the last request served, or its end if the queue became
    /// empty.
    now: u128,
    arrivals: u64,
    /// The size of `next` above which entries that are not ahead of `now` are removed.
    prune_at: usize,
}

/// The position of a request in a [`FairQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    start: u128,
    arrival: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    share: Share,
    cost: u64,
    request: T,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), next: HashMap::new(), now: 0, arrivals: 0, prune_at: SHARES_KEPT }
    }
}

impl<T> FairQueue<T> {
    /// Adds a request.
    ///
    /// All costs use one unit of the caller's choice; 0 counts as 1.
    pub fn push(&mut self, share: &Share, cost: u64, request: T) -> Position {
        let start = self.next.get(share).copied().unwrap_or_default().max(self.now);
        self.next.insert(share.clone(), start + u128::from(cost.max(1)));
        self.arrivals += 1;
        let position = Position { start, arrival: self.arrivals };
        self.waiting.insert(position, Waiting { share: share.clone(), cost, request });
        position
    }

    /// Puts a request that [`pop`](Self::pop) returned back into its position.
    pub fn put_back(&mut self, position: Position, share: &Share, cost: u64, request: T) {
        self.waiting.insert(position, Waiting { share: share.clone(), cost, request });
    }

    /// Removes the next request and returns it with its position.
    pub fn pop(&mut self) -> Option<(Position, T)> {
        let (position, waiting) = self.waiting.pop_first()?;
        // No share is ahead once the queue is empty, so the virtual time moves past the last
        // request.
        let served = if self.waiting.is_empty() { u128::from(waiting.cost.max(1)) } else { 0 };
        self.move_to(position.start + served);
        Some((position, waiting.request))
    }

    /// The requests with their positions and costs, in the order in which they are served.
    pub fn iter(&self) -> impl Iterator<Item = (Position, u64, &T)> {
        self.waiting.iter().map(|(position, waiting)| (*position, waiting.cost, &waiting.request))
    }

    /// The number of waiting requests.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn move_to(&mut self, now: u128) {
        self.now = self.now.max(now);
        // An entry that is not ahead of `now` means the same as no entry. Shares come and go, so
        // remove such entries.
        if self.next.len() <= self.prune_at {
            return;
        }
        let now = self.now;
        self.next.retain(|_, next| *next > now);
        if self.next.len() > SHARES_AHEAD_MAX {
            // Bound the map: forget what shares without a waiting request have had. Order within
            // each share stays.
            let waiting: HashSet<&Share> = self.waiting.values().map(|waiting| &waiting.share).collect();
            self.next.retain(|share, _| waiting.contains(share));
        }
        self.prune_at = 2 * self.next.len() + SHARES_KEPT;
    }
}

/// Entries of `next` that may be out of date, so that not every request pays for a search.
const SHARES_KEPT: usize = 64;

/// Entries of `next` above which shares without a waiting request are forgotten.
const SHARES_AHEAD_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn served(queue: &mut FairQueue<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop()).map(|(_, request)| request).collect()
    }

    #[test]
    fn requests_of_one_share_keep_their_order() {
        let share = Share::own();
        let mut queue = FairQueue::default();
        for request in ["a", "b", "c"] {
            queue.push(&share, 5, request);
        }
        assert_eq!(served(&mut queue), ["a", "b", "c"]);
    }

    #[test]
    fn a_share_with_many_requests_has_no_more_turns_than_one_with_few() {
        let (many, few) = (Share::own(), Share::own());
        let mut queue = FairQueue::default();
        for request in ["m1", "m2", "m3", "m4"] {
            queue.push(&many, 1, request);
        }
        queue.push(&few, 1, "f1");
        queue.push(&few, 1, "f2");
        assert_eq!(served(&mut queue), ["m1", "f1", "m2", "f2", "m3", "m4"]);
    }

    #[test]
    fn a_costly_request_counts_for_many_cheap_ones() {
        let (costly, cheap) = (Share::own(), Share::own());
        let mut queue = FairQueue::default();
        queue.push(&costly, 3, "c1");
        queue.push(&costly, 3, "c2");
        for request in ["1", "2", "3", "4"] {
            queue.push(&cheap, 1, request);
        }
        assert_eq!(served(&mut queue), ["c1", "1", "2", "3", "c2", "4"]);
    }

    #[test]
    fn a_share_that_was_away_has_saved_nothing_up() {
        let (steady, back) = (Share::own(), Share::own());
        let mut queue = FairQueue::default();
        for _ in 0..100 {
            queue.push(&steady, 1, "steady");
            queue.pop().unwrap();
        }
        queue.push(&steady, 1, "s1");
        queue.push(&back, 1, "b1");
        queue.push(&back, 1, "b2");
        queue.push(&steady, 1, "s2");
        assert_eq!(served(&mut queue), ["s1", "b1", "b2", "s2"]);
    }

    #[test]
    fn a_request_that_is_put_back_has_its_position() {
        let (one, other) = (Share::own(), Share::own());
        let mut queue = FairQueue::default();
        queue.push(&one, 1, "first");
        queue.push(&other, 1, "second");
        let (position, request) = queue.pop().unwrap();
        queue.put_back(position, &one, 1, request);
        assert_eq!(served(&mut queue), ["first", "second"]);
    }

    #[test]
    fn shares_that_are_gone_are_forgotten() {
        let mut queue = FairQueue::default();
        for _ in 0..1_000 {
            queue.push(&Share::own(), 1, ());
            queue.pop().unwrap();
        }
        assert!(queue.next.len() <= SHARES_KEPT + 1, "{}", queue.next.len());
        // Also while a request always waits, so that shares stay ahead.
        queue.push(&Share::own(), 1, ());
        for _ in 0..100_000 {
            queue.push(&Share::own(), 1, ());
            queue.pop().unwrap();
        }
        assert!(queue.next.len() <= 4 * SHARES_AHEAD_MAX, "{}", queue.next.len());
    }
}
