//! A plugin platform in one file: three plugins, each with the stores that the platform grants to
//! it.
//!
//! All plugins are the component of `examples/catalog`, which opens the store `default`. The
//! platform decides which store that is. `inventory` gets a store to read and write. `audit` gets
//! the same store, but may only read it. `stranger` gets no store of that name.

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

/// The state of one plugin instance.
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

/// Compiled and linked once, and shared by all plugins.
struct Platform {
    engine: Engine,
    catalog: CommandPre<Plugin>,
}

/// The outcome of a plugin.
struct Said {
    succeeded: bool,
    output: String,
    errors: String,
}

impl Platform {
    fn new() -> Result<Self> {
        let mut config = engine_config();
        // A computing plugin yields to the executor at every tick, so that other plugins run and
        // its timeout takes effect.
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

    /// Runs a plugin once, in an instance of its own. All that it left open is dropped with the
    /// instance.
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

/// The longest time that a plugin computes before other plugins run.
const TICK: Duration = Duration::from_millis(10);

/// The timeout of a plugin.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The most bytes that a guest may pass in one call: a transaction within the default limits, and
/// its lists.
const HOSTCALL_BYTES: usize = 8 << 20;

/// Increments the epoch until the engine is dropped.
fn tick(engine: &EngineWeak) {
    while let Some(engine) = engine.upgrade() {
        engine.increment_epoch();
        drop(engine);
        thread::sleep(TICK);
    }
}

fn text(pipe: &MemoryOutputPipe) -> Result<String> {
    String::from_utf8(pipe.contents().to_vec()).context("the output of a plugin is not UTF-8")
}

const STANZAS: &str = "Package: shell\nVersion: 5.3\nDepends: libcore\n\nPackage: libcore\nVersion: 2.38\n";

#[tokio::main]
async fn main() -> Result<()> {
    let platform = Platform::new()?;
    let shelf = Store::builder(InMemory::new()).name("shelf").quota_bytes(1 << 20).build()?;

    // The catalog declares its migrations under a name that the platform binds to the instance.
    let catalog = MigrationScope::only(["catalog"])?;
    let inventory = StorageCtx::builder().grant("default", &shelf).migrations(catalog.clone()).build()?;
    let loaded = platform.run(inventory, &[], STANZAS).await?;
    print!("inventory: {}", loaded.output);
    ensure!(loaded.succeeded, "inventory failed to load packages: {}", loaded.errors);

    // The same store under the same name, with fewer rights and a tighter limit.
    let limits = || Limits::default().open_transactions(1);
    let audit = || {
        let builder = StorageCtx::builder().grant_read_only("default", &shelf);
        builder.migrations(catalog.clone()).limits(limits()).build()
    };
    let needs = platform.run(audit()?, &["needs", "libcore"], "").await?;
    print!("audit: libcore is needed by {}", needs.output);
    ensure!(needs.output == "shell\n", "audit printed {}", needs.output);
    let refused = platform.run(audit()?, &[], STANZAS).await?;
    print!("audit: {}", refused.errors);
    ensure!(
        !refused.succeeded && refused.errors.contains("granted read-only"),
        "the write of audit was not refused"
    );

    // A plugin that was granted a store under another name cannot open this one.
    let own = Store::builder(InMemory::new()).name("own").build()?;
    let stranger = StorageCtx::builder().grant("own", &own).build()?;
    let refused = platform.run(stranger, &["list"], "").await?;
    print!("stranger: {}", refused.errors);
    ensure!(
        !refused.succeeded && refused.errors.contains("granted no store"),
        "the read of stranger was not refused"
    );

    shelf.close().await;
    own.close().await;
    Ok(())
}
