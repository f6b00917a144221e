//! The folder store between processes.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use larder_tenants::FolderStore;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};
use support::*;

const FOLDER_VARIABLE: &str = "LARDER_TENANTS_TEST_FOLDER";

#[tokio::test]
async fn every_scenario_holds_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let new_store = || -> Arc<dyn ObjectStore> { Arc::new(FolderStore::open(folder.path()).unwrap()) };
    scenarios::all(new_store, "in-folder").await;
}

/// The child process of the test below: it increments a counter, and prints each count.
#[tokio::test]
async fn as_a_child_process_it_counts() {
    let Ok(folder) = std::env::var(FOLDER_VARIABLE) else { return };
    let store = FolderStore::open(folder).unwrap();
    println!();
    loop {
        let (number, mode) = match store.get(&path("count/er")).await {
            Ok(found) => {
                let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: None };
                let bytes = found.bytes().await.unwrap();
                // The object is larger than a page, so that a partial one would be noticed.
                assert_eq!(bytes.len(), 20_000, "a partial object was read");
                let words = bytes.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().unwrap()));
                let words: BTreeSet<u64> = words.collect();
                assert_eq!(words.len(), 1, "parts of two objects were read");
                (words.into_iter().next().unwrap() + 1, PutMode::Update(version))
            }
            Err(Error::NotFound { .. }) => (1, PutMode::Create),
            Err(error) => panic!("{error}"),
        };
        let bytes = number.to_be_bytes().repeat(2500);
        let options = PutOptions { mode, ..PutOptions::default() };
        match store.put_opts(&path("count/er"), bytes.into(), options).await {
            Ok(_) => {
                let mut output = std::io::stdout().lock();
                writeln!(output, "counted {number}").unwrap();
                output.flush().unwrap();
            }
            Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

struct Counter {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Counter {
    fn start(folder: &std::path::Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "as_a_child_process_it_counts", "--nocapture"])
            .env(FOLDER_VARIABLE, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Reads `count` counts, kills the process, and returns all counts that it printed.
    fn kill_after(mut self, count: usize) -> Vec<u64> {
        let mut counted = Vec::new();
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if let Some(number) = line.strip_suffix('\n').and_then(|line| line.strip_prefix("counted ")) {
                counted.push(number.parse().unwrap());
            }
            line.clear();
            if counted.len() == count {
                self.child.kill().unwrap();
            }
        }
        let status = self.child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9),
            "the child process failed on its own"
        );
        counted
    }
}

#[test]
fn two_processes_count_together_through_kills_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut counted, mut kills) = (Vec::new(), 0);
    for round in 0..20 {
        let counters = [Counter::start(folder.path()), Counter::start(folder.path())];
        let threads = counters.map(|counter| std::thread::spawn(move || counter.kill_after(3 + round)));
        for thread in threads {
            counted.extend(thread.join().unwrap());
            kills += 1;
        }
    }
    let distinct: BTreeSet<_> = counted.iter().copied().collect();
    assert_eq!(distinct.len(), counted.len(), "two processes counted the same number");
    let store = FolderStore::open(folder.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let bytes =
        runtime.block_on(async { store.get(&path("count/er")).await.unwrap().bytes().await.unwrap() });
    let last = u64::from_be_bytes(bytes[..8].try_into().unwrap());
    assert!(*distinct.last().unwrap() <= last);
    let unheard = last as usize - counted.len();
    assert!(
        unheard <= kills,
        "{unheard} counts were not printed, although only {kills} processes were killed"
    );
    let listed: Vec<_> = runtime.block_on(futures_util::TryStreamExt::try_collect(store.list(None))).unwrap();
    assert_eq!(listed.len(), 1, "an unfinished file is listed");
}
