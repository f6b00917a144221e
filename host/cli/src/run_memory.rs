//! The conversations that `larder run` grants to a component.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use larder_host::{
    ApiKey, ComponentSummarizer, HttpOptions, HttpSummarizer, IdentityScope, MemoryOptions, MemoryStore,
    Store, Strategy, Summarizer,
};
use wasmtime::component::ResourceTable;
use wasmtime::{StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::run_identity::RunIdentity;

/// The environment variable with the API key of the model's endpoint.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// The linear memory that an instance of a summariser may use, in bytes.
const SUMMARIZER_BYTES_MAX: usize = 256 << 20;

#[derive(Args)]
pub(crate) struct RunMemory {
    /// Keep the component's conversations in the store DSN
    #[arg(long = "memory", value_name = "DSN", requires = "tenant", requires = "user")]
    pub(crate) dsn: Option<String>,
    /// Only session that may be opened [default: all of the user]
    #[arg(long, requires = "dsn")]
    session: Option<String>,
    /// Use none, truncation or rolling-summary
    ///
    /// The strategy by which conversations are kept: `none` keeps nothing, `truncation` keeps the
    /// newest turns, and `rolling-summary` keeps the newest turns and a summary of the older ones.
    #[arg(long, value_name = "STRATEGY", default_value = "truncation", value_parser = parse_strategy)]
    memory_strategy: Strategy,
    /// Token budget of a model's context; 0 for no limit
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    memory_budget: u64,
    /// Turns that a rolling summary keeps in full
    #[arg(long, value_name = "TURNS", default_value_t = 4)]
    memory_window: usize,
    /// Summarise with component:FILE or the URL of an endpoint
    ///
    /// An endpoint is an http:// or https:// URL of an OpenAI-compatible API. Its key is read from
    /// the environment variable OPENAI_API_KEY. The strategy rolling-summary needs a summariser.
    #[arg(long, value_name = "SUMMARIZER")]
    summarizer: Option<String>,
    /// Model to request from the endpoint
    #[arg(long, value_name = "MODEL", default_value = "gpt-4o-mini")]
    summarizer_model: String,
    /// Time limit of a summary, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    summary_timeout: u64,
}

fn parse_strategy(name: &str) -> Result<Strategy, String> {
    name.parse().map_err(|error: larder_host::Error| error.to_string())
}

impl RunMemory {
    /// The conversations in `store`, and those of them that the component may open.
    pub(crate) fn build(
        &self,
        store: &Store,
        identity: &RunIdentity,
    ) -> Result<(MemoryStore, IdentityScope)> {
        let (Some(tenant), Some(user)) = (&identity.tenant, &identity.user) else {
            bail!("--memory needs an identity; give --tenant and --user");
        };
        let scope = match &self.session {
            Some(session) => IdentityScope::session(tenant, user, session),
            None => IdentityScope::user(tenant, user),
        }?;
        let timeout = Duration::from_secs(self.summary_timeout);
        let options = MemoryOptions::new(self.memory_strategy)
            .budget_tokens(self.memory_budget)
            .window_turns(self.memory_window)
            .summary_timeout(timeout);
        if self.memory_strategy == Strategy::RollingSummary && self.summarizer.is_none() {
            bail!(
                "the strategy rolling-summary needs a summariser; give --summarizer component:FILE, or the URL of an endpoint"
            );
        }
        let mut builder = MemoryStore::builder(store, options);
        if let Some(summarizer) = &self.summarizer {
            builder = builder.summarizer(self.summarizer(summarizer, timeout)?);
        }
        Ok((builder.build()?, scope))
    }

    fn summarizer(&self, named: &str, timeout: Duration) -> Result<Arc<dyn Summarizer>> {
        if let Some(path) = named.strip_prefix("component:") {
            return component(&PathBuf::from(path));
        }
        if !named.starts_with("http://") && !named.starts_with("https://") {
            bail!(
                "unknown summariser {named:?}; give component:FILE, or the http:// or https:// URL of an endpoint"
            );
        }
        let options = HttpOptions::new(named, &self.summarizer_model)
            .key(ApiKey::from_env(KEY_VARIABLE)?)
            .timeout(timeout);
        Ok(Arc::new(HttpSummarizer::new(options)?))
    }
}

/// A summariser without access to files, the network and the environment.
fn component(path: &PathBuf) -> Result<Arc<dyn Summarizer>> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let summarizer = ComponentSummarizer::new(&bytes, wasmtime_wasi::p2::add_to_linker_async, |engine| {
        let mut store = wasmtime::Store::new(engine, Plugin::new());
        store.limiter(|plugin| &mut plugin.limits);
        store
    });
    let summarizer =
        summarizer.map_err(|error| anyhow!("{shown} is not a summariser: {}", error.root_cause()))?;
    Ok(Arc::new(summarizer))
}

struct Plugin {
    table: ResourceTable,
    wasi: WasiCtx,
    limits: StoreLimits,
}

impl Plugin {
    fn new() -> Self {
        let limits = StoreLimitsBuilder::new().memory_size(SUMMARIZER_BYTES_MAX).instances(16).build();
        Self { table: ResourceTable::new(), wasi: WasiCtx::builder().inherit_stderr().build(), limits }
    }
}

impl WasiView for Plugin {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}
