//! Slices of long work, so that one call does not hold a thread of the executor.

/// The work that a call may do before it yields its thread.
///
/// A slice takes about a millisecond. It counts the rows and bytes that a call looks at, including
/// those that it does not return. It measures no time, so where a call yields does not depend on
/// the machine's speed.
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

/// The unit of work: a look at a row in memory, about a quarter of a microsecond.
pub const ROW: u64 = 1;

/// Work to decode a row from a page, to look one up in memory by name, or to insert one into an
/// ordered map.
pub const STORED_ROW: u64 = 4;

/// Work of one statement, or of looking up one row in a file.
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
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
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
