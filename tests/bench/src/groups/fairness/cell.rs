//! One cell of the table: one attack, measured in a process of its own.
//!
//! So its memory is measured alone, and an attack that ends the process ends no other cell.

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

/// The environment variable that passes a process its cell.
const CELL: &str = "LARDER_BENCH_CELL";

/// The lengths of a cell's phases.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Pace {
    /// The phase beside well-behaved guests.
    baseline: Duration,
    /// The phase beside attackers.
    attack: Duration,
    /// The number of prepared rows for an attack that reads many.
    many: u64,
}

impl Pace {
    pub(super) const FULL: Self =
        Self { baseline: Duration::from_millis(600), attack: Duration::from_millis(1_000), many: 500_000 };

    pub(super) const SHORT: Self =
        Self { baseline: Duration::from_millis(250), attack: Duration::from_millis(350), many: 100_000 };
}

/// The measurement that a process makes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) attack: String,
    pub(super) pace: Pace,
    /// The data-source name of the victim's store.
    pub(super) victim: String,
    /// The data-source name of the attackers' store, if it is another one.
    pub(super) other: Option<String>,
    /// The directory of both stores' files.
    pub(super) stores: PathBuf,
    /// The directory that keeps compiled components for the next cells.
    pub(super) cache: PathBuf,
    /// The file for the outcome.
    pub(super) outcome: PathBuf,
}

/// The measured figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) baseline: Latencies,
    pub(super) attacked: Latencies,
    /// Calls of the victim that failed, in all phases.
    pub(super) failures: u64,
    pub(super) first_failure: Option<String>,
    /// Operations that the attackers completed.
    pub(super) operations: u64,
    pub(super) refusals: u64,
    pub(super) first_refusal: Option<String>,
    /// The longest time for which a call of an attacker held a thread of the executor.
    pub(super) held_thread: Duration,
    /// The growth of the resident memory during both phases, in bytes.
    pub(super) resident: u64,
    /// The largest size of all files of the stores.
    pub(super) disk: u64,
    /// The largest size of one write-ahead log.
    pub(super) log: u64,
}

/// The latencies of the victim's requests.
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

/// The timeout of a cell.
const LONGEST: Duration = Duration::from_secs(120);

/// The timeout of a phase whose attackers have completed no operation.
const LONGEST_PHASE: Duration = Duration::from_secs(30);

/// How long an instance computes before it yields.
const TICK: Duration = Duration::from_millis(1);

/// The data-source name of an in-memory store.
pub(super) const IN_MEMORY: &str = "in-memory:";

/// The runtime's worker threads, which run all guests.
const WORKERS: usize = 2;

impl Cell {
    /// Measures the cell in a new process.
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

/// Measures a cell, if this process was started for that.
pub(crate) fn played_by_this_process() -> Option<Result<ExitCode>> {
    let cell = std::env::var(CELL).ok()?;
    Some(play(&cell).map(|()| ExitCode::SUCCESS))
}

fn play(cell: &str) -> Result<()> {
    let cell: Cell = serde_json::from_str(cell)?;
    let attack = Attack::find(&cell.attack).context("unknown attack")?;
    let path = cell.outcome.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        // A busy thread looks for new requests and input after each task, instead of after 61
        // tasks.
        .event_interval(1)
        .global_queue_interval(1)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(run(cell, attack))?;
    std::fs::write(path, serde_json::to_vec(&outcome)?)?;
    // Do not wait for guests that hold a thread.
    runtime.shutdown_background();
    Ok(())
}

async fn run(cell: Cell, attack: Attack) -> Result<Outcome> {
    let engine = engine(&cell.cache)?;
    let program = Program::larder_on(engine.clone())?;
    let victims = open(&cell.victim).await?;
    Victim::fill(&program, &victims).await?;
    let others = match &cell.other {
        Some(name) => Some((name, open(name).await?)),
        None => None,
    };
    prepare_common(others.as_ref().map_or(&victims, |(_, others)| others)).await?;
    let victims = anew(&cell.victim, victims).await?;
    let others = match others {
        Some((name, others)) => anew(name, others).await?,
        None => victims.clone(),
    };
    prepare(&others, attack.prepared, cell.pace.many).await?;
    let memories = MemoryStore::builder(&others, MemoryOptions::new(Strategy::Truncation)).build()?;
    let victim = Victim::start(&program, &victims).await?;
    let neighbours = Neighbours::new(&engine, &others, &memories)?;
    Measurement { neighbours, victim, pace: cell.pace }.run(attack, &cell.stores).await
}

/// Reopens a store, so that none of its rows is cached. An in-memory store stays open, because it
/// would be empty. No other handle may be left: it would keep the cache folder of a tenant.
async fn anew(name: &str, store: Store) -> Result<Store> {
    if name == IN_MEMORY {
        return Ok(store);
    }
    store.close().await;
    drop(store);
    open(name).await
}

/// An engine whose guests yield by epochs, as an embedder configures it.
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
    /// Measures both phases. The baseline comes first: an attack leaves a long log or a checkpoint
    /// that would slow it down.
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
            held_thread: done.held_thread,
            resident: peaks.resident.saturating_sub(before),
            disk: peaks.disk,
            log: peaks.log,
        })
    }

    /// Times the victim beside neighbours for `duration`, and until they have completed an
    /// operation.
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
