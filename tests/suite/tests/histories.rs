//! Checks that many concurrent transactions are serializable, with `support/serializable.rs`, and
//! that versions only grow.
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use larder_core::{Error, Handle, Mode, Store, Transaction, Version};
use larder_host::drivers;
use larder_suite::{InMemoryTestBed, PostgresTestBed, SqliteTestBed, TestBed};
use support::broken::{BrokenTestBed, Defect};
use support::counting::handle;
use support::serializable::{Made, check};
use support::{harness, postgres_server};

/// The length of each history in seconds. `LARDER_HISTORY_SECONDS` overrides it.
const SECONDS: u64 = 3;
const TASKS: u64 = 16;

/// Few rows, so that transactions conflict. Half of them are in another namespace.
const ROWS: u64 = 8;

type Outcome = Result<(), String>;

/// How errors begin that say nothing about the store.
const TOO_FEW: &str = "too few transactions";

/// What an error says if a view is older than a commit before it.
const STALE: &str = "was followed by a view of";

/// A test bed, or why it is not available.
type MadeTestBed = Result<Arc<dyn TestBed>, String>;

fn main() {
    let arguments = harness::arguments();
    let runtime = harness::runtime();
    let postgres = if arguments.list { Err("only listed".to_string()) } else { start_postgres() };
    let (server, postgres) = match postgres {
        Ok((server, test_bed)) => (server, Ok(test_bed)),
        Err(error) => (None, Err(error)),
    };
    let test_beds: [(&str, MadeTestBed); 3] = [
        ("in_memory", Ok(Arc::new(InMemoryTestBed))),
        ("on_sqlite", Ok(Arc::new(SqliteTestBed::in_temporary_folder(drivers())))),
        ("on_postgres", postgres.map(|test_bed| Arc::new(test_bed) as Arc<dyn TestBed>)),
    ];
    let mut trials = Vec::new();
    trials.push(harness::trial(&runtime, "a_backend_that_ForgetsReads_is_found_out", || async {
        match transactions_at_once_are_serializable(&BrokenTestBed(Defect::ForgetsReads)).await {
            Ok(()) => Err("its transactions were taken to be serializable".to_string()),
            Err(reason) if reason.starts_with(TOO_FEW) => Err(reason),
            Err(_) => Ok(()),
        }
    }));
    trials.push(harness::trial(&runtime, "a_backend_that_FillsDuringCommits_is_found_out", || async {
        match a_view_after_a_commit_shows_it(&BrokenTestBed(Defect::FillsDuringCommits)).await {
            Ok(()) => Err("every view showed the last commit".to_string()),
            Err(reason) if reason.contains(STALE) => Ok(()),
            Err(reason) => Err(reason),
        }
    }));
    for (name, test_bed) in test_beds {
        let serializable = test_bed.clone();
        trials.push(harness::trial(
            &runtime,
            format!("transactions_at_once_are_serializable_{name}"),
            || async move { transactions_at_once_are_serializable(serializable?.as_ref()).await },
        ));
        let fresh = test_bed.clone();
        trials.push(harness::trial(
            &runtime,
            format!("a_view_after_a_commit_shows_it_whatever_was_read_meanwhile_{name}"),
            || async move { a_view_after_a_commit_shows_it(fresh?.as_ref()).await },
        ));
        trials.push(harness::trial(
            &runtime,
            format!("versions_of_a_row_only_grow_also_across_its_delete_{name}"),
            || async move { versions_of_a_row_only_grow_also_across_its_delete(test_bed?.as_ref()).await },
        ));
    }
    harness::run(&arguments, trials, || drop(server));
}

fn start_postgres() -> Result<(Option<postgres_server::PostgresServer>, PostgresTestBed), String> {
    let (server, dsn) = postgres_server::server_or_url().map_err(|error| format!("{error:#}"))?;
    Ok((server, PostgresTestBed { dsn, drivers: drivers() }))
}

fn until() -> Instant {
    let seconds = std::env::var("LARDER_HISTORY_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS))
}

/// Yields to other tasks and returns whether time is left. In-memory transactions never yield, so
/// without it a few tasks would keep the threads of the runtime to the end.
async fn goes_on(until: Instant) -> bool {
    tokio::task::yield_now().await;
    Instant::now() < until
}

async fn store(test_bed: &dyn TestBed) -> Result<(Store, Box<dyn larder_suite::Scratch>), String> {
    let scratch = test_bed.scratch().await.map_err(|error| format!("{error:#}"))?;
    let backend = scratch.open().await.map_err(|error| format!("{error:#}"))?;
    let store = Store::builder_shared(backend).build().map_err(|error| error.to_string())?;
    Ok((store, scratch))
}

fn namespace(row: u64) -> String {
    if row.is_multiple_of(2) { "even" } else { "odd" }.to_string()
}

fn key(row: u64) -> String {
    format!("row-{row}")
}

// Serializability.

async fn transactions_at_once_are_serializable(test_bed: &dyn TestBed) -> Outcome {
    let (store, scratch) = store(test_bed).await?;
    let (until, numbers) = (until(), Arc::new(AtomicU64::new(1)));
    let made = Arc::new(Mutex::new(BTreeMap::from([(0, Made::default())])));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (handle, numbers, made) = (handle(&store), numbers.clone(), made.clone());
            tokio::spawn(async move {
                let mut random = Rng::with_seed(task);
                while goes_on(until).await {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    match transact(&handle, &mut random, number).await {
                        Ok(one) => drop(made.lock().expect("a task panicked").insert(number, one)),
                        Err(Error::Conflict) => {}
                        Err(error) => return Err(error.to_string()),
                    }
                }
                Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(|error| error.to_string())??;
    }
    store.close().await;
    drop(scratch);
    let made = std::mem::take(&mut *made.lock().expect("a task panicked"));
    enough(&made)?;
    check(&made)
}

fn enough(made: &BTreeMap<u64, Made>) -> Outcome {
    let updates = made.values().filter(|one| !one.written.is_empty()).count();
    if updates < 100 || made.len() - updates < 20 {
        return Err(format!("{TOO_FEW}: {updates} updates of {}", made.len()));
    }
    Ok(())
}

/// Makes one random transaction.
async fn transact(handle: &Handle, random: &mut Rng, number: u64) -> Result<Made, Error> {
    let mut one = Made::default();
    let is_view = random.u8(0..4) == 0;
    let mut transaction = handle.begin(if is_view { Mode::View } else { Mode::Update })?;
    // A third of the updates read nothing.
    let reads = if is_view { random.usize(1..4) } else { random.usize(0..3) };
    for read in 0..reads {
        if random.u8(0..4) == 0 {
            scan(&mut transaction, random.bool(), number, &mut one).await?;
        } else {
            let row = random.u64(0..ROWS);
            let value = transaction.get(namespace(row), key(row)).await?;
            one.note(row, value.as_deref(), number)?;
        }
        // Some updates write between their reads.
        if !is_view && read == 0 && random.bool() {
            stage(&mut transaction, random.u64(0..ROWS), number, &mut one)?;
        }
    }
    if !is_view {
        for _ in 0..random.usize(1..4) {
            stage(&mut transaction, random.u64(0..ROWS), number, &mut one)?;
        }
    }
    one.version = transaction.commit().await?;
    Ok(one)
}

fn stage(transaction: &mut Transaction, row: u64, number: u64, one: &mut Made) -> Result<(), Error> {
    transaction.put(namespace(row), key(row), number.to_string().into_bytes())?;
    if !one.written.contains(&row) {
        one.written.push(row);
    }
    Ok(())
}

async fn scan(
    transaction: &mut Transaction,
    is_even: bool,
    number: u64,
    one: &mut Made,
) -> Result<(), Error> {
    let rows: Vec<u64> = (0..ROWS).filter(|row| (row % 2 == 0) == is_even).collect();
    let found = transaction.scan(namespace(u64::from(!is_even)), "row-".to_string()).await?;
    for row in rows {
        let value = found.iter().find(|entry| entry.key == key(row)).map(|entry| entry.value.as_slice());
        one.note(row, value, number)?;
    }
    Ok(())
}

// Freshness.

/// Commits that are followed by a view.
const COMMITS: u64 = 300;

/// Commits a counter while other tasks read it. A view that begins after a commit must show it,
/// also if a read during the commit has put the row into a cache.
async fn a_view_after_a_commit_shows_it(bed: &dyn TestBed) -> Outcome {
    let (store, scratch) = store(bed).await?;
    let is_done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (handle, is_done) = (handle(&store), is_done.clone());
            tokio::spawn(async move {
                while !is_done.load(Ordering::Relaxed) {
                    let mut view = handle.begin(Mode::View)?;
                    match view.get("even".to_string(), "row-0".to_string()).await {
                        Ok(_) | Err(Error::Conflict) => tokio::task::yield_now().await,
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            })
        })
        .collect();
    let mut outcome = Ok(());
    let handle = handle(&store);
    for number in 0..COMMITS {
        outcome = shows_its_commit(&handle, number).await;
        if outcome.is_err() {
            break;
        }
    }
    is_done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    }
    store.close().await;
    drop(scratch);
    outcome
}

async fn shows_its_commit(handle: &Handle, number: u64) -> Outcome {
    let value = number.to_string().into_bytes();
    let mut update = handle.begin(Mode::Update).map_err(|error| error.to_string())?;
    let put = update.put("even".to_string(), "row-0".to_string(), value.clone());
    put.map_err(|error| error.to_string())?;
    update.commit().await.map_err(|error| error.to_string())?;
    loop {
        let mut view = handle.begin(Mode::View).map_err(|error| error.to_string())?;
        match view.get("even".to_string(), "row-0".to_string()).await {
            Ok(found) if found.as_ref() == Some(&value) => return Ok(()),
            Err(Error::Conflict) => {}
            found => return Err(format!("commit {number} {STALE} {found:?}")),
        }
    }
}

// Versions.

async fn versions_of_a_row_only_grow_also_across_its_delete(test_bed: &dyn TestBed) -> Outcome {
    let (store, scratch) = store(test_bed).await?;
    let until = until();
    // The largest version of each row that any task knows.
    let heard: Arc<Vec<AtomicU64>> = Arc::new((0..ROWS).map(|_| AtomicU64::new(0)).collect());
    let commits = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (handle, heard, commits) = (handle(&store), heard.clone(), commits.clone());
            tokio::spawn(async move {
                let mut random = Rng::with_seed(task);
                while goes_on(until).await {
                    change(&handle, &mut random, &heard).await?;
                    commits.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(|error| error.to_string())??;
    }
    store.close().await;
    drop(scratch);
    let commits = commits.load(Ordering::Relaxed);
    if commits < 200 { Err(format!("too few commits: {commits}")) } else { Ok(()) }
}

/// Puts and deletes one or a few rows, and reads one. Their versions must exceed those known
/// before.
async fn change(handle: &Handle, random: &mut Rng, heard: &[AtomicU64]) -> Outcome {
    let known: Vec<u64> = heard.iter().map(|version| version.load(Ordering::SeqCst)).collect();
    let place = |row: u64| usize::try_from(row).unwrap_or_default();
    let mut update = handle.begin(Mode::Update).map_err(|error| error.to_string())?;
    let mut rows: Vec<u64> = (0..ROWS).collect();
    random.shuffle(&mut rows);
    rows.truncate(if random.bool() { 1 } else { random.usize(2..5) });
    for row in &rows {
        let staged = match random.bool() {
            true => update.put(namespace(*row), key(*row), b"value".to_vec()),
            false => update.delete(namespace(*row), key(*row)),
        };
        staged.map_err(|error| error.to_string())?;
    }
    let made = update.commit().await.map_err(|error| error.to_string())?.0;
    for row in rows {
        if made <= known[place(row)] {
            return Err(format!(
                "row {row} was written at version {made}, but version {} was known before",
                known[place(row)]
            ));
        }
        heard[place(row)].fetch_max(made, Ordering::SeqCst);
    }
    let row = random.u64(0..ROWS);
    let known = heard[place(row)].load(Ordering::SeqCst);
    let mut view = handle.begin(Mode::View).map_err(|error| error.to_string())?;
    let found = view.get_versioned(namespace(row), key(row)).await.map_err(|error| error.to_string())?;
    let Some((_, Version(found))) = found else { return Ok(()) };
    if found < known {
        return Err(format!("row {row} is at version {found}, but version {known} was known before"));
    }
    heard[place(row)].fetch_max(found, Ordering::SeqCst);
    Ok(())
}
