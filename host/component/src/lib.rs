//! Serializable storage for WebAssembly components, on wasmtime.
//!
//! A component that imports `larder:storage` opens the stores that its host granted to it, and
//! reads and writes them in transactions. This crate is the host's side. It follows wasmtime's
//! conventions: a [`StorageCtx`] in the data of a [`wasmtime::Store`], a [`StorageView`] that
//! returns it, and [`add_to_linker`].
//!
//! The following program is a complete embedding of one plugin, a WASI command, with one store in a
//! SQLite file. A plugin that computes without end yields to other tasks, and is stopped at its
//! timeout.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use larder_host::{StorageCtx, StorageCtxView, StorageView};
//! use wasmtime::component::{Component, Linker, ResourceTable};
//! use wasmtime_wasi::p2::bindings::Command;
//! use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
//!
//! struct Plugin {
//!     table: ResourceTable,
//!     wasi: WasiCtx,
//!     storage: StorageCtx,
//! }
//!
//! impl WasiView for Plugin {
//!     fn ctx(&mut self) -> WasiCtxView<'_> {
//!         WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
//!     }
//! }
//!
//! impl StorageView for Plugin {
//!     fn storage(&mut self) -> StorageCtxView<'_> {
//!         StorageCtxView { ctx: &mut self.storage, table: &mut self.table }
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Once per process: the engine, the linker, and the stores.
//!     let mut config = larder_host::engine_config();
//!     config.epoch_interruption(true);
//!     let engine = wasmtime::Engine::new(&config)?;
//!     let ticking = engine.clone();
//!     std::thread::spawn(move || {
//!         loop {
//!             std::thread::sleep(Duration::from_millis(10));
//!             ticking.increment_epoch();
//!         }
//!     });
//!     let mut linker = Linker::new(&engine);
//!     wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
//!     larder_host::add_to_linker(&mut linker)?;
//!     let backend = larder_host::drivers().open("sqlite:plugins.db").await?;
//!     let notes = larder_host::Store::builder_shared(backend).name("notes").build()?;
//!
//!     // Once per instance: the stores that this plugin may open, and its limits.
//!     let storage = StorageCtx::builder().grant("default", &notes).build()?;
//!     let plugin = Plugin {
//!         table: ResourceTable::new(),
//!         wasi: WasiCtx::builder().inherit_stdout().build(),
//!         storage,
//!     };
//!     let mut store = wasmtime::Store::new(&engine, plugin);
//!     // The plugin yields at every tick. One call can pass the data of a full transaction, with
//!     // room for its lists.
//!     store.set_epoch_deadline(1);
//!     store.epoch_deadline_async_yield_and_update(1);
//!     store.set_hostcall_fuel(8 << 20);
//!     let component = Component::from_file(&engine, "plugin.wasm")?;
//!     let command = Command::instantiate_async(&mut store, &component, &linker).await?;
//!     let run = command.wasi_cli_run().call_run(&mut store);
//!     let outcome = tokio::time::timeout(Duration::from_secs(60), run).await??;
//!     drop(store);
//!     notes.close().await;
//!     outcome.map_err(|()| "the plugin failed".into())
//! }
//! ```
//!
//! # Limits of a guest
//!
//! larder checks every length, count and name that a guest sends against [`Limits`] before it
//! allocates memory for it. [`Limits::instance_bytes`] bounds the host's memory for one instance,
//! over all its transactions and calls. [`wasmtime::Store::set_hostcall_fuel`] bounds the data that
//! wasmtime copies from the guest before it calls larder; set it a little above
//! `transaction_bytes`.
//!
//! A transaction holds no lock while its guest computes. If the guest drops the transaction, traps
//! in it, or leaves it open past [`Limits::transaction_timeout`], larder rolls it back and returns
//! its connection to the pool. The timeout requires a thread of the tokio runtime that no guest
//! keeps busy. A guest that loops without end is stopped by wasmtime's epoch interruption, not by
//! larder.
//!
//! # Features
//!
//! - `sqlite`, on by default: stores in SQLite files, by `larder_sqlite`.
//! - `postgres`, on by default: stores in Postgres, by `larder_postgres`.
//! - `tenants`: one SQLite database per tenant, in a folder, in Amazon S3 or in an S3-compatible
//!   service, by `larder_tenants`. It needs Unix, and adds nothing elsewhere. `tenants-azure` and
//!   `tenants-gcs` add Azure Blob Storage and Google Cloud Storage.
//! - `http-summarizer`: summaries by an OpenAI-compatible endpoint.
//! - `tokenizer`: token counts with a model's own vocabulary, which adds 15 to 32 MB to the program
//!   for each vocabulary in use.
//!
//! In-memory stores need no feature. A build with one backend contains no other.
#![cfg_attr(all(feature = "tenants", unix), doc = include_str!("tenants.md"))]

pub mod bindings;
mod convert;
mod ctx;
mod engine_config;
mod host;
mod linker;
mod summarizer;

pub use convert::{StorageError, StorageResult};
pub use ctx::{HasStorage, StorageCtx, StorageCtxBuilder, StorageCtxView, StorageView};
pub use engine_config::{engine_config, instance_pool};
pub use larder_core;
pub use larder_core::{
    ByteTokens, Clock, ContextPatch, DriverError, Drivers, EchoSummarizer, Error, Event, EventChannel,
    EventSink, EventSubscriber, Handle, HandleOptions, Health, Identity, IdentityParts, IdentityScope,
    InMemory, LimitExceeded, LimitKind, Limits, Memory, MemoryOptions, MemorySnapshot, MemoryStore,
    MemoryStoreBuilder, MigrationScope, Missed, Mode, MovableClock, RatedEvents, Share, Store, StoreBuilder,
    StoreSource, Strategy, Summarizer, SummaryError, SummaryRequest, SystemClock, TokenEstimator,
    TracingEvents, TrajectoryDigest, Turn, Version,
};
#[cfg(feature = "tokenizer")]
pub use larder_llm::ModelTokens;
#[cfg(feature = "http-summarizer")]
pub use larder_llm::{ApiKey, HttpError, HttpOptions, HttpOptionsError, HttpSummarizer, TokenField};
#[cfg(feature = "postgres")]
pub use larder_postgres;
pub use larder_schema;
#[cfg(feature = "sqlite")]
pub use larder_sqlite;
#[cfg(all(feature = "tenants", unix))]
pub use larder_tenants::{
    self, Durability, Scope, Slug, Tenant, TenantError, TenantIdentity, TenantKey, Tenants, TenantsBuilder,
    TenantsDriver, TenantsDsn,
};
pub use linker::{add_to_linker, memory, packed, store};
pub use summarizer::ComponentSummarizer;

/// Returns the driver `in-memory`, and those of the features `postgres`, `sqlite` and `tenants`.
///
/// ```
/// # #[cfg(all(feature = "postgres", feature = "tenants", unix))]
/// assert_eq!(larder_host::drivers().names(), ["in-memory", "postgres", "sqlite", "tenants"]);
/// ```
pub fn drivers() -> Drivers {
    #[allow(unused_mut, reason = "a build without these features registers no further driver")]
    let mut drivers = Drivers::with_in_memory();
    // Registering fails only for a name that is taken, and these names differ.
    #[cfg(feature = "sqlite")]
    let _ = drivers.register(larder_sqlite::SqliteDriver);
    #[cfg(feature = "postgres")]
    let _ = drivers.register(larder_postgres::PostgresDriver::new());
    #[cfg(all(feature = "tenants", unix))]
    let _ = drivers.register(TenantsDriver);
    drivers
}

/// The program of the README, as a test.
#[cfg(all(doctest, feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
