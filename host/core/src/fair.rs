//! Queues that serve shares in turn.

mod queue;
mod semaphore;

pub use queue::{FairQueue, Position};
pub use semaphore::{FairPermit, FairSemaphore};
