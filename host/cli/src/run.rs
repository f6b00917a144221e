//! `larder run`: runs a WASI command component with stores.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use larder_host::larder_core::backend::Backend;
use larder_host::larder_sqlite::SqliteDriver;
use larder_host::{
    IdentityScope, Limits, MemoryStore, MigrationScope, StorageCtx, StorageCtxView, StorageView, Store,
    StoreSource, TenantsDsn, drivers, engine_config,
};
use tokio::task::AbortHandle;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Cache, CacheConfig, Engine};
use wasmtime_wasi::p2::bindings::{Command, CommandPre};
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxView, WasiView};

use crate::output::complain;
use crate::run_bounds::{MemoryBound, RunBounds};
use crate::run_identity::RunIdentity;
use crate::run_memory::RunMemory;
use crate::run_tenants::RunTenants;
use crate::signals::{self, on_own_thread, until_ended};
use crate::store::not_opened;

/// Run a WASI command component with stores
#[derive(Args)]
pub(crate) struct Run {
    /// Component file to run
    component: PathBuf,
    /// Grant the store DSN to the component as NAME; repeatable
    #[arg(long = "store", value_name = "NAME=DSN", value_parser = parse_grant)]
    stores: Vec<(String, String)>,
    /// Grant the store DSN as NAME for reading only; repeatable
    #[arg(long = "read-only-store", value_name = "NAME=DSN", value_parser = parse_grant)]
    read_only_stores: Vec<(String, String)>,
    /// Allow migrations of component NAME [default: the file's stem]
    ///
    /// Repeatable. The component can declare migrations only under these names.
    #[arg(long = "component-name", value_name = "NAME")]
    component_names: Vec<String>,
    /// Set an environment variable of the component; repeatable
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = parse_pair)]
    environment: Vec<(String, String)>,
    #[command(flatten)]
    identity: RunIdentity,
    /// Directory for open tenants [default: the user cache directory]
    ///
    /// The databases of tenants are in this directory while they are open. Only one process at a
    /// time can use it.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    #[command(flatten)]
    memory: RunMemory,
    #[command(flatten)]
    bounds: RunBounds,
    /// Arguments to pass to the component
    #[arg(last = true)]
    arguments: Vec<String>,
}

fn parse_grant(text: &str) -> Result<(String, String), String> {
    let pair = parse_pair(text)?;
    // `postgres://host/db?options=…` contains a `=` too, but it is not a grant without a name.
    if pair.0.contains(':') {
        return Err("expected NAME=DSN, for example default=sqlite:plugin.db".to_string());
    }
    Ok(pair)
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_string(), value.to_string()))
        }
        _ => Err("expected the form NAME=…".to_string()),
    }
}

struct Instance {
    table: ResourceTable,
    wasi: WasiCtx,
    storage: StorageCtx,
    bound: MemoryBound,
}

impl WasiView for Instance {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl StorageView for Instance {
    fn storage(&mut self) -> StorageCtxView<'_> {
        StorageCtxView { ctx: &mut self.storage, table: &mut self.table }
    }
}

impl Run {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        self.migrations()?;
        self.bounds.limits().context("--limit")?;
        let engine = engine()?;
        let command = load(&engine, &self.component)?;
        let mut tenants = self.tenants()?;
        signals::catch()?;
        let mut opened = Opened::default();
        let outcome = match until_ended(self.open(&mut tenants, &mut opened)).await {
            Ok(()) => self.run(&engine, &command, &opened).await,
            Err(error) => Err(error),
        };
        opened.close().await;
        let unwritten = tenants.close().await;
        for sentence in &unwritten {
            complain(sentence);
        }
        let outcome = signals::closed(outcome);
        if unwritten.is_empty() { outcome } else { outcome.map(|_| ExitCode::FAILURE) }
    }

    /// Checks the identity before the component runs, if a store belongs to a tenant.
    fn tenants(&self) -> Result<RunTenants> {
        let names = self.stores.iter().chain(&self.read_only_stores).map(|(_, dsn)| dsn);
        let has_tenants = names.chain(&self.memory.dsn).any(|dsn| TenantsDsn::accepts(dsn));
        let identity = if has_tenants { self.identity.of_tenant()? } else { None };
        Ok(RunTenants::new(identity, self.cache_dir.clone(), self.bounds.quota))
    }

    /// The names under which the component may declare migrations.
    ///
    /// Components that share a store cannot change each other's ledger if their file names, or the
    /// names given here, differ. The operator chooses both, not the component.
    fn migrations(&self) -> Result<MigrationScope> {
        if !self.component_names.is_empty() {
            return MigrationScope::only(&self.component_names).context("--component-name");
        }
        let stem = self.component.file_stem().and_then(|stem| stem.to_str());
        // If the file name is not a valid component name, the component can declare no migrations.
        Ok(stem.and_then(|stem| MigrationScope::only([stem]).ok()).unwrap_or_default())
    }

    /// Opens the stores and adds each to `opened`, so that they can be closed even if this fails or
    /// is dropped.
    ///
    /// Writable stores are opened first. A store that is also granted for reading is opened only
    /// once, because SQLite shares its state of a file within a process.
    async fn open(&self, tenants: &mut RunTenants, opened: &mut Opened) -> Result<()> {
        for (name, dsn) in &self.stores {
            let store = self.open_store(tenants, name, dsn).await.with_context(|| of(name))?;
            opened.grants.push(Grant { name: name.clone(), dsn: dsn.clone(), store, read_only: false });
        }
        opened.memory = self.open_memory(&opened.grants, tenants).await?;
        for (name, dsn) in &self.read_only_stores {
            let store = self.open_read_only(tenants, opened, name, dsn).await.with_context(|| of(name))?;
            opened.grants.push(Grant { name: name.clone(), dsn: dsn.clone(), store, read_only: true });
        }
        Ok(())
    }

    async fn open_store(&self, tenants: &mut RunTenants, name: &str, dsn: &str) -> Result<GrantedStore> {
        if TenantsDsn::accepts(dsn) {
            return Ok(GrantedStore::Tenant(tenants.source(name, dsn).await?));
        }
        let backend = drivers().open(dsn).await.map_err(|error| not_opened(dsn, error))?;
        Ok(GrantedStore::Own(self.build_store(backend, name)?))
    }

    async fn open_read_only(
        &self,
        tenants: &mut RunTenants,
        opened: &Opened,
        name: &str,
        dsn: &str,
    ) -> Result<GrantedStore> {
        if TenantsDsn::accepts(dsn) {
            return Ok(GrantedStore::Tenant(tenants.source(name, dsn).await?));
        }
        if let Some(store) = opened.find(dsn) {
            return Ok(GrantedStore::Own(store.clone()));
        }
        let backend = drivers().open_read_only(dsn).await.map_err(|error| not_opened(dsn, error))?;
        // A quota limits writes, so it does not apply.
        Ok(GrantedStore::Own(Store::builder_shared(backend).name(name).sweep_interval(None).build()?))
    }

    async fn open_memory(&self, grants: &[Grant], tenants: &mut RunTenants) -> Result<Option<GrantedMemory>> {
        let Some(dsn) = &self.memory.dsn else { return Ok(None) };
        let context = "the store of --memory";
        // A store that is already open has its own connections.
        let store = match grants.iter().find_map(|grant| grant.own(dsn)) {
            Some(store) => store.clone(),
            None if TenantsDsn::accepts(dsn) => tenants.open("memory", dsn).await.context(context)?,
            None => {
                let backend =
                    drivers().open(dsn).await.map_err(|error| not_opened(dsn, error)).context(context)?;
                self.build_store(backend, "memory")?
            }
        };
        let (memories, scope) = self.memory.build(&store, &self.identity)?;
        Ok(Some(GrantedMemory { dsn: dsn.clone(), store, memories, scope }))
    }

    fn build_store(&self, backend: Arc<dyn Backend>, name: &str) -> Result<Store> {
        let mut store = Store::builder_shared(backend).name(name);
        if let Some(bytes) = self.bounds.quota {
            store = store.quota_bytes(bytes);
        }
        Ok(store.build()?)
    }

    /// Runs the component until it ends, its timeout expires, or a signal arrives.
    async fn run(
        &self,
        engine: &Engine,
        command: &CommandPre<Instance>,
        opened: &Opened,
    ) -> Result<ExitCode> {
        let (limits, printed) = (self.bounds.limits()?, self.bounds.output());
        let mut wasi = WasiCtx::builder();
        wasi.inherit_stdin().stdout(printed.bind(std::io::stdout())).stderr(printed.bind(std::io::stderr()));
        wasi.arg(self.component.to_string_lossy()).args(&self.arguments);
        wasi.envs(&self.environment);
        let storage = storage(&opened.grants, opened.memory.as_ref(), &limits, self.migrations()?)?;
        let bound = self.bounds.memory();
        let instance = Instance { table: ResourceTable::new(), wasi: wasi.build(), storage, bound };
        let mut store = wasmtime::Store::new(engine, instance);
        store.limiter(|instance| &mut instance.bound);
        // One call can pass the data of a full transaction, with room for its lists.
        store.set_hostcall_fuel(usize::try_from(limits.transaction_bytes * 2)?);
        let timeout = self.bounds.timeout().map(signals::end_after);
        let command = command.clone();
        // A component that computes without calling its host needs no interruption in its code: the
        // process exits without waiting for its thread.
        let outcome = on_own_thread(move || async move {
            let outcome = call(&command, &mut store).await;
            outcome.and_then(exit_code).map_err(|error| store.data().bound.explain(error))
        });
        let outcome = outcome.await;
        // The time to close the stores does not count for the component's timeout.
        timeout.inspect(AbortHandle::abort);
        outcome
    }
}

async fn call(
    command: &CommandPre<Instance>,
    store: &mut wasmtime::Store<Instance>,
) -> Result<wasmtime::Result<Result<(), ()>>> {
    let command: Command = command.instantiate_async(&mut *store).await?;
    Ok(command.wasi_cli_run().call_run(store).await)
}

/// The stores that a run has opened.
#[derive(Default)]
struct Opened {
    grants: Vec<Grant>,
    memory: Option<GrantedMemory>,
}

impl Opened {
    /// The open store for a data-source name, if there is one.
    fn find(&self, dsn: &str) -> Option<&Store> {
        let memory = self.memory.as_ref().filter(|memory| is_same_store(&memory.dsn, dsn));
        let granted = self.grants.iter().find_map(|grant| grant.own(dsn));
        granted.or(memory.map(|memory| &memory.store))
    }

    async fn close(&self) {
        if let Some(memory) = &self.memory {
            memory.memories.close().await;
            memory.store.close().await;
        }
        for grant in &self.grants {
            if let GrantedStore::Own(store) = &grant.store {
                store.close().await;
            }
        }
    }
}

struct Grant {
    name: String,
    dsn: String,
    store: GrantedStore,
    read_only: bool,
}

impl Grant {
    /// The store, if it was opened for this run and the data-source name identifies it.
    fn own(&self, dsn: &str) -> Option<&Store> {
        match &self.store {
            GrantedStore::Own(store) if is_same_store(&self.dsn, dsn) => Some(store),
            _ => None,
        }
    }
}

/// Whether two data-source names identify the same store. Each in-memory name is a different store.
fn is_same_store(one: &str, other: &str) -> bool {
    let file = |dsn| SqliteDriver::path(dsn).and_then(|path| path.canonicalize().ok());
    let is_private = matches!(one, "in-memory:" | "sqlite::memory:");
    match file(one) {
        Some(file_of_one) => file(other) == Some(file_of_one),
        None => one == other && !is_private,
    }
}

fn of(name: &str) -> String {
    format!("the store {name:?}")
}

enum GrantedStore {
    /// The store is opened for this run and closed at its end.
    Own(Store),
    /// The store is opened when the component opens it.
    Tenant(Arc<dyn StoreSource>),
}

impl GrantedStore {
    fn source(&self) -> Arc<dyn StoreSource> {
        match self {
            Self::Own(store) => Arc::new(store.clone()),
            Self::Tenant(source) => source.clone(),
        }
    }
}

struct GrantedMemory {
    dsn: String,
    store: Store,
    memories: MemoryStore,
    scope: IdentityScope,
}

fn storage(
    grants: &[Grant],
    memory: Option<&GrantedMemory>,
    limits: &Limits,
    migrations: MigrationScope,
) -> Result<StorageCtx> {
    let mut builder = StorageCtx::builder().limits(limits.clone()).migrations(migrations);
    if let Some(GrantedMemory { memories, scope, .. }) = memory {
        builder = builder.memory(memories, scope.clone());
    }
    for Grant { name, store, read_only, .. } in grants {
        builder = match read_only {
            true => builder.grant_source_read_only(name, store.source()),
            false => builder.grant_source(name, store.source()),
        };
    }
    Ok(builder.build()?)
}

fn exit_code(outcome: wasmtime::Result<Result<(), ()>>) -> Result<ExitCode> {
    match outcome {
        Ok(Ok(())) => Ok(ExitCode::SUCCESS),
        Ok(Err(())) => Ok(ExitCode::FAILURE),
        Err(error) => match (error.downcast_ref::<I32Exit>(), error.downcast_ref::<wasmtime::Trap>()) {
            (Some(exit), _) => Ok(u8::try_from(exit.0).map_or(ExitCode::FAILURE, ExitCode::from)),
            (None, Some(trap)) => bail!("the component trapped: {trap}"),
            (None, None) => bail!("the component failed: {}", error.root_cause()),
        },
    }
}

/// Compiled code is cached between runs. The cache key is a hash of the component and of everything
/// that the compilation depends on.
fn engine() -> Result<Engine> {
    let mut config = engine_config();
    if let Some(folder) = cache_folder() {
        let mut cache = CacheConfig::new();
        cache.with_directory(folder);
        // The cache is optional: without it, the component is compiled on each run.
        config.cache(Cache::new(cache).ok());
    }
    Ok(Engine::new(&config)?)
}

fn cache_folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    // The directory contains only the cache: wasmtime removes unknown files from it.
    Some(folder.join("larder").join("compiled"))
}

fn load(engine: &Engine, path: &Path) -> Result<CommandPre<Instance>> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let component = Component::from_binary(engine, &bytes)
        .map_err(|error| anyhow::anyhow!("{shown} is not a WebAssembly component: {}", error.root_cause()))?;
    for (name, _) in component.component_type().imports(engine) {
        if !name.starts_with("wasi:") && !name.starts_with("larder:storage/") {
            bail!("{shown} imports {name:?}, which larder does not provide");
        }
    }
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    larder_host::add_to_linker(&mut linker)?;
    let linked = linker
        .instantiate_pre(&component)
        .map_err(|error| anyhow::anyhow!("cannot link {shown}: {}", error.root_cause()))?;
    CommandPre::new(linked)
        .map_err(|_| anyhow::anyhow!("{shown} is not a WASI command: it does not export `wasi:cli/run`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_has_a_name_and_the_rest_is_the_store() {
        let grant = parse_grant("default=postgres://host/db?a=b").unwrap();
        assert_eq!(grant, ("default".to_string(), "postgres://host/db?a=b".to_string()));
        for wrong in ["sqlite:a.db", "=sqlite:a.db", "default=", "postgres://host/db?a=b"] {
            parse_grant(wrong).unwrap_err();
        }
    }
}
