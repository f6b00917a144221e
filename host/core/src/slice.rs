//! Slices of long work, so that one call does not hold a thread of the executor.

use std::task::Poll;

/// The work that a call may do before it yields its thread.
///
/// A slice takes about a millisecond. It counts the rows and bytes that a call reads, including
/// those that it does not return. It does not measure time, so the points at which a call yields do
/// not depend on the machine's speed.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use larder_core::slice::{ROW, Slice};
///
/// let mut slice = Slice::default();
/// for value in vec![vec![0; 100]; 10_000] {
///     // Work with the value.
///     slice.count(ROW, value.len());
///     slice.pause().await;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Slice {
    left: u64,
}

/// The work of one slice, in units of [`ROW`].
const SLICE: u64 = 4_096;

/// Bytes that take as long as one [`ROW`].
const BYTES: usize = 512;

/// The unit of work: reading a row in memory, about a quarter of a microsecond.
pub const ROW: u64 = 1;

/// The work of decoding, looking up or inserting a row.
///
/// The row is decoded from a page, looked up in memory by name, or inserted into an ordered map.
pub const STORED_ROW: u64 = 4;

/// The work of one statement, or of looking up one row in a file.
pub const STATEMENT: u64 = 16;

impl Default for Slice {
    fn default() -> Self {
        Self { left: SLICE }
    }
}

impl Slice {
    /// Subtracts `work`, and the bytes that were read or copied for it.
    pub fn count(&mut self, work: u64, bytes: usize) {
        self.left = self.left.saturating_sub(work.saturating_add((bytes / BYTES) as u64));
    }

    /// Whether no work is left.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// Yields the thread and begins the next slice if no work is left.
    pub async fn pause(&mut self) {
        if self.is_over() {
            *self = Self::default();
            give_way().await;
        }
    }
}

/// Lets the other tasks of this thread run before this one continues.
///
/// The task goes to the end of its queue. [`tokio::task::yield_now`] is not enough: the runtime
/// wakes such a task at its next check for events, ahead of the tasks in the queue. If it checks
/// after each task, one task that yields in a loop starves all other tasks of its thread.
pub async fn give_way() {
    let mut has_given_way = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut has_given_way, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn a_slice_ends_after_so_many_rows_or_so_many_bytes() {
        let mut slice = Slice::default();
        slice.count(SLICE - 1, 0);
        assert!(!slice.is_over());
        slice.count(ROW, 0);
        assert!(slice.is_over());
        slice.pause().await;
        assert!(!slice.is_over());
        slice.count(0, SLICE as usize * BYTES);
        assert!(slice.is_over());
        slice.count(u64::MAX, usize::MAX);
        assert!(slice.is_over());
    }

    #[test]
    fn a_task_that_gives_way_again_and_again_lets_others_of_its_thread_run() {
        // The runtime looks for events after each task.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).event_interval(1).enable_all().build().unwrap();
        let most = runtime.block_on(async {
            let polls = Arc::new(AtomicUsize::new(0));
            let counted = polls.clone();
            let busy = tokio::spawn(async move {
                loop {
                    counted.fetch_add(1, Ordering::Relaxed);
                    give_way().await;
                }
            });
            let other = tokio::spawn(async move {
                let mut most = 0;
                for _ in 0..100 {
                    let before = polls.load(Ordering::Relaxed);
                    give_way().await;
                    most = most.max(polls.load(Ordering::Relaxed) - before);
                }
                most
            });
            let most = other.await.unwrap();
            busy.abort();
            most
        });
        assert!(most <= 3, "{most} turns of the other task in a row");
    }

    #[test]
    fn work_gives_the_thread_away_after_each_slice() {
        let mut work = pin!(async {
            let mut slice = Slice::default();
            for _ in 0..SLICE * 3 + 1 {
                slice.count(ROW, 0);
                slice.pause().await;
            }
        });
        let mut context = Context::from_waker(Waker::noop());
        let mut pauses = 0;
        while work.as_mut().poll(&mut context).is_pending() {
            pauses += 1;
        }
        assert_eq!(pauses, 3);
    }
}
