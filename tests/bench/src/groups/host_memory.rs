//! The growth of the host's memory.
//!
//! Each case runs in its own process. Otherwise it would reuse memory that an earlier case has
//! freed, which would not count.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use larder_bench_workload::{KEY_BYTES_MAX, KEY_BYTES_MIN, Shape};
use larder_host::{InMemory, Limits, Store};
use serde::{Deserialize, Serialize};

use crate::form::USUAL;
use crate::guest::Program;
use crate::report::{FigureReport, RowReport, Unit};
use crate::runner::Runner;
use crate::sqlite_fixture::{Durability, SqliteFixture};

/// The output of a child process.
#[derive(Debug, Serialize, Deserialize)]
struct Observed {
    before: u64,
    after: u64,
    /// The number by which the growth is divided.
    things: u64,
}

const ROWS: u64 = 1_000_000;
const TRANSACTIONS: u64 = 10_000;

/// The cases, their names, and what they count.
const CASES: [(&str, &str, &str); 3] = [
    ("rows-in-memory", "1,000,000 rows in memory, 100 bytes each", "a row"),
    ("transactions-in-memory", "10,000 open updates in memory, a get and a put in each", "an update"),
    ("transactions-on-sqlite", "10,000 open updates on SQLite, a put in each", "an update"),
];

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    for (case, name, thing) in CASES {
        let observed = tokio::task::block_in_place(|| in_own_process(case)).context(name)?;
        ensure!(observed.after > observed.before, "{name}: the memory of the process did not grow");
        let bytes = (observed.after - observed.before) as f64;
        let all = FigureReport::observed("in all", Unit::Mebibytes, bytes / f64::from(1 << 20));
        let each = FigureReport::observed(thing, Unit::Bytes, bytes / observed.things as f64);
        let mut figures = vec![each, all];
        if case == "rows-in-memory" {
            let key = (KEY_BYTES_MIN + KEY_BYTES_MAX) as f64 / 2.0;
            let row = key + f64::from(USUAL.value_bytes);
            figures.push(FigureReport::observed("of it, key and value", Unit::Bytes, row));
        }
        runner.add(RowReport { name: name.to_string(), sides: Vec::new(), figures });
    }
    Ok(())
}

fn in_own_process(case: &str) -> Result<Observed> {
    let output = Command::new(std::env::current_exe()?).args(["--observe", case]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Runs a case in a child process, and prints what it observed.
pub(crate) async fn observe(case: &str) -> Result<()> {
    let observed = match case {
        "rows-in-memory" => rows_in_memory().await?,
        "transactions-in-memory" => {
            let store = Store::builder(InMemory::new()).name("bench").build()?;
            open_transactions(&store, true).await?
        }
        "transactions-on-sqlite" => {
            let fixture = SqliteFixture::new(USUAL).await?;
            let (store, _) = fixture.store("larder", Durability::Normal).await?;
            // Larder has at most 64 connections with a snapshot, and every update that reads would
            // need one.
            open_transactions(&store, false).await?
        }
        _ => bail!("unknown case {case:?}"),
    };
    println!("{}", serde_json::to_string(&observed)?);
    Ok(())
}

async fn rows_in_memory() -> Result<Observed> {
    let program = Program::larder()?;
    let store = Store::builder(InMemory::new()).name("bench").build()?;
    let mut guest = program.instance(&store).await?;
    guest.open(Shape { rows: ROWS, ..USUAL }).await?;
    // The guest's own memory has grown by then.
    guest.fill(0, 2_000).await?;
    let before = resident_bytes()?;
    guest.fill(2_000, ROWS).await?;
    Ok(Observed { before, after: resident_bytes()?, things: ROWS })
}

async fn open_transactions(store: &Store, read: bool) -> Result<Observed> {
    let program = Program::larder()?;
    let mut filler = program.instance(store).await?;
    filler.open(USUAL).await?;
    filler.fill(0, 2_000).await?;
    // A warm-up, before the updates that count.
    filler.hold(10, read).await?;
    let limits = Limits::default().open_transactions(TRANSACTIONS).open_stores(4);
    let mut guest = program.instance_within(store, limits).await?;
    guest.open(USUAL).await?;
    let before = resident_bytes()?;
    guest.hold(TRANSACTIONS, read).await?;
    Ok(Observed { before, after: resident_bytes()?, things: TRANSACTIONS })
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm
        .split_whitespace()
        .nth(1)
        .context("cannot read the resident pages from /proc/self/statm")?
        .parse()?;
    Ok(pages * page_bytes()?)
}

/// The size of the kernel's pages, in which it counts memory.
fn page_bytes() -> Result<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let line = smaps.lines().find_map(|line| line.strip_prefix("KernelPageSize:"));
    let kilobytes = line
        .and_then(|line| line.split_whitespace().next())
        .context("cannot read the page size from /proc/self/smaps")?;
    Ok(kilobytes.parse::<u64>()? * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_used_is_seen() {
        let before = resident_bytes().unwrap();
        let bytes = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = resident_bytes().unwrap();
        assert!(after > before + (60 << 20), "{before} {after} {}", bytes.len());
    }
}
