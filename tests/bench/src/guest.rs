//! Guests: instances of a component, driven as an embedder would.

use anyhow::{Error, Result};
use larder_bench_workload::Shape;
use larder_host::{Limits, StorageCtx, StorageCtxView, StorageView, Store, engine_config, instance_pool};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, InstanceAllocationStrategy};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_keyvalue::{WasiKeyValue, WasiKeyValueCtx, WasiKeyValueCtxBuilder};

use crate::row::Work;

mod bindings {
    #![allow(missing_docs, unreachable_pub, reason = "the WIT documents them")]

    wasmtime::component::bindgen!({
        path: "wit",
        world: "larder:bench/guest",
        exports: { default: async },
        require_store_data_send: true,
    });
}

pub(crate) use bindings::exports::larder::bench::loops::Workload;
use bindings::exports::larder::bench::loops::{Guest as Loops, Shape as GuestShape};
use bindings::{Guest as Bindings, GuestPre as Linked};

/// The name under which every guest gets its store.
const STORE: &str = "default";

/// The most bytes that one call may lift from the guest, a little more than a transaction may hold.
pub(crate) const HOSTCALL_BYTES: usize = 32 << 20;

/// The data of one instance.
struct Instance {
    table: ResourceTable,
    wasi: WasiCtx,
    storage: StorageCtx,
    keyvalue: WasiKeyValueCtx,
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

/// A component, compiled and linked once.
#[derive(Clone)]
pub(crate) struct Program {
    engine: Engine,
    linked: Linked<Instance>,
}

impl Program {
    /// The loops through the SDK.
    pub(crate) fn larder() -> Result<Self> {
        Self::load(&engine_config(), larder_artifacts::LARDER_BENCH_GUEST)
    }

    /// The same, with instances from a pool.
    pub(crate) fn larder_pooling() -> Result<Self> {
        let mut config = engine_config();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(instance_pool()));
        Self::load(&config, larder_artifacts::LARDER_BENCH_GUEST)
    }

    /// The loops over `wasi:keyvalue`.
    pub(crate) fn keyvalue() -> Result<Self> {
        Self::load(&engine_config(), larder_artifacts::LARDER_BENCH_KEYVALUE_GUEST)
    }

    /// The loops through the SDK, on an engine that is shared.
    pub(crate) fn larder_on(engine: Engine) -> Result<Self> {
        Self::load_on(engine, larder_artifacts::LARDER_BENCH_GUEST)
    }

    fn load(config: &wasmtime::Config, path: &str) -> Result<Self> {
        Self::load_on(Engine::new(config)?, path)
    }

    fn load_on(engine: Engine, path: &str) -> Result<Self> {
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        larder_host::add_to_linker(&mut linker)?;
        wasmtime_wasi_keyvalue::add_to_linker(&mut linker, |instance: &mut Instance| {
            WasiKeyValue::new(&instance.keyvalue, &mut instance.table)
        })?;
        let component = Component::from_file(&engine, path)?;
        let linked = Linked::new(linker.instantiate_pre(&component)?)?;
        Ok(Self { engine, linked })
    }

    /// Starts an instance that may open `store`.
    pub(crate) async fn instance(&self, store: &Store) -> Result<Guest> {
        self.instance_within(store, Limits::default()).await
    }

    /// Starts an instance with its own limits.
    pub(crate) async fn instance_within(&self, store: &Store, limits: Limits) -> Result<Guest> {
        let storage = StorageCtx::builder().limits(limits).grant(STORE, store).build()?;
        self.start(storage, WasiKeyValueCtxBuilder::new().build()).await
    }

    /// Starts an instance whose bucket holds `rows`.
    pub(crate) async fn instance_with_bucket(
        &self,
        rows: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Result<Guest> {
        let keyvalue = WasiKeyValueCtxBuilder::new().in_memory_data(rows).build();
        self.start(StorageCtx::builder().build()?, keyvalue).await
    }

    async fn start(&self, storage: StorageCtx, keyvalue: WasiKeyValueCtx) -> Result<Guest> {
        let wasi = WasiCtx::builder().build();
        let instance = Instance { table: ResourceTable::new(), wasi, storage, keyvalue };
        let mut store = wasmtime::Store::new(&self.engine, instance);
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        // If the engine has epochs, the guest yields at every tick.
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let bindings = self.linked.instantiate_async(&mut store).await?;
        Ok(Guest { store, bindings })
    }
}

/// One instance.
pub(crate) struct Guest {
    store: wasmtime::Store<Instance>,
    bindings: Bindings,
}

fn said<T>(outcome: Result<T, String>) -> Result<T> {
    outcome.map_err(|text| Error::msg(text).context("the guest failed"))
}

fn guest_shape(shape: Shape) -> GuestShape {
    let Shape { rows, namespaces, value_bytes } = shape;
    GuestShape { rows, namespaces, value_bytes }
}

impl Guest {
    /// Opens the store that the instance was granted.
    pub(crate) async fn open(&mut self, shape: Shape) -> Result<()> {
        self.open_named(STORE, shape).await
    }

    /// Opens the only bucket.
    pub(crate) async fn open_bucket(&mut self, shape: Shape) -> Result<()> {
        self.open_named("", shape).await
    }

    async fn open_named(&mut self, name: &str, shape: Shape) -> Result<()> {
        let (loops, store) = self.parts();
        said(loops.call_open(store, name, guest_shape(shape)).await?)
    }

    pub(crate) async fn fill(&mut self, first: u64, count: u64) -> Result<()> {
        let (loops, store) = self.parts();
        said(loops.call_fill(store, first, count).await?)
    }

    pub(crate) async fn run(&mut self, workload: Workload, work: Work) -> Result<u64> {
        let (loops, store) = self.parts();
        said(loops.call_run(store, workload, work.count, work.seed, work.salt).await?)
    }

    pub(crate) async fn open_and_get(&mut self, name: StoreName, work: Work) -> Result<u64> {
        let (loops, store) = self.parts();
        said(loops.call_open_and_get(store, name.text(), work.count, work.seed).await?)
    }

    pub(crate) async fn request(&mut self, shape: Shape, seed: u64, salt: u64) -> Result<u64> {
        let (loops, store) = self.parts();
        said(loops.call_request(store, STORE, guest_shape(shape), seed, salt).await?)
    }

    pub(crate) async fn nothing(&mut self) -> Result<()> {
        let (loops, store) = self.parts();
        Ok(loops.call_nothing(store).await?)
    }

    pub(crate) async fn sleep_in_update(&mut self, milliseconds: u32) -> Result<()> {
        let (loops, store) = self.parts();
        said(loops.call_sleep_in_update(store, milliseconds).await?)
    }

    pub(crate) async fn hold(&mut self, count: u64, read: bool) -> Result<()> {
        let (loops, store) = self.parts();
        said(loops.call_hold(store, count, read).await?)
    }

    fn parts(&mut self) -> (&Loops, &mut wasmtime::Store<Instance>) {
        (self.bindings.larder_bench_loops(), &mut self.store)
    }
}

/// The store that a guest opens again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StoreName {
    /// The store that the instance was granted.
    Granted,
    /// The bucket of `wasi:keyvalue`.
    Bucket,
}

impl StoreName {
    fn text(self) -> &'static str {
        match self {
            Self::Granted => STORE,
            Self::Bucket => "",
        }
    }
}
