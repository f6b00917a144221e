//! A process that uses the database through larder: several tasks run random transactions on one
//! store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use larder_core::{Error, HandleOptions, Mode, OpenTransactions, Store};
use larder_sqlite::{Sqlite, SqliteOptions, Synchronous};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::calls::Calls;
use crate::clock::JumpingClock;
use crate::disk;
use crate::foreign;
use crate::history::{Answer, Call, Deed, Event, Id, Outcome, report};
use crate::session::{Session, check_kind};

/// The instructions of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub(crate) file: PathBuf,
    /// A number that is unique in the round.
    pub(crate) process: u64,
    pub(crate) seed: u64,
    pub(crate) cache_bytes: u64,
    pub(crate) full_durability: bool,
    pub(crate) tasks: u32,
    /// Whether its disk fails from time to time.
    pub(crate) failing_disk: bool,
    /// Whether the clocks of its stores jump.
    pub(crate) jumping_clock: bool,
    /// Whether it uses rows that expire during the round.
    pub(crate) leases: bool,
}

/// Ids for the tasks and openings of one process.
const IDS: u64 = 1_000_000;

/// Consecutive errors after which a store is reopened.
const FAILURES_MAX: u32 = 20;

/// What the tasks of a store currently do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Busy,
    /// Only views, so that rows stay cached.
    Reading,
    Asleep,
}

/// State that the tasks of one opening share.
struct Shared {
    worker: Worker,
    next_id: Arc<AtomicU64>,
    opening: u64,
    clock: Arc<JumpingClock>,
    phase: AtomicU8,
    /// Errors since the last success.
    failures: AtomicU32,
    /// Tells the tasks to end.
    ending: AtomicBool,
}

pub(crate) fn run(worker: Worker) {
    disk::prepare();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("cannot start a runtime");
    let stop = crate::round::stop_at_end_of_input();
    runtime.block_on(async {
        let next_id = Arc::new(AtomicU64::new(worker.process * IDS));
        let mut random = Rng::with_seed(worker.seed);
        while !stop.load(Ordering::SeqCst) {
            open_and_use(&worker, &next_id, &mut random, &stop).await;
        }
    });
}

/// Opens the store, uses it for a while, and closes it.
async fn open_and_use(worker: &Worker, next_id: &Arc<AtomicU64>, random: &mut Rng, stop: &AtomicBool) {
    let clock = Arc::new(JumpingClock::new());
    let Some((sqlite, store)) = open(worker, clock.clone()).await else { return };
    report(&Event::Did(Deed::Opened));
    let shared = Arc::new(Shared {
        worker: worker.clone(),
        next_id: next_id.clone(),
        opening: next_id.fetch_add(1, Ordering::SeqCst),
        clock,
        phase: AtomicU8::new(Phase::Busy as u8),
        failures: AtomicU32::new(0),
        ending: AtomicBool::new(false),
    });
    let mut tasks = JoinSet::new();
    for _ in 0..worker.tasks {
        let task = Task::new(shared.clone(), store.clone(), random.u64(..));
        tasks.spawn(task.run());
    }
    direct(&shared, &sqlite, &store, random, stop).await;
    shared.ending.store(true, Ordering::SeqCst);
    let is_abrupt = random.bool();
    if is_abrupt {
        store.close().await;
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a task panicked");
    }
    store.close().await;
}

async fn open(worker: &Worker, clock: Arc<JumpingClock>) -> Option<(Arc<Sqlite>, Store)> {
    let synchronous = if worker.full_durability { Synchronous::Full } else { Synchronous::Normal };
    let options = SqliteOptions::default().synchronous(synchronous).cache_bytes(worker.cache_bytes);
    match Sqlite::open(&worker.file, options).await {
        Ok(sqlite) => {
            let sqlite = Arc::new(sqlite);
            let store = Store::builder_shared(sqlite.clone()).clock(clock).sweep_interval(None).build();
            Some((sqlite, store.expect("cannot build the store")))
        }
        Err(error) => {
            check_kind(&error, Id { task: worker.process, number: 0 });
            tokio::time::sleep(Duration::from_millis(20)).await;
            None
        }
    }
}

/// Switches phases, and sometimes sweeps, verifies, backs up or injects a fault, until the store is
/// to be closed.
async fn direct(shared: &Shared, sqlite: &Sqlite, store: &Store, random: &mut Rng, stop: &AtomicBool) {
    loop {
        let phase = match random.u32(0..8) {
            0..4 => Phase::Busy,
            4..7 => Phase::Reading,
            _ => Phase::Asleep,
        };
        shared.phase.store(phase as u8, Ordering::SeqCst);
        let millis = random.u64(5..250);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        if stop.load(Ordering::SeqCst) || shared.failures.load(Ordering::SeqCst) >= FAILURES_MAX {
            return;
        }
        match random.u32(0..40) {
            0..8 if shared.worker.jumping_clock => {
                shared.clock.jump(random);
                report(&Event::Did(Deed::ClockJump));
            }
            8..13 => {
                if let Err(error) = store.sweep().await {
                    check_kind(&error, shared.own_id());
                }
                report(&Event::Did(Deed::Sweep));
            }
            13..19 if shared.worker.failing_disk => fail_disk(&shared.worker.file, random).await,
            19..22 => {
                if let Err(error) = Sqlite::verify(&shared.worker.file).await {
                    check_kind(&error, shared.own_id());
                }
                report(&Event::Did(Deed::Verify));
            }
            22 => back_up(shared, sqlite).await,
            23..25 => return,
            _ => {}
        }
    }
}

async fn fail_disk(file: &Path, random: &mut Rng) {
    let fault = match random.u32(0..4) {
        0 => {
            report(&Event::Did(Deed::FileFault));
            disk::Fault::no_more_files()
        }
        kind => {
            report(&Event::Did(Deed::DiskFault));
            let mut log = file.as_os_str().to_os_string();
            log.push("-wal");
            let bytes = std::fs::metadata(log).map_or(0, |file| file.len());
            let at = match kind {
                1 => random.u64(0..=bytes),
                _ => bytes + random.u64(0..30_000),
            };
            disk::Fault::full_at(at)
        }
    };
    tokio::time::sleep(Duration::from_millis(random.u64(1..60))).await;
    drop(fault);
}

/// Reports a backup, which must be one of the file's states.
async fn back_up(shared: &Shared, sqlite: &Sqlite) {
    let name = format!("copy-{}.db", shared.next_id.fetch_add(1, Ordering::SeqCst));
    let copy = shared.worker.file.with_file_name(name);
    let from = crate::history::nanos();
    match sqlite.backup(&copy).await {
        Ok(_) => {
            let to = crate::history::nanos();
            let mut dump = foreign::dump_file(&copy).expect("cannot read the copy");
            dump.window = crate::history::Window { from, to };
            report(&Event::Dumped(dump));
            std::fs::remove_file(&copy).expect("cannot remove the copy");
            report(&Event::Did(Deed::Backup));
        }
        Err(error) => check_kind(&error, shared.own_id()),
    }
}

impl Shared {
    fn own_id(&self) -> Id {
        Id { task: self.opening, number: 0 }
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Busy,
            1 => Phase::Reading,
            _ => Phase::Asleep,
        }
    }

    fn succeeded(&self) {
        self.failures.store(0, Ordering::SeqCst);
    }

    fn failed(&self) {
        self.failures.fetch_add(1, Ordering::SeqCst);
    }
}

/// Runs random transactions, one after the other.
struct Task {
    shared: Arc<Shared>,
    handle: larder_core::Handle,
    calls: Calls,
    id: Id,
}

impl Task {
    fn new(shared: Arc<Shared>, store: Store, seed: u64) -> Self {
        let open_transactions = OpenTransactions::at_most(4);
        let handle = store.handle(HandleOptions::default().open_transactions(open_transactions));
        let task = shared.next_id.fetch_add(1, Ordering::SeqCst);
        let leases = shared.worker.leases;
        Self { shared, handle, calls: Calls::new(seed, leases), id: Id { task, number: 0 } }
    }

    async fn run(mut self) {
        while !self.shared.ending.load(Ordering::SeqCst) {
            self.id.number += 1;
            let outcome = match self.shared.phase() {
                Phase::Asleep => {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                    Ok(())
                }
                Phase::Busy if self.calls.random.u32(0..5) < 3 => self.update().await,
                Phase::Busy | Phase::Reading => self.view().await,
            };
            match outcome {
                Ok(()) => self.shared.succeeded(),
                Err(Error::Conflict) => self.rest(2).await,
                Err(error) => {
                    check_kind(&error, self.id);
                    self.shared.failed();
                    self.rest(4).await;
                }
            }
            if self.calls.one_in(12) {
                self.rest(2).await;
            }
        }
    }

    /// Sleeps for a random time of up to `millis`.
    async fn rest(&mut self, millis: u64) {
        let micros = self.calls.random.u64(0..millis * 1_000);
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }

    /// Pauses within a transaction: mostly not at all, sometimes long enough for others to commit.
    async fn pause(&mut self) {
        match self.calls.random.u32(0..30) {
            0..4 => tokio::task::yield_now().await,
            4 => self.rest(6).await,
            _ => {}
        }
    }

    fn begin(&self, mode: Mode) -> Result<Session, Error> {
        Session::begin(&self.handle, mode, self.id, self.shared.opening, self.shared.clock.clone())
    }

    async fn view(&mut self) -> Result<(), Error> {
        let mut session = self.begin(Mode::View)?;
        for _ in 0..self.calls.random.u32(1..6) {
            let call = self.read(&session);
            if let Err(error) = self.call(&mut session, call).await {
                session.leave();
                return Err(error);
            }
        }
        match self.calls.one_in(2) {
            true => session.leave(),
            false => session.commit_view().await,
        }
        Ok(())
    }

    async fn update(&mut self) -> Result<(), Error> {
        let mut session = self.begin(Mode::Update)?;
        if let Err(error) = self.stage(&mut session).await {
            session.leave();
            return Err(error);
        }
        if self.calls.one_in(25) {
            session.leave();
            return Ok(());
        }
        let longest = self.calls.one_in(60).then(|| Duration::from_micros(self.calls.random.u64(0..2_000)));
        match session.commit(longest).await {
            Outcome::Committed(version) => {
                self.learn(version);
                Ok(())
            }
            Outcome::Conflict => Err(Error::Conflict),
            Outcome::Refused(reason) => Err(Error::Unavailable { reason, cause: None }),
            Outcome::Open(_) => {
                // The task's row must keep the id of this update, so that the checker learns its
                // outcome. A new id starts a new task.
                let task = self.shared.next_id.fetch_add(1, Ordering::SeqCst);
                self.id = Id { task, number: 0 };
                self.shared.failed();
                Ok(())
            }
        }
    }

    /// Makes the calls of an update before its commit.
    async fn stage(&mut self, session: &mut Session) -> Result<(), Error> {
        if self.shared.worker.leases && self.calls.one_in(8) {
            self.take_lease(session).await?;
        }
        // One update in four reads nothing.
        let reads = if self.calls.one_in(4) { 0 } else { self.calls.random.u32(1..4) };
        for _ in 0..reads {
            let call = self.read(session);
            self.call(session, call).await?;
        }
        for _ in 0..self.calls.random.u32(1..4) {
            let call = self.calls.write(self.id);
            self.call(session, call).await?;
            if self.calls.one_in(8) {
                let call = self.read(session);
                self.call(session, call).await?;
            }
        }
        self.call(session, Calls::marker(self.id)).await
    }

    /// Takes a lease if it is free. The rest of the transaction relies on it.
    async fn take_lease(&mut self, session: &mut Session) -> Result<(), Error> {
        let put = self.calls.take_lease(self.id);
        let Call::Put { row, .. } = &put else { return Ok(()) };
        match session.call(Call::Get(row.clone())).await? {
            Answer::Value(None) => self.call(session, put).await,
            _ => Ok(()),
        }
    }

    fn read(&mut self, session: &Session) -> Call {
        match session.next_page() {
            Some(next) if self.calls.one_in(2) => next,
            _ => self.calls.read(),
        }
    }

    async fn call(&mut self, session: &mut Session, call: Call) -> Result<(), Error> {
        let row = match &call {
            Call::GetVersioned(row) => Some(row.clone()),
            _ => None,
        };
        let answer = session.call(call).await?;
        if let (Some(row), Answer::Versioned(found)) = (row, answer) {
            self.calls.versions.insert(row, found.map_or(0, |(_, version)| version));
        }
        self.pause().await;
        Ok(())
    }

    /// Remembers a version for a later condition, which holds if the row has not changed since.
    fn learn(&mut self, version: u64) {
        if self.calls.one_in(2) {
            let row = self.calls.row();
            self.calls.versions.insert(row, version);
        }
    }
}
