//! Fair scheduling of long calls, which keeps most of the executor's threads free.

use std::num::NonZero;
use std::pin::pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::fair::{FairPermit, FairSemaphore};
use crate::pace::Pace;
use crate::share::Share;
use crate::slice::give_way;

/// Schedules the long calls of one instance: scans, and calls with lists.
///
/// Such a call works in slices (see [`slice`](crate::slice)). While other shares make calls too,
/// each slice from the second one on waits for a permit. The process has as many permits as half of
/// its processors, and each slice is followed by a pause twice as long. A call after a long one
/// waits for a permit from its first slice on. Instances that make long calls without end thus
/// leave most of the executor to the others. A share that is alone never waits.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use larder_core::{LongCalls, Share};
///
/// let calls = LongCalls::new(Share::own());
/// assert_eq!(calls.run(async { 7 }).await, 7);
/// # }
/// ```
#[derive(Debug)]
pub struct LongCalls {
    share: Share,
    was_long: AtomicBool,
}

/// A call that works for this long, in one slice or several, is a long call.
const LONG: Duration = Duration::from_micros(500);

/// The longest wait of a slice for a permit. Then it runs without one, so that it notices when its
/// transaction's timeout has passed.
const TURN_MAX: Duration = Duration::from_millis(100);

/// Shared by the whole process, like its processors.
static TURNS: LazyLock<Turns> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    Turns::new(processors.div_ceil(2))
});

struct Turns {
    permits: FairSemaphore,
    pace: Mutex<Pace>,
    /// Whether a long call was made recently, so that `pace` has to know which shares make calls.
    is_watching: AtomicBool,
}

impl LongCalls {
    /// Creates the scheduler of an instance of this share.
    pub fn new(share: Share) -> Self {
        Self { share, was_long: AtomicBool::new(false) }
    }

    /// Runs a call to its end.
    pub async fn run<T>(&self, call: impl Future<Output = T>) -> T {
        self.run_in(&TURNS, call).await
    }

    async fn run_in<T>(&self, turns: &Turns, call: impl Future<Output = T>) -> T {
        turns.called(&self.share);
        let mut call = pin!(call);
        let mut waits = self.was_long.load(Ordering::Relaxed);
        loop {
            let mut worked = Duration::ZERO;
            let mut turn = if waits { turns.take(&self.share).await } else { None };
            let (polled, is_long) = std::future::poll_fn(|context| {
                let began = Instant::now();
                let polled = call.as_mut().poll(context);
                let ended = Instant::now();
                worked += ended.saturating_duration_since(began);
                let is_long = worked >= LONG;
                if is_long {
                    turns.worked(&self.share, worked, ended);
                }
                // Whatever the call waits for now is not work, so it holds no permit meanwhile.
                drop(turn.take());
                match polled {
                    Poll::Pending if !is_long => Poll::Pending,
                    polled => Poll::Ready((polled, is_long)),
                }
            })
            .await;
            if let Poll::Ready(outcome) = polled {
                self.was_long.store(is_long, Ordering::Relaxed);
                return outcome;
            }
            waits = true;
        }
    }
}

/// Records that a share made a call, long or not.
pub(crate) fn called(share: &Share) {
    TURNS.called(share);
}

impl Turns {
    fn new(permits: usize) -> Self {
        let (permits, is_watching) = (FairSemaphore::new(permits), AtomicBool::new(false));
        Self { permits, pace: Mutex::default(), is_watching }
    }

    /// Waits for a permit, and at least until other tasks had the thread. `None` if no other share
    /// is active, or no permit is free in time.
    async fn take(&self, share: &Share) -> Option<FairPermit> {
        if !self.has_company(share) {
            give_way().await;
            return None;
        }
        let turn = async {
            // The semaphore is never closed.
            let permit = self.permits.acquire(share).await.ok()?;
            match self.pause() {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => give_way().await,
            }
            Some(permit)
        };
        tokio::time::timeout(TURN_MAX, turn).await.ok().flatten()
    }

    fn has_company(&self, share: &Share) -> bool {
        self.lock_pace().has_company(share, Instant::now())
    }

    fn pause(&self) -> Option<Instant> {
        self.lock_pace().pause(Instant::now())
    }

    /// A panic of its holder leaves a valid value, because it is changed by assignments only.
    fn lock_pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock()
    }

    /// Records long work, done with or without a permit.
    fn worked(&self, share: &Share, worked: Duration, ended: Instant) {
        let mut pace = self.lock_pace();
        pace.came(share, ended);
        pace.large_ended(share, ended.checked_sub(worked).unwrap_or(ended), ended);
        self.is_watching.store(true, Ordering::Relaxed);
    }

    fn called(&self, share: &Share) {
        if !self.is_watching.load(Ordering::Relaxed) {
            return;
        }
        // Do not wait for the lock: the next call records the same.
        let Some(mut pace) = self.pace.try_lock() else { return };
        pace.came(share, Instant::now());
        if !pace.is_watching() {
            self.is_watching.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// One permit, while another share makes calls.
    fn turns() -> Arc<Turns> {
        let turns = Arc::new(Turns::new(1));
        // A time in the future keeps the other share active for as long as the test takes.
        turns.lock_pace().came(&Share::own(), Instant::now() + Duration::from_secs(60));
        turns
    }

    /// Work of `count` long slices. Tracks how many run at once.
    async fn slices(count: usize, at_once: &AtomicUsize, most: &AtomicUsize) {
        for number in 0..count {
            if number > 0 {
                tokio::task::yield_now().await;
                most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            }
            let until = Instant::now() + 2 * LONG;
            while Instant::now() < until {}
            if number > 0 {
                at_once.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn one_long_call_is_worked_on_at_a_time() {
        let (turns, at_once, most) = (turns(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (turns, at_once, most) = (turns.clone(), at_once.clone(), most.clone());
            tasks.spawn(async move {
                LongCalls::new(Share::own()).run_in(&turns, slices(5, &at_once, &most)).await;
            });
        }
        tasks.join_all().await;
        assert_eq!((most.load(Ordering::SeqCst), at_once.load(Ordering::SeqCst)), (1, 0));
    }

    #[tokio::test]
    async fn a_call_that_waits_for_something_else_keeps_no_turn() {
        let turns = turns();
        let calls = LongCalls::new(Share::own());
        calls.was_long.store(true, Ordering::Relaxed);
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let waiting = calls.run_in(&turns, receiver);
        let other = async {
            let other = LongCalls::new(Share::own());
            other.was_long.store(true, Ordering::Relaxed);
            let answer = other.run_in(&turns, async { 7 }).await;
            sender.send(()).unwrap();
            answer
        };
        let (waited, answer) = tokio::join!(waiting, other);
        waited.unwrap();
        assert_eq!(answer, 7);
        // Neither call was long.
        assert!(!turns.is_watching.load(Ordering::Relaxed));
        assert!(!calls.was_long.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn the_call_after_a_long_one_waits_for_its_turn() {
        let turns = turns();
        let (calls, share) = (LongCalls::new(Share::own()), Share::own());
        let (at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        calls.run_in(&turns, slices(1, &at_once, &most)).await;
        assert!(calls.was_long.load(Ordering::Relaxed));
        let turn = turns.take(&share).await.unwrap();
        let mut next = pin!(calls.run_in(&turns, async { 7 }));
        let early = tokio::time::timeout(Duration::from_millis(20), next.as_mut()).await;
        assert!(early.is_err());
        drop(turn);
        assert_eq!(next.await, 7);
    }
}
