//! Plants small defects in a crate, one at a time, and reports those that its tests do not notice.
//!
//! All defects are compiled into one build, each behind a switch that an environment variable sets.
//! So a defect costs the run of the tests that execute its code, and no build.

mod equivalent;
mod points;
mod runs;
mod switch;
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::equivalent::Equivalent;
use crate::runs::{Tests, Verdict};
use crate::tree::{Mutant, Tree};

/// Plant small defects, one at a time, and report those that no test notices
#[derive(Debug, Parser)]
struct Options {
    /// Folders of the crates that get the defects
    #[arg(default_values = ["host/schema", "host/core", "host/sqlite"])]
    crates: Vec<String>,
    /// Only files whose path contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    file: Vec<String>,
    /// Only defects whose description contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    defect: Vec<String>,
    /// Only files that differ from this revision of git
    #[arg(long, value_name = "REVISION")]
    since: Option<String>,
    /// Try every n-th defect, so that about this many are tried
    #[arg(long, value_name = "COUNT")]
    sample: Option<usize>,
    /// Try only the defects that an earlier run, whose output is in this file, did not notice
    #[arg(long, value_name = "FILE")]
    again: Option<PathBuf>,
    /// Run the tests of this package, not those of the crates; may be given several times
    #[arg(long, value_name = "PACKAGE")]
    tests: Vec<String>,
    /// Fail if the tests notice fewer than this percentage of 20 defects or more
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    least: f64,
    /// List the defects, and try none
    #[arg(long)]
    list: bool,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let workspace = workspace()?;
    let changed = options.since.as_deref().map(|revision| changed_since(&workspace, revision)).transpose()?;
    let is_wanted = |path: &str| {
        (options.file.is_empty() || options.file.iter().any(|text| path.contains(text)))
            && changed.as_ref().is_none_or(|changed| changed.iter().any(|name| name == path))
    };
    let mut tree = Tree::new(&workspace, &options.crates, &is_wanted)?;
    if tree.mutants().is_empty() {
        println!("no source file that is wanted has a place for a defect");
        return Ok(ExitCode::SUCCESS);
    }
    let mut packages = options.tests.clone();
    if packages.is_empty() {
        let own = options.crates.iter().map(|folder| package(&workspace.join(folder)));
        packages = own.collect::<Result<_>>()?;
    }
    let programs = tree.build(&packages)?;
    let equivalent = Equivalent::read(&workspace.join("tests/mutants/equivalent.txt"))?;
    let mut mutants = tree.mutants();
    let stale: Vec<_> = equivalent.stale(&mutants).cloned().collect();
    ensure!(stale.is_empty(), "equivalent.txt lists what no longer exists:\n{}", stale.join("\n"));
    mutants.retain(|mutant| !equivalent.contains(mutant));
    mutants.retain(|mutant| {
        options.defect.is_empty() || options.defect.iter().any(|text| mutant.key.contains(text.as_str()))
    });
    if let Some(earlier) = &options.again {
        let text = std::fs::read_to_string(earlier).with_context(|| earlier.display().to_string())?;
        mutants.retain(|mutant| text.lines().any(|line| line.ends_with(&format!(" {}", mutant.key))));
    }
    if let Some(sample) = options.sample {
        let step = mutants.len().div_ceil(sample.max(1)).max(1);
        mutants = mutants.into_iter().step_by(step).collect();
    }
    if options.list {
        mutants.iter().for_each(|mutant| println!("{}:{} {}", mutant.file, mutant.line, mutant.key));
        return Ok(ExitCode::SUCCESS);
    }
    if mutants.is_empty() {
        println!("no defect is left to try");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{} defects; running the tests without one", mutants.len());
    let tests = Tests::look(programs, &workspace.join("target/mutants"))?;
    let verdicts = try_all(&tests, &mutants)?;
    Ok(report(&mutants, &verdicts, options.least))
}

/// Tries the defects on all processors.
fn try_all(tests: &Tests, mutants: &[Mutant]) -> Result<Vec<Verdict>> {
    let (next, verdicts) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(mutant) = mutants.get(index) else { return Ok(()) };
            let verdict = tests.try_to_kill(mutant.number)?;
            if matches!(verdict, Verdict::Survived | Verdict::Unreached) {
                println!("{verdict:?} {}:{} {}", mutant.file, mutant.line, mutant.key);
            }
            let mut verdicts = verdicts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            verdicts.push((index, verdict));
        }
    };
    let threads = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok(())
    })?;
    let mut verdicts = verdicts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    verdicts.sort_by_key(|(index, _)| *index);
    Ok(verdicts.into_iter().map(|(_, verdict)| verdict).collect())
}

/// Prints a row for each file, and says whether enough defects were noticed.
fn report(mutants: &[Mutant], verdicts: &[Verdict], least: f64) -> ExitCode {
    let count = |file: Option<&str>, verdict: Verdict| {
        let of_file =
            mutants.iter().zip(verdicts).filter(|(mutant, _)| file.is_none_or(|name| mutant.file == name));
        of_file.filter(|(_, found)| **found == verdict).count()
    };
    let mut files: Vec<_> = mutants.iter().map(|mutant| mutant.file.as_str()).collect();
    files.dedup();
    println!("\n| file | killed | timed out | survived | unreached | noticed |\n|---|---|---|---|---|---|");
    let mut noticed = 100.0;
    for file in files.into_iter().map(Some).chain([None]) {
        let [killed, late, survived, unreached] =
            [Verdict::Killed, Verdict::TimedOut, Verdict::Survived, Verdict::Unreached]
                .map(|verdict| count(file, verdict));
        let all = killed + late + survived + unreached;
        noticed = 100.0 * (killed + late) as f64 / all.max(1) as f64;
        let name = file.unwrap_or("all");
        println!("| {name} | {killed} | {late} | {survived} | {unreached} | {noticed:.1} % |");
    }
    // Of a few defects, one or two decide.
    if noticed < least && mutants.len() >= 20 {
        eprintln!("the tests notice {noticed:.1} % of the defects, and have to notice {least} %");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn workspace() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = folder.ancestors().nth(2).context("the crate is two folders below the workspace")?;
    Ok(workspace.to_owned())
}

fn changed_since(workspace: &Path, revision: &str) -> Result<Vec<String>> {
    let mut command = Command::new("git");
    let output = command.args(["diff", "--name-only", revision]).current_dir(workspace).output()?;
    ensure!(output.status.success(), "git diff {revision:?} failed: is that a revision?");
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_string).collect())
}

/// The name of the package in a folder.
fn package(folder: &Path) -> Result<String> {
    let manifest = folder.join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
    let name = text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    name.map(str::to_string).with_context(|| format!("{} has no name", manifest.display()))
}
