//! Serializable storage for WebAssembly components.
//!
//! A guest opens the stores that its host granted to it, and reads and writes them in transactions.
//! The following is a complete guest, a WASI command for the target `wasm32-wasip2`:
//!
#![cfg_attr(feature = "serde", doc = "```no_run")]
#![cfg_attr(not(feature = "serde"), doc = "```ignore")]
//! use larder_guest::{Error, Store};
//!
//! fn main() -> Result<(), Error> {
//!     let store = Store::open("default")?;
//!     let visits = store.update(|tx| {
//!         let visits = tx.get_value::<u64>("counts", "visits")?.unwrap_or(0) + 1;
//!         tx.put_value("counts", "visits", &visits)?;
//!         Ok::<_, Error>(visits)
//!     })?;
//!     println!("visit number {visits}");
//!     Ok(())
//! }
//! ```
//!
//! `cargo build --target wasm32-wasip2` builds the component.
//!
//! [`Store::update`] runs its closure again if another transaction committed first. Transactions
//! are serializable, so a closure can ignore concurrent transactions. If the closure returns an
//! error, the transaction is rolled back and the caller gets that error unchanged. The error can be
//! of any type that implements `From<Error>`. [`Store::view`] passes a [`View`], which cannot
//! write.
//!
//! The host sets the limits on sizes and counts. [`Error::LimitExceeded`] names the limit that was
//! exceeded. If a range is too large for one [`View::scan`], use [`View::iterate`], which fetches
//! it page by page.
//!
//! [`View::scan`], [`View::iterate`] and [`Update::put_many`] pass entries through the interface
//! `packed` of `larder:storage`, which a host may leave out. A guest that calls one of them, also
//! through `Table`, can be instantiated only by a host that has the interface.
//!
//! With the feature `serde`, which is enabled by default, values can be typed (`get_value`,
//! `put_value`; stored as JSON), and `Table` stores typed records and their secondary indexes in
//! the same transaction.
//!
//! [`MigrationSet`] declares the steps by which a store reached its layout. [`Store::migrate`]
//! applies the new steps.
//!
//! [`Memory`] keeps the conversation of a session, by the strategy that the host declared for it. A
//! component that makes the summaries for such a host exports a [`Summarizer`].

mod bindings;
mod error;
mod memory;
mod migrations;
mod packed;
mod range;
mod retry;
mod store;
mod summarizer;
#[cfg(feature = "serde")]
mod table;
mod transaction;

/// The generated bindings of `larder:storage`, for functions that this crate does not cover.
pub mod raw {
    pub use crate::bindings::larder::storage::{memory, packed, store, tx, types};
}

/// Public because [`migration!`] expands to it in other crates.
#[doc(hidden)]
pub use larder_guest_macros::checksum as __checksum;

/// Public because [`export_summarizer!`] expands to it in other crates.
#[doc(hidden)]
pub use bindings::summarizer_plugin as __summarizer_plugin;

pub use error::{Error, LimitKind};
pub use memory::{ContextPatch, Health, Identity, Memory, Snapshot, Strategy, TrajectoryDigest, Turn};
pub use migrations::{MigrateError, Migration, MigrationSet, StepError};
pub use range::Range;
pub use retry::RetryPolicy;
pub use store::Store;
pub use summarizer::{Summarizer, SummaryRequest};
#[cfg(feature = "serde")]
pub use table::{Record, Table};
pub use transaction::{Entry, Iter, PutOptions, Update, Version, View};

/// The program of the README, as a test.
#[cfg(all(doctest, feature = "serde"))]
#[doc = include_str!("../README.md")]
struct Readme;
