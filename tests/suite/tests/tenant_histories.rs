//! Checks that hosts which are stopped or killed one after the other leave one serializable
//! history. The history consists of the transactions that they acknowledged and of those whose
//! writes they showed. In it, each host comes after the one before.
//!
//! The hosts are processes with their own cache folders, and use `durability=object`. Each prints a
//! transaction before its commit and the outcome after it.
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

/// The number of hosts. `LARDER_TENANT_HISTORY_HOSTS` overrides it.
const HOSTS: u64 = 6;

/// The longest life of a host.
const ALIVE: Duration = Duration::from_millis(1_500);

/// How long the lease of a dead host lasts.
const LEASE: Duration = Duration::from_millis(700);

/// How long a put takes. It is long enough that some are in flight whenever a host is killed.
const PUT: Duration = Duration::from_millis(8);

const TASKS: u64 = 12;
const ROWS: u64 = 6;

/// The folder of a child process, and the number of its host.
const FOLDER: &str = "LARDER_TENANT_HISTORY_FOLDER";
const HOST: &str = "LARDER_TENANT_HISTORY_HOST";

/// The range of transaction numbers of each host.
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
            // The host was stopped, and finds that another host holds the lease.
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
    println!(
        "{} transactions, {views} of them views; {unknown} had an unknown outcome and were observed",
        made.len()
    );
    if made.len() < 200 || views < 20 {
        return Err("too few transactions or views".to_string());
    }
    check(&made)?;
    // The check must detect a view of the first host that shows a write of the last one.
    let newest = made.iter().rev().find_map(|(number, one)| Some((*number, *one.written.first()?)));
    let (writer, row) = newest.ok_or("no transaction wrote a row")?;
    let reader = Made { read: BTreeMap::from([(row, writer)]), phase: 1, ..Made::default() };
    let doctored = made.into_iter().chain([(NUMBERS - 1, reader)]).collect();
    match check(&doctored) {
        Ok(()) => Err("the check did not detect a read of a later write".to_string()),
        Err(_) => Ok(()),
    }
}

/// A process that holds the tenant's lease.
struct Host {
    child: Child,
    told: PathBuf,
}

impl Host {
    /// Starts the process, and waits until it has taken over the lease.
    fn start(folder: &Path, number: u64) -> Self {
        let told = folder.join(format!("told-{number}"));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(FOLDER, folder).env(HOST, number.to_string());
        let file = std::fs::File::create(&told).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(file).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::fs::metadata(&told).unwrap().len() == 0 {
            assert!(Instant::now() < deadline, "host {number} printed nothing");
            assert!(child.try_wait().unwrap().is_none(), "host {number} exited");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, told }
    }

    fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Kills the process, and returns its output.
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

/// The output of the hosts: `try NUMBER READ… / WRITTEN…` before a commit, and after it `done
/// NUMBER VERSION` or `not NUMBER`. A read is `ROW:WRITER:VERSION`.
#[derive(Default)]
struct Told {
    tried: BTreeMap<u64, Made>,
    /// The versions at which writes were read.
    seen: BTreeMap<u64, Version>,
    made: BTreeMap<u64, Version>,
}

impl Told {
    fn take(&mut self, lines: &[String], host: u64) -> Outcome {
        for line in lines {
            let mut words = line.split(' ');
            let malformed = || format!("host {host} printed an invalid line {line:?}");
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
            let tried = self.tried.get_mut(&number).expect("the transaction was inserted");
            for word in words.by_ref().take_while(|word| *word != "/") {
                let parts: Vec<u64> = word.split(':').filter_map(|part| part.parse().ok()).collect();
                let [row, writer, version] = parts[..] else { return Err(malformed()) };
                tried.read.insert(row, writer);
                let version = Version(version);
                if *self.seen.entry(writer).or_insert(version) != version && writer != 0 {
                    return Err(format!("the write of {writer} was read at two versions: {line}"));
                }
            }
            tried.written = words.filter_map(|word| word.parse().ok()).collect();
        }
        Ok(())
    }

    /// The transactions that were acknowledged, and those that an acknowledged transaction read.
    fn history(&self) -> BTreeMap<u64, Made> {
        let mut history = BTreeMap::from([(0, Made::default())]);
        for (number, tried) in &self.tried {
            let version = match (self.made.get(number), self.seen.get(number)) {
                (Some(made), Some(seen)) if made != seen => {
                    panic!("{number} was acknowledged at {made:?} and read at {seen:?}")
                }
                (Some(made), _) => *made,
                // Only reads of an acknowledged transaction count.
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

// The child process.

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
        let limits = Limits::default().transaction_timeout(Duration::from_secs(30));
        let handle = tenant.store().handle(HandleOptions::default().limits(limits));
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

/// Writes a whole line at once. The process may be killed between two lines, or within one.
fn tell(line: String) {
    std::io::stdout().write_all((line + "\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

async fn transact(handle: &Handle, random: &mut Rng, number: u64) {
    match transact_once(handle, random, number).await {
        Ok(version) => tell(format!("done {number} {}", version.0)),
        Err(Error::Conflict) => tell(format!("not {number}")),
        // The lease has lapsed, or the outcome is unknown.
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
