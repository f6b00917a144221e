//! The suite: its component, its cases, and how one is run.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use larder_host::engine_config;
use wasmtime::component::{Component, HasSelf, Linker};

use crate::bench::{Bench, MemoryBench};
use crate::case::{Case, Instance};
use crate::probe::bindings::{Suite as SuiteInstance, SuitePre, larder::conformance::probe};

/// How long a case may take before it has failed.
pub const TIMEOUT: Duration = Duration::from_secs(300);

/// What came of one case: nothing, or what was expected and what came.
pub type CaseResult = Result<(), String>;

/// The compiled suite. Clones share it.
#[derive(Clone)]
pub struct Suite {
    engine: wasmtime::Engine,
    component: SuitePre<Instance>,
    cases: Arc<[String]>,
    planted: Arc<[String]>,
}

impl Suite {
    /// Compiles the suite and asks it for its cases.
    ///
    /// # Errors
    /// Where the component is not one of this release.
    pub async fn load() -> Result<Self> {
        let engine = wasmtime::Engine::new(&engine_config())?;
        let component = Component::new(&engine, larder_artifacts::CONFORMANCE_COMPONENT)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        larder_host::add_to_linker(&mut linker)?;
        probe::add_to_linker::<Instance, HasSelf<Instance>>(&mut linker, |instance| instance)?;
        let component = SuitePre::new(linker.instantiate_pre(&component)?)?;
        let mut suite = Self { engine, component, cases: Arc::new([]), planted: Arc::new([]) };
        let case = Case::new(&suite.engine, &suite.component, &MemoryBench).await?;
        let mut store = case.instance()?;
        let instance = suite.instantiate(&mut store).await?;
        suite.cases = instance.call_cases(&mut store).await?.into();
        suite.planted = instance.call_planted(&mut store).await?.into();
        Ok(suite)
    }

    /// The names of the cases: `group::sentence_in_words`.
    pub fn cases(&self) -> &[String] {
        &self.cases
    }

    /// The names of cases that are wrong on purpose, and have to fail.
    pub fn planted(&self) -> &[String] {
        &self.planted
    }

    /// Runs one case on a fresh store.
    pub async fn run(&self, name: &str, bench: &dyn Bench) -> CaseResult {
        match tokio::time::timeout(TIMEOUT, self.run_in_host(name, bench)).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err(format!("it took longer than {} s", TIMEOUT.as_secs())),
        }
    }

    async fn run_in_host(&self, name: &str, bench: &dyn Bench) -> Result<CaseResult> {
        let case = Case::new(&self.engine, &self.component, bench).await?;
        let mut store = case.instance()?;
        let instance = self.instantiate(&mut store).await?;
        let result = instance.call_run(&mut store, name).await;
        drop(store);
        case.end().await.context("the store could not be removed")?;
        result.map_err(|trap| anyhow!("it trapped: {trap:?}"))
    }

    async fn instantiate(&self, store: &mut wasmtime::Store<Instance>) -> Result<SuiteInstance> {
        Ok(self.component.instantiate_async(store).await?)
    }
}
