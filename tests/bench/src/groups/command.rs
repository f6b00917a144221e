//! `larder run` as a whole command, with and without code that an earlier run has compiled.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use tempfile::TempDir;

use crate::row::{Comparison, Row, Side, Work};
use crate::runner::Runner;

/// The input of the catalog, and a query with its answer.
const STANZAS: &str = "Package: shell\nVersion: 5.3\nDepends: libcore\n\nPackage: libcore\nVersion: 2.38\n";
const ASKED: [&str; 2] = ["needs", "libcore"];
const ANSWER: &[u8] = b"shell\n";

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    let Some(program) = runner.bench.command.clone() else {
        runner.skip(
            "`larder run`: the program `larder` is not in the folder of this one; build it with tests/bench/run".into(),
        );
        return Ok(());
    };
    let folder = tempfile::Builder::new().prefix("larder-bench-").tempdir()?;
    let larder = Larder { program, store: folder.path().join("catalog.db") };
    let cache = folder.path().join("cache");
    tokio::task::block_in_place(|| larder.load(&cache))?;
    let cold = Cold { larder: larder.clone(), folder, runs: 0 };
    let warm = Warm { larder, cache };
    let row = Row::named("second `larder run`")
        .side("compiled before", warm)
        .side_at_own_pace("compiling", cold)
        .goal("whole command", Comparison::Milliseconds { of: 0 }, 40.0)
        .goal("to one that compiles", Comparison::Ratio { of: 0, to: 1 }, None);
    runner.measure(row).await
}

/// The program `larder`, and the store for its runs.
#[derive(Clone)]
struct Larder {
    program: PathBuf,
    store: PathBuf,
}

impl Larder {
    fn command(&self, cache: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("run").arg(larder_artifacts::CATALOG);
        command.arg("--store").arg(format!("default=sqlite:{}", self.store.display()));
        command.env("XDG_CACHE_HOME", cache).stderr(Stdio::inherit()).stdin(Stdio::null());
        command
    }

    /// Fills the store, which also fills the cache.
    fn load(&self, cache: &Path) -> Result<()> {
        let input = self.store.with_extension("stanzas");
        std::fs::write(&input, STANZAS)?;
        let input = std::fs::File::open(&input)?;
        let status = self.command(cache).stdin(input).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "loading the catalog failed with {status}");
        self.ask(cache)
    }

    fn ask(&self, cache: &Path) -> Result<()> {
        let output = self.command(cache).arg("--").args(ASKED).output().context("cannot start larder")?;
        ensure!(output.status.success(), "larder failed with {}", output.status);
        ensure!(
            output.stdout == ANSWER,
            "larder printed an unexpected answer {:?}",
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(())
    }
}

struct Warm {
    larder: Larder,
    cache: PathBuf,
}

#[async_trait]
impl Side for Warm {
    async fn run(&mut self, work: Work) -> Result<u64> {
        for _ in 0..work.count {
            tokio::task::block_in_place(|| self.larder.ask(&self.cache))?;
        }
        Ok(work.count)
    }
}

/// Finds no compiled code, and compiles it.
struct Cold {
    larder: Larder,
    folder: TempDir,
    runs: u64,
}

#[async_trait]
impl Side for Cold {
    async fn run(&mut self, work: Work) -> Result<u64> {
        for _ in 0..work.count {
            self.runs += 1;
            let cache = self.folder.path().join(format!("cold{}", self.runs));
            tokio::task::block_in_place(|| self.larder.ask(&cache))?;
        }
        Ok(work.count)
    }
}
