//! What a case may do to its host.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::case::{Case, Instance};
use crate::{STORE_BYTES, limits};
use bindings::larder::conformance::probe::{Bounds, Event, Host};

pub(crate) mod bindings {
    #![allow(missing_docs, unreachable_pub, reason = "the WIT is their documentation")]
    wasmtime::component::bindgen!({
        path: ["../../wit", "../conformance/wit"],
        world: "larder:conformance/suite",
        imports: { default: async | trappable },
        exports: { default: async },
        with: { "larder:storage": larder_host::bindings },
        require_store_data_send: true,
    });
}

impl Host for Instance {
    async fn limits(&mut self) -> wasmtime::Result<Bounds> {
        let limits = limits();
        Ok(Bounds {
            namespace_bytes: limits.namespace_bytes,
            key_bytes: limits.key_bytes,
            value_bytes: limits.value_bytes,
            result_bytes: limits.result_bytes,
            transaction_bytes: limits.transaction_bytes,
            transaction_mutations: limits.transaction_mutations,
            open_transactions: limits.open_transactions,
            open_stores: limits.open_stores,
            store_bytes: STORE_BYTES,
            transaction_timeout_ms: limits.transaction_timeout.as_millis() as u64,
        })
    }

    async fn reopen(&mut self) -> wasmtime::Result<Result<(), String>> {
        Ok(match self.case.reopen().await.and_then(|()| self.case.storage()) {
            Ok(storage) => {
                self.storage = storage;
                Ok(())
            }
            Err(error) => Err(format!("{error:#}")),
        })
    }

    async fn close_from_host(&mut self) -> wasmtime::Result<()> {
        self.case.main().close().await;
        Ok(())
    }

    async fn advance_clock(&mut self, millis: u64) -> wasmtime::Result<()> {
        self.case.clock.advance(Duration::from_millis(millis));
        Ok(())
    }

    async fn sweep(&mut self) -> wasmtime::Result<Result<u64, String>> {
        Ok(self.case.main().sweep().await.map_err(|error| error.to_string()))
    }

    async fn events(&mut self) -> wasmtime::Result<Vec<Event>> {
        let event = |event: larder_host::Event| Event {
            name: event.name().to_string(),
            fields: event.fields().into_iter().map(|(name, value)| (name.to_string(), value)).collect(),
        };
        Ok(self.case.events.take().into_iter().map(event).collect())
    }

    async fn parallel(
        &mut self,
        worker: String,
        instances: u32,
    ) -> wasmtime::Result<Vec<Result<(), String>>> {
        let outcomes = work(&self.case, &worker, instances).await;
        Ok(outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|trap| Err(format!("trapped: {trap:#}"))))
            .collect())
    }

    async fn parallel_traps(&mut self, worker: String, instances: u32) -> wasmtime::Result<Vec<bool>> {
        let outcomes = work(&self.case, &worker, instances).await;
        let trapped = |outcome: wasmtime::Result<_>| {
            outcome.is_err_and(|error| error.downcast_ref::<wasmtime::Trap>().is_some())
        };
        Ok(outcomes.into_iter().map(trapped).collect())
    }
}

/// Runs a worker in so many instances at once, and gives their outcomes in the order of their indexes.
async fn work(case: &Arc<Case>, worker: &str, instances: u32) -> Vec<wasmtime::Result<Result<(), String>>> {
    let mut running = JoinSet::new();
    for index in 0..instances {
        let (case, worker) = (case.clone(), worker.to_string());
        running.spawn(async move { (index, work_one(case, &worker, index).await) });
    }
    let mut outcomes = Vec::new();
    while let Some(outcome) = running.join_next().await {
        match outcome {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => outcomes.push((u32::MAX, Err(error.into()))),
        }
    }
    outcomes.sort_by_key(|(index, _)| *index);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn work_one(case: Arc<Case>, worker: &str, index: u32) -> wasmtime::Result<Result<(), String>> {
    let mut store = case.instance().map_err(wasmtime::Error::from_anyhow)?;
    let suite = case.component.instantiate_async(&mut store).await?;
    suite.call_work(&mut store, worker, index).await
}
