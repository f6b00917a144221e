//! The victim's neighbours: attackers, or well-behaved guests.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use larder_host::{
    IdentityScope, MemoryStore, MigrationScope, StorageCtx, StorageCtxView, StorageView, Store,
};
use tokio::task::JoinSet;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, UpdateDeadline};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::attack::Attack;
use super::bounds::NEIGHBOURS;
use super::held_thread::HeldThread;
use super::mover::Mover;
use crate::guest::HOSTCALL_BYTES;

/// The data of one instance.
struct Neighbour {
    table: ResourceTable,
    wasi: WasiCtx,
    storage: StorageCtx,
    held: HeldThread,
    yields: u64,
}

impl WasiView for Neighbour {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.held.called();
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl StorageView for Neighbour {
    fn storage(&mut self) -> StorageCtxView<'_> {
        self.held.called();
        StorageCtxView { ctx: &mut self.storage, table: &mut self.table }
    }
}

/// The program of all neighbours, and the stores that they are granted.
#[derive(Clone)]
pub(super) struct Neighbours {
    engine: Engine,
    command: CommandPre<Neighbour>,
    store: Store,
    memories: MemoryStore,
    mover: Mover,
}

/// The capacity for marks, one for each completed or refused operation: more than a neighbour
/// writes in a cell.
const MARKS_MAX: usize = 64 << 20;

impl Neighbours {
    pub(super) fn new(engine: &Engine, store: &Store, memories: &MemoryStore) -> Result<Self> {
        let mut linker = Linker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        larder_host::add_to_linker(&mut linker)?;
        let component = Component::from_file(engine, larder_artifacts::ATTACKERS)?;
        let command = CommandPre::new(linker.instantiate_pre(&component)?)?;
        Ok(Self {
            engine: engine.clone(),
            command,
            store: store.clone(),
            memories: memories.clone(),
            mover: Mover::start(),
        })
    }

    /// Starts all neighbours, each in a task.
    pub(super) fn start(&self, attack: Attack) -> Running {
        let (mut tasks, mut outputs) = (JoinSet::new(), Vec::new());
        let mut held_thread = Vec::new();
        for number in 0..NEIGHBOURS {
            let output = Output::default();
            let (neighbours, own) = (self.clone(), output.clone());
            let held = HeldThread::default();
            held_thread.push(held.clone());
            tasks.spawn(async move { neighbours.run(attack, number, own, held).await });
            outputs.push(output);
        }
        Running { tasks, outputs, held_thread }
    }

    /// Runs one neighbour. Returns only if it fails.
    async fn run(&self, attack: Attack, number: u64, output: Output, held: HeldThread) -> Result<()> {
        loop {
            let mut store = self.instance(attack, number, &output, &held)?;
            let command = self.command.instantiate_async(&mut store).await?;
            match held.watch(command.wasi_cli_run().call_run(&mut store)).await {
                Err(_) if attack.traps => {}
                Err(trap) => bail!("the guest trapped: {trap:#}; {}", output.errors()),
                Ok(_) => bail!("the guest ended: {}", output.errors()),
            }
        }
    }

    fn instance(
        &self,
        attack: Attack,
        number: u64,
        output: &Output,
        held: &HeldThread,
    ) -> Result<wasmtime::Store<Neighbour>> {
        let name = format!("attacker-{number}");
        let storage = StorageCtx::builder()
            .memory(&self.memories, IdentityScope::user("acme", name.as_str())?)
            .migrations(MigrationScope::only([name])?);
        let storage = match attack.read_only {
            true => storage.grant_read_only("default", &self.store),
            false => storage.grant("default", &self.store),
        };
        let mut wasi = WasiCtx::builder();
        wasi.args(&["attackers", attack.name, &number.to_string()]);
        wasi.stdout(output.marks.clone()).stderr(output.errors.clone());
        let held = held.clone();
        let (table, wasi, storage) = (ResourceTable::new(), wasi.build(), storage.build()?);
        // The numbers of the neighbours' yields differ, so that they do not all move at once.
        let data = Neighbour { table, wasi, storage, held, yields: number };
        let mut store = wasmtime::Store::new(&self.engine, data);
        store.set_epoch_deadline(1);
        let mover = self.mover.clone();
        store.epoch_deadline_callback(move |mut store| {
            let neighbour = store.data_mut();
            neighbour.held.yields();
            neighbour.yields += 1;
            Ok(match Mover::moves(neighbour.yields) {
                true => UpdateDeadline::YieldCustom(1, mover.give_to_any()),
                false => UpdateDeadline::Yield(1),
            })
        });
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        Ok(store)
    }
}

/// The output of one neighbour.
#[derive(Clone)]
struct Output {
    marks: MemoryOutputPipe,
    errors: MemoryOutputPipe,
}

impl Default for Output {
    fn default() -> Self {
        Self { marks: MemoryOutputPipe::new(MARKS_MAX), errors: MemoryOutputPipe::new(1 << 20) }
    }
}

impl Output {
    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.errors.contents()).trim().to_string()
    }
}

/// Running neighbours. Dropping this ends them.
pub(super) struct Running {
    tasks: JoinSet<Result<()>>,
    outputs: Vec<Output>,
    held_thread: Vec<HeldThread>,
}

/// The operations of neighbours.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) operations: u64,
    pub(super) refusals: u64,
    pub(super) first_refusal: Option<String>,
    /// The longest time for which a call held a thread of the executor.
    pub(super) held_thread: Duration,
}

impl Running {
    /// Counts the operations until now.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally {
            held_thread: self.held_thread.iter().map(HeldThread::longest).max().unwrap_or_default(),
            ..Tally::default()
        };
        for output in &self.outputs {
            let marks = output.marks.contents();
            let done = marks.iter().filter(|mark| **mark == b'.').count();
            tally.operations += done as u64;
            tally.refusals += (marks.len() - done) as u64;
            let errors = output.errors();
            if !errors.is_empty() {
                tally.first_refusal.get_or_insert(errors);
            }
        }
        tally
    }

    /// Ends the neighbours and counts their operations.
    ///
    /// # Errors
    /// If a neighbour has ended before this call.
    pub(super) async fn stop(mut self) -> Result<Tally> {
        self.tasks.abort_all();
        while let Some(outcome) = self.tasks.join_next().await {
            match outcome {
                Err(error) if error.is_cancelled() => {}
                outcome => outcome?.context("a neighbour ended")?,
            }
        }
        // Leave time to roll back their transactions.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(self.tally())
    }
}
