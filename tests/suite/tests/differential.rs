//! Runs the same random transactions on several backends and compares the answers.
//!
//! The in-memory backend and SQLite run whole schedules of overlapping transactions and must agree
//! on conflicts and versions too. Postgres may return more conflicts and numbers versions
//! differently. There transactions run one after the other, and only the answers are compared. A
//! failure prints its seed, which reproduces the whole script.
#![allow(clippy::expect_used, reason = "tests")]

mod support;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use larder_core::{
    Entry, Error, Handle, HandleOptions, Limits, Mode, OpenTransactions, PutOptions, Range, Store,
    Transaction, Version,
};
use larder_host::drivers;
use larder_model::{Schedule, StandingClock};
use larder_postgres_server::{PgBouncer, PoolMode, URL_VARIABLE};
use larder_suite::{InMemoryTestBed, PostgresTestBed, Scratch, SqliteTestBed, TestBed};
use support::broken::{BrokenTestBed, Defect};
use support::{harness, postgres_server};

/// The number of schedules, and of calls in each.
const SCHEDULES: u64 = 150;
const CALLS: usize = 120;

/// SQLite with its row cache, without it, and with one that holds a few rows.
const SQLITE: [&str; 3] = ["", "cache_bytes=0", "cache_bytes=4000"];

/// Defects that the schedules must detect, or they prove nothing.
const DEFECTS: [Defect; 8] = [
    Defect::ForgetsReads,
    Defect::ForgetsConditions,
    Defect::ShowsExpiredRows,
    Defect::MovingSnapshot,
    Defect::LosesLastRow,
    Defect::TearsCommits,
    Defect::IgnoresReverse,
    Defect::KeepsDeletedRows,
];

/// Finer defects, which only the model has to detect.
const FINE_DEFECTS: [Defect; 3] =
    [Defect::ForgetsFirstKeys, Defect::ForgetsLastRows, Defect::ForgetsOldRanges];

fn main() {
    let arguments = harness::arguments();
    let runtime = harness::runtime();
    let schedules =
        harness::trial(&runtime, "memory_and_sqlite_answer_overlapping_transactions_alike", || async {
            for (options, seed) in SQLITE.iter().cycle().zip(0..SCHEDULES) {
                compare(seed, &InMemoryTestBed, &sqlite(options), 4).await?;
            }
            Ok(())
        });
    let postgres = if arguments.list { Err("only listed".to_string()) } else { start_postgres() };
    let (server, postgres) = match postgres {
        Ok((server, test_bed)) => (server, Ok(test_bed)),
        Err(error) => (None, Err(error)),
    };
    let sequences = harness::trial(
        &runtime,
        "memory_and_postgres_answer_one_transaction_after_the_other_alike",
        || async { compare_sequences(0..SCHEDULES / 3, &postgres?).await },
    );
    let mut trials = vec![schedules, sequences];
    let mut poolers = Vec::new();
    for (program, mode) in poolers_and_modes() {
        let name = format!("the_same_through_{}_in_{mode:?}_mode", program.display());
        let through = server
            .as_ref()
            .map(|server| PgBouncer::start(&program, server, mode).expect("cannot start PgBouncer"));
        let dsn = through.as_ref().map(PgBouncer::dsn).unwrap_or_default();
        poolers.push(through);
        trials.push(harness::trial(&runtime, name, || async {
            compare_sequences(0..SCHEDULES / 10, &PostgresTestBed { dsn, drivers: drivers() }).await
        }));
    }
    let modelled: [(&str, Arc<dyn TestBed>); 6] = [
        ("behind_a_sound_wrapper", Arc::new(BrokenTestBed(Defect::Nothing))),
        ("that_validate_by_themselves", Arc::new(BrokenTestBed(Defect::ValidatesItself))),
        ("in_memory", Arc::new(InMemoryTestBed)),
        ("on_sqlite", Arc::new(sqlite(SQLITE[0]))),
        ("on_sqlite_without_a_cache", Arc::new(sqlite(SQLITE[1]))),
        ("on_sqlite_with_a_small_cache", Arc::new(sqlite(SQLITE[2]))),
    ];
    for (name, test_bed) in modelled {
        let name = format!("two_hosts_{name}_answer_as_the_model_does");
        trials.push(harness::trial(&runtime, name, move || async move {
            for seed in 0..SCHEDULES {
                compare_with_model(seed, test_bed.as_ref()).await?;
            }
            Ok(())
        }));
    }
    trials.extend(DEFECTS.into_iter().chain(FINE_DEFECTS).map(|defect| {
        let name = format!("a_backend_that_{defect:?}_differs_from_the_model");
        harness::trial(&runtime, name, move || async move {
            for seed in 0..SCHEDULES {
                if compare_with_model(seed, &BrokenTestBed(defect)).await.is_err() {
                    return Ok(());
                }
            }
            Err(format!("{SCHEDULES} schedules did not tell {defect:?} apart"))
        })
    }));
    trials.extend(DEFECTS.map(|defect| {
        let name = format!("a_backend_that_{defect:?}_is_told_apart");
        harness::trial(&runtime, name, move || async move {
            for seed in 0..SCHEDULES {
                if compare(seed, &InMemoryTestBed, &BrokenTestBed(defect), 4).await.is_err() {
                    return Ok(());
                }
            }
            Err(format!("{SCHEDULES} schedules did not detect {defect:?}"))
        })
    }));
    harness::run(&arguments, trials, || {
        drop(poolers);
        drop(server);
    });
}

/// Empty if the environment names a server, as PgBouncer can only be configured for a private one.
fn poolers_and_modes() -> Vec<(PathBuf, PoolMode)> {
    if std::env::var_os(URL_VARIABLE).is_some() {
        return Vec::new();
    }
    PgBouncer::programs_and_modes().expect("cannot find PgBouncer")
}

/// Compares transactions that run one after the other.
async fn compare_sequences(seeds: std::ops::Range<u64>, postgres: &PostgresTestBed) -> Result<(), String> {
    for seed in seeds {
        compare(seed, &InMemoryTestBed, postgres, 1).await?;
    }
    Ok(())
}

fn start_postgres() -> Result<(Option<postgres_server::PostgresServer>, PostgresTestBed), String> {
    let (server, dsn) = postgres_server::server_or_url().map_err(|error| format!("{error:#}"))?;
    Ok((server, PostgresTestBed { dsn, drivers: drivers() }))
}

fn sqlite(options: &str) -> SqliteTestBed {
    SqliteTestBed { options: options.to_string(), ..SqliteTestBed::in_temporary_folder(drivers()) }
}

/// Compares one schedule on two hosts of a store with the model.
async fn compare_with_model(seed: u64, test_bed: &dyn TestBed) -> Result<(), String> {
    let scratch = test_bed.scratch().await.map_err(|error| format!("{error:#}"))?;
    let clock = Arc::<StandingClock>::default();
    let mut stores = Vec::new();
    for _ in 0..2 {
        let backend = scratch.open().await.map_err(|error| format!("{error:#}"))?;
        let store = Store::builder_shared(backend).clock(clock.clone()).sweep_interval(None).build();
        stores.push(store.map_err(|error| error.to_string())?);
    }
    let transactions = usize::try_from(seed % 5).unwrap_or_default() + 1;
    // A read that the row cache answers takes no snapshot of SQLite, so a later read may conflict.
    let reads_may_conflict = test_bed.name() == "sqlite";
    let schedule = Schedule { seed, calls: CALLS, transactions, reads_may_conflict };
    let outcome = larder_model::run(schedule, &stores, &clock).await;
    for store in stores {
        store.close().await;
    }
    scratch.remove().await.map_err(|error| format!("{error:#}"))?;
    outcome
}

/// A store that a script drives, with the script's state on it.
struct Driven {
    handle: Handle,
    store: Store,
    scratch: Box<dyn Scratch>,
    clock: Arc<StandingClock>,
    open: Vec<Option<Transaction>>,
    /// The last version that was read, for conditional writes.
    seen: Version,
    /// Whether answers include versions.
    compares_versions: bool,
}

impl Driven {
    async fn new(test_bed: &dyn TestBed, transactions: usize) -> Result<Self, String> {
        let scratch = test_bed.scratch().await.map_err(|error| format!("{error:#}"))?;
        let backend = scratch.open().await.map_err(|error| format!("{error:#}"))?;
        let clock = Arc::<StandingClock>::default();
        let store = Store::builder_shared(backend).clock(clock.clone()).sweep_interval(None).build();
        let store = store.map_err(|error| error.to_string())?;
        let limits = Limits::default()
            .value_bytes(40)
            .key_bytes(20)
            // Five entries and 90 bytes.
            .result_bytes(1_370)
            .transaction_bytes(5_000)
            .transaction_mutations(12)
            .transaction_timeout(Duration::from_secs(3_000));
        let handle = store
            .handle(HandleOptions::default().limits(limits).open_transactions(OpenTransactions::at_most(8)));
        let open = (0..transactions).map(|_| None).collect();
        Ok(Self {
            handle,
            store,
            scratch,
            clock,
            open,
            seen: Version(0),
            compares_versions: transactions > 1,
        })
    }

    /// Makes the next call of the script and returns the answer as text.
    async fn step(&mut self, random: &mut Rng) -> String {
        if random.u8(..) < 8 {
            self.clock.advance(Duration::from_secs(random.u64(1..40)));
            return "time passes".to_string();
        }
        if random.u8(..) < 3 {
            // On a server, a sweep is a transaction: an update that writes a row which the sweep
            // removed conflicts.
            let is_alone = self.compares_versions || self.open.iter().all(Option::is_none);
            return if is_alone { shown(self.store.sweep().await) } else { "no sweep".to_string() };
        }
        let place = random.usize(..self.open.len());
        let Some(slot) = self.open.get_mut(place) else {
            return "no such place".to_string();
        };
        let Some(transaction) = slot else {
            let mode = if random.u8(..) < 60 { Mode::View } else { Mode::Update };
            *slot = self.handle.begin(mode).ok();
            return format!("begin {mode:?}");
        };
        if random.u8(..) < 24 {
            let ended = slot.take();
            return match ended {
                Some(transaction) if random.u8(..) < 200 => self.version(transaction.commit().await),
                _ => "rolled back".to_string(),
            };
        }
        let call = Call::random(random);
        call.make(transaction, &mut self.seen, self.compares_versions, random).await
    }

    fn version(&self, outcome: Result<Version, Error>) -> String {
        match outcome {
            Ok(version) if !self.compares_versions => {
                format!("committed, written: {}", version > Version::ABSENT)
            }
            outcome => shown(outcome),
        }
    }

    async fn end(mut self) -> Result<(), String> {
        self.open.clear();
        self.store.close().await;
        self.scratch.remove().await.map_err(|error| format!("{error:#}"))
    }
}

/// One call of a transaction. Its names are short, so that transactions touch the same rows.
struct Call {
    namespace: String,
    key: String,
    kind: u8,
}

impl Call {
    fn random(random: &mut Rng) -> Self {
        let namespace = ["", "n", "n\0"].get(random.usize(..3)).copied().unwrap_or_default().to_string();
        Self { namespace, key: key(random), kind: random.u8(..13) }
    }

    async fn make(
        self,
        tx: &mut Transaction,
        seen: &mut Version,
        versions: bool,
        random: &mut Rng,
    ) -> String {
        let Self { namespace, key, kind } = self;
        match kind {
            0 | 1 => shown(tx.get(namespace, key).await),
            2 => {
                let keys = (0..random.usize(..6)).map(|_| self::key(random)).collect();
                shown(tx.get_many(namespace, keys).await)
            }
            3 => {
                let found = tx.get_versioned(namespace, key).await;
                if let Ok(found) = &found {
                    *seen = found.as_ref().map_or(Version(0), |(_, version)| *version);
                }
                if versions { shown(found) } else { shown(found.map(|found| found.map(|(value, _)| value))) }
            }
            4 => shown(tx.put(namespace, key, value(random))),
            5 => {
                // Half a second off the times at which the clock stands, as a server's clock keeps
                // running.
                let ttl_ms = random.bool().then(|| random.u64(0..60) * 1_000 + 500);
                let if_version = random.bool().then_some(*seen);
                shown(tx.put_with(
                    namespace,
                    key,
                    value(random),
                    PutOptions::default().ttl_ms(ttl_ms).if_version(if_version),
                ))
            }
            6 => {
                let entries =
                    (0..random.usize(..5)).map(|_| Entry { key: self::key(random), value: value(random) });
                shown(tx.put_many(namespace, entries.collect()).await)
            }
            7 => shown(tx.delete(namespace, key)),
            8 => shown(tx.delete_if_version(namespace, key, *seen)),
            9 => shown(tx.delete_range(namespace, range(random)).await),
            10 => shown(tx.increment(namespace, key, random.i64(-3..4))),
            11 => shown(tx.scan(namespace, prefix(random)).await),
            _ => pages(tx, namespace, range(random)).await,
        }
    }
}

/// Reads every page of a range.
async fn pages(tx: &mut Transaction, namespace: String, range: Range) -> String {
    let (mut said, mut after) = (String::new(), None);
    loop {
        match tx.scan_page(namespace.clone(), range.clone(), after).await {
            Ok(page) => {
                said.push_str(&shown::<_>(Ok(&page)));
                after = page.next;
            }
            Err(error) => return said + &shown::<()>(Err(error)),
        }
        if after.is_none() {
            return said;
        }
    }
}

fn key(random: &mut Rng) -> String {
    let characters = ['a', 'b', 'A', '%', '\0', 'ä', '\u{ffff}', '\u{10000}'];
    (0..random.usize(..3)).map(|_| *random.choice(&characters).unwrap_or(&'a')).collect()
}

fn prefix(random: &mut Rng) -> String {
    if random.bool() { String::new() } else { key(random) }
}

fn range(random: &mut Rng) -> Range {
    Range {
        prefix: prefix(random),
        start: (random.u8(..) < 80).then(|| key(random)),
        end: (random.u8(..) < 80).then(|| key(random)),
        reverse: random.bool(),
        limit: (random.u8(..) < 100).then(|| random.u32(..4)),
        keys_only: random.u8(..) < 60,
    }
}

/// Returns mostly a counter, sometimes other bytes, and rarely a value that is too long.
fn value(random: &mut Rng) -> Vec<u8> {
    match random.u8(..10) {
        0..6 => random.i64(-5..100).to_string().into_bytes(),
        6..9 => vec![random.u8(..); random.usize(..40)],
        _ => vec![0; 41],
    }
}

fn shown<T: Debug>(outcome: Result<T, Error>) -> String {
    format!("{outcome:?}")
}

/// Runs one script on both backends, call by call.
async fn compare(
    seed: u64,
    first: &dyn TestBed,
    second: &dyn TestBed,
    transactions: usize,
) -> Result<(), String> {
    let mut one = Driven::new(first, transactions).await?;
    let mut other = Driven::new(second, transactions).await?;
    let (mut random_one, mut random_other) = (Rng::with_seed(seed), Rng::with_seed(seed));
    let mut said = Vec::new();
    for call in 0..CALLS {
        let answer = one.step(&mut random_one).await;
        let same = other.step(&mut random_other).await;
        if answer != same {
            let before = said.join("\n");
            return Err(format!(
                "seed {seed}, call {call}: the answers {answer} and {same} differ, after\n{before}"
            ));
        }
        said.push(answer);
    }
    one.end().await?;
    other.end().await
}
