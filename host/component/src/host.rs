//! The host functions. Each looks up its handle, converts the arguments and calls larder.

use larder_core::{Handle, Memory, NextMigration, PackedPage, Transaction, Version};
use wasmtime::component::Resource;

use crate::StorageCtxView;
use crate::bindings::{memory, packed, store, tx, types};
use crate::convert::{StorageError, StorageResult};

impl types::Host for StorageCtxView<'_> {
    fn convert_error(&mut self, error: StorageError) -> wasmtime::Result<types::Error> {
        match error {
            StorageError::Guest(error) => Ok(error.into()),
            StorageError::Trap(trap) => Err(trap),
        }
    }
}

impl store::Host for StorageCtxView<'_> {}

impl store::HostStore for StorageCtxView<'_> {
    async fn open(&mut self, name: String) -> StorageResult<Resource<Handle>> {
        let handle = self.ctx.open(name).await?;
        Ok(self.table.push(handle)?)
    }

    fn begin(&mut self, store: Resource<Handle>, mode: tx::Mode) -> StorageResult<Resource<Transaction>> {
        let transaction = self.table.get(&store)?.begin(mode.into())?;
        Ok(self.table.push(transaction)?)
    }

    async fn pending_migrations(
        &mut self,
        store: Resource<Handle>,
        component: String,
        declared: Vec<store::Migration>,
    ) -> StorageResult<Vec<String>> {
        let declared = declared.into_iter().map(Into::into).collect();
        Ok(self.ctx.long_calls().run(self.table.get(&store)?.pending_migrations(component, declared)).await?)
    }

    async fn begin_migration(
        &mut self,
        store: Resource<Handle>,
        component: String,
        declared: Vec<store::Migration>,
    ) -> StorageResult<Option<(String, Resource<Transaction>)>> {
        let declared = declared.into_iter().map(Into::into).collect();
        let next =
            self.ctx.long_calls().run(self.table.get(&store)?.begin_migration(component, declared)).await?;
        let Some(NextMigration { id, transaction }) = next else { return Ok(None) };
        Ok(Some((id, self.table.push(transaction)?)))
    }

    async fn ping(&mut self, store: Resource<Handle>) -> StorageResult<()> {
        Ok(self.table.get(&store)?.ping().await?)
    }

    fn close(&mut self, store: Resource<Handle>) -> wasmtime::Result<()> {
        self.table.get(&store)?.close();
        Ok(())
    }

    fn drop(&mut self, store: Resource<Handle>) -> wasmtime::Result<()> {
        self.table.delete(store)?;
        self.ctx.forget_open();
        Ok(())
    }
}

impl tx::Host for StorageCtxView<'_> {}

impl tx::HostTx for StorageCtxView<'_> {
    async fn get(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        key: String,
    ) -> StorageResult<Option<Vec<u8>>> {
        Ok(self.table.get_mut(&tx)?.get(ns, key).await?)
    }

    async fn get_many(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        keys: Vec<String>,
    ) -> StorageResult<Vec<Option<Vec<u8>>>> {
        Ok(self.ctx.long_calls().run(self.table.get_mut(&tx)?.get_many(ns, keys)).await?)
    }

    async fn get_versioned(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        key: String,
    ) -> StorageResult<Option<(Vec<u8>, types::Version)>> {
        let found = self.table.get_mut(&tx)?.get_versioned(ns, key).await?;
        Ok(found.map(|(value, version)| (value, version.0)))
    }

    fn put(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        key: String,
        value: Vec<u8>,
    ) -> StorageResult<()> {
        Ok(self.table.get_mut(&tx)?.put(ns, key, value)?)
    }

    async fn put_many(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        entries: Vec<types::Entry>,
    ) -> StorageResult<()> {
        let entries = entries.into_iter().map(Into::into).collect();
        Ok(self.ctx.long_calls().run(self.table.get_mut(&tx)?.put_many(ns, entries)).await?)
    }

    fn put_with(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        key: String,
        value: Vec<u8>,
        options: tx::PutOptions,
    ) -> StorageResult<()> {
        Ok(self.table.get_mut(&tx)?.put_with(ns, key, value, options.into())?)
    }

    fn delete(&mut self, tx: Resource<Transaction>, ns: String, key: String) -> StorageResult<()> {
        Ok(self.table.get_mut(&tx)?.delete(ns, key)?)
    }

    async fn delete_many(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        keys: Vec<String>,
    ) -> StorageResult<()> {
        Ok(self.ctx.long_calls().run(self.table.get_mut(&tx)?.delete_many(ns, keys)).await?)
    }

    fn delete_if_version(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        key: String,
        expected: types::Version,
    ) -> StorageResult<()> {
        Ok(self.table.get_mut(&tx)?.delete_if_version(ns, key, Version(expected))?)
    }

    async fn delete_range(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        range: tx::Range,
    ) -> StorageResult<u64> {
        Ok(self.ctx.long_calls().run(self.table.get_mut(&tx)?.delete_range(ns, range.into())).await?)
    }

    fn increment(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        key: String,
        delta: i64,
    ) -> StorageResult<()> {
        Ok(self.table.get_mut(&tx)?.increment(ns, key, delta)?)
    }

    async fn scan(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        prefix: String,
    ) -> StorageResult<Vec<types::Entry>> {
        let entries = self.ctx.long_calls().run(self.table.get_mut(&tx)?.scan(ns, prefix)).await?;
        Ok(entries.into_iter().map(Into::into).collect())
    }

    async fn scan_page(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        range: tx::Range,
        after: Option<String>,
    ) -> StorageResult<tx::Page> {
        Ok(self
            .ctx
            .long_calls()
            .run(self.table.get_mut(&tx)?.scan_page(ns, range.into(), after))
            .await?
            .into())
    }

    async fn commit(&mut self, tx: Resource<Transaction>) -> StorageResult<types::Version> {
        Ok(self.table.delete(tx)?.commit().await?.0)
    }

    fn rollback(&mut self, tx: Resource<Transaction>) -> wasmtime::Result<()> {
        self.table.delete(tx)?.rollback();
        Ok(())
    }

    fn drop(&mut self, tx: Resource<Transaction>) -> wasmtime::Result<()> {
        self.table.delete(tx)?;
        Ok(())
    }
}

impl packed::Host for StorageCtxView<'_> {
    async fn scan_page(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        range: tx::Range,
        after: Option<String>,
    ) -> StorageResult<packed::Page> {
        let PackedPage { entries, next } = self
            .ctx
            .long_calls()
            .run(self.table.get_mut(&tx)?.scan_page_packed(ns, range.into(), after))
            .await?;
        Ok(packed::Page { entries, next })
    }

    async fn put_many(
        &mut self,
        tx: Resource<Transaction>,
        ns: String,
        entries: Vec<u8>,
    ) -> StorageResult<()> {
        Ok(self.ctx.long_calls().run(self.table.get_mut(&tx)?.put_packed(ns, &entries)).await?)
    }
}

impl memory::Host for StorageCtxView<'_> {}

impl memory::HostMemory for StorageCtxView<'_> {
    fn open(&mut self, identity: memory::Identity) -> StorageResult<Resource<Memory>> {
        let memory = self.ctx.open_memory(identity.into())?;
        Ok(self.table.push(memory)?)
    }

    async fn add_turn(&mut self, memory: Resource<Memory>, turn: memory::Turn) -> StorageResult<()> {
        Ok(self.ctx.long_calls().run(self.table.get(&memory)?.add_turn(turn.into())).await?)
    }

    async fn llm_context(&mut self, memory: Resource<Memory>) -> StorageResult<memory::ContextPatch> {
        Ok(self.ctx.long_calls().run(self.table.get(&memory)?.llm_context()).await?.into())
    }

    async fn estimate_tokens(&mut self, memory: Resource<Memory>) -> StorageResult<u64> {
        Ok(self.ctx.long_calls().run(self.table.get(&memory)?.estimate_tokens()).await?)
    }

    async fn flush(&mut self, memory: Resource<Memory>) -> StorageResult<()> {
        Ok(self.ctx.long_calls().run(self.table.get(&memory)?.flush()).await?)
    }

    async fn health(&mut self, memory: Resource<Memory>) -> StorageResult<memory::Health> {
        Ok(self.ctx.long_calls().run(self.table.get(&memory)?.health()).await?.into())
    }

    async fn snapshot(&mut self, memory: Resource<Memory>) -> StorageResult<memory::Snapshot> {
        Ok(self.ctx.long_calls().run(self.table.get(&memory)?.snapshot()).await?.into())
    }

    async fn restore(&mut self, memory: Resource<Memory>, snapshot: memory::Snapshot) -> StorageResult<()> {
        Ok(self.ctx.long_calls().run(self.table.get(&memory)?.restore(snapshot.into())).await?)
    }

    fn close(&mut self, memory: Resource<Memory>) -> wasmtime::Result<()> {
        self.table.get(&memory)?.close();
        Ok(())
    }

    fn drop(&mut self, memory: Resource<Memory>) -> wasmtime::Result<()> {
        self.table.delete(memory)?;
        self.ctx.forget_open_memory();
        Ok(())
    }
}
