//! The context of one component instance: its grants and its limits.

use std::collections::HashMap;
use std::sync::Arc;

use larder_core::{
    Error, Handle, HandleOptions, HeldBytes, IdentityParts, IdentityScope, LimitKind, Limits, LongCalls,
    Memory, MemoryStore, MigrationScope, OpenTransactions, Result, Share, Store, StoreSource,
};
use wasmtime::component::{HasData, ResourceTable};

/// The length of the longest name under which a store can be granted, in bytes.
const STORE_NAME_BYTES_MAX: usize = 255;

/// The stores and conversations that one component instance may open, and its limits.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), larder_host::Error> {
/// use larder_host::{InMemory, Limits, Store, StorageCtx};
///
/// let store = Store::builder(InMemory::new()).build()?;
/// let limits = Limits::default().open_transactions(4);
/// let storage = StorageCtx::builder().grant("default", &store).limits(limits).build()?;
/// # drop(storage);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct StorageCtx {
    grants: HashMap<String, Grant>,
    limits: Arc<Limits>,
    open_transactions: OpenTransactions,
    held: HeldBytes,
    open_stores: u64,
    migrations: MigrationScope,
    memory: Option<MemoryStore>,
    identities: IdentityScope,
    open_memories: u64,
    share: Share,
    long_calls: LongCalls,
}

struct Grant {
    store: Arc<dyn StoreSource>,
    read_only: bool,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Grant").field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

/// Builds a [`StorageCtx`].
#[derive(Debug, Default)]
pub struct StorageCtxBuilder {
    grants: Vec<(String, Grant)>,
    limits: Limits,
    migrations: MigrationScope,
    memory: Option<MemoryStore>,
    identities: IdentityScope,
    share: Share,
}

impl StorageCtxBuilder {
    /// Lets the component open `store` under `name`.
    pub fn grant(self, name: impl Into<String>, store: &Store) -> Self {
        self.grant_source(name, Arc::new(store.clone()))
    }

    /// Lets the component open `store` under `name`, and only read it.
    pub fn grant_read_only(self, name: impl Into<String>, store: &Store) -> Self {
        self.grant_source_read_only(name, Arc::new(store.clone()))
    }

    /// Lets the component open, under `name`, the store that `store` finds at that moment.
    ///
    /// The source is asked each time that the component opens the store, so the host can open a
    /// tenant's store on demand.
    pub fn grant_source(mut self, name: impl Into<String>, store: Arc<dyn StoreSource>) -> Self {
        self.grants.push((name.into(), Grant { store, read_only: false }));
        self
    }

    /// Lets the component open a source's store under `name`, and only read it.
    ///
    /// The source is asked as in [`grant_source`](Self::grant_source).
    pub fn grant_source_read_only(mut self, name: impl Into<String>, store: Arc<dyn StoreSource>) -> Self {
        self.grants.push((name.into(), Grant { store, read_only: true }));
        self
    }

    /// Sets where the component's conversations are kept, and which of them it may open.
    ///
    /// Default: the component can open none.
    pub fn memory(mut self, memories: &MemoryStore, identities: IdentityScope) -> Self {
        self.memory = Some(memories.clone());
        self.identities = identities;
        self
    }

    /// Sets the component names for which the component may declare migrations.
    ///
    /// This applies to all its stores. Default: none.
    pub fn migrations(mut self, scope: MigrationScope) -> Self {
        self.migrations = scope;
        self
    }

    /// Sets the limits of the component, over all its stores.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the share to which the component belongs.
    ///
    /// The host divides connections and the writer's time among shares. Instances of one share, for
    /// example those of one tenant, together get as much as a single instance of another share.
    /// Default: a share of its own.
    pub fn share(mut self, share: Share) -> Self {
        self.share = share;
        self
    }

    /// Sets how long a transaction may be open, which is one of the limits.
    pub fn transaction_timeout(mut self, timeout: std::time::Duration) -> Self {
        self.limits.transaction_timeout = timeout;
        self
    }

    /// Builds the context.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the limits contradict each other, a store's name is longer
    ///   than 255 bytes, or two stores are granted under one name.
    pub fn build(self) -> Result<StorageCtx> {
        self.limits.validate()?;
        let mut grants = HashMap::new();
        for (name, grant) in self.grants {
            check_store_name(&name)?;
            if grants.insert(name.clone(), grant).is_some() {
                return Err(Error::invalid_argument(format!(
                    "cannot grant two stores under the name {name:?}; use a different name for each"
                )));
            }
        }
        let open_transactions = OpenTransactions::at_most(self.limits.open_transactions);
        let held = HeldBytes::at_most(self.limits.instance_bytes);
        Ok(StorageCtx {
            grants,
            limits: Arc::new(self.limits),
            open_transactions,
            held,
            open_stores: 0,
            migrations: self.migrations,
            memory: self.memory,
            identities: self.identities,
            open_memories: 0,
            long_calls: LongCalls::new(self.share.clone()),
            share: self.share,
        })
    }
}

impl StorageCtx {
    /// Returns a builder with no grants and the default limits.
    pub fn builder() -> StorageCtxBuilder {
        StorageCtxBuilder::default()
    }

    pub(crate) async fn open(&mut self, name: String) -> Result<Handle> {
        check_store_name(&name)?;
        let Some(grant) = self.grants.get(&name) else {
            return Err(Error::NoSuchStore(name));
        };
        self.limits.check(LimitKind::OpenStores, self.open_stores + 1)?;
        let store = grant.store.open().await?;
        self.open_stores += 1;
        Ok(store.handle(
            HandleOptions::default()
                .name(name)
                .read_only(grant.read_only)
                .limits(self.limits.clone())
                .open_transactions(self.open_transactions.clone())
                .held(self.held.clone())
                .migrations(self.migrations.clone())
                .share(self.share.clone()),
        ))
    }

    /// The scheduler for calls that may take long.
    pub(crate) fn long_calls(&self) -> &LongCalls {
        &self.long_calls
    }

    pub(crate) fn forget_open(&mut self) {
        self.open_stores = self.open_stores.saturating_sub(1);
    }

    pub(crate) fn open_memory(&mut self, identity: IdentityParts) -> Result<Memory> {
        let Some(memories) = &self.memory else {
            return Err(Error::AccessDenied(
                "the host granted no conversations to this instance".to_string(),
            ));
        };
        let memory = memories.open_within(identity, &self.identities, &self.limits, &self.held)?;
        self.limits.check(LimitKind::OpenMemories, self.open_memories + 1)?;
        self.open_memories += 1;
        Ok(memory)
    }

    pub(crate) fn forget_open_memory(&mut self) {
        self.open_memories = self.open_memories.saturating_sub(1);
    }
}

fn check_store_name(name: &str) -> Result<()> {
    if name.len() <= STORE_NAME_BYTES_MAX {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "the store's name has {} bytes; it can have at most {STORE_NAME_BYTES_MAX}",
        name.len()
    )))
}

/// Gives larder's host functions access to the data of a [`wasmtime::Store`].
///
/// ```
/// use larder_host::{StorageCtx, StorageCtxView, StorageView};
/// use wasmtime::component::ResourceTable;
///
/// struct Plugin {
///     table: ResourceTable,
///     storage: StorageCtx,
/// }
///
/// impl StorageView for Plugin {
///     fn storage(&mut self) -> StorageCtxView<'_> {
///         StorageCtxView { ctx: &mut self.storage, table: &mut self.table }
///     }
/// }
/// ```
pub trait StorageView: Send {
    /// Returns the instance's context and its table of resources.
    fn storage(&mut self) -> StorageCtxView<'_>;
}

/// The context and the resources of one instance, borrowed from its [`wasmtime::Store`].
pub struct StorageCtxView<'a> {
    /// The stores that the instance may open, and its limits.
    pub ctx: &'a mut StorageCtx,
    /// The instance's resources: its store handles, transactions and conversations.
    pub table: &'a mut ResourceTable,
}

/// Marks [`StorageCtxView`] as the data that larder's host functions use.
pub struct HasStorage;

impl HasData for HasStorage {
    type Data<'a> = StorageCtxView<'a>;
}
