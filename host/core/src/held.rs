//! What the host holds in memory on behalf of one instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, LimitExceeded, LimitKind, Result};
use crate::limits::Limits;

/// Counts the memory that the host holds for an instance, against a bound. Clones share the count.
///
/// Counted are staged writes, read sets and conditions, each with what its tree takes; commits until the backend is done with
/// them, also if the caller has gone; and, while a call runs, what it copies and what it returns.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use larder_core::{HandleOptions, HeldBytes, InMemory, Mode, Store};
///
/// let held = HeldBytes::at_most(64 << 20);
/// let options = HandleOptions { held: Some(held.clone()), ..HandleOptions::default() };
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

/// Bytes that one staged write, condition, or read takes at most beside its names and its value: its share of a B-tree
/// whose nodes are half empty, and the rounding of each of its allocations. The WIT's `transaction-bytes` says it.
pub(crate) const ENTRY_OVERHEAD: u64 = 256;

/// Copies of a result that exist at once while a call makes it: the backend's, the transaction's, and the guest's.
pub(crate) const RESULT_COPIES: u64 = 3;

impl HeldBytes {
    /// At most so many bytes.
    pub fn at_most(max: u64) -> Self {
        Self(Arc::new(Count { used: AtomicU64::new(0), max }))
    }

    /// Bytes that are held now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Holds so many bytes.
    pub(crate) fn hold(&self, bytes: u64) -> Result<Held> {
        let mut held = self.nothing();
        held.add(bytes)?;
        Ok(held)
    }

    /// Holds nothing as yet.
    pub(crate) fn nothing(&self) -> Held {
        Held { count: self.clone(), bytes: 0 }
    }

    /// Bytes that may still be held.
    pub(crate) fn left(&self) -> u64 {
        self.0.max.saturating_sub(self.used())
    }

    /// Whether so many bytes more may be held, for a moment in which the caller holds nothing else in addition.
    pub(crate) fn check(&self, bytes: u64) -> Result<()> {
        if bytes <= self.left() { Ok(()) } else { Err(self.exceeded(self.used(), bytes)) }
    }

    /// Whether a result of so many bytes may be made. No guard holds it: an instance waits for its call, so nothing is added
    /// until the guest has the result.
    pub(crate) fn check_result(&self, bytes: u64) -> Result<()> {
        self.check(bytes.saturating_mul(RESULT_COPIES))
    }

    /// Why a result of so many bytes can't be made.
    pub(crate) fn result_exceeded(&self, bytes: u64) -> Error {
        self.exceeded(self.used(), bytes.saturating_mul(RESULT_COPIES))
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

/// Bytes that are held; dropping it releases them.
#[derive(Debug)]
pub struct Held {
    count: HeldBytes,
    bytes: u64,
}

impl Held {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it is counted in.
    pub(crate) fn count(&self) -> &HeldBytes {
        &self.count
    }

    /// Holds more.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<()> {
        self.count.add(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Holds so many instead.
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

    /// All of it, for another owner.
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
