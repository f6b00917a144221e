//! What one component instance may do.

use std::collections::HashMap;
use std::sync::Arc;

use larder_core::{
    Error, Handle, HandleOptions, IdentityParts, IdentityScope, LimitKind, Limits, Memory, MemoryStore,
    MigrationScope, OpenTransactions, Result, Share, Store, StoreSource,
};
use wasmtime::component::{HasData, Linker, ResourceTable};

use crate::bindings;

/// The longest name under which a store can be granted, in bytes.
const STORE_NAME_BYTES_MAX: usize = 255;

/// The stores that one component instance may open, and its limits.
#[derive(Debug)]
pub struct StorageCtx {
    grants: HashMap<String, Grant>,
    limits: Arc<Limits>,
    open_transactions: OpenTransactions,
    open_stores: u64,
    migrations: MigrationScope,
    memory: Option<MemoryStore>,
    identities: IdentityScope,
    open_memories: u64,
    share: Share,
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

/// Sets up a [`StorageCtx`].
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

    /// Lets the component open `store` under `name`, for views only.
    pub fn grant_read_only(self, name: impl Into<String>, store: &Store) -> Self {
        self.grant_source_read_only(name, Arc::new(store.clone()))
    }

    /// Lets the component open, under `name`, a store that is found when it asks for it.
    pub fn grant_source(mut self, name: impl Into<String>, store: Arc<dyn StoreSource>) -> Self {
        self.grants.push((name.into(), Grant { store, read_only: false }));
        self
    }

    /// As [`grant_source`](Self::grant_source), for views only.
    pub fn grant_source_read_only(mut self, name: impl Into<String>, store: Arc<dyn StoreSource>) -> Self {
        self.grants.push((name.into(), Grant { store, read_only: true }));
        self
    }

    /// Where the component's conversations are kept, and which of them it may open.
    pub fn memory(mut self, memories: &MemoryStore, identities: IdentityScope) -> Self {
        self.memory = Some(memories.clone());
        self.identities = identities;
        self
    }

    /// Which component names the component may declare migrations for, in all its stores. Default: none.
    pub fn migrations(mut self, scope: MigrationScope) -> Self {
        self.migrations = scope;
        self
    }

    /// The bounds of the component, over all its stores.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// On whose behalf the component works. Instances that are given equal shares, such as those of one tenant, get together
    /// what one instance would get if others want it too: connections, turns of the writer. Default: a share of its own.
    pub fn share(mut self, share: Share) -> Self {
        self.share = share;
        self
    }

    /// How long a transaction may be open; a part of the limits.
    pub fn transaction_timeout(mut self, timeout: std::time::Duration) -> Self {
        self.limits.transaction_timeout = timeout;
        self
    }

    /// Makes the context.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where limits contradict each other, a name is too long, or two stores are
    /// granted under one name.
    pub fn build(self) -> Result<StorageCtx> {
        self.limits.validate()?;
        let mut grants = HashMap::new();
        for (name, grant) in self.grants {
            check_store_name(&name)?;
            if grants.insert(name.clone(), grant).is_some() {
                return Err(Error::invalid_argument(format!(
                    "two stores are granted under the name {name:?}"
                )));
            }
        }
        let open_transactions = OpenTransactions::at_most(self.limits.open_transactions);
        Ok(StorageCtx {
            grants,
            limits: Arc::new(self.limits),
            open_transactions,
            open_stores: 0,
            migrations: self.migrations,
            memory: self.memory,
            identities: self.identities,
            open_memories: 0,
            share: self.share,
        })
    }
}

impl StorageCtx {
    /// A context that grants nothing yet, with the default limits.
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
        Ok(store.handle(HandleOptions {
            name,
            read_only: grant.read_only,
            limits: self.limits.clone(),
            open_transactions: self.open_transactions.clone(),
            migrations: self.migrations.clone(),
            share: self.share.clone(),
        }))
    }

    pub(crate) fn forget_open(&mut self) {
        self.open_stores = self.open_stores.saturating_sub(1);
    }

    pub(crate) fn open_memory(&mut self, identity: IdentityParts) -> Result<Memory> {
        let Some(memories) = &self.memory else {
            return Err(Error::AccessDenied("the host granted no memory".to_string()));
        };
        let memory = memories.open(identity, &self.identities, &self.limits)?;
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
        "the name of a store has {} bytes, and can have {STORE_NAME_BYTES_MAX} at most",
        name.len()
    )))
}

/// Gives larder's host functions their context and the table of the instance's resources.
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
    /// The context and the table.
    fn storage(&mut self) -> StorageCtxView<'_>;
}

/// What [`StorageView::storage`] gives.
pub struct StorageCtxView<'a> {
    /// What the instance may do.
    pub ctx: &'a mut StorageCtx,
    /// The instance's resources: its handles on stores and its transactions.
    pub table: &'a mut ResourceTable,
}

/// Tells a linker that its data is found through [`StorageCtxView`].
pub struct HasStorage;

impl HasData for HasStorage {
    type Data<'a> = StorageCtxView<'a>;
}

/// Adds every interface of `larder:storage` to a linker. Its engine needs no special setting; see
/// [`engine_config`](crate::engine_config).
///
/// # Errors
/// Where the linker has one of the interfaces already.
pub fn add_to_linker<T: StorageView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    bindings::types::add_to_linker::<T, HasStorage>(linker, T::storage)?;
    bindings::store::add_to_linker::<T, HasStorage>(linker, T::storage)?;
    bindings::tx::add_to_linker::<T, HasStorage>(linker, T::storage)?;
    bindings::memory::add_to_linker::<T, HasStorage>(linker, T::storage)
}
