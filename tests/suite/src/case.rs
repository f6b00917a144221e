//! The host of one case, and its instances of the component.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use larder_host::larder_core::backend::Backend;
use larder_host::{Event, EventSink, MovableClock, StorageCtx, StorageCtxView, StorageView, Store};
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::bench::{Bench, Scratch};
use crate::probe::bindings::SuitePre;
use crate::{STORE_BYTES, limits};

/// What all instances of one case share.
pub(crate) struct Case {
    pub(crate) engine: wasmtime::Engine,
    pub(crate) component: SuitePre<Instance>,
    pub(crate) clock: Arc<MovableClock>,
    pub(crate) events: Arc<Events>,
    scratch: Box<dyn Scratch>,
    main: Mutex<Store>,
    other: Store,
}

/// The data of one instance.
pub(crate) struct Instance {
    pub(crate) case: Arc<Case>,
    pub(crate) storage: StorageCtx,
    table: ResourceTable,
    wasi: WasiCtx,
}

/// Keeps what the host reports.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<Event>>);

impl Events {
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl EventSink for Events {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

impl Case {
    pub(crate) async fn new(
        engine: &wasmtime::Engine,
        component: &SuitePre<Instance>,
        bench: &dyn Bench,
    ) -> Result<Arc<Self>> {
        let clock = Arc::new(MovableClock::default());
        let events = Arc::new(Events::default());
        let scratch = bench.scratch().await?;
        let main = open(scratch.open().await?, &clock, &events, Some(STORE_BYTES))?;
        let other = open(scratch.open().await?, &clock, &events, None)?;
        Ok(Arc::new(Self {
            engine: engine.clone(),
            component: component.clone(),
            clock,
            events,
            scratch,
            main: Mutex::new(main),
            other,
        }))
    }

    /// A fresh instance's store.
    pub(crate) fn instance(self: &Arc<Self>) -> Result<wasmtime::Store<Instance>> {
        let instance = Instance {
            case: self.clone(),
            storage: self.storage()?,
            table: ResourceTable::new(),
            wasi: WasiCtx::builder().inherit_stderr().build(),
        };
        let mut store = wasmtime::Store::new(&self.engine, instance);
        // Enough for the largest argument that a case sends, a list of 100 kB texts.
        store.set_hostcall_fuel(16 << 20);
        Ok(store)
    }

    pub(crate) fn storage(&self) -> Result<StorageCtx> {
        let main = self.main();
        let builder = StorageCtx::builder().limits(limits());
        let builder = builder.grant("main", &main).grant("other", &self.other);
        Ok(builder.grant_read_only("read-only", &main).build()?)
    }

    pub(crate) fn main(&self) -> Store {
        self.lock_main().clone()
    }

    pub(crate) async fn reopen(&self) -> Result<()> {
        self.main().close().await;
        let main = open(self.scratch.open().await?, &self.clock, &self.events, Some(STORE_BYTES))?;
        *self.lock_main() = main;
        Ok(())
    }

    /// Closes everything and removes the store.
    pub(crate) async fn end(self: Arc<Self>) -> Result<()> {
        self.main().close().await;
        self.other.close().await;
        match Arc::try_unwrap(self) {
            Ok(case) => case.scratch.remove().await,
            // An instance that was cut off still has it; what is left is removed with it.
            Err(_) => Ok(()),
        }
    }

    fn lock_main(&self) -> MutexGuard<'_, Store> {
        self.main.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(
    backend: Arc<dyn Backend>,
    clock: &Arc<MovableClock>,
    events: &Arc<Events>,
    quota: Option<u64>,
) -> Result<Store> {
    let builder = Store::builder_shared(backend).name("main").clock(clock.clone()).events(events.clone());
    // Cases see expired rows before any sweep, and sweep when they want to.
    let builder = builder.sweep_interval(None);
    let builder = match quota {
        Some(bytes) => builder.quota_bytes(bytes),
        None => builder,
    };
    Ok(builder.build()?)
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
