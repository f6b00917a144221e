//! A round: processes on one fresh file, which are killed and restarted, and the check of their
//! reports.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use larder_sqlite::{Sqlite, SqliteOptions};

use crate::check::History;
use crate::figures::Figures;
use crate::foreign::{self, Foreign, OLDER_RELEASE};
use crate::history::{Event, Millis, nanos};
use crate::worker::Worker;

/// The role of a child process, as JSON.
pub(crate) const ROLE: &str = "LARDER_STRESS_ROLE";

/// How long a process may take to exit after it was told to.
const END_MAX: Duration = Duration::from_secs(30);

/// Cache sizes in bytes: no cache, one for a few rows, and two that hold all rows.
const CACHES: [u64; 4] = [0, 4_000, 1 << 20, 64 << 20];

/// The role of a child process.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) enum Role {
    Worker(Worker),
    Foreign(Foreign),
}

/// The participants of a round.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    workers: usize,
    foreign: bool,
    older_release: bool,
    full_durability: bool,
    failing_disk: bool,
    jumping_clock: bool,
    leases: bool,
}

impl Plan {
    /// Draws a plan: one to three processes, of which at least one uses larder.
    pub(crate) fn new(seed: u64, leases: bool) -> Self {
        let mut random = Rng::with_seed(seed);
        let (workers, foreign) =
            [(2, true), (2, true), (2, false), (1, true), (1, true), (3, false)][random.usize(0..6)];
        Self {
            seed,
            workers,
            foreign,
            older_release: random.bool(),
            full_durability: random.u32(0..4) == 0,
            failing_disk: random.bool(),
            jumping_clock: random.bool(),
            leases,
        }
    }

    /// Runs the processes for `duration`, and checks their reports.
    ///
    /// # Errors
    ///
    /// If the check finds a violation or a process fails. After a violation, the events are written
    /// to `folder`.
    pub(crate) fn run(&self, duration: Duration, folder: &Path) -> Result<Figures, String> {
        let database = tempfile::Builder::new().prefix("larder-stress-").tempdir().map_err(text)?;
        let file = database.path().join("store.db");
        make(&file)?;
        let (events, mut figures, failure) = Processes::new(self, &file).run(duration)?;
        failure.map_or(Ok(()), Err)?;
        figures.count_deeds(&events);
        let verdict = foreign::integrity(&file).map_err(text)?;
        if verdict != "ok" {
            return Err(format!("the file is damaged: {verdict}"));
        }
        let last = foreign::dump_file(&file).map_err(text)?;
        let history = History::of(&events, last, wall_zero(), !self.jumping_clock);
        match history.check() {
            Ok(counts) => {
                figures.count(counts);
                Ok(figures)
            }
            Err(error) => {
                let kept = keep(&events, &folder.join(format!("stress-{}.jsonl", self.seed)));
                Err(format!("{error}\nin the round of {self:?}\n{kept}"))
            }
        }
    }
}

/// Writes all events to a file, so that a failure can be examined. Returns a line with its path.
fn keep(events: &[Event], path: &Path) -> String {
    let lines = events.iter().filter_map(|event| serde_json::to_string(event).ok());
    let lines: String = lines.map(|line| line + "\n").collect();
    match std::fs::write(path, lines) {
        Ok(()) => format!("all events: {}", path.display()),
        Err(error) => format!("cannot write the events: {error}"),
    }
}

/// Creates the file with larder's tables.
fn make(file: &Path) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
    runtime.block_on(async {
        let sqlite = Sqlite::open(file, SqliteOptions::default()).await.map_err(text)?;
        sqlite.finish().await.map_err(text)
    })
}

fn wall_zero() -> Millis {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as u64 - nanos() / 1_000_000
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The processes of a round.
struct Processes<'a> {
    plan: &'a Plan,
    file: &'a Path,
    random: Rng,
    started: u64,
    ended: Vec<JoinHandle<Vec<Event>>>,
}

struct Process {
    child: Child,
    events: JoinHandle<Vec<Event>>,
}

/// The kind of a process, to restart it after a kill.
#[derive(Clone, Copy)]
enum Kind {
    Worker,
    Foreign,
    OlderRelease,
}

impl<'a> Processes<'a> {
    fn new(plan: &'a Plan, file: &'a Path) -> Self {
        // A different sequence from the one that drew the plan.
        let random = Rng::with_seed(plan.seed.wrapping_add(1 << 32));
        Self { plan, file, random, started: 0, ended: Vec::new() }
    }

    /// Runs the processes. Returns all events, and why a process failed, if one did.
    fn run(mut self, duration: Duration) -> Result<(Vec<Event>, Figures, Option<String>), String> {
        let mut figures = Figures::default();
        let mut kinds = vec![Kind::Worker; self.plan.workers];
        kinds.extend(self.plan.foreign.then_some(Kind::Foreign));
        let mut processes =
            kinds.iter().map(|kind| self.start(*kind)).collect::<Result<Vec<Process>, String>>()?;
        let mut older = None;
        if self.plan.older_release {
            older = Some(self.start(Kind::OlderRelease)?);
        }
        let (begun, mut failure) = (Instant::now(), None);
        while begun.elapsed() < duration && failure.is_none() {
            std::thread::sleep(Duration::from_millis(self.random.u64(20..900)));
            let place = self.random.usize(0..processes.len());
            let all = self.random.u32(0..8) == 0;
            for (place, kind) in kinds.iter().enumerate().filter(|(other, _)| all || *other == place) {
                let process = &mut processes[place];
                if let Some(status) = process.child.try_wait().map_err(text)? {
                    failure = Some(format!("a process exited before it was told to, with {status}"));
                }
                process.child.kill().map_err(text)?;
                process.child.wait().map_err(text)?;
                figures.kills += 1;
                let started = self.start(*kind)?;
                let killed = std::mem::replace(&mut processes[place], started);
                self.ended.push(killed.events);
            }
        }
        for mut process in processes.into_iter().chain(older) {
            // The end of its input tells the process to exit.
            drop(process.child.stdin.take());
            match wait(&mut process.child)? {
                Some(status) if status.success() => {}
                Some(status) => failure = Some(format!("a process exited with {status}")),
                None => failure = Some(format!("a process did not exit within {END_MAX:?}")),
            }
            self.ended.push(process.events);
        }
        let mut events = Vec::new();
        for reported in self.ended {
            events.extend(reported.join().map_err(|_| "a thread that reads events panicked".to_string())?);
        }
        Ok((events, figures, failure))
    }

    fn start(&mut self, kind: Kind) -> Result<Process, String> {
        self.started += 1;
        let (file, seed) = (self.file.to_path_buf(), self.random.u64(..));
        let mut command = match kind {
            Kind::Worker => program(&Role::Worker(Worker {
                file,
                process: self.started,
                seed,
                cache_bytes: CACHES[self.random.usize(0..CACHES.len())],
                full_durability: self.plan.full_durability,
                tasks: self.random.u32(1..8),
                failing_disk: self.plan.failing_disk,
                jumping_clock: self.plan.jumping_clock,
                leases: self.plan.leases,
            }))?,
            Kind::Foreign => program(&Role::Foreign(Foreign { file, seed }))?,
            Kind::OlderRelease => {
                let mut python = Command::new("python3");
                python.arg("-c").arg(OLDER_RELEASE).arg(file);
                python
            }
        };
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| {
            let program = command.get_program().display();
            format!("cannot start {program}: {error}; the stress test needs Python 3 with its module sqlite3")
        })?;
        let output = child.stdout.take().ok_or("the output of the process is not piped")?;
        Ok(Process { child, events: std::thread::spawn(move || read_events(output)) })
    }
}

/// This program, in another role.
fn program(role: &Role) -> Result<Command, String> {
    let mut command = Command::new(std::env::current_exe().map_err(text)?);
    command.env(ROLE, serde_json::to_string(role).map_err(text)?);
    Ok(command)
}

/// Reads the events of a process until it exits. The last line of a killed process may be torn.
fn read_events(output: impl Read) -> Vec<Event> {
    let (mut output, mut events, mut line) = (BufReader::new(output), Vec::new(), Vec::new());
    while output.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) && line.ends_with(b"\n") {
        events.push(
            serde_json::from_slice(&line).unwrap_or_else(|error| {
                Event::Broken(format!("{error} in {}", String::from_utf8_lossy(&line)))
            }),
        );
        line.clear();
    }
    events
}

/// Waits for a process to exit, and kills it after [`END_MAX`].
fn wait(child: &mut Child) -> Result<Option<ExitStatus>, String> {
    let begun = Instant::now();
    while begun.elapsed() < END_MAX {
        if let Some(status) = child.try_wait().map_err(text)? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().map_err(text)?;
    child.wait().map_err(text)?;
    Ok(None)
}

/// A flag that is set when the parent process closes the input, or has exited.
pub(crate) fn stop_at_end_of_input() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let set = stop.clone();
    std::thread::spawn(move || {
        // A read error ends the input as well.
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        set.store(true, Ordering::SeqCst);
    });
    stop
}
