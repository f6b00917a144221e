//! The semantics of larder, implemented once for all storage engines.
//!
//! - A [`Store`] is a [`Backend`](backend::Backend) with a clock, an optional quota and open
//!   transactions.
//! - A [`Handle`] is a store with one user's [`Limits`] and rights.
//! - A [`Transaction`] is a snapshot, the staged writes and the read set. It is serializable, and
//!   holds no lock while its user computes.
//! - A [`MemoryStore`] keeps conversations in a store. A [`Memory`] is one conversation with its
//!   user's limits.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
//! use larder_core::{Error, HandleOptions, InMemory, Mode, Store};
//!
//! let handle = Store::builder(InMemory::new()).build()?.handle(HandleOptions::default());
//! let (mut first, mut second) = (handle.begin(Mode::Update)?, handle.begin(Mode::Update)?);
//! for transaction in [&mut first, &mut second] {
//!     assert_eq!(transaction.get("seats".into(), "12A".into()).await?, None);
//!     transaction.put("seats".into(), "12A".into(), b"taken".to_vec())?;
//! }
//! first.commit().await?;
//! assert!(matches!(second.commit().await, Err(Error::Conflict)));
//! # Ok(()) }
//! ```
//!
//! The crate contains no WebAssembly and no SQL. It has the in-memory backend, [`InMemory`]. Other
//! backends implement the contract in [`backend`].

pub mod backend;
pub mod backoff;
mod by_size;
mod call;
pub mod chunk;
pub mod clock;
pub mod commit;
pub mod commit_log;
pub mod counter;
mod cursor;
mod driver;
mod drivers;
pub mod error;
pub mod event;
pub mod fair;
mod handle;
mod held;
mod in_memory;
pub mod limits;
mod long_calls;
pub mod memory;
pub mod migrations;
pub mod name;
mod open_snapshots;
mod open_transactions;
mod option_setters;
pub mod pace;
mod pairs;
mod quota;
mod rated_events;
mod read_only;
pub mod read_set;
pub mod redo;
pub mod row;
mod scan;
mod schema_errors;
mod share;
pub mod slice;
pub mod snapshot;
mod stage;
mod store;
pub mod stored_cost;
pub mod to_its_end;
mod transaction;
mod transaction_state;
pub mod validation;

pub use call::{Entry, Mode, PackedPage, Page, PutOptions, Range};
pub use clock::{Clock, ForwardClock, MovableClock, SystemClock};
pub use driver::Driver;
pub use drivers::{DriverError, Drivers};
pub use error::{Error, LimitExceeded, LimitKind, Result};
pub use event::{Event, EventChannel, EventSink, EventSubscriber, Missed, SnapshotEndReason, TracingEvents};
pub use handle::{Handle, HandleOptions};
pub use held::{Held, HeldBytes};
pub use in_memory::{InMemory, InMemoryDriver};
pub use limits::Limits;
pub use long_calls::LongCalls;
pub use memory::{
    ByteTokens, ContextPatch, EchoSummarizer, Health, Identity, IdentityParts, IdentityScope, Memory,
    MemoryOptions, MemorySnapshot, MemoryStore, MemoryStoreBuilder, Strategy, Summarizer, SummaryError,
    SummaryRequest, TokenEstimator, TrajectoryDigest, Turn,
};
pub use migrations::{AppliedMigration, Migration, MigrationLedger, MigrationScope, NextMigration};
pub use open_snapshots::{ConnectionWait, OpenSnapshots};
pub use open_transactions::OpenTransactions;
pub use rated_events::RatedEvents;
pub use read_only::ReadOnly;
pub use row::Version;
pub use share::Share;
pub use store::{Store, StoreBuilder, StoreSource};
pub use transaction::Transaction;

/// The program of the README, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
