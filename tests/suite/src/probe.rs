//! Implements the interface `probe`, by which a case controls its host.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use larder_host::bindings::memory::Identity;
use larder_host::{IdentityScope, MigrationScope};

use crate::case::{Case, Instance};
use crate::{STORE_BYTES, limits, memory};
pub(crate) use bindings::larder::conformance::probe::WhichHost as HostName;
use bindings::larder::conformance::probe::{Bounds, Event, Host, MemoryOptions, Summaries, SummaryCall};

pub(crate) mod bindings {
    #![allow(missing_docs, unreachable_pub, reason = "the WIT documents them")]
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
        let (limits, cost) = (limits(), self.case.stored_cost());
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
            identity_bytes: limits.identity_bytes,
            turn_bytes: limits.turn_bytes,
            open_memories: limits.open_memories,
            instance_bytes: limits.instance_bytes,
            row_overhead: cost.row_overhead,
            name_copies: cost.name_copies,
        })
    }

    async fn reopen(&mut self) -> wasmtime::Result<Result<(), String>> {
        let reopened = self.case.reopen().await.and_then(|()| self.renew_storage());
        Ok(reopened.map_err(|error| format!("{error:#}")))
    }

    async fn close_from_host(&mut self) -> wasmtime::Result<()> {
        self.case.main().close().await;
        Ok(())
    }

    async fn advance_clock(&mut self, millis: u64) -> wasmtime::Result<()> {
        self.case.clock.advance(Duration::from_millis(millis));
        Ok(())
    }

    async fn step_clock_back(&mut self, millis: u64) -> wasmtime::Result<()> {
        self.case.clock.step_back(Duration::from_millis(millis));
        Ok(())
    }

    async fn sweep(&mut self) -> wasmtime::Result<Result<u64, String>> {
        Ok(self.case.main().sweep().await.map_err(|error| error.to_string()))
    }

    async fn declare_memory(&mut self, options: MemoryOptions) -> wasmtime::Result<Result<(), String>> {
        let declared = memory::options(options).and_then(|options| self.case.declare_memory(options));
        Ok(declared.and_then(|()| self.renew_storage()).map_err(|error| format!("{error:#}")))
    }

    async fn use_memory_of(&mut self, host: HostName) -> wasmtime::Result<()> {
        self.rights.memory_of = host;
        self.renew_storage().map_err(wasmtime::Error::from_anyhow)
    }

    async fn bind_identity(
        &mut self,
        tenant: String,
        user: String,
        session: Option<String>,
    ) -> wasmtime::Result<Result<(), String>> {
        let scope = match session {
            Some(session) => IdentityScope::session(tenant, user, session),
            None => IdentityScope::user(tenant, user),
        };
        let bound = scope.map_err(anyhow::Error::from).and_then(|scope| {
            self.rights.identities = scope;
            self.renew_storage()
        });
        Ok(bound.map_err(|error| format!("{error:#}")))
    }

    async fn bind_migrations(&mut self, components: Vec<String>) -> wasmtime::Result<Result<(), String>> {
        let bound = MigrationScope::only(components).map_err(anyhow::Error::from).and_then(|scope| {
            self.rights.migrations = scope;
            self.renew_storage()
        });
        Ok(bound.map_err(|error| format!("{error:#}")))
    }

    async fn limit_keys(&mut self, bytes: u64) -> wasmtime::Result<Result<(), String>> {
        self.rights.limits.key_bytes = bytes;
        Ok(self.renew_storage().map_err(|error| format!("{error:#}")))
    }

    async fn set_summaries(&mut self, to: Summaries) -> wasmtime::Result<()> {
        self.case.summarizer.set(to);
        Ok(())
    }

    async fn summary_calls(&mut self) -> wasmtime::Result<Vec<SummaryCall>> {
        Ok(self.case.summarizer.take_calls())
    }

    async fn await_summary_calls(&mut self, count: u32) -> wasmtime::Result<Result<(), String>> {
        let called = self.case.summarizer.called(count);
        let waited = tokio::time::timeout(Duration::from_secs(60), called).await;
        Ok(waited.map_err(|_| format!("the summariser was called fewer than {count} times")))
    }

    async fn release_summaries(&mut self) -> wasmtime::Result<()> {
        self.case.summarizer.release();
        Ok(())
    }

    async fn run_due(&mut self, host: HostName) -> wasmtime::Result<Result<u32, String>> {
        Ok(match self.case.memory(host) {
            Some(memories) => {
                memories.run_due().await.map(|count| count as u32).map_err(|error| error.to_string())
            }
            None => Err("no memory is declared; call declare-memory first".to_string()),
        })
    }

    async fn close_memory_from_host(&mut self) -> wasmtime::Result<()> {
        if let Some(memories) = self.case.memory(HostName::Main) {
            memories.close().await;
        }
        Ok(())
    }

    async fn damage_record(
        &mut self,
        identity: Identity,
        bytes: Vec<u8>,
    ) -> wasmtime::Result<Result<(), String>> {
        Ok(self.case.damage_record(identity, bytes).await.map_err(|error| format!("{error:#}")))
    }

    async fn stored_record(
        &mut self,
        identity: Identity,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, String>> {
        Ok(self.case.stored_record(identity).await.map_err(|error| format!("{error:#}")))
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

/// Runs a worker in `instances` instances at once. Returns the outcomes in the order of their
/// indexes.
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
