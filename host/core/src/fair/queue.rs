//! A queue in which each share has its turn.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::share::Share;

/// Requests of several shares, in the order in which they are to be served.
///
/// Each request has a cost. Among the shares that wait, each is served as much cost as the others, whatever the number of
/// its requests; those of one share keep their order. A share that was away has saved nothing up. (This is start-time fair
/// queueing.)
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
    waiting: BTreeMap<Place, Waiting<T>>,
    /// Where the next request of a share begins; shares that are not ahead of `now` are left out.
    next: HashMap<Share, u128>,
    /// Where the request began that was served last, or where it ended if none waited behind it.
    now: u128,
    arrivals: u64,
    /// With how many shares those that are not ahead are looked for next.
    prune_at: usize,
}

/// Where a request stands in a [`FairQueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
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
    /// Adds a request. Costs are in any unit, the same for all; 0 counts as 1.
    pub fn push(&mut self, share: &Share, cost: u64, request: T) -> Place {
        let start = self.next.get(share).copied().unwrap_or_default().max(self.now);
        self.next.insert(share.clone(), start + u128::from(cost.max(1)));
        self.arrivals += 1;
        let place = Place { start, arrival: self.arrivals };
        self.waiting.insert(place, Waiting { share: share.clone(), cost, request });
        place
    }

    /// Puts back a request that was taken, in its place.
    pub fn put_back(&mut self, place: Place, share: &Share, cost: u64, request: T) {
        self.waiting.insert(place, Waiting { share: share.clone(), cost, request });
    }

    /// The next request, with its place.
    pub fn pop(&mut self) -> Option<(Place, T)> {
        let (place, waiting) = self.waiting.pop_first()?;
        // Once none waits, no share is ahead of those that come.
        let served = if self.waiting.is_empty() { u128::from(waiting.cost.max(1)) } else { 0 };
        self.move_to(place.start + served);
        Some((place, waiting.request))
    }

    /// The requests with their places and costs, in the order in which they are served.
    pub fn iter(&self) -> impl Iterator<Item = (Place, u64, &T)> {
        self.waiting.iter().map(|(place, waiting)| (*place, waiting.cost, &waiting.request))
    }

    /// How many requests wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn move_to(&mut self, now: u128) {
        self.now = self.now.max(now);
        // Shares come and go: those that are not ahead are like those that were never here.
        if self.next.len() <= self.prune_at {
            return;
        }
        let now = self.now;
        self.next.retain(|_, next| *next > now);
        if self.next.len() > SHARES_AHEAD_MAX {
            // So many shares have each had little: what they had counts no more, but their requests keep their order.
            let waiting: HashSet<&Share> = self.waiting.values().map(|waiting| &waiting.share).collect();
            self.next.retain(|share, _| waiting.contains(share));
        }
        self.prune_at = 2 * self.next.len() + SHARES_KEPT;
    }
}

/// Shares that are remembered though they are not ahead; looking for them each time would cost more.
const SHARES_KEPT: usize = 64;

/// Shares that are ahead and remembered, besides those that wait.
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
    fn a_request_that_is_put_back_has_its_place() {
        let (one, other) = (Share::own(), Share::own());
        let mut queue = FairQueue::default();
        queue.push(&one, 1, "first");
        queue.push(&other, 1, "second");
        let (place, request) = queue.pop().unwrap();
        queue.put_back(place, &one, 1, request);
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
        // Also if some share always waits.
        queue.push(&Share::own(), 1, ());
        for _ in 0..100_000 {
            queue.push(&Share::own(), 1, ());
            queue.pop().unwrap();
        }
        assert!(queue.next.len() <= 4 * SHARES_AHEAD_MAX, "{}", queue.next.len());
    }
}
