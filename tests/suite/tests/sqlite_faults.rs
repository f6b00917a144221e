//! SQLite files that several processes use, whose processes are killed, and whose disk is full. The
//! program runs itself as a child process where a test needs one.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder_core::{Error, Handle, HandleOptions, Mode, Store, Version};
use larder_sqlite::{Sqlite, SqliteOptions};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use support::harness;
use tempfile::TempDir;

type Outcome = Result<(), String>;

/// The role and the file of a child process.
const ROLE: &str = "LARDER_FAULT_ROLE";
const FILE: &str = "LARDER_FAULT_FILE";

fn main() {
    let runtime = harness::runtime();
    if let (Ok(role), Ok(file)) = (std::env::var(ROLE), std::env::var(FILE)) {
        return runtime.block_on(play(&role, file.as_ref()));
    }
    let arguments = harness::arguments();
    let trials = vec![
        harness::trial(
            &runtime,
            "processes_that_update_one_row_lose_nothing",
            processes_that_update_one_row_lose_nothing,
        ),
        harness::trial(
            &runtime,
            "processes_that_open_one_fresh_file_all_succeed",
            processes_that_open_one_fresh_file_all_succeed,
        ),
        harness::trial(
            &runtime,
            "what_another_process_committed_is_seen_though_rows_are_cached",
            what_another_process_committed_is_seen_though_rows_are_cached,
        ),
        harness::trial(
            &runtime,
            "what_was_acknowledged_is_there_after_a_kill",
            what_was_acknowledged_is_there_after_a_kill,
        ),
        harness::trial(
            &runtime,
            "a_full_disk_is_unavailable_and_loses_nothing",
            a_full_disk_is_unavailable_and_loses_nothing,
        ),
    ];
    harness::run(&arguments, trials, || ());
}

async fn play(role: &str, file: &Path) {
    match role {
        "count" => count(file).await,
        "open" => drop(open(file).await),
        "number" => number(file).await,
        "rewrite" => rewrite(file).await,
        "fill" => fill(file).await,
        _ => panic!("unknown role {role:?}"),
    }
}

fn start(role: &str, file: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, role).env(FILE, file).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn succeeds(mut child: Child) -> Outcome {
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("a child process ended with {status}")) }
}

async fn open(file: &Path) -> Store {
    Store::builder(Sqlite::open(file, SqliteOptions::default()).await.unwrap()).build().unwrap()
}

fn handle(store: &Store) -> Handle {
    store.handle(HandleOptions::default())
}

async fn get(store: &Store, key: &str) -> Option<String> {
    let value = handle(store).begin(Mode::View).unwrap().get("n".into(), key.into()).await.unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}

async fn put(store: &Store, key: &str, value: Vec<u8>) -> Result<Version, Error> {
    let mut update = handle(store).begin(Mode::Update)?;
    update.put("n".into(), key.into(), value)?;
    update.commit().await
}

fn database() -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::Builder::new().prefix("larder-faults-").tempdir().unwrap();
    let file = folder.path().join("store.db");
    (folder, file)
}

// Several processes.

const PROCESSES: usize = 4;
const UPDATES: usize = 100;

async fn processes_that_update_one_row_lose_nothing() -> Outcome {
    let (_folder, file) = database();
    let children: Vec<Child> = (0..PROCESSES).map(|_| start("count", &file)).collect();
    children.into_iter().try_for_each(succeeds)?;
    let count = get(&open(&file).await, "count").await;
    if count == Some((PROCESSES * UPDATES).to_string()) {
        Ok(())
    } else {
        Err(format!("the count is {count:?}"))
    }
}

/// Adds one to the count, by a read and a write, [`UPDATES`] times.
async fn count(file: &Path) {
    let store = open(file).await;
    for _ in 0..UPDATES {
        loop {
            let handle = handle(&store);
            let mut update = handle.begin(Mode::Update).unwrap();
            let count = update.get("n".into(), "count".into()).await.unwrap();
            let count: u32 = count.map_or(0, |count| String::from_utf8(count).unwrap().parse().unwrap());
            update.put("n".into(), "count".into(), (count + 1).to_string().into_bytes()).unwrap();
            match update.commit().await {
                Ok(_) => break,
                Err(Error::Conflict) => tokio::time::sleep(Duration::from_millis(fastrand::u64(0..10))).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

async fn processes_that_open_one_fresh_file_all_succeed() -> Outcome {
    let (_folder, file) = database();
    let children: Vec<Child> = (0..16).map(|_| start("open", &file)).collect();
    children.into_iter().try_for_each(succeeds)?;
    let connection = rusqlite::Connection::open(&file).unwrap();
    let steps: i64 =
        connection.query_row("SELECT count(*) FROM larder_migrations", [], |row| row.get(0)).unwrap();
    if steps == 2 { Ok(()) } else { Err(format!("{steps} steps are recorded instead of 2")) }
}

const REWRITES: u64 = 40;

async fn what_another_process_committed_is_seen_though_rows_are_cached() -> Outcome {
    let (_folder, file) = database();
    let store = open(&file).await;
    let mut child = start("rewrite", &file);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = Arc::new(AtomicU64::new(0));
    let heard = said.clone();
    let listener = std::thread::spawn(move || {
        for number in lines.map_while(Result::ok).filter_map(|line| line.parse().ok()) {
            heard.store(number, Ordering::SeqCst);
        }
    });
    // A row that is read continuously stays in the cache.
    let (mut reads, mut stale) = (0, None);
    while !listener.is_finished() {
        let acknowledged = said.load(Ordering::SeqCst);
        let seen = get(&store, "number").await.map_or(0, |number| number.parse().unwrap());
        if seen < acknowledged {
            stale = Some(format!("{seen} was read after {acknowledged} was acknowledged"));
        }
        reads += 1;
        tokio::task::yield_now().await;
    }
    succeeds(child)?;
    stale.map_or(Ok(()), Err)?;
    let last = get(&store, "number").await;
    match last == Some(REWRITES.to_string()) && reads > REWRITES {
        true => Ok(()),
        false => Err(format!("the last value is {last:?}, after {reads} reads")),
    }
}

/// Writes increasing numbers into one row and prints each. The pauses let other processes cache the
/// row.
async fn rewrite(file: &Path) {
    let store = open(file).await;
    for number in 1..=REWRITES {
        put(&store, "number", number.to_string().into_bytes()).await.unwrap();
        println!("{number}");
        std::io::stdout().flush().unwrap();
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..200))).await;
    }
}

// Killed processes.

const KILLS: u32 = 20;

async fn what_was_acknowledged_is_there_after_a_kill() -> Outcome {
    let (_folder, file) = database();
    let mut acknowledged = 0_u64;
    for _ in 0..KILLS {
        // At least one commit, then a random delay.
        let said = harness::kill(start("number", &file), Duration::from_millis(60)).await?;
        acknowledged = acknowledged.max(harness::last_number(&said));
        check(&file, acknowledged).await?;
    }
    if acknowledged > u64::from(KILLS) {
        Ok(())
    } else {
        Err(format!("only {acknowledged} commits were acknowledged"))
    }
}

/// Writes the next number as a row, and prints it once it is committed.
async fn number(file: &Path) {
    let store = open(file).await;
    let mut next = 1 + rows(&store).await.last().copied().unwrap_or_default();
    loop {
        put(&store, &format!("{next:09}"), vec![b'x'; 300]).await.unwrap();
        // A full stop marks a complete line.
        println!("{next}.");
        std::io::stdout().flush().unwrap();
        next += 1;
    }
}

/// The numbers of the stored rows, in order.
async fn rows(store: &Store) -> Vec<u64> {
    let handle = handle(store);
    let mut view = handle.begin(Mode::View).unwrap();
    let (mut numbers, mut after) = (Vec::new(), None);
    loop {
        let page = view.scan_page("n".into(), Default::default(), after).await.unwrap();
        numbers.extend(page.entries.into_iter().map(|entry| entry.key.parse::<u64>().unwrap()));
        after = page.next;
        if after.is_none() {
            return numbers;
        }
    }
}

async fn check(file: &Path, acknowledged: u64) -> Outcome {
    let store = open(file).await;
    let numbers = rows(&store).await;
    store.close().await;
    let whole: Vec<u64> = (1..=numbers.len() as u64).collect();
    if numbers != whole || (numbers.len() as u64) < acknowledged {
        return Err(format!("expected each row once, at least {acknowledged}; found {} rows", numbers.len()));
    }
    let connection = rusqlite::Connection::open(file).unwrap();
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    let newest: i64 =
        connection.query_row("SELECT max(version) FROM larder_entries", [], |row| row.get(0)).unwrap();
    let last: i64 =
        connection.query_row("SELECT last FROM larder_commit_sequence", [], |row| row.get(0)).unwrap();
    // The sequence is at or above the newest version, as versions are reserved in blocks.
    if verdict == "ok" && newest <= last {
        Ok(())
    } else {
        Err(format!("{verdict}, newest {newest}, last {last}"))
    }
}

// A full disk.

async fn a_full_disk_is_unavailable_and_loses_nothing() -> Outcome {
    let (_folder, file) = database();
    succeeds(start("fill", &file))
}

/// Writes until a file-size limit stops the file from growing. Then writes fail, all rows can still
/// be read, and once there is room again the store works, at the latest after it is opened again.
async fn fill(file: &Path) {
    let store = open(file).await;
    put(&store, "before", b"kept".to_vec()).await.unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    // SAFETY: no handler is installed; the signal is ignored, so that a write returns an error
    // instead.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn).unwrap() };
    setrlimit(Resource::RLIMIT_FSIZE, 2 << 20, hard).unwrap();
    let mut written = 0;
    let error = loop {
        match put(&store, &format!("row {written}"), vec![b'x'; 100_000]).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1_000, "the file-size limit was never reached");
    };
    assert!(matches!(error, Error::Unavailable { .. } | Error::CommitUnknown { .. }), "{error:?}");
    assert!(written > 0);
    assert_eq!(get(&store, "before").await.as_deref(), Some("kept"));
    assert!(get(&store, &format!("row {}", written - 1)).await.is_some());
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    if let Err(error) = put(&store, "after", b"kept".to_vec()).await {
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        store.close().await;
    }
    let again = open(file).await;
    put(&again, "after", b"kept".to_vec()).await.unwrap();
    for key in ["before", "after"] {
        assert_eq!(get(&again, key).await.as_deref(), Some("kept"));
    }
    let found = get(&again, &format!("row {}", written - 1)).await;
    assert!(found.is_some(), "an acknowledged row is missing");
}
