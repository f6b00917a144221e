//! One cell of the table: one attack, measured in a process of its own.
//!
//! A process of its own shows its memory as it is, and an attack that ends it ends no other row.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use larder_host::{MemoryOptions, MemoryStore, Store, Strategy, drivers, engine_config};
use serde::{Deserialize, Serialize};
use wasmtime::{Cache, CacheConfig, Engine};

use super::attack::{Attack, WELL_BEHAVED};
use super::bounds::QUOTA_BYTES;
use super::neighbours::{Neighbours, Tally};
use super::prepare::{prepare, prepare_common};
use super::victim::{Latency, Times, Victim};
use super::watch::{Watch, resident};
use crate::guest::Program;

/// Gives a process its cell.
const CELL: &str = "LARDER_BENCH_CELL";

/// How long a cell takes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Pace {
    /// Beside well-behaved guests.
    baseline: Duration,
    /// Beside attackers.
    attack: Duration,
    /// How many rows are prepared where an attack reads many.
    many: u64,
}

impl Pace {
    pub(super) const FULL: Self =
        Self { baseline: Duration::from_millis(700), attack: Duration::from_millis(1_300), many: 500_000 };

    pub(super) const SHORT: Self =
        Self { baseline: Duration::from_millis(250), attack: Duration::from_millis(350), many: 100_000 };
}

/// What a process is to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) attack: String,
    pub(super) pace: Pace,
    /// The data-source name of the victim's store.
    pub(super) victim: String,
    /// That of the attackers' store, if it is another one.
    pub(super) other: Option<String>,
    /// Holds the files of both stores.
    pub(super) stores: PathBuf,
    /// Keeps compiled components from one cell to the next.
    pub(super) cache: PathBuf,
    /// Takes the outcome.
    pub(super) outcome: PathBuf,
}

/// What was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) baseline: Latencies,
    pub(super) attacked: Latencies,
    /// Calls of the victim that failed, in all phases.
    pub(super) failures: u64,
    pub(super) first_failure: Option<String>,
    /// What the attackers did.
    pub(super) operations: u64,
    pub(super) refusals: u64,
    pub(super) first_refusal: Option<String>,
    /// By how much the resident memory grew while they ran, in bytes.
    pub(super) resident: u64,
    /// All files of the stores at their largest.
    pub(super) disk: u64,
    /// The largest write-ahead log.
    pub(super) log: u64,
}

/// The victim's requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Latencies {
    pub(super) read: Latency,
    pub(super) update: Latency,
}

impl From<Times> for Latencies {
    fn from(times: Times) -> Self {
        Self { read: Latency::of(times.reads), update: Latency::of(times.updates) }
    }
}

/// A cell takes no longer, or it has failed.
const LONGEST: Duration = Duration::from_secs(120);

/// A phase that waits for the first operation of an attack takes no longer.
const LONGEST_PHASE: Duration = Duration::from_secs(30);

/// How long an instance computes before others get their turn.
const TICK: Duration = Duration::from_millis(1);

/// The data-source name of a store in memory.
pub(super) const IN_MEMORY: &str = "memory:";

/// Threads on which all guests run.
const WORKERS: usize = 2;

impl Cell {
    /// Measures the cell in a process of its own.
    pub(super) fn measure(&self) -> Result<Outcome> {
        let errors = self.outcome.with_extension("errors");
        let mut command = Command::new(std::env::current_exe()?);
        command.env(CELL, serde_json::to_string(self)?).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&errors)?);
        let mut child = command.spawn()?;
        let since = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if since.elapsed() > LONGEST {
                child.kill()?;
                child.wait()?;
                bail!("the cell did not end within {} s", LONGEST.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        };
        let errors = std::fs::read_to_string(&errors)?;
        ensure!(status.success(), "the cell's process ended with {status}: {}", errors.trim());
        Ok(serde_json::from_slice(&std::fs::read(&self.outcome)?)?)
    }
}

/// What this process does if it was started to measure a cell.
pub(crate) fn played_by_this_process() -> Option<Result<ExitCode>> {
    let cell = std::env::var(CELL).ok()?;
    Some(play(&cell).map(|()| ExitCode::SUCCESS))
}

fn play(cell: &str) -> Result<()> {
    let cell: Cell = serde_json::from_str(cell)?;
    let attack = Attack::find(&cell.attack).context("there is no such attack")?;
    let path = cell.outcome.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        // A busy thread looks for requests and answers after each task, instead of each 61 tasks.
        .event_interval(1)
        .global_queue_interval(1)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(run(cell, attack))?;
    std::fs::write(path, serde_json::to_vec(&outcome)?)?;
    // A guest that holds a thread delays no report.
    runtime.shutdown_background();
    Ok(())
}

async fn run(cell: Cell, attack: Attack) -> Result<Outcome> {
    let engine = engine(&cell.cache)?;
    let program = Program::larder_on(engine.clone())?;
    let victims = open(&cell.victim).await?;
    Victim::fill(&program, &victims).await?;
    let others = match &cell.other {
        Some(name) => open(name).await?,
        None => victims.clone(),
    };
    prepare_common(&others).await?;
    let victims = anew(&cell.victim, victims).await?;
    let others = match &cell.other {
        Some(name) => anew(name, others).await?,
        None => victims.clone(),
    };
    prepare(&others, attack.prepared, cell.pace.many).await?;
    let memories = MemoryStore::builder(&others, MemoryOptions::new(Strategy::Truncation)).build()?;
    let victim = Victim::start(&program, &victims).await?;
    let neighbours = Neighbours::new(&engine, &others, &memories)?;
    Measurement { neighbours, victim, pace: cell.pace }.run(attack, &cell.stores).await
}

/// Opens a store anew, so that nothing of what was put into it is cached. One in memory would be empty then.
async fn anew(name: &str, store: Store) -> Result<Store> {
    if name == IN_MEMORY {
        return Ok(store);
    }
    store.close().await;
    drop(store);
    open(name).await
}

/// An engine whose guests give way, as an embedder sets it up.
fn engine(cache: &Path) -> Result<Engine> {
    let mut config = engine_config();
    config.epoch_interruption(true);
    let mut compiled = CacheConfig::new();
    compiled.with_directory(cache);
    config.cache(Some(Cache::new(compiled)?));
    let engine = Engine::new(&config)?;
    let ticking = engine.weak();
    thread::spawn(move || {
        while let Some(engine) = ticking.upgrade() {
            engine.increment_epoch();
            drop(engine);
            thread::sleep(TICK);
        }
    });
    Ok(engine)
}

async fn open(name: &str) -> Result<Store> {
    let backend = drivers().open(name).await?;
    Ok(Store::builder_shared(backend).name("bench").quota_bytes(QUOTA_BYTES).build()?)
}

/// A victim and its neighbours.
struct Measurement {
    neighbours: Neighbours,
    victim: Victim,
    pace: Pace,
}

impl Measurement {
    /// The baseline comes first: what an attack leaves behind (a large log, a checkpoint under way) would slow it down.
    async fn run(self, attack: Attack, stores: &Path) -> Result<Outcome> {
        let Pace { baseline, attack: attacked, .. } = self.pace;
        let before = resident()?;
        let watch = Watch::start(stores);
        let (this, baseline, _) = self.phase(WELL_BEHAVED, baseline).await.context("the baseline")?;
        let (this, attacked, done) = this.phase(attack, attacked).await?;
        let peaks = watch.stop()?;
        ensure!(done.operations > 0, "the attack did nothing: {}", done.first_refusal.unwrap_or_default());
        Ok(Outcome {
            baseline: baseline.into(),
            attacked: attacked.into(),
            failures: this.victim.failures,
            first_failure: this.victim.first_failure,
            operations: done.operations,
            refusals: done.refusals,
            first_refusal: done.first_refusal,
            resident: peaks.resident.saturating_sub(before),
            disk: peaks.disk,
            log: peaks.log,
        })
    }

    /// Times the victim beside neighbours, until they have done something, too.
    async fn phase(mut self, attack: Attack, duration: Duration) -> Result<(Self, Times, Tally)> {
        let (running, since) = (self.neighbours.start(attack), Instant::now());
        let mut times = Times::default();
        loop {
            self.victim = self.victim.request(&mut times).await?;
            let elapsed = since.elapsed();
            if elapsed > LONGEST_PHASE || (elapsed > duration && running.tally().operations > 0) {
                return Ok((self, times, running.stop().await?));
            }
        }
    }
}
