//! `larder conformance`: runs the conformance suite on a backend.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use larder_host::drivers;
use larder_suite::{CaseResult, Suite, TestBed, test_bed_for};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::output::{heard, output};
use crate::signals::{self, ended};

/// Run the conformance suite on a backend
///
/// Each case runs in a new store beside the store DSN, which is never changed: a temporary file in
/// the same directory, a separate schema in the same database, or a tenant below a separate prefix
/// of the same bucket or directory.
#[derive(Args)]
pub(crate) struct Conformance {
    /// Data-source name of the backend to test; see `larder --help`
    #[arg(long, value_name = "DSN")]
    store: String,
    /// Run only cases whose name contains TEXT
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Number of cases to run at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    jobs: usize,
    /// Print one JSON object per case instead of a table
    #[arg(long)]
    json: bool,
}

impl Conformance {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        signals::catch()?;
        let results = signals::closed(self.run().await)?;
        heard(if self.json { print_json(&results) } else { print_table(&results) })?;
        let has_failed = results.values().any(Result::is_err);
        Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    async fn run(&self) -> Result<BTreeMap<String, CaseResult>> {
        let test_bed = test_bed_for(&self.store, drivers()).await?;
        let results = self.run_on(&test_bed).await;
        let removed = test_bed.end().await.context("cannot remove the stores of the cases");
        results.and_then(|results| removed.map(|()| results))
    }

    async fn run_on(&self, test_bed: &Arc<dyn TestBed>) -> Result<BTreeMap<String, CaseResult>> {
        let suite = Suite::load().await?;
        check_suite(&suite, test_bed).await?;
        let cases: Vec<String> =
            suite.cases().iter().filter(|name| name.contains(&self.filter)).cloned().collect();
        if cases.is_empty() {
            bail!("no case has a name that contains {:?}", self.filter);
        }
        run_all(&suite, test_bed, cases, self.jobs).await
    }
}

/// Checks that cases which are wrong on purpose fail: a runner that lets them pass would let every
/// case pass.
async fn check_suite(suite: &Suite, test_bed: &Arc<dyn TestBed>) -> Result<()> {
    for (name, result) in run_all(suite, test_bed, suite.planted().to_vec(), 1).await? {
        if result.is_ok() {
            bail!("the results are not reliable: the case {name}, which is wrong on purpose, passed");
        }
    }
    Ok(())
}

/// Runs cases concurrently. If the command is ended, no further case starts, and the running cases
/// remove their stores.
async fn run_all(
    suite: &Suite,
    test_bed: &Arc<dyn TestBed>,
    cases: Vec<String>,
    jobs: usize,
) -> Result<BTreeMap<String, CaseResult>> {
    let progress = ProgressBar::new(cases.len() as u64);
    progress.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?);
    let permits = Arc::new(Semaphore::new(jobs.max(1)));
    let mut running = JoinSet::new();
    for name in cases {
        let (suite, test_bed, permits) = (suite.clone(), test_bed.clone(), permits.clone());
        running.spawn(async move {
            let _permit = permits.acquire().await.ok()?;
            let result = suite.run(&name, test_bed.as_ref()).await;
            Some((name, result))
        });
    }
    let stopping = tokio::spawn(async move {
        let ended = ended().await;
        permits.close();
        ended
    });
    let mut results = BTreeMap::new();
    while let Some(finished) = running.join_next().await {
        let Some((name, result)) = finished? else { continue };
        progress.set_message(name.clone());
        progress.inc(1);
        results.insert(name, result);
    }
    progress.finish_and_clear();
    match stopping.is_finished() {
        true => Err(stopping.await?.into()),
        false => {
            stopping.abort();
            Ok(results)
        }
    }
}

fn print_json(results: &BTreeMap<String, CaseResult>) -> Result<()> {
    for (name, result) in results {
        let error = result.as_ref().err();
        let line = serde_json::json!({ "case": name, "passed": error.is_none(), "error": error });
        writeln!(output(), "{line}")?;
    }
    Ok(())
}

fn print_table(results: &BTreeMap<String, CaseResult>) -> Result<()> {
    let mut groups: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (name, result) in results {
        let group = name.split("::").next().unwrap_or_default();
        let (passed, failed) = groups.entry(group).or_default();
        *if result.is_ok() { passed } else { failed } += 1;
    }
    let mut output = output();
    writeln!(output, "{:<16} {:>6} {:>6}", "group", "passed", "failed")?;
    for (group, (passed, failed)) in &groups {
        writeln!(output, "{group:<16} {passed:>6} {failed:>6}")?;
    }
    for (name, result) in results {
        if let Err(error) = result {
            writeln!(output, "\n{name}\n    {error}")?;
        }
    }
    let failed = results.values().filter(|result| result.is_err()).count();
    writeln!(output, "\n{} passed, {failed} failed", results.len() - failed)?;
    Ok(())
}
