//! The example `assistant`, run in its own host.

use std::sync::Arc;
use std::time::Duration;

use super::instance::Instance;
use anyhow::{Context, Result};
use larder_host::{
    ComponentSummarizer, IdentityScope, MemoryOptions, MemoryStore, StorageCtx, Store, Strategy,
    engine_config,
};
use larder_suite::TestBed;
use wasmtime::Engine;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime_wasi::p2::bindings::Command;
use wasmtime_wasi::p2::pipe::{MemoryInputPipe, MemoryOutputPipe};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

struct Summaries {
    table: ResourceTable,
    wasi: WasiCtx,
}

impl WasiView for Summaries {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

const TRANSCRIPT: &str = include_str!("../../../../examples/assistant/sample/transcript.txt");

/// Holds half of a conversation, then continues it to the end in a second host.
pub(crate) async fn continues(test_bed: Arc<dyn TestBed>) -> Result<(), String> {
    converse(test_bed.as_ref()).await.map_err(|error| format!("{error:#}"))
}

async fn converse(test_bed: &dyn TestBed) -> Result<()> {
    let scratch = test_bed.scratch().await?;
    let turns = TRANSCRIPT.lines().filter(|line| line.starts_with("user:")).count();
    let half = TRANSCRIPT.match_indices("\nuser:").nth(turns / 2 - 1);
    let half = half.and_then(|(end, _)| TRANSCRIPT.get(..end)).context("the transcript has no half")?;
    let first = run(Store::builder_shared(scratch.open().await?).build()?, half).await?;
    let second = run(Store::builder_shared(scratch.open().await?).build()?, TRANSCRIPT).await?;
    scratch.remove().await?;
    let kept = |output: &str| output.lines().filter(|line| line.ends_with(" is stored")).count();
    anyhow::ensure!(kept(&first) == turns / 2, "{turns} turns, and the first run printed {first}");
    anyhow::ensure!(kept(&second) == turns - turns / 2, "{turns} turns, and the second run printed {second}");
    // The summary of the second run includes turns of the first.
    anyhow::ensure!(second.contains("order 48213"), "{second}");
    Ok(())
}

async fn run(store: Store, transcript: &str) -> Result<String> {
    let summarizer = ComponentSummarizer::from_file(
        larder_artifacts::KEYWORD_SUMMARIZER,
        wasmtime_wasi::p2::add_to_linker_async,
        |engine| {
            let data = Summaries { table: ResourceTable::new(), wasi: WasiCtx::builder().build() };
            wasmtime::Store::new(engine, data)
        },
    )?;
    let options = MemoryOptions::new(Strategy::RollingSummary)
        .budget_tokens(600)
        .summary_timeout(Duration::from_secs(60));
    let memories = MemoryStore::builder(&store, options).summarizer(Arc::new(summarizer)).build()?;
    let scope = IdentityScope::user("acme", "ann")?;
    let storage = StorageCtx::builder().grant("default", &store).memory(&memories, scope).build()?;
    let output = MemoryOutputPipe::new(1 << 20);
    let mut wasi = WasiCtx::builder();
    wasi.args(&["assistant", "acme", "ann", "monday"]);
    wasi.stdin(MemoryInputPipe::new(transcript.to_string())).stdout(output.clone()).inherit_stderr();
    let engine = Engine::new(&engine_config())?;
    let mut linker = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    larder_host::add_to_linker(&mut linker)?;
    let component = Component::from_file(&engine, larder_artifacts::ASSISTANT)?;
    let instance = Instance { table: ResourceTable::new(), wasi: wasi.build(), storage };
    let mut instance = wasmtime::Store::new(&engine, instance);
    let command = Command::instantiate_async(&mut instance, &component, &linker).await?;
    let outcome = command.wasi_cli_run().call_run(&mut instance).await?;
    drop(instance);
    memories.close().await;
    store.close().await;
    anyhow::ensure!(outcome.is_ok(), "the assistant failed");
    Ok(String::from_utf8(output.contents().to_vec())?)
}
