//! Pauses between large pieces of work, so that small ones usually find the worker free.

use std::time::{Duration, Instant};

use crate::share::Share;

/// The largest cost of small work, in rows: about 5 ms of SQLite.
///
/// Large commits are made one by one, with pauses.
pub const SMALL_COST_MAX: u64 = 500;

/// Bytes that cost as much as one row.
const BYTES_PER_ROW: u64 = 2 << 10;

/// The cost of writing rows, in rows: about 10 µs of SQLite each.
pub fn cost(rows: u64, bytes: u64) -> u64 {
    rows + bytes / BYTES_PER_ROW
}

/// Bounds the part of a worker's time that large pieces of work take.
///
/// Other work waits until the worker has finished a large piece. So if other shares have work too,
/// the next large piece begins only after a pause twice as long as the last one took, and of 1 s at
/// most. The worker does small work during the pause. A share that is alone never waits.
///
/// ```
/// use std::time::{Duration, Instant};
/// use larder_core::Share;
/// use larder_core::pace::Pace;
///
/// let (bulk, other) = (Share::own(), Share::own());
/// let mut pace = Pace::default();
/// let began = Instant::now();
/// let ended = began + Duration::from_millis(80);
/// pace.large_ended(&bulk, began, ended);
/// assert_eq!(pace.pause(ended), None);
/// pace.came(&other, ended);
/// assert_eq!(pace.pause(ended), Some(ended + Duration::from_millis(160)));
/// ```
#[derive(Debug, Default)]
pub struct Pace {
    /// The share whose work came last, and when.
    last: Option<(Share, Instant)>,
    /// The most recent work of a share other than that of `last`, and when it came.
    before: Option<(Share, Instant)>,
    large: Option<Large>,
}

/// The large piece of work that ended last.
#[derive(Debug)]
struct Large {
    share: Share,
    began: Instant,
    ended: Instant,
}

/// The length of the pause, in lengths of the work before it.
const PAUSE_FACTOR: u32 = 2;

/// The shortest time for which another share's work counts as company.
const COMPANY: Duration = Duration::from_millis(100);

/// Time after which the last large piece of work is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3);

/// The longest pause. If a large piece took long because the disk stalled, the next one most likely
/// takes less.
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl Pace {
    /// Whether large work was done recently.
    ///
    /// If not, a worker need not call [`came`](Self::came). At worst, the first pause begins late.
    pub fn is_watching(&self) -> bool {
        self.large.is_some()
    }

    /// Records that work of a share has arrived, large or small.
    pub fn came(&mut self, share: &Share, now: Instant) {
        if self.large.as_ref().is_some_and(|large| large.ended + FORGOTTEN < now) {
            self.large = None;
        }
        match &mut self.last {
            Some((last, when)) if last == share => *when = now,
            last => self.before = last.replace((share.clone(), now)),
        }
    }

    /// Records that a large piece of work has ended.
    pub fn large_ended(&mut self, share: &Share, began: Instant, ended: Instant) {
        self.large = Some(Large { share: share.clone(), began, ended });
    }

    /// When the next large piece of work may begin; `None` if it may begin now.
    pub fn pause(&self, now: Instant) -> Option<Instant> {
        let Large { share, began, ended } = self.large.as_ref()?;
        let took = ended.saturating_duration_since(*began).min(PAUSE_MAX);
        let until = *ended + (took * PAUSE_FACTOR).min(PAUSE_MAX);
        let company = took.max(COMPANY);
        let has_company = self.came_last_beside(share).is_some_and(|came| came + company >= *began);
        (now < until && has_company).then_some(until)
    }

    /// Whether a share other than `share` had work in the last 100 ms.
    pub fn has_company(&self, share: &Share, now: Instant) -> bool {
        self.came_last_beside(share).is_some_and(|came| came + COMPANY >= now)
    }

    /// When work of a share other than `share` last arrived.
    fn came_last_beside(&self, share: &Share) -> Option<Instant> {
        let mut others = self.last.iter().chain(&self.before).filter(|(other, _)| other != share);
        others.next().map(|(_, when)| *when)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_share_that_is_alone_never_waits() {
        let (bulk, now) = (Share::own(), Instant::now());
        let mut pace = Pace::default();
        for round in 0..3 {
            let began = now + millis(100 * round);
            pace.came(&bulk, began);
            assert_eq!(pace.pause(began), None);
            pace.large_ended(&bulk, began, began + millis(100));
        }
        assert_eq!(pace.pause(now + millis(300)), None);
    }

    #[test]
    fn another_share_is_company_for_a_while() {
        let (bulk, other, now) = (Share::own(), Share::own(), Instant::now());
        let mut pace = Pace::default();
        pace.came(&other, now);
        pace.came(&bulk, now);
        assert!(pace.has_company(&bulk, now + COMPANY) && pace.has_company(&other, now + COMPANY));
        assert!(!pace.has_company(&bulk, now + COMPANY + millis(1)));
    }

    #[test]
    fn a_large_piece_of_work_is_followed_by_a_pause_twice_as_long_if_others_have_work() {
        let (bulk, other, now) = (Share::own(), Share::own(), Instant::now());
        let mut pace = Pace::default();
        pace.came(&other, now);
        for _ in 0..3 {
            pace.came(&bulk, now);
        }
        pace.large_ended(&bulk, now, now + millis(300));
        assert_eq!(pace.pause(now + millis(300)), Some(now + millis(900)));
        assert_eq!(pace.pause(now + millis(899)), Some(now + millis(900)));
        assert_eq!(pace.pause(now + millis(900)), None);
    }

    #[test]
    fn work_of_others_that_is_long_past_is_no_reason_to_wait() {
        let (bulk, other, now) = (Share::own(), Share::own(), Instant::now());
        for (took, past, waits) in [(10, 100, true), (10, 101, false), (300, 300, true), (300, 301, false)] {
            let mut pace = Pace::default();
            let began = now + millis(past);
            pace.came(&other, now);
            pace.came(&bulk, began);
            pace.large_ended(&bulk, began, began + millis(took));
            assert_eq!(pace.pause(began + millis(took)).is_some(), waits, "{took} {past}");
        }
    }

    #[test]
    fn large_work_of_two_shares_makes_each_wait() {
        let (one, two, now) = (Share::own(), Share::own(), Instant::now());
        let mut pace = Pace::default();
        pace.came(&one, now);
        pace.came(&two, now);
        pace.large_ended(&one, now, now + millis(50));
        assert_eq!(pace.pause(now + millis(50)), Some(now + millis(150)));
        pace.came(&one, now + millis(150));
        pace.large_ended(&two, now + millis(150), now + millis(200));
        assert_eq!(pace.pause(now + millis(200)), Some(now + millis(300)));
    }

    #[test]
    fn large_work_is_forgotten_after_a_while() {
        let (bulk, other, now) = (Share::own(), Share::own(), Instant::now());
        let mut pace = Pace::default();
        assert!(!pace.is_watching());
        pace.large_ended(&bulk, now, now);
        pace.came(&other, now + FORGOTTEN);
        assert!(pace.is_watching());
        pace.came(&other, now + FORGOTTEN + millis(1));
        assert!(!pace.is_watching());
    }

    #[test]
    fn a_pause_is_no_longer_than_a_second() {
        let (bulk, other, now) = (Share::own(), Share::own(), Instant::now());
        let mut pace = Pace::default();
        pace.came(&other, now);
        pace.large_ended(&bulk, now, now + millis(20_000));
        assert_eq!(pace.pause(now + millis(20_000)), Some(now + millis(21_000)));
    }
}
