//! Compares larder, called by a guest, with what a platform engineer would write by hand.

mod arguments;
mod crowd;
mod form;
mod groups;
mod guest;
mod larder_side;
mod measure;
mod native_postgres;
mod native_sqlite;
mod report;
mod row;
mod runner;
mod sqlite_fixture;
mod statistics;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::Parser as _;
use larder_postgres_server::{PostgresServer, URL_VARIABLE};

use arguments::Arguments;
use guest::Program;
use report::{Machine, Report};
use runner::{Bench, PostgresDatabase};

fn main() -> Result<ExitCode> {
    if let Some(played) = groups::played_by_this_process() {
        return played;
    }
    let arguments = Arguments::parse();
    // The server ends with the thread that started it, which is this one.
    let (server, postgres) = match arguments.observe {
        None if arguments.groups().iter().any(|group| group.needs_postgres()) => start_postgres(),
        _ => (None, Err("no group needs it".to_string())),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // On a thread of the runtime, like the tasks of an embedder.
    let outcome = runtime.block_on(runtime.spawn(run(arguments, postgres)));
    drop(runtime);
    drop(server);
    outcome?
}

/// Uses the server that the environment names, or starts a private one.
fn start_postgres() -> (Option<PostgresServer>, Result<PostgresDatabase, String>) {
    if let Ok(dsn) = std::env::var(URL_VARIABLE) {
        return (None, Ok(PostgresDatabase { dsn, is_private: false }));
    }
    match PostgresServer::start_with(&["synchronous_commit=on", "shared_buffers=256MB"]) {
        Ok(server) => {
            let dsn = server.dsn();
            (Some(server), Ok(PostgresDatabase { dsn, is_private: true }))
        }
        Err(error) => (None, Err(format!("{error:#}"))),
    }
}

async fn run(arguments: Arguments, postgres: Result<PostgresDatabase, String>) -> Result<ExitCode> {
    if let Some(case) = &arguments.observe {
        groups::observe(case).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let groups = arguments.groups();
    ensure!(!cfg!(debug_assertions), "a debug build gives no useful figures; run tests/bench/run");
    let bench = Bench {
        form: arguments.form(),
        row: arguments.row.clone().unwrap_or_default(),
        check: arguments.check,
        larder: Program::larder()?,
        postgres,
        command: command(),
    };
    let mut report = Report {
        command: std::iter::once("tests/bench/run".to_string())
            .chain(std::env::args().skip(1))
            .collect::<Vec<_>>()
            .join(" "),
        form: bench.form.name,
        rounds: bench.form.rounds,
        machine: Machine::look(),
        groups: Vec::new(),
    };
    let bench = Arc::new(bench);
    for group in groups {
        report.groups.push(group.measure(&bench).await?);
    }
    report.machine.note_end();
    report.write(&arguments.output)?;
    let (bounds, met) = report.met();
    println!("{met} of {bounds} bounds are met; see the report in {}", arguments.output.display());
    Ok(verdict(&report, arguments.check))
}

/// The program `larder`, which the benchmark's script builds next to this program.
fn command() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name("larder");
    path.is_file().then_some(path)
}

fn verdict(report: &Report, check: Option<f64>) -> ExitCode {
    let Some(factor) = check else { return ExitCode::SUCCESS };
    let failures = report.failures(factor);
    for failure in &failures {
        eprintln!("check: {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
