//! How long one call of a guest holds a thread of the executor.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// The longest time for which a call of an instance held a thread without yielding.
///
/// A call counts from when the host gets it until the instance's next call, or until the task
/// yields its thread. So it includes what the guest computes after the call. It excludes the time
/// in which other threads had the processor, and what a guest computes after it has yielded.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldThread(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// When the call got the thread. `None` while the guest computes after a yield, or while the
    /// task has no thread.
    since: Option<Instant>,
    /// Whether the guest yielded while it computed, so that its time does not count.
    is_in_guest: bool,
    /// The thread's run delay at the last reading.
    delay: Duration,
    longest: Duration,
}

/// Shorter times do not need a reading of the run delay.
const SHORT: Duration = Duration::from_millis(1);

impl HeldThread {
    pub(super) fn longest(&self) -> Duration {
        self.lock().longest
    }

    /// Records that the host got a call.
    pub(super) fn called(&self) {
        let mut state = self.lock();
        state.end();
        state.is_in_guest = false;
        state.begin();
    }

    /// Records that the guest yields its thread while it computes.
    pub(super) fn yields(&self) {
        let mut state = self.lock();
        state.end();
        state.is_in_guest = true;
    }

    /// Wraps the work of an instance whose calls are recorded here.
    pub(super) fn watch<F: Future>(&self, work: F) -> impl Future<Output = F::Output> {
        Watched { work: Box::pin(work), held: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self) {
        self.delay = run_delay();
        self.since = (!self.is_in_guest).then(Instant::now);
    }

    fn end(&mut self) {
        let Some(since) = self.since.take() else { return };
        let held = since.elapsed();
        if held < SHORT {
            return;
        }
        let delay = run_delay();
        self.longest = self.longest.max(held.saturating_sub(delay.saturating_sub(self.delay)));
        self.delay = delay;
    }
}

struct Watched<F> {
    work: Pin<Box<F>>,
    held: HeldThread,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.held.lock().begin();
        let polled = self.work.as_mut().poll(context);
        self.held.lock().end();
        polled
    }
}

/// How long this thread was ready to run without a processor, as Linux counts it. Zero if it does
/// not.
fn run_delay() -> Duration {
    thread_local! {
        static STATISTICS: RefCell<Option<File>> = RefCell::new(File::open("/proc/thread-self/schedstat").ok());
    }
    let mut text = [0; 64];
    let length = STATISTICS.with_borrow(|file| file.as_ref()?.read_at(&mut text, 0).ok());
    let text = length.and_then(|length| std::str::from_utf8(text.get(..length)?).ok());
    let delay = text.and_then(|text| text.split_whitespace().nth(1)?.parse().ok());
    Duration::from_nanos(delay.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    const WORK: Duration = Duration::from_millis(20);

    // No test has an upper bound of a counted time: a virtual machine may be stopped meanwhile.

    #[tokio::test]
    async fn a_call_holds_its_thread_until_it_gives_it_away_or_the_next_call_comes() {
        for gives_away in [true, false] {
            let held = HeldThread::default();
            let work = async {
                held.called();
                sleep(WORK);
                if gives_away {
                    tokio::task::yield_now().await;
                }
                held.called();
                7
            };
            assert_eq!(held.watch(work).await, 7);
            assert!(held.longest() >= WORK, "{gives_away}: {:?}", held.longest());
        }
    }

    #[tokio::test]
    async fn what_the_guest_computes_after_it_gave_way_does_not_count() {
        let held = HeldThread::default();
        let work = async {
            held.yields();
            tokio::task::yield_now().await;
            sleep(WORK);
            held.called();
        };
        held.watch(work).await;
        assert_eq!(held.longest(), Duration::ZERO);
    }

    #[test]
    fn a_thread_that_waits_for_the_processor_is_delayed() {
        let processors = std::thread::available_parallelism().unwrap().get();
        let delayed = std::thread::scope(|scope| {
            let busy = || {
                let (began, before) = (Instant::now(), run_delay());
                while began.elapsed() < Duration::from_millis(100) {}
                run_delay() - before
            };
            let threads: Vec<_> = (0..4 * processors).map(|_| scope.spawn(busy)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<Duration>()
        });
        assert!(delayed > Duration::ZERO);
    }
}
