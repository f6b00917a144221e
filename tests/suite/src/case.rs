//! The hosts of one case, and the instances of the component that they run.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use larder_host::bindings::memory::Identity as WitIdentity;
use larder_host::larder_core::backend::Backend;
use larder_host::larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_host::larder_core::stored_cost::StoredCost;
use larder_host::{
    Event, EventSink, Identity, IdentityScope, Limits, MemoryOptions, MemoryStore, MigrationScope,
    MovableClock, StorageCtx, StorageCtxView, StorageView, Store, Version,
};
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::memory::ScriptedSummarizer;
use crate::probe::HostName;
use crate::probe::bindings::SuitePre;
use crate::test_bed::{Scratch, TestBed};
use crate::{STORE_BYTES, limits};

/// The state that all instances of a case share.
pub(crate) struct Case {
    pub(crate) engine: wasmtime::Engine,
    pub(crate) component: SuitePre<Instance>,
    pub(crate) clock: Arc<MovableClock>,
    pub(crate) events: Arc<Events>,
    scratch: Box<dyn Scratch>,
    main: Mutex<Store>,
    other: Store,
    pub(crate) summarizer: Arc<ScriptedSummarizer>,
    memory: Mutex<Option<DeclaredMemory>>,
    /// A third open of the store, to inspect and damage the records that both hosts wrote.
    records: Arc<dyn Backend>,
}

/// The memory stores of both hosts, on the options that the case declared.
struct DeclaredMemory {
    main: MemoryStore,
    other: MemoryStore,
}

/// The data of one instance.
pub(crate) struct Instance {
    pub(crate) case: Arc<Case>,
    pub(crate) storage: StorageCtx,
    pub(crate) rights: Rights,
    table: ResourceTable,
    wasi: WasiCtx,
}

/// The rights of one instance.
pub(crate) struct Rights {
    pub(crate) memory_of: HostName,
    pub(crate) identities: IdentityScope,
    pub(crate) migrations: MigrationScope,
    pub(crate) limits: Limits,
}

impl Default for Rights {
    /// All rights.
    fn default() -> Self {
        Self {
            memory_of: HostName::Main,
            identities: IdentityScope::Any,
            migrations: MigrationScope::Any,
            limits: limits(),
        }
    }
}

/// Collects the events of the host.
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
        test_bed: &dyn TestBed,
    ) -> Result<Arc<Self>> {
        let clock = Arc::new(MovableClock::default());
        let events = Arc::new(Events::default());
        let scratch = test_bed.scratch().await?;
        let main = open(scratch.open().await?, &clock, &events, Some(STORE_BYTES))?;
        let other = open(scratch.open().await?, &clock, &events, None)?;
        let records = scratch.open().await?;
        Ok(Arc::new(Self {
            engine: engine.clone(),
            component: component.clone(),
            clock,
            events,
            scratch,
            main: Mutex::new(main),
            other,
            summarizer: Arc::default(),
            memory: Mutex::default(),
            records,
        }))
    }

    /// How the backend counts rows towards a quota.
    pub(crate) fn stored_cost(&self) -> StoredCost {
        self.records.stored_cost()
    }

    /// Makes the wasmtime store of a new instance.
    pub(crate) fn instance(self: &Arc<Self>) -> Result<wasmtime::Store<Instance>> {
        let rights = Rights::default();
        let instance = Instance {
            case: self.clone(),
            storage: self.storage(&rights)?,
            rights,
            table: ResourceTable::new(),
            wasi: WasiCtx::builder().inherit_stderr().build(),
        };
        let mut store = wasmtime::Store::new(&self.engine, instance);
        // Enough for the largest argument of a case, a list of texts of 100 kB.
        store.set_hostcall_fuel(16 << 20);
        Ok(store)
    }

    pub(crate) fn storage(&self, rights: &Rights) -> Result<StorageCtx> {
        let main = self.main();
        let builder =
            StorageCtx::builder().limits(rights.limits.clone()).migrations(rights.migrations.clone());
        let builder = match self.memory(rights.memory_of) {
            Some(memories) => builder.memory(&memories, rights.identities.clone()),
            None => builder,
        };
        let builder = builder.grant("main", &main).grant("other", &self.other);
        Ok(builder.grant_read_only("read-only", &main).build()?)
    }

    pub(crate) fn main(&self) -> Store {
        self.lock_main().clone()
    }

    pub(crate) async fn reopen(&self) -> Result<()> {
        let memory = self.memory(HostName::Main);
        if let Some(memories) = &memory {
            memories.close().await;
        }
        self.main().close().await;
        let main = open(self.scratch.open().await?, &self.clock, &self.events, Some(STORE_BYTES))?;
        *self.lock_main() = main;
        match memory {
            Some(memories) => self.declare_memory(memories.options().clone()),
            None => Ok(()),
        }
    }

    pub(crate) fn declare_memory(&self, options: MemoryOptions) -> Result<()> {
        let keep = |store: &Store| {
            let builder = MemoryStore::builder(store, options.clone()).summarizer(self.summarizer.clone());
            // Cases run due work themselves.
            builder.background(false).build()
        };
        let (main, other) = (keep(&self.main())?, keep(&self.other)?);
        *lock(&self.memory) = Some(DeclaredMemory { main, other });
        Ok(())
    }

    pub(crate) fn memory(&self, host: HostName) -> Option<MemoryStore> {
        lock(&self.memory).as_ref().map(|declared| match host {
            HostName::Main => declared.main.clone(),
            HostName::Other => declared.other.clone(),
        })
    }

    pub(crate) async fn damage_record(&self, identity: WitIdentity, bytes: Vec<u8>) -> Result<()> {
        let key = RecordKey::conversation(Identity::new(identity.into(), &limits())?);
        let stored = self.records.load_record(&key).await?;
        let expected = stored.as_ref().map_or(Version::ABSENT, |stored| stored.version);
        let stored = stored.context("the session has no stored record")?;
        let record = Some(StoredRecord { bytes, version: Version(expected.0 ^ 1), ..stored });
        Ok(self.records.write_record(Arc::new(RecordWrite { key, expected, record })).await?)
    }

    pub(crate) async fn stored_record(&self, identity: WitIdentity) -> Result<Option<Vec<u8>>> {
        let key = RecordKey::conversation(Identity::new(identity.into(), &limits())?);
        Ok(self.records.load_record(&key).await?.map(|stored| stored.bytes))
    }

    /// Closes the hosts and removes the store.
    pub(crate) async fn end(self: Arc<Self>) -> Result<()> {
        for host in [HostName::Main, HostName::Other] {
            if let Some(memories) = self.memory(host) {
                memories.close().await;
            }
        }
        self.main().close().await;
        self.other.close().await;
        self.records.close().await;
        match Arc::try_unwrap(self) {
            Ok(case) => case.scratch.remove().await,
            // An instance whose call timed out still holds the case. When it drops the case, the
            // store's temporary folder is removed.
            Err(_) => Ok(()),
        }
    }

    fn lock_main(&self) -> MutexGuard<'_, Store> {
        lock(&self.main)
    }
}

impl Instance {
    /// Rebuilds the storage context from the current state and rights of the case.
    pub(crate) fn renew_storage(&mut self) -> Result<()> {
        self.storage = self.case.storage(&self.rights)?;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(
    backend: Arc<dyn Backend>,
    clock: &Arc<MovableClock>,
    events: &Arc<Events>,
    quota: Option<u64>,
) -> Result<Store> {
    let builder = Store::builder_shared(backend).name("main").clock(clock.clone()).events(events.clone());
    // Cases read expired rows before any sweep, and sweep themselves.
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
