//! The requests that wait for the writer of a database, and the order in which they are made.

use std::sync::Arc;
use std::time::Instant;

use larder_core::Share;
use larder_core::clock::ForwardClock;
use larder_core::commit::Commit;
use larder_core::fair::{FairQueue, Position};
use larder_core::memory::records::RecordWrite;
use larder_core::pace::{Pace, SMALL_COST_MAX, cost};
use larder_core::validation::Attempt;

use crate::journal::Answer;

/// The most members of a group, so that their answers are not delayed by too many others.
const GROUP_MAX: usize = 256;

/// The most work that a guest's thread commits, in the unit of [`cost`]: about 2 ms.
const GUEST_COST_MAX: u64 = SMALL_COST_MAX / 2;

/// Something to write.
pub(crate) enum Work {
    /// The commit of a transaction.
    Commit(Arc<Commit>, Attempt),
    /// The write of one conversation record.
    Record(Arc<RecordWrite>),
}

/// Work with the caller that waits for its outcome.
pub(crate) struct Request {
    pub(crate) work: Work,
    pub(crate) answer: Answer,
    share: Share,
    cost: u64,
    /// The position in its queue, once it was taken from there.
    position: Option<Position>,
}

impl Work {
    /// The commit clock of the work. `None` for a record, which has no time.
    pub(crate) fn clock(&self) -> Option<&ForwardClock> {
        match self {
            Self::Commit(commit, _) => Some(&commit.clock),
            Self::Record(_) => None,
        }
    }

    /// The share that the work counts against.
    fn share(&self) -> Share {
        match self {
            Self::Commit(commit, _) => commit.share.clone(),
            Self::Record(write) => write.key.share(),
        }
    }

    fn cost(&self) -> u64 {
        match self {
            Self::Commit(commit, attempt) => commit.cost() + attempt.cost(&commit.reads),
            Self::Record(write) => {
                cost(1, write.record.as_ref().map_or(0, |record| record.bytes.len() as u64))
            }
        }
    }
}

impl Request {
    pub(crate) fn new(work: Work, answer: Answer) -> Self {
        Self { share: work.share(), cost: work.cost(), work, answer, position: None }
    }

    pub(crate) fn share(&self) -> &Share {
        &self.share
    }

    /// Whether it is made alone, and never on a guest's thread.
    pub(crate) fn is_large(&self) -> bool {
        self.cost > SMALL_COST_MAX
    }
}

/// Requests of several shares. Large ones have a queue of their own, so that small ones are made
/// between two of them.
#[derive(Default)]
pub(crate) struct Waiting {
    small: FairQueue<Request>,
    large: FairQueue<Request>,
    pace: Pace,
    /// Whether the last group was a large request.
    was_large: bool,
}

/// When the next request is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Nothing,
    Now,
    /// Only large requests wait, and this is the end of the pause before them.
    At(Instant),
}

impl Waiting {
    pub(crate) fn push(&mut self, request: Request, now: Instant) {
        self.pace.came(request.share(), now);
        self.insert(request);
    }

    /// Puts a group that was taken back in its position.
    pub(crate) fn put_back(&mut self, group: Vec<Request>) {
        group.into_iter().for_each(|request| self.insert(request));
    }

    fn insert(&mut self, mut request: Request) {
        let cost = request.cost;
        let queue = if request.is_large() { &mut self.large } else { &mut self.small };
        let share = request.share.clone();
        match request.position.take() {
            Some(position) => queue.put_back(position, &share, cost, request),
            None => {
                queue.push(&share, cost, request);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }

    pub(crate) fn next(&self, now: Instant) -> Next {
        match self.pace.pause(now) {
            _ if self.is_empty() => Next::Nothing,
            Some(until) if self.small.is_empty() => Next::At(until),
            _ => Next::Now,
        }
    }

    /// Takes the next group: a large request alone, or small ones of shares in turn. A close does
    /// not keep the pauses.
    pub(crate) fn take(&mut self, now: Instant, keeps_pauses: bool) -> Vec<Request> {
        let is_paused = keeps_pauses && self.pace.pause(now).is_some();
        let is_turn = self.small.is_empty() || !self.was_large;
        self.was_large = false;
        if is_turn
            && !is_paused
            && let Some(large) = pop(&mut self.large)
        {
            self.was_large = true;
            return vec![large];
        }
        self.take_small(SMALL_COST_MAX)
    }

    /// Takes all requests, in groups.
    pub(crate) fn take_all(&mut self) -> Vec<Vec<Request>> {
        let mut groups = Vec::new();
        while !self.is_empty() {
            groups.push(self.take(Instant::now(), false));
        }
        groups
    }

    /// Takes small requests for a guest's thread: at most a few milliseconds of work, because the
    /// thread belongs to the executor.
    pub(crate) fn take_for_guest(&mut self) -> Vec<Request> {
        self.take_small(GUEST_COST_MAX)
    }

    /// Takes small requests up to a cost.
    fn take_small(&mut self, cost_max: u64) -> Vec<Request> {
        let mut cost = 0;
        let costs = self.small.iter().take(GROUP_MAX).map(|(_, cost, _)| cost.max(1));
        let fits = |next: &u64| {
            cost += next;
            cost <= cost_max
        };
        let count = costs.take_while(fits).count();
        (0..count).map_while(|_| pop(&mut self.small)).collect()
    }

    /// Records that large work has ended.
    pub(crate) fn large_ended(&mut self, share: &Share, began: Instant, ended: Instant) {
        self.pace.large_ended(share, began, ended);
    }

    /// Makes large work wait for at least this long.
    #[cfg(test)]
    pub(crate) fn pause_for(&mut self, pause: std::time::Duration) {
        let now = Instant::now();
        self.pace.came(&Share::own(), now);
        self.pace.large_ended(&Share::own(), now, now + pause);
    }

    /// The end of the pause before large work. `None` if there is no pause.
    pub(crate) fn pause(&self, now: Instant) -> Option<Instant> {
        self.pace.pause(now)
    }
}

fn pop(queue: &mut FairQueue<Request>) -> Option<Request> {
    let (position, mut request) = queue.pop()?;
    request.position = Some(position);
    Some(request)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use larder_core::Limits;
    use larder_core::commit::Mutation;
    use larder_core::name::{Key, Namespace, RowKey, Value};
    use tokio::sync::oneshot;

    use super::*;

    fn row(number: usize) -> RowKey {
        let limits = Limits::default();
        RowKey {
            namespace: Namespace::new("n", &limits).unwrap(),
            key: Key::new(number.to_string(), &limits).unwrap(),
        }
    }

    fn request(share: &Share, rows: usize, value_bytes: usize) -> Request {
        let value = Value::new(vec![0; value_bytes], &Limits::default()).unwrap();
        let put = Mutation::Put { value, ttl_ms: None };
        let writes = (0..rows).map(|number| (row(number), put.clone())).collect();
        let commit = Commit { writes, share: share.clone(), ..Commit::default() };
        Request::new(Work::Commit(Arc::new(commit), Attempt::first(None)), oneshot::channel().0)
    }

    /// How many rows each member of a group writes.
    fn rows(group: &[Request]) -> Vec<usize> {
        let rows = |request: &Request| match &request.work {
            Work::Commit(commit, _) => commit.writes.len(),
            Work::Record(_) => 0,
        };
        group.iter().map(rows).collect()
    }

    fn waiting(requests: impl IntoIterator<Item = Request>, now: Instant) -> Waiting {
        let mut waiting = Waiting::default();
        requests.into_iter().for_each(|request| waiting.push(request, now));
        waiting
    }

    #[test]
    fn a_group_ends_at_a_cost_and_a_small_commit_of_another_share_is_in_the_first() {
        let (busy, other, now) = (Share::own(), Share::own(), Instant::now());
        let many = (0..1_000).map(|_| request(&busy, 100, 1));
        let mut waiting = waiting(many.chain([request(&other, 3, 1)]), now);
        assert_eq!(rows(&waiting.take(now, true)), [100, 3, 100, 100, 100]);
        assert_eq!(rows(&waiting.take(now, true)), [100; 5]);
        let group = waiting.take_for_guest();
        assert_eq!(rows(&group), [100; 2]);
        waiting.put_back(group);
        assert_eq!(waiting.small.len(), 1_001 - 10);
    }

    #[test]
    fn bytes_count_and_so_does_the_number_of_members() {
        let (share, now) = (Share::own(), Instant::now());
        let mut bytes = waiting((0..20).map(|_| request(&share, 1, 200 << 10)), now);
        assert_eq!(bytes.take(now, true).len(), 4);
        let mut members = waiting((0..1_000).map(|_| request(&share, 1, 1)), now);
        assert_eq!(members.take(now, true).len(), GROUP_MAX);
        assert!(request(&share, 501, 0).is_large() && request(&share, 2, 1 << 20).is_large());
        assert!(!request(&share, 400, 1).is_large() && !request(&share, 1, 900 << 10).is_large());
    }

    #[test]
    fn a_large_commit_is_made_alone_and_small_ones_in_between() {
        let (bulk, now) = (Share::own(), Instant::now());
        let large = (0..2).map(|_| request(&bulk, 600, 1));
        let mut waiting = waiting(large.chain((0..2).map(|_| request(&bulk, 1, 1))), now);
        let taken: Vec<_> = (0..4).map(|_| rows(&waiting.take(now, true))).collect();
        assert_eq!(taken, [vec![600], vec![1, 1], vec![600], vec![]]);
        assert_eq!(waiting.next(now), Next::Nothing);
    }

    #[test]
    fn after_a_large_commit_the_next_one_waits_twice_as_long_if_another_share_commits() {
        let (bulk, other, now) = (Share::own(), Share::own(), Instant::now());
        let ended = now + Duration::from_millis(50);
        let until = ended + Duration::from_millis(100);
        let mut waiting = waiting([request(&bulk, 600, 1), request(&bulk, 600, 1)], now);
        assert_eq!(rows(&waiting.take(now, true)), [600]);
        waiting.large_ended(&bulk, now, ended);
        assert_eq!(waiting.next(ended), Next::Now);
        waiting.push(request(&other, 1, 1), ended);
        assert_eq!(waiting.next(ended), Next::Now);
        assert_eq!(rows(&waiting.take(ended, true)), [1]);
        assert_eq!(waiting.next(ended), Next::At(until));
        assert!(waiting.take(ended, true).is_empty());
        assert_eq!(waiting.next(until), Next::Now);
        assert_eq!(rows(&waiting.take(until, true)), [600]);
    }

    #[test]
    fn who_closes_the_database_keeps_no_pauses() {
        let (bulk, other, now) = (Share::own(), Share::own(), Instant::now());
        let mut waiting = waiting([request(&bulk, 600, 1), request(&bulk, 600, 1)], now);
        waiting.take(now, true);
        waiting.push(request(&other, 1, 1), now);
        waiting.large_ended(&bulk, now, now + Duration::from_millis(50));
        assert_eq!(rows(&waiting.take(now, false)), [1]);
        assert_eq!(rows(&waiting.take(now, false)), [600]);
        assert!(waiting.is_empty());
    }
}
