//! Fairness: a guest's latency beside attackers, compared with its latency beside well-behaved
//! guests.

mod attack;
mod bounds;
mod cell;
mod held_thread;
mod mover;
mod neighbours;
mod prepare;
mod table;
mod victim;
mod watch;

use std::path::Path;

use anyhow::Result;
use tempfile::TempDir;

use super::postgres;
use crate::runner::{ATTEMPTS_MAX, Runner};
use attack::{ALL, Attack, AttackedStore, Backend};
pub(crate) use cell::played_by_this_process;
use cell::{Cell, IN_MEMORY, Outcome, Pace};

/// The schemas of the victim's store and of the other one on Postgres.
const SCHEMAS: [&str; 2] = ["larder_bench_victim", "larder_bench_other"];

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    println!("{}", table::HEAD);
    let cache = tempfile::Builder::new().prefix("larder-bench-").tempdir()?;
    for backend in Backend::ALL {
        let cells: Vec<(Attack, AttackedStore)> = cells(runner, backend);
        if cells.is_empty() {
            continue;
        }
        if let (Backend::Postgres, Err(reason)) = (backend, &runner.bench.postgres) {
            runner.skip(format!("the rows on Postgres: {reason}"));
            continue;
        }
        if backend == Backend::Postgres {
            postgres::stop_waiting_for_disk(runner).await?;
        }
        for (attack, attacked) in cells {
            measure_cell(runner, attack, backend, attacked, cache.path()).await?;
        }
    }
    Ok(())
}

fn cells(runner: &Runner<'_>, backend: Backend) -> Vec<(Attack, AttackedStore)> {
    let (row, is_full) = (&runner.bench.row, runner.bench.form.growth);
    let pairs = ALL.into_iter().flat_map(|attack| AttackedStore::ALL.map(|attacked| (attack, attacked)));
    pairs
        .filter(|(attack, attacked)| is_full || attack.is_short(backend, *attacked))
        .filter(|(attack, attacked)| name(*attack, backend, *attacked).contains(row))
        .collect()
}

fn name(attack: Attack, backend: Backend, attacked: AttackedStore) -> String {
    format!("{}, {}, {}", attack.name, backend.name(), attacked.name())
}

/// Measures a cell, repeats it if it fails the check, and prints its row.
async fn measure_cell(
    runner: &mut Runner<'_>,
    attack: Attack,
    backend: Backend,
    attacked: AttackedStore,
    cache: &Path,
) -> Result<()> {
    let name = name(attack, backend, attacked);
    let mut attempts = 1;
    loop {
        let outcome = attempt(runner, attack, backend, attacked, cache).await;
        let row = outcome.as_ref().ok().map(|outcome| table::row(&name, outcome));
        let fails = match (&row, runner.bench.check) {
            (Some(row), Some(factor)) => row.fails(factor),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if fails && attempts < ATTEMPTS_MAX {
            attempts += 1;
            continue;
        }
        match (outcome, row) {
            (Ok(outcome), Some(row)) => {
                println!("{}", table::line(&name, &outcome));
                say_what_failed(&outcome);
                runner.add_printed(row);
            }
            (Err(error), _) => runner.skip(format!("{name}: {error:#}")),
            (Ok(_), None) => {}
        }
        return Ok(());
    }
}

fn say_what_failed(outcome: &Outcome) {
    if let Some(failure) = &outcome.first_failure {
        eprintln!("  a call of the victim failed: {failure}");
    }
    if let Some(refusal) = outcome.first_refusal.as_ref().filter(|_| outcome.refusals > outcome.operations) {
        eprintln!("  most operations of the attack were refused: {refusal}");
    }
}

/// Measures a cell once, in fresh stores.
async fn attempt(
    runner: &Runner<'_>,
    attack: Attack,
    backend: Backend,
    attacked: AttackedStore,
    cache: &Path,
) -> Result<Outcome> {
    let folder = tempfile::Builder::new().prefix("larder-bench-").tempdir()?;
    let [victim, other] = stores(runner, backend, &folder).await?;
    let cell = Cell {
        attack: attack.name.to_string(),
        pace: if runner.bench.form.growth { Pace::FULL } else { Pace::SHORT },
        victim,
        other: (attacked == AttackedStore::OtherStore).then_some(other),
        stores: folder.path().join("stores"),
        cache: cache.to_path_buf(),
        outcome: folder.path().join("outcome"),
    };
    tokio::task::block_in_place(|| cell.measure())
}

/// The data-source names of two new stores.
async fn stores(runner: &Runner<'_>, backend: Backend, folder: &TempDir) -> Result<[String; 2]> {
    match (backend, &runner.bench.postgres) {
        (Backend::Postgres, Ok(database)) => {
            let client = postgres::connect(&database.dsn).await?;
            for schema in SCHEMAS {
                let anew = format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}");
                client.batch_execute(&anew).await?;
            }
            Ok(SCHEMAS.map(|schema| postgres::within(&database.dsn, schema)))
        }
        (Backend::Sqlite | Backend::Tenants, _) => {
            let stores = folder.path().join("stores");
            std::fs::create_dir(&stores)?;
            Ok(["victim", "other"].map(|name| match backend {
                Backend::Tenants => tenant(&stores, name),
                _ => format!("sqlite:{}", stores.join(name).display()),
            }))
        }
        _ => Ok([IN_MEMORY, IN_MEMORY].map(String::from)),
    }
}

/// The data-source name of a tenant whose object storage is a folder. Each has its own cache
/// folder, because a driver opens only one tenant.
fn tenant(stores: &Path, name: &str) -> String {
    let stores = stores.display();
    format!("tenants+file://{stores}/objects?tenant=bench/users/{name}&cache={stores}/cache-{name}")
}
