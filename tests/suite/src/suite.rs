//! The suite: loads the component, lists its cases, and runs them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use larder_host::engine_config;
use wasmtime::component::{Component, HasSelf, Linker};

use crate::case::{Case, Instance};
use crate::probe::bindings::{Suite as SuiteInstance, SuitePre, larder::conformance::probe};
use crate::test_bed::{InMemoryTestBed, TestBed};

/// The longest time that a case may run before it fails.
pub const TIMEOUT: Duration = Duration::from_secs(300);

/// `Ok` if the case passed; otherwise what it expected and what it found.
pub type CaseResult = Result<(), String>;

/// The compiled suite. Clones share one compilation.
#[derive(Clone)]
pub struct Suite {
    engine: wasmtime::Engine,
    component: SuitePre<Instance>,
    cases: Arc<[String]>,
    planted: Arc<[String]>,
}

impl Suite {
    /// Compiles the suite and lists its cases.
    ///
    /// # Errors
    ///
    /// If the component does not compile or link, or was built by another release.
    pub async fn load() -> Result<Self> {
        let engine = wasmtime::Engine::new(&engine_config())?;
        let component = Component::new(&engine, larder_artifacts::CONFORMANCE_COMPONENT)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        larder_host::add_to_linker(&mut linker)?;
        probe::add_to_linker::<Instance, HasSelf<Instance>>(&mut linker, |instance| instance)?;
        let component = SuitePre::new(linker.instantiate_pre(&component)?)?;
        let mut suite = Self { engine, component, cases: Arc::new([]), planted: Arc::new([]) };
        let case = Case::new(&suite.engine, &suite.component, &InMemoryTestBed).await?;
        let mut store = case.instance()?;
        let instance = suite.instantiate(&mut store).await?;
        suite.cases = instance.call_cases(&mut store).await?.into();
        suite.planted = instance.call_planted(&mut store).await?.into();
        Ok(suite)
    }

    /// The names of the cases, in the form `group::sentence_in_words`.
    pub fn cases(&self) -> &[String] {
        &self.cases
    }

    /// The names of cases that are wrong on purpose. They must fail.
    pub fn planted(&self) -> &[String] {
        &self.planted
    }

    /// Runs one case on a fresh store.
    ///
    /// # Errors
    ///
    /// - If the case fails or traps.
    /// - If the store cannot be made or removed.
    /// - If the case takes longer than [`TIMEOUT`].
    pub async fn run(&self, name: &str, test_bed: &dyn TestBed) -> CaseResult {
        match tokio::time::timeout(TIMEOUT, self.run_in_host(name, test_bed)).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err(format!("the case took longer than {} s", TIMEOUT.as_secs())),
        }
    }

    async fn run_in_host(&self, name: &str, test_bed: &dyn TestBed) -> Result<CaseResult> {
        let case = Case::new(&self.engine, &self.component, test_bed).await?;
        let mut store = case.instance()?;
        let instance = self.instantiate(&mut store).await?;
        let result = instance.call_run(&mut store, name).await;
        drop(store);
        case.end().await.context("cannot remove the store")?;
        result.map_err(|trap| anyhow!("the case trapped: {trap:?}"))
    }

    async fn instantiate(&self, store: &mut wasmtime::Store<Instance>) -> Result<SuiteInstance> {
        Ok(self.component.instantiate_async(store).await?)
    }
}
