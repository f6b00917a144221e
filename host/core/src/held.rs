//! Accounting of the memory that the host holds for one instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, LimitExceeded, LimitKind, Result};
use crate::limits::Limits;

/// Counts the memory that the host holds for an instance, up to a bound.
///
/// Clones share the count. It includes:
///
/// - staged writes, read sets and conditions, with the overhead of their trees
/// - commits until the backend is done with them, even if the caller is gone
/// - what a running call copies and returns
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use larder_core::{HandleOptions, HeldBytes, InMemory, Mode, Store};
///
/// let held = HeldBytes::at_most(64 << 20);
/// let options = HandleOptions::default().held(held.clone());
/// let handle = Store::builder(InMemory::new()).build()?.handle(options);
/// let mut update = handle.begin(Mode::Update)?;
/// update.put("fruit".into(), "apple".into(), vec![0; 1_000])?;
/// assert_eq!(held.used(), 1_266);
/// update.commit().await?;
/// assert_eq!(held.used(), 0);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct HeldBytes(Arc<Count>);

#[derive(Debug)]
struct Count {
    used: AtomicU64,
    max: u64,
}

impl HeldBytes {
    /// Creates a count with a bound of `max` bytes.
    pub fn at_most(max: u64) -> Self {
        Self(Arc::new(Count { used: AtomicU64::new(0), max }))
    }

    /// The number of bytes held now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Holds `bytes` bytes.
    pub(crate) fn hold(&self, bytes: u64) -> Result<Held> {
        let mut held = self.nothing();
        held.add(bytes)?;
        Ok(held)
    }

    /// A guard that holds no bytes so far.
    pub(crate) fn nothing(&self) -> Held {
        Held { count: self.clone(), bytes: 0 }
    }

    /// The number of bytes that may still be held.
    pub(crate) fn left(&self) -> u64 {
        self.0.max.saturating_sub(self.used())
    }

    /// Checks that `bytes` more may be held, briefly, while the caller holds nothing else in
    /// addition.
    pub(crate) fn check(&self, bytes: u64) -> Result<()> {
        if bytes <= self.left() { Ok(()) } else { Err(self.exceeded(self.used(), bytes)) }
    }

    /// Checks that a result of `bytes` may be made. It needs no guard: the instance waits for its
    /// call, so nothing is added until the guest has the result.
    pub(crate) fn check_result(&self, bytes: u64) -> Result<()> {
        self.check(bytes.saturating_mul(Limits::RESULT_COPIES))
    }

    /// The error for a result of `bytes` that is too large.
    pub(crate) fn result_exceeded(&self, bytes: u64) -> Error {
        self.exceeded(self.used(), bytes.saturating_mul(Limits::RESULT_COPIES))
    }

    fn add(&self, bytes: u64) -> Result<()> {
        let before = self.0.used.fetch_add(bytes, Ordering::Relaxed);
        if before.checked_add(bytes).is_some_and(|used| used <= self.0.max) {
            return Ok(());
        }
        self.release(bytes);
        Err(self.exceeded(before, bytes))
    }

    fn release(&self, bytes: u64) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn exceeded(&self, used: u64, bytes: u64) -> Error {
        let requested = used.saturating_add(bytes);
        LimitExceeded { kind: LimitKind::InstanceBytes, max: self.0.max, requested }.into()
    }
}

impl Default for HeldBytes {
    fn default() -> Self {
        Self::at_most(Limits::default().instance_bytes)
    }
}

/// A guard for held bytes, which releases them on drop.
#[derive(Debug)]
pub struct Held {
    count: HeldBytes,
    bytes: u64,
}

impl Held {
    /// The number of bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The count that the guard belongs to.
    pub(crate) fn count(&self) -> &HeldBytes {
        &self.count
    }

    /// Holds `bytes` more.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<()> {
        self.count.add(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Holds `bytes` instead of the present number.
    pub(crate) fn change_to(&mut self, bytes: u64) -> Result<()> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.add(more),
            None => {
                self.count.release(self.bytes - bytes);
                self.bytes = bytes;
                Ok(())
            }
        }
    }

    /// Moves all bytes to a new guard.
    pub(crate) fn take(&mut self) -> Self {
        Self { count: self.count.clone(), bytes: std::mem::take(&mut self.bytes) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.count.release(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: std::fmt::Debug>(outcome: Result<T>, requested: u64) {
        let Err(Error::LimitExceeded(exceeded)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(exceeded, LimitExceeded { kind: LimitKind::InstanceBytes, max: 10, requested });
    }

    #[test]
    fn what_is_held_is_bounded_and_a_refusal_changes_nothing() {
        let held = HeldBytes::at_most(10);
        let mut first = held.hold(4).unwrap();
        let second = held.hold(6).unwrap();
        refused(first.add(1), 11);
        refused(held.hold(u64::MAX), u64::MAX);
        assert_eq!((held.used(), first.bytes(), held.left()), (10, 4, 0));
        drop(second);
        refused(held.check_result(3), 13);
        held.check_result(2).unwrap();
        first.change_to(10).unwrap();
        first.change_to(1).unwrap();
        assert_eq!(held.used(), 1);
    }

    #[test]
    fn what_another_owner_takes_is_held_until_that_one_is_done() {
        let held = HeldBytes::at_most(10);
        let mut first = held.hold(7).unwrap();
        let second = first.take();
        drop(first);
        assert_eq!(held.used(), 7);
        drop(second);
        assert_eq!(held.used(), 0);
    }
}
