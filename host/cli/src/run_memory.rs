//! The memory that `larder run` gives to a component.

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

/// Where the key for a model's endpoint is looked for.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// What an instance of a summariser may use.
const SUMMARIZER_BYTES_MAX: usize = 256 << 20;

#[derive(Args)]
pub(crate) struct RunMemory {
    /// Keep the component's conversations in the store DSN
    #[arg(long = "memory", value_name = "DSN", requires = "tenant", requires = "user")]
    pub(crate) dsn: Option<String>,
    /// The only conversation that the component may open; every one of the user where it is left out
    #[arg(long, requires = "dsn")]
    session: Option<String>,
    /// How conversations are kept: none, truncation or rolling-summary
    #[arg(long, value_name = "STRATEGY", default_value = "truncation", value_parser = parse_strategy)]
    memory_strategy: Strategy,
    /// How many tokens a model is given; 0 for no bound
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    memory_budget: u64,
    /// How many turns a rolling summary keeps in full
    #[arg(long, value_name = "TURNS", default_value_t = 4)]
    memory_window: usize,
    /// Who makes summaries: component:FILE, or http://… or https://… for an OpenAI-compatible endpoint, whose key is
    /// taken from OPENAI_API_KEY
    #[arg(long, value_name = "SUMMARIZER")]
    summarizer: Option<String>,
    /// The model that an endpoint is asked for
    #[arg(long, value_name = "MODEL", default_value = "gpt-4o-mini")]
    summarizer_model: String,
    /// How long a summary may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    summary_timeout: u64,
}

fn parse_strategy(name: &str) -> Result<Strategy, String> {
    name.parse().map_err(|error: larder_host::Error| error.to_string())
}

impl RunMemory {
    /// The memory in `store`, and what of it the component may open.
    pub(crate) fn build(
        &self,
        store: &Store,
        identity: &RunIdentity,
    ) -> Result<(MemoryStore, IdentityScope)> {
        let (Some(tenant), Some(user)) = (&identity.tenant, &identity.user) else {
            bail!("memory needs a tenant and a user: --tenant T --user U");
        };
        let scope = match &self.session {
            Some(session) => IdentityScope::session(tenant, user, session),
            None => IdentityScope::user(tenant, user),
        }?;
        let timeout = Duration::from_secs(self.summary_timeout);
        let options = MemoryOptions {
            budget_tokens: self.memory_budget,
            window_turns: self.memory_window,
            summary_timeout: timeout,
            ..MemoryOptions::new(self.memory_strategy)
        };
        if self.memory_strategy == Strategy::RollingSummary && self.summarizer.is_none() {
            bail!(
                "the strategy rolling-summary needs --summarizer component:FILE, or http://… of an endpoint"
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
                "a summarizer is component:FILE, or http://… or https://… of an endpoint, and not {named:?}"
            );
        }
        let options = HttpOptions {
            key: ApiKey::from_env(KEY_VARIABLE)?,
            timeout,
            ..HttpOptions::new(named, &self.summarizer_model)
        };
        Ok(Arc::new(HttpSummarizer::new(options)?))
    }
}

/// A summariser that sees no file, no network and no environment.
fn component(path: &PathBuf) -> Result<Arc<dyn Summarizer>> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("could not read {shown}"))?;
    let summarizer = ComponentSummarizer::new(&bytes, wasmtime_wasi::p2::add_to_linker_async, |engine| {
        let mut store = wasmtime::Store::new(engine, Plugin::new());
        store.limiter(|plugin| &mut plugin.limits);
        store
    });
    let summarizer =
        summarizer.map_err(|error| anyhow!("{shown} is no summarizer: {}", error.root_cause()))?;
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
