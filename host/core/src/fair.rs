//! Queues that serve shares in turn.

mod queue;
mod semaphore;

pub use queue::{FairQueue, Place};
pub use semaphore::{FairPermit, FairSemaphore};
