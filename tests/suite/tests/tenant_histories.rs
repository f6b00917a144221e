//! Hosts that are stopped or killed one after the other, while transactions go on: what they acknowledged and what they showed is one
//! serializable history, in which each host comes after the one before.
//!
//! The hosts are processes with cache folders of their own, and durability `object`. Each tells of a transaction before its
//! commit and after it.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use larder_core::{Error, Handle, HandleOptions, Limits, Mode, Version};
use larder_tenants::{Durability, FolderStore, TenantKey, Tenants};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use support::harness;
use support::serializable::{Made, check};

/// Hosts that are killed. `LARDER_TENANT_HISTORY_HOSTS` makes them more.
const HOSTS: u64 = 6;

/// How long a host is there before it is killed, at most.
const ALIVE: Duration = Duration::from_millis(1_500);

/// A host that dies holds its lease for so long.
const LEASE: Duration = Duration::from_millis(700);

/// How long a put takes: long enough that some are on their way whenever a host is killed.
const PUT: Duration = Duration::from_millis(8);

const TASKS: u64 = 12;
const ROWS: u64 = 6;

/// The folder of a process that was started, and which host it is.
const FOLDER: &str = "LARDER_TENANT_HISTORY_FOLDER";
const HOST: &str = "LARDER_TENANT_HISTORY_HOST";

/// Numbers of the transactions of one host.
const NUMBERS: u64 = 1_000_000;

type Outcome = Result<(), String>;

fn main() {
    let runtime = harness::runtime();
    if let (Ok(folder), Ok(host)) = (std::env::var(FOLDER), std::env::var(HOST)) {
        return runtime.block_on(transact_until_killed(Path::new(&folder), host.parse().unwrap()));
    }
    let arguments = harness::arguments();
    let name = "what_killed_hosts_acknowledged_and_showed_is_one_serializable_history";
    let trial = harness::trial(&runtime, name, || async {
        tokio::task::spawn_blocking(run).await.map_err(|error| error.to_string())?
    });
    harness::run(&arguments, vec![trial], || {});
}

fn run() -> Outcome {
    let hosts = std::env::var("LARDER_TENANT_HISTORY_HOSTS").ok().and_then(|hosts| hosts.parse().ok());
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let (mut random, mut told) = (Rng::with_seed(seed), Told::default());
    let mut earlier: Option<Host> = None;
    for number in 1..=hosts.unwrap_or(HOSTS) {
        let host = Host::start(folder.path(), number);
        if let Some(earlier) = earlier.take() {
            // It was stopped, and finds that another host has the tenant.
            earlier.signal(Signal::SIGCONT);
            std::thread::sleep(LEASE / 2);
            told.take(&earlier.kill(), number - 1)?;
        }
        std::thread::sleep(ALIVE.mul_f64(0.2 + 0.8 * random.f64()));
        if random.bool() {
            host.signal(Signal::SIGSTOP);
            earlier = Some(host);
        } else {
            told.take(&host.kill(), number)?;
        }
    }
    if let Some(last) = earlier {
        told.take(&last.kill(), hosts.unwrap_or(HOSTS))?;
    }
    let made = told.history();
    let unknown = made.values().filter(|one| one.is_unknown).count();
    let views = made.values().filter(|one| one.written.is_empty()).count();
    println!("{} transactions, {views} of them views; {unknown} were unknown, and seen", made.len());
    if made.len() < 200 || views < 20 {
        return Err("that is too few".to_string());
    }
    check(&made)?;
    // A view of the first host that shows what the last one wrote is found out.
    let newest = made.iter().rev().find_map(|(number, one)| Some((*number, *one.written.first()?)));
    let (writer, row) = newest.ok_or("nothing was written")?;
    let reader = Made { read: BTreeMap::from([(row, writer)]), phase: 1, ..Made::default() };
    let doctored = made.into_iter().chain([(NUMBERS - 1, reader)]).collect();
    match check(&doctored) {
        Ok(()) => Err("a read of what was written later was not found out".to_string()),
        Err(_) => Ok(()),
    }
}

/// A process that has the tenant.
struct Host {
    child: Child,
    told: PathBuf,
}

impl Host {
    /// Starts it, and waits until it has the lease of the host before it.
    fn start(folder: &Path, number: u64) -> Self {
        let told = folder.join(format!("told-{number}"));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(FOLDER, folder).env(HOST, number.to_string());
        let file = std::fs::File::create(&told).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(file).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::fs::metadata(&told).unwrap().len() == 0 {
            assert!(Instant::now() < deadline, "host {number} tells nothing");
            assert!(child.try_wait().unwrap().is_none(), "host {number} ended by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, told }
    }

    fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Kills it, and gives what it told.
    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let text = std::fs::read_to_string(&self.told).unwrap();
        // The last line may be torn.
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n').map(str::to_string)).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What hosts told: `try NUMBER READ… / WRITTEN…` before a commit, and after it `done NUMBER VERSION`, or `not NUMBER`.
/// A read is `ROW:WRITER:VERSION`.
#[derive(Default)]
struct Told {
    tried: BTreeMap<u64, Made>,
    /// Versions at which writes were seen.
    seen: BTreeMap<u64, Version>,
    made: BTreeMap<u64, Version>,
}

impl Told {
    fn take(&mut self, lines: &[String], host: u64) -> Outcome {
        for line in lines {
            let mut words = line.split(' ');
            let malformed = || format!("host {host} told {line:?}");
            let (what, number) = (words.next(), words.next().and_then(|number| number.parse().ok()));
            let (what, number) = what.zip(number).ok_or_else(malformed)?;
            match what {
                "try" => drop(self.tried.insert(number, Made { phase: host, ..Made::default() })),
                "done" => {
                    let version =
                        words.next().and_then(|version| version.parse().ok()).ok_or_else(malformed)?;
                    self.made.insert(number, Version(version));
                    continue;
                }
                "not" => {
                    self.tried.remove(&number);
                    continue;
                }
                _ => return Err(malformed()),
            }
            let tried = self.tried.get_mut(&number).expect("it was inserted");
            for word in words.by_ref().take_while(|word| *word != "/") {
                let parts: Vec<u64> = word.split(':').filter_map(|part| part.parse().ok()).collect();
                let [row, writer, version] = parts[..] else { return Err(malformed()) };
                tried.read.insert(row, writer);
                let version = Version(version);
                if *self.seen.entry(writer).or_insert(version) != version && writer != 0 {
                    return Err(format!("the write of {writer} was seen at two versions: {line}"));
                }
            }
            tried.written = words.filter_map(|word| word.parse().ok()).collect();
        }
        Ok(())
    }

    /// Transactions that were acknowledged, and those that were seen.
    fn history(&self) -> BTreeMap<u64, Made> {
        let mut history = BTreeMap::from([(0, Made::default())]);
        for (number, tried) in &self.tried {
            let version = match (self.made.get(number), self.seen.get(number)) {
                (Some(made), Some(seen)) if made != seen => {
                    panic!("{number} was made at {made:?} and seen at {seen:?}")
                }
                (Some(made), _) => *made,
                // Only what an acknowledged transaction showed counts.
                (None, Some(seen)) if self.is_shown(*number) => *seen,
                (None, _) => continue,
            };
            let is_unknown = !self.made.contains_key(number);
            history.insert(*number, Made { version, is_unknown, ..tried.clone() });
        }
        history
    }

    fn is_shown(&self, writer: u64) -> bool {
        let acknowledged = self.tried.iter().filter(|(number, _)| self.made.contains_key(number));
        acknowledged.into_iter().any(|(_, one)| one.read.values().any(|read| *read == writer))
    }
}

// The process that is killed.

async fn transact_until_killed(folder: &Path, host: u64) {
    let objects = FolderStore::open(folder.join("objects")).unwrap();
    let times = ThrottleConfig { wait_put_per_call: PUT, ..ThrottleConfig::default() };
    let cache: PathBuf = folder.join(format!("cache-{host}"));
    let builder = Tenants::builder(Arc::new(ThrottledStore::new(objects, times))).cache_folder(cache);
    let builder = builder.durability(Durability::Object).lease_ttl(LEASE).lease_wait(Duration::from_secs(30));
    let tenants = builder.checkpoint_writes(100).sweep_interval(None).open().await.unwrap();
    let key: TenantKey = "acme/users/ann".parse().unwrap();
    let tenant = tenants.get(&key).await.unwrap();
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let limits = Limits { transaction_timeout: Duration::from_secs(30), ..Limits::default() };
        let handle =
            tenant.store().handle(HandleOptions { limits: limits.into(), ..HandleOptions::default() });
        tasks.push(tokio::spawn(async move {
            let mut random = Rng::with_seed(host * TASKS + task);
            for number in 0.. {
                let number = host * NUMBERS + task * (NUMBERS / TASKS) + number;
                transact(&handle, &mut random, number).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// Standard output in one piece: the process is killed between two lines, or within one.
fn tell(line: String) {
    std::io::stdout().write_all((line + "\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

async fn transact(handle: &Handle, random: &mut Rng, number: u64) {
    match transact_once(handle, random, number).await {
        Ok(version) => tell(format!("done {number} {}", version.0)),
        Err(Error::Conflict) => tell(format!("not {number}")),
        // A lease that lapsed, or an outcome that is unknown.
        Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
    }
}

async fn transact_once(handle: &Handle, random: &mut Rng, number: u64) -> Result<Version, Error> {
    let is_view = random.u8(0..3) == 0;
    let mut transaction = handle.begin(if is_view { Mode::View } else { Mode::Update })?;
    let mut rows: Vec<u64> = (0..ROWS).collect();
    random.shuffle(&mut rows);
    let (reads, writes) =
        if is_view { (random.usize(1..4), 0) } else { (random.usize(0..3), random.usize(1..3)) };
    let (mut read, mut written) = (String::new(), String::new());
    for row in rows.iter().take(reads) {
        let found = transaction.get_versioned("n".into(), format!("row-{row}")).await?;
        let (writer, version) = found.map_or(("0".to_string(), Version::ABSENT), |(value, version)| {
            (String::from_utf8_lossy(&value).into_owned(), version)
        });
        read += &format!("{row}:{writer}:{} ", version.0);
    }
    random.shuffle(&mut rows);
    for row in rows.iter().take(writes) {
        transaction.put("n".into(), format!("row-{row}"), number.to_string().into_bytes())?;
        written += &format!(" {row}");
    }
    tell(format!("try {number} {read}/{written}"));
    transaction.commit().await
}
