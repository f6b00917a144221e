//! A summariser that is itself a component, so that a platform can bring the call of its model as a plugin.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{Summarizer, SummaryError, SummaryRequest};
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, EngineWeak};

use crate::bindings::summarizer::{SummarizerPlugin, SummarizerPluginPre};

/// What a summariser exports.
const INTERFACE: &str = "larder:storage/summarizer@0.1.0";

/// How often a component that computes lets others have their turn, and is stopped where its time is over.
const EPOCH: Duration = Duration::from_millis(10);

/// A summariser that is itself a component: it exports `larder:storage/summarizer`.
///
/// Each summary is made by a fresh instance. A component that computes without end yields every 10 ms, so that the
/// deadline that larder has for a summary ends it; no setting of the embedder's own engine is needed for that, as this
/// has one of its own. What an instance may use besides (memory, tables, files, the network) is what the embedder
/// gives its [`wasmtime::Store`].
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
///         let plugin = Plugin { table: ResourceTable::new(), wasi: WasiCtx::builder().build(), limits };
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

/// Makes what an instance has.
type MakeStore<T> = dyn Fn(&Engine) -> wasmtime::Store<T> + Send + Sync;

impl<T: Send + 'static> ComponentSummarizer<T> {
    /// Compiles a component. `link` gives it what it imports, `store` makes what an instance has.
    ///
    /// # Errors
    /// Where the bytes are no component, it exports no summariser, or it imports what `link` does not give.
    pub fn new(
        bytes: &[u8],
        link: impl FnOnce(&mut Linker<T>) -> wasmtime::Result<()>,
        store: impl Fn(&Engine) -> wasmtime::Store<T> + Send + Sync + 'static,
    ) -> wasmtime::Result<Self> {
        let engine = engine()?;
        let component = Component::new(&engine, bytes)?;
        Self::of(engine, &component, link, store)
    }

    /// The same of a file.
    ///
    /// # Errors
    /// As [`ComponentSummarizer::new`], and where the file can't be read.
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
            return Err(wasmtime::Error::msg(format!("it exports no `{INTERFACE}`")));
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
            Ok(Err(reason)) => Err(SummaryError::new(format!("the component gave no summary: {reason}"))),
            Err(trap) => {
                Err(SummaryError::caused("the component ended without a summary", Trapped(Arc::new(trap))))
            }
        }
    }
}

/// wasmtime's error as an error of the standard library, which it is not itself.
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

/// Counts epochs as long as the engine is there. A thread of its own: tasks wait for a thread that a component keeps.
fn tick(engine: EngineWeak) {
    std::thread::spawn(move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(EPOCH);
        }
    });
}
