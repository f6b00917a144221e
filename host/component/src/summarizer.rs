//! A summariser that is itself a component, so that a host can call its model in a plugin.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{Summarizer, SummaryError, SummaryRequest};
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, EngineWeak};

use crate::bindings::summarizer::{SummarizerPlugin, SummarizerPluginPre};

/// The interface that a summariser exports.
const INTERFACE: &str = "larder:storage/summarizer@0.1.0";

/// The interval at which a component that computes yields to other tasks and can be stopped.
const EPOCH: Duration = Duration::from_millis(10);

/// A summariser that is a component: it exports `larder:storage/summarizer`.
///
/// A new instance makes each summary. A component that computes without end yields every 10 ms, so
/// that larder's timeout for a summary can stop it. The summariser has its own engine for this and
/// needs no setting of the embedder's engine. The embedder bounds everything else that an instance
/// may use (memory, tables, files, the network) in its [`wasmtime::Store`].
///
/// ```no_run
/// # fn example(bytes: &[u8]) -> wasmtime::Result<()> {
/// use larder_host::ComponentSummarizer;
/// use wasmtime::component::ResourceTable;
/// use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
///
/// struct Plugin {
///     table: ResourceTable,
///     wasi: WasiCtx,
///     limits: wasmtime::StoreLimits,
/// }
///
/// impl WasiView for Plugin {
///     fn ctx(&mut self) -> WasiCtxView<'_> {
///         WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
///     }
/// }
///
/// let summarizer = ComponentSummarizer::new(
///     bytes,
///     |linker| wasmtime_wasi::p2::add_to_linker_async(linker),
///     |engine| {
///         let limits = wasmtime::StoreLimitsBuilder::new().memory_size(64 << 20).build();
///         let (table, wasi) = (ResourceTable::new(), WasiCtx::builder().build());
///         let plugin = Plugin { table, wasi, limits };
///         let mut store = wasmtime::Store::new(engine, plugin);
///         store.limiter(|plugin| &mut plugin.limits);
///         store
///     },
/// )?;
/// # Ok(()) }
/// ```
pub struct ComponentSummarizer<T: 'static> {
    engine: Engine,
    component: SummarizerPluginPre<T>,
    store: Box<MakeStore<T>>,
}

/// Makes the [`wasmtime::Store`] of one instance.
type MakeStore<T> = dyn Fn(&Engine) -> wasmtime::Store<T> + Send + Sync;

impl<T: Send + 'static> ComponentSummarizer<T> {
    /// Compiles a component.
    ///
    /// `link` defines the component's imports. `store` makes the [`wasmtime::Store`] of each
    /// instance.
    ///
    /// # Errors
    /// Fails if the bytes are not a component, the component does not export
    /// `larder:storage/summarizer`, or it imports an item that `link` does not define.
    pub fn new(
        bytes: &[u8],
        link: impl FnOnce(&mut Linker<T>) -> wasmtime::Result<()>,
        store: impl Fn(&Engine) -> wasmtime::Store<T> + Send + Sync + 'static,
    ) -> wasmtime::Result<Self> {
        let engine = engine()?;
        let component = Component::new(&engine, bytes)?;
        Self::of(engine, &component, link, store)
    }

    /// Compiles a component from a file.
    ///
    /// `link` and `store` are those of [`ComponentSummarizer::new`].
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not a component, the component does not export
    /// `larder:storage/summarizer`, or it imports an item that `link` does not define.
    pub fn from_file(
        path: impl AsRef<Path>,
        link: impl FnOnce(&mut Linker<T>) -> wasmtime::Result<()>,
        store: impl Fn(&Engine) -> wasmtime::Store<T> + Send + Sync + 'static,
    ) -> wasmtime::Result<Self> {
        let engine = engine()?;
        let component = Component::from_file(&engine, path)?;
        Self::of(engine, &component, link, store)
    }

    fn of(
        engine: Engine,
        component: &Component,
        link: impl FnOnce(&mut Linker<T>) -> wasmtime::Result<()>,
        store: impl Fn(&Engine) -> wasmtime::Store<T> + Send + Sync + 'static,
    ) -> wasmtime::Result<Self> {
        if component.component_type().get_export(&engine, INTERFACE).is_none() {
            return Err(wasmtime::Error::msg(format!("the component does not export `{INTERFACE}`")));
        }
        let mut linker = Linker::new(&engine);
        link(&mut linker)?;
        let component = SummarizerPluginPre::new(linker.instantiate_pre(component)?)?;
        tick(engine.weak());
        Ok(Self { engine, component, store: Box::new(store) })
    }

    async fn call(&self, request: SummaryRequest) -> wasmtime::Result<Result<String, String>> {
        let mut store = (self.store)(&self.engine);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let plugin: SummarizerPlugin = self.component.instantiate_async(&mut store).await?;
        let SummaryRequest { identity, previous_summary, turns, max_tokens } = request;
        let identity = identity.parts().into();
        let turns: Vec<_> = turns.into_iter().map(Into::into).collect();
        let summarizer = plugin.larder_storage_summarizer();
        summarizer.call_summarize(&mut store, &identity, &previous_summary, &turns, max_tokens).await
    }
}

#[async_trait]
impl<T: Send + 'static> Summarizer for ComponentSummarizer<T> {
    async fn summarize(&self, request: SummaryRequest) -> Result<String, SummaryError> {
        match self.call(request).await {
            Ok(Ok(summary)) => Ok(summary),
            Ok(Err(reason)) => Err(SummaryError::new(format!("the component returned an error: {reason}"))),
            Err(trap) => Err(SummaryError::caused("cannot run the component", Trapped(Arc::new(trap)))),
        }
    }
}

/// Wraps a [`wasmtime::Error`], which does not implement [`std::error::Error`].
#[derive(Debug)]
struct Trapped(Arc<wasmtime::Error>);

impl std::fmt::Display for Trapped {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:#}", self.0)
    }
}

impl std::error::Error for Trapped {}

fn engine() -> wasmtime::Result<Engine> {
    let mut config = crate::engine_config();
    config.epoch_interruption(true);
    Engine::new(&config)
}

/// Increments the engine's epoch until the engine is dropped.
///
/// This is a thread, not a task: a component that computes can block every thread of the runtime.
fn tick(engine: EngineWeak) {
    std::thread::spawn(move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(EPOCH);
        }
    });
}
