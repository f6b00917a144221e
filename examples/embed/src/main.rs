//! A plugin platform in one file: two plugins, each with the stores that it was granted and no others.
//!
//! Both plugins are the component of `examples/catalog`, which opens the store `default`. The platform decides what that is:
//! for `inventory` a store of its own, to read and write; for `audit` the store of `inventory`, to read only; and for
//! `stranger` nothing at all.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_host::{
    InMemory, Limits, MigrationScope, StorageCtx, StorageCtxView, StorageView, Store, engine_config,
};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, EngineWeak};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p2::pipe::{MemoryInputPipe, MemoryOutputPipe};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// What one running plugin has.
struct Plugin {
    table: ResourceTable,
    wasi: WasiCtx,
    storage: StorageCtx,
}

impl WasiView for Plugin {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl StorageView for Plugin {
    fn storage(&mut self) -> StorageCtxView<'_> {
        StorageCtxView { ctx: &mut self.storage, table: &mut self.table }
    }
}

/// What is the same for every plugin: compiled and linked once.
struct Platform {
    engine: Engine,
    catalog: CommandPre<Plugin>,
}

/// What a plugin said.
struct Said {
    succeeded: bool,
    output: String,
    errors: String,
}

impl Platform {
    fn new() -> Result<Self> {
        let mut config = engine_config();
        // A plugin that computes is interrupted at every tick, so that others get on and its time can end.
        config.epoch_interruption(true);
        let engine = Engine::new(&config)?;
        let ticking = engine.weak();
        thread::spawn(move || tick(&ticking));
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        larder_host::add_to_linker(&mut linker)?;
        let component = Component::from_file(&engine, larder_artifacts::CATALOG)?;
        let catalog = CommandPre::new(linker.instantiate_pre(&component)?)?;
        Ok(Self { engine, catalog })
    }

    /// Runs a plugin once: an instance of its own, gone afterwards with all that it left open.
    async fn run(&self, storage: StorageCtx, arguments: &[&str], input: &'static str) -> Result<Said> {
        let (output, errors) = (MemoryOutputPipe::new(1 << 16), MemoryOutputPipe::new(1 << 16));
        let mut wasi = WasiCtx::builder();
        wasi.arg("catalog").args(arguments).stdin(MemoryInputPipe::new(input));
        wasi.stdout(output.clone()).stderr(errors.clone());
        let plugin = Plugin { table: ResourceTable::new(), wasi: wasi.build(), storage };
        let mut store = wasmtime::Store::new(&self.engine, plugin);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        let command = self.catalog.instantiate_async(&mut store).await?;
        let run = tokio::time::timeout(TIMEOUT, command.wasi_cli_run().call_run(&mut store)).await;
        let succeeded = run.is_ok_and(|run| run.is_ok_and(|outcome| outcome.is_ok()));
        Ok(Said { succeeded, output: text(&output)?, errors: text(&errors)? })
    }
}

/// How long a plugin computes before others get their turn.
const TICK: Duration = Duration::from_millis(10);

/// How long a plugin may run.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What one call may hand over: a transaction of the default limits, and the lists around it.
const HOSTCALL_BYTES: usize = 8 << 20;

/// Ticks until the engine is gone.
fn tick(engine: &EngineWeak) {
    while let Some(engine) = engine.upgrade() {
        engine.increment_epoch();
        drop(engine);
        thread::sleep(TICK);
    }
}

fn text(pipe: &MemoryOutputPipe) -> Result<String> {
    String::from_utf8(pipe.contents().to_vec()).context("a plugin printed what is no text")
}

const STANZAS: &str = "Package: shell\nVersion: 5.3\nDepends: libcore\n\nPackage: libcore\nVersion: 2.38\n";

#[tokio::main]
async fn main() -> Result<()> {
    let platform = Platform::new()?;
    let shelf = Store::builder(InMemory::new()).name("shelf").quota_bytes(1 << 20).build()?;

    // The catalog declares the steps of its layout under a name that the platform binds to the instance.
    let catalog = MigrationScope::only(["catalog"])?;
    let inventory = StorageCtx::builder().grant("default", &shelf).migrations(catalog.clone()).build()?;
    let loaded = platform.run(inventory, &[], STANZAS).await?;
    print!("inventory: {}", loaded.output);
    ensure!(loaded.succeeded, "inventory could not load: {}", loaded.errors);

    // The same store under the same name, with fewer rights and tighter limits.
    let limits = || Limits { open_transactions: 1, ..Limits::default() };
    let audit = || {
        let builder = StorageCtx::builder().grant_read_only("default", &shelf);
        builder.migrations(catalog.clone()).limits(limits()).build()
    };
    let needs = platform.run(audit()?, &["needs", "libcore"], "").await?;
    print!("audit: libcore is needed by {}", needs.output);
    ensure!(needs.output == "shell\n", "audit read something else: {}", needs.output);
    let refused = platform.run(audit()?, &[], STANZAS).await?;
    print!("audit: {}", refused.errors);
    ensure!(!refused.succeeded && refused.errors.contains("granted read-only"), "audit could write");

    // A plugin that was granted a store under another name can't open this one.
    let own = Store::builder(InMemory::new()).name("own").build()?;
    let stranger = StorageCtx::builder().grant("own", &own).build()?;
    let refused = platform.run(stranger, &["list"], "").await?;
    print!("stranger: {}", refused.errors);
    ensure!(!refused.succeeded && refused.errors.contains("granted no store"), "stranger could read");

    shelf.close().await;
    own.close().await;
    Ok(())
}
