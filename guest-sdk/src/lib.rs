//! Serializable storage for WebAssembly components.
//!
//! A guest opens the stores that its host granted to it, and reads and writes them in transactions. A complete one, a WASI
//! command for the target `wasm32-wasip2`:
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
//! `cargo build --target wasm32-wasip2` makes the component.
//!
//! [`Store::update`] runs its closure again where another transaction committed first: transactions are serializable,
//! and a closure need not think of others. The closure's own error, of any type that an [`Error`] turns into, rolls back
//! and comes out as it was. [`Store::view`] gives a [`View`], which can't write.
//!
//! Bounds on sizes and counts are the host's; [`Error::LimitExceeded`] names the one that was run into. What is too large
//! for one [`View::scan`], [`View::iterate`] fetches page by page.
//!
//! With the feature `serde`, on by default, values are typed (`get_value`, `put_value`: JSON), and `Table` keeps typed
//! records with secondary indexes in the same transaction.
//!
//! [`MigrationSet`] declares how a store came to its layout, step by step; [`Store::migrate`] applies what is new.
//!
//! [`Memory`] keeps the conversation of a session, by the strategy that the host declared for it. A component that makes
//! the summaries for such a host exports a [`Summarizer`].

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

/// The generated bindings of `larder:storage`, for what this crate does not cover.
pub mod raw {
    pub use crate::bindings::larder::storage::{memory, store, tx, types};
}

/// What [`migration!`] expands to, which happens in other crates.
#[doc(hidden)]
pub use larder_guest_macros::checksum as __checksum;

/// What [`export_summarizer!`] expands to, which happens in other crates.
#[doc(hidden)]
pub use bindings::summarizer_plugin as __summarizer_plugin;

pub use error::{Error, LimitKind};
pub use memory::{Context, Health, Identity, Memory, Snapshot, Strategy, TrajectoryDigest, Turn};
pub use migrations::{MigrateError, Migration, MigrationSet, StepError};
pub use range::Range;
pub use retry::RetryPolicy;
pub use store::Store;
pub use summarizer::{Summarizer, SummaryRequest};
#[cfg(feature = "serde")]
pub use table::{Record, Table};
pub use transaction::{Entry, Iter, PutOptions, Update, Version, View};
