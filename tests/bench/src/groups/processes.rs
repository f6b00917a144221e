//! Several processes that commit to one SQLite database without a pause: how long a commit waits.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use larder_host::{HandleOptions, Mode, Store, drivers};
use tempfile::TempDir;

use crate::row::{Comparison, Row, Side, Work};
use crate::runner::Runner;

/// Processes that commit concurrently.
const PROCESSES: usize = 3;

/// How long they commit.
const BUSY: Duration = Duration::from_secs(1);

/// Passes the database to a child process.
const DATABASE: &str = "LARDER_BENCH_DATABASE";

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("larder-bench-").tempdir()?;
    let processes = Processes { path: folder.path().join("busy.db"), _folder: Arc::new(folder) };
    let tail = Quantile { processes: processes.clone(), of_thousand: 999, found: None };
    let median = Quantile { processes, of_thousand: 500, found: None };
    let row = Row::named("a commit beside 2 busy processes, FULL")
        .side_at_own_pace("99.9 % are quicker", tail)
        .side_at_own_pace("median", median)
        .goal("99.9 % to the median", Comparison::Ratio { of: 0, to: 1 }, 20.0);
    runner.measure(row).await
}

/// The database that the processes share.
#[derive(Clone)]
struct Processes {
    path: PathBuf,
    _folder: Arc<TempDir>,
}

impl Processes {
    /// Lets all of them commit, and returns the times of the commits in ascending order. No commit
    /// may fail.
    fn run(&self) -> Result<Vec<Duration>> {
        let children: Vec<Child> = (0..PROCESSES).map(|_| self.start()).collect::<Result<_>>()?;
        let mut times = Vec::new();
        for mut child in children {
            let output = child.stdout.take().context("the output of a process is not piped")?;
            for line in BufReader::new(output).lines() {
                times.push(Duration::from_nanos(line?.parse()?));
            }
            let status = child.wait()?;
            ensure!(status.success(), "a process failed with {status}");
        }
        times.sort_unstable();
        Ok(times)
    }

    fn start(&self) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(DATABASE, &self.path).stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(command.spawn()?)
    }
}

/// The time within which `of_thousand` of a thousand commits complete.
struct Quantile {
    processes: Processes,
    of_thousand: usize,
    found: Option<Duration>,
}

#[async_trait]
impl Side for Quantile {
    async fn run(&mut self, work: Work) -> Result<u64> {
        let times = tokio::task::block_in_place(|| self.processes.run())?;
        self.found = times.get(times.len() * self.of_thousand / 1_000).copied();
        ensure!(self.found.is_some(), "no process committed");
        Ok(work.count)
    }

    fn measured(&self) -> Option<Duration> {
        self.found
    }
}

/// Plays a process that commits, if the benchmark started this one as such.
pub(crate) fn played_by_this_process() -> Option<Result<ExitCode>> {
    let path = std::env::var_os(DATABASE)?;
    Some(commit_without_end(path.as_ref()).map(|()| ExitCode::SUCCESS))
}

fn commit_without_end(path: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let times = runtime.block_on(async {
        let backend = drivers().open(&format!("sqlite:{}?durability=full", path.display())).await?;
        let store = Store::builder_shared(backend).build()?;
        let times = commits(&store).await;
        store.close().await;
        times
    })?;
    let mut output = std::io::stdout().lock();
    for time in times {
        writeln!(output, "{}", time.as_nanos())?;
    }
    Ok(())
}

/// Commits one row after the other, and returns the time of each commit.
async fn commits(store: &Store) -> Result<Vec<Duration>> {
    let handle = store.handle(HandleOptions::default());
    let own = std::process::id();
    let mut times = Vec::new();
    let since = Instant::now();
    while since.elapsed() < BUSY {
        let mut transaction = handle.begin(Mode::Update)?;
        transaction.put("busy".into(), format!("{own}-{}", times.len() % 1_000), vec![1; 100])?;
        let begun = Instant::now();
        transaction.commit().await?;
        times.push(begun.elapsed());
    }
    Ok(times)
}
