//! Commits that a journal keeps, and the replay of their redo.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use common::*;
use larder_core::backend::Backend;
use larder_core::commit::{Committed, Mutation};
use larder_core::redo::{self, Journal, Redo};
use larder_core::snapshot::SnapshotOptions;
use larder_core::{Error, HandleOptions, Limits, Mode, Result, Share, Store, Version};
use larder_sqlite::{Sqlite, SqliteOptions};
use parking_lot::Mutex;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::Semaphore;

/// A journal in memory, which keeps redos once its gate lets it, and fails on request.
struct Kept {
    redos: Mutex<Vec<Redo>>,
    asked: Semaphore,
    gate: Semaphore,
    failure: Mutex<Option<Error>>,
}

impl Kept {
    fn open() -> Arc<Self> {
        Self::with_gate(Semaphore::MAX_PERMITS)
    }

    fn closed() -> Arc<Self> {
        Self::with_gate(0)
    }

    fn with_gate(permits: usize) -> Arc<Self> {
        let (asked, gate) = (Semaphore::new(0), Semaphore::new(permits));
        Arc::new(Self { redos: Mutex::default(), asked, gate, failure: Mutex::default() })
    }

    /// The positions from which and to which the redos lead.
    fn spans(&self) -> Vec<(u64, u64)> {
        self.redos.lock().iter().map(|redo| (redo.before().0, redo.after().0)).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        self.redos.lock().iter().flat_map(|redo| redo.as_bytes().to_vec()).collect()
    }

    fn fail(&self, error: Error) {
        *self.failure.lock() = Some(error);
    }

    /// Waits for one more call of the journal.
    async fn asked(&self) {
        self.asked.acquire().await.unwrap().forget();
    }
}

#[async_trait]
impl Journal for Kept {
    async fn append(&self, redo: Redo) -> Result<()> {
        self.asked.add_permits(1);
        self.gate.acquire().await.unwrap().forget();
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure);
        }
        self.redos.lock().push(redo);
        Ok(())
    }
}

async fn journaled(path: &Path, journal: Arc<dyn Journal>) -> Arc<Sqlite> {
    Arc::new(Sqlite::open_journaled(path, SqliteOptions::default(), journal).await.unwrap())
}

/// Commits in the background. The commit is in the file once the position says so.
fn spawn_commit(database: &Arc<Sqlite>, key: &'static str) -> tokio::task::JoinHandle<Result<Version>> {
    let database = database.clone();
    tokio::spawn(async move { commit(&database, key, b"value").await })
}

async fn wait_for_position(database: &Sqlite, position: u64) {
    let until = Instant::now() + Duration::from_secs(10);
    while database.redo_position().await.unwrap() < Version(position) {
        assert!(Instant::now() < until, "the database has not reached position {position}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_commit_is_answered_once_it_is_kept_and_the_writer_goes_on_meanwhile() {
    let (_folder, path) = folder();
    let journal = Kept::closed();
    let database = journaled(&path, journal.clone()).await;
    let first = spawn_commit(&database, "a");
    journal.asked().await;
    let second = spawn_commit(&database, "b");
    wait_for_position(&database, 2).await;
    let third = spawn_commit(&database, "c");
    wait_for_position(&database, 3).await;
    assert!(!first.is_finished() && !second.is_finished() && !third.is_finished());
    // A commit that is refused has nothing to keep, so it is answered at once.
    let refused = database.commit(commit_of(1, [("a", Mutation::Increment(1))])).await;
    assert!(matches!(refused, Err(Error::InvalidArgument(_))));

    journal.gate.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap(), Version(1));
    // All waiting groups are handed over as one redo.
    journal.asked().await;
    assert!(!second.is_finished() && !third.is_finished());
    assert_eq!(journal.spans(), [(0, 1)]);
    journal.gate.add_permits(1);
    assert_eq!(second.await.unwrap().unwrap(), Version(2));
    assert_eq!(third.await.unwrap().unwrap(), Version(3));
    assert_eq!(journal.spans(), [(0, 1), (1, 3)]);
}

#[tokio::test]
async fn a_read_beside_a_journal_that_hangs_is_unavailable_as_no_transaction_has_timed_out() {
    let (_folder, path) = folder();
    let journal = Kept::closed();
    let database = journaled(&path, journal.clone()).await;
    let first = spawn_commit(&database, "a");
    journal.asked().await;
    tokio::time::pause();
    for outcome in [database.ping().await, database.load_record(&record_key("s")).await.map(drop)] {
        assert!(matches!(outcome, Err(Error::Unavailable { .. })), "{outcome:?}");
    }
    journal.gate.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap(), Version(1));
    database.ping().await.unwrap();
}

#[tokio::test]
async fn a_commit_that_changes_nothing_waits_for_those_it_may_have_seen() {
    let (_folder, path) = folder();
    let journal = Kept::closed();
    let database = journaled(&path, journal.clone()).await;
    let first = spawn_commit(&database, "a");
    journal.asked().await;
    let seen = {
        let database = database.clone();
        tokio::spawn(async move {
            let mut commit = larder_core::commit::Commit::default();
            commit.conditions.insert(row("a"), Version(1));
            database.commit(Arc::new(commit)).await
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!seen.is_finished());
    journal.gate.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap(), Version(1));
    assert_eq!(seen.await.unwrap().unwrap(), Committed::default());
    assert_eq!(journal.spans(), [(0, 1)]);
}

#[tokio::test]
async fn settling_and_closing_wait_for_the_journal() {
    let (folder, path) = folder();
    let journal = Kept::closed();
    let database = journaled(&path, journal.clone()).await;
    // The caller no longer waits for the answer.
    let (first, second) = (spawn_commit(&database, "a"), spawn_commit(&database, "b"));
    wait_for_position(&database, 2).await;
    first.abort();
    second.abort();
    let settled = tokio::time::timeout(Duration::from_millis(50), database.settled()).await;
    assert!(settled.is_err());
    let open_gate = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        journal.gate.add_permits(100);
    };
    let (settled, ()) = tokio::join!(database.settled(), open_gate);
    settled.unwrap();
    assert_eq!(journal.spans().last().unwrap().1, 2);
    database.finish().await.unwrap();
    assert_eq!(names(folder.path()), ["store.db"]);
    assert!(matches!(commit(&database, "c", b"").await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_close_hands_over_what_has_queued_up() {
    let (_folder, path) = folder();
    let journal = Kept::closed();
    let database = journaled(&path, journal.clone()).await;
    let commits = [spawn_commit(&database, "a"), spawn_commit(&database, "b")];
    wait_for_position(&database, 2).await;
    let open_gate = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(commits.iter().all(|commit| !commit.is_finished()));
        journal.gate.add_permits(100);
    };
    let ((), ()) = tokio::join!(database.close(), open_gate);
    assert_eq!(journal.spans().last().unwrap().1, 2);
    for commit in commits {
        commit.await.unwrap().unwrap();
    }
}

fn view() -> SnapshotOptions {
    SnapshotOptions::new(Mode::View, clock_at(1), Instant::now() + Duration::from_secs(5), Share::host())
}

#[tokio::test]
async fn after_a_failure_all_who_wait_are_told_and_nothing_is_shown_or_taken_until_it_is_opened_again() {
    let (folder, path) = folder();
    let journal = Kept::closed();
    let database = journaled(&path, journal.clone()).await;
    let first = spawn_commit(&database, "a");
    journal.asked().await;
    let second = spawn_commit(&database, "b");
    wait_for_position(&database, 2).await;
    journal.fail(Error::AccessDenied("another host holds the lease".to_string()));
    journal.gate.add_permits(100);
    let is_fenced = |error: &Error| matches!(error, Error::AccessDenied(_));
    assert!(is_fenced(&first.await.unwrap().unwrap_err()));
    assert!(is_fenced(&second.await.unwrap().unwrap_err()));
    assert!(is_fenced(&commit(&database, "c", b"").await.unwrap_err()));
    assert!(is_fenced(&database.write_record(record_write("s", 0, Some((1, b"")))).await.unwrap_err()));
    assert!(is_fenced(&database.sweep(sweep_at(1, 1)).await.unwrap_err()));
    assert!(is_fenced(&database.load_record(&record_key("s")).await.unwrap_err()));
    let Err(error) = database.snapshot(view()).await else { panic!("shown") };
    assert!(is_fenced(&error));
    assert!(is_fenced(&database.settled().await.unwrap_err()));
    assert_eq!(journal.spans(), []);
    // A quarantine needs the backup of such a database.
    assert_eq!(database.redo_position().await.unwrap(), Version(2));
    let copy = folder.path().join("quarantine.db");
    assert_eq!(database.backup(&copy).await.unwrap().position, Version(2));
    assert!(is_fenced(&database.finish().await.unwrap_err()));

    let again = open(&path).await;
    assert_eq!(again.redo_position().await.unwrap(), Version(2));
    assert_eq!(commit(&again, "c", b"").await.unwrap(), Version(3));
}

#[tokio::test]
async fn a_failure_whose_outcome_is_unknown_is_unknown_to_those_who_waited_and_unavailable_to_others() {
    let (_folder, path) = folder();
    let journal = Kept::open();
    let database = journaled(&path, journal.clone()).await;
    journal.fail(Error::CommitUnknown { reason: "no answer".to_string(), cause: None });
    let written = database.write_record(record_write("s", 0, Some((1, b"")))).await;
    assert!(matches!(written, Err(Error::CommitUnknown { .. })));
    // A conversation would now look for its own version, and take it for kept.
    assert!(matches!(database.load_record(&record_key("s")).await, Err(Error::Unavailable { .. })));
    assert!(matches!(commit(&database, "a", b"").await, Err(Error::Unavailable { .. })));
}

struct Panics;

#[async_trait]
impl Journal for Panics {
    async fn append(&self, _redo: Redo) -> Result<()> {
        panic!("on purpose")
    }
}

#[tokio::test]
async fn a_journal_that_panics_has_failed() {
    let (_folder, path) = folder();
    let database = journaled(&path, Arc::new(Panics)).await;
    assert!(matches!(commit(&database, "a", b"").await, Err(Error::CommitUnknown { .. })));
    assert!(matches!(commit(&database, "b", b"").await, Err(Error::Unavailable { .. })));
    database.close().await;
}

#[tokio::test]
async fn a_commit_that_the_journal_has_not_kept_by_the_deadline_is_unknown_and_one_that_waits_is_not_made() {
    let (_folder, path) = folder();
    let journal = Kept::closed();
    let database = journaled(&path, journal.clone()).await;
    let store = Store::builder_shared(database.clone()).sweep_interval(None).build().unwrap();
    let limits = Limits::default()
        .transaction_timeout(Duration::from_secs(1))
        .value_bytes(64 << 20)
        .result_bytes(128 << 20)
        .transaction_bytes(128 << 20)
        .instance_bytes(1 << 30);
    let handle = store.handle(HandleOptions::default().limits(limits));
    let put = async |key: &str, value: Vec<u8>| {
        let mut update = handle.begin(Mode::Update).unwrap();
        update.put("n".into(), key.into(), value).unwrap();
        let begun = Instant::now();
        let outcome = update.commit().await;
        // The clock of deadlines is coarse.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        outcome
    };
    for key in ["a", "b"] {
        assert!(matches!(put(key, vec![7; 40 << 20]).await, Err(Error::CommitUnknown { .. })));
    }
    // With so many bytes queued, no further commit begins.
    assert!(matches!(put("never", b"1".to_vec()).await, Err(Error::TimedOut)));
    journal.gate.add_permits(10);
    let mut view = handle.begin(Mode::View).unwrap();
    assert_eq!(view.get("n".into(), "b".into()).await.unwrap(), Some(vec![7; 40 << 20]));
    assert_eq!(view.get("n".into(), "never".into()).await.unwrap(), None);
    store.close().await;
}

#[tokio::test]
async fn commits_wait_while_too_much_is_queued_up() {
    let (_folder, path) = folder();
    let journal = Kept::closed();
    let database = journaled(&path, journal.clone()).await;
    let large = Arc::new(vec![7; 40 << 20]);
    let mut commits = Vec::new();
    for (position, key) in [(1, "a"), (2, "b"), (2, "c")] {
        let (committing, large) = (database.clone(), large.clone());
        commits.push(tokio::spawn(async move { commit(&committing, key, &large).await }));
        wait_for_position(&database, position).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(database.redo_position().await.unwrap(), Version(2));
    journal.gate.add_permits(1);
    wait_for_position(&database, 3).await;
    journal.gate.add_permits(100);
    for commit in commits {
        commit.await.unwrap().unwrap();
    }
    assert_eq!(journal.spans(), [(0, 1), (1, 2), (2, 3)]);
}

#[tokio::test]
async fn a_foreign_commit_in_a_journaled_database_is_noticed() {
    let (_folder, path) = folder();
    let journal = Kept::open();
    let database = journaled(&path, journal.clone()).await;
    commit(&database, "a", b"").await.unwrap();
    let other = open(&path).await;
    commit(&other, "b", b"").await.unwrap();
    assert!(matches!(commit(&database, "c", b"").await, Err(Error::Other { .. })));
    assert_eq!(journal.spans(), [(0, 1)]);
    assert_eq!(database.redo_position().await.unwrap(), Version(2));
}

#[tokio::test]
async fn a_redo_that_does_not_follow_or_is_none_changes_nothing() {
    let (folder, path) = folder();
    let journal = Kept::open();
    let database = journaled(&path, journal.clone()).await;
    for key in ["a", "b", "c"] {
        commit(&database, key, b"value").await.unwrap();
    }
    let redos: Vec<Vec<u8>> = journal.redos.lock().iter().map(|redo| redo.as_bytes().to_vec()).collect();
    let copy_path = folder.path().join("copy.db");
    let copy = open_positioned(&copy_path).await;
    copy.replay(&redos[0]).await.unwrap();
    assert!(matches!(copy.replay(&redos[2]).await, Err(Error::Corrupt(_))));
    assert!(matches!(copy.replay(b"").await, Err(Error::Corrupt(_))));
    assert!(matches!(copy.replay(&redos[1][1..]).await, Err(Error::Corrupt(_))));
    // The first redo is held already, and the second is cut short, so nothing of both is replayed.
    let cut = [&redos[0][..], &redos[1][..redos[1].len() - 1]].concat();
    assert!(matches!(copy.replay(&cut).await, Err(Error::Corrupt(_))));
    assert_eq!((copy.redo_position().await.unwrap(), copy.changes()), (Version(1), 1));
    assert_eq!(dump(&copy_path).rows.len(), 1);
    copy.replay(&redos.concat()).await.unwrap();
    assert_eq!(dump(&copy_path), dump(&path));
    assert_eq!(copy.changes(), 3);
    copy.replay(&redos.concat()).await.unwrap();
    assert_eq!(copy.changes(), 3);
    // The copy continues from there, also for readers that began before the replay.
    assert_eq!(commit(&copy, "d", b"").await.unwrap(), Version(4));
}

#[tokio::test]
async fn a_database_without_positions_refuses_a_redo() {
    let (folder, path) = folder();
    let journal = Kept::open();
    let database = journaled(&path, journal.clone()).await;
    commit(&database, "a", b"value").await.unwrap();
    let plain_path = folder.path().join("plain.db");
    let plain = open(&plain_path).await;
    for is_empty in [true, false] {
        let before = dump(&plain_path);
        let Err(Error::InvalidArgument(reason)) = plain.replay(&journal.bytes()).await else {
            panic!("replayed, though empty: {is_empty}")
        };
        assert!(reason.contains("does not count positions"), "{reason}");
        assert_eq!((dump(&plain_path), plain.changes()), (before, u64::from(!is_empty)));
        if is_empty {
            // From here on versions are reserved, which looks like a later position.
            commit(&plain, "b", b"value").await.unwrap();
        }
    }
    plain.close().await;
    // Once it counts positions it does so for good, however it is opened later.
    open_positioned(&plain_path).await.close().await;
    let again = open(&plain_path).await;
    assert!(matches!(again.replay(&journal.bytes()).await, Ok(())));
    assert_eq!(dump(&plain_path).rows.len(), 1);
}

/// The outcome of a transaction that read a row before a replay, which writes `a`. Also returns the
/// store, which holds what was replayed, and its folder.
async fn commit_beside_a_replay(read: &str) -> (Result<Version>, Store, TempDir) {
    let (folder, path) = folder();
    let journal = Kept::open();
    let database = journaled(&path, journal.clone()).await;
    commit(&database, "a", b"new").await.unwrap();
    let backend = Arc::new(open_positioned(&folder.path().join("copy.db")).await);
    let store = Store::builder_shared(backend.clone()).build().unwrap();
    let mut transaction = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
    assert_eq!(transaction.get("n".into(), read.into()).await.unwrap(), None);
    transaction.put("n".into(), "b".into(), vec![]).unwrap();
    backend.replay(&journal.bytes()).await.unwrap();
    (transaction.commit().await, store, folder)
}

#[tokio::test]
async fn a_replayed_commit_is_a_conflict_for_who_read_before_it() {
    let (outcome, _store, _folder) = commit_beside_a_replay("a").await;
    assert!(matches!(outcome, Err(Error::Conflict)));
}

#[tokio::test]
async fn a_replayed_commit_is_no_conflict_for_who_read_other_rows() {
    let (outcome, store, _folder) = commit_beside_a_replay("z").await;
    assert_eq!(outcome.unwrap(), Version(2));
    let mut view = store.handle(HandleOptions::default()).begin(Mode::View).unwrap();
    assert_eq!(view.get("n".into(), "a".into()).await.unwrap(), Some(b"new".to_vec()));
}

#[derive(Clone, Debug)]
enum Step {
    /// Writes of these keys in one transaction.
    Commit(Vec<(u8, Write)>),
    Record(u8, Option<u8>),
    Sweep,
}

#[derive(Clone, Debug)]
enum Write {
    Put(Vec<u8>, Option<u64>),
    Delete,
    Increment(i64),
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let write = prop_oneof![
        3 => (proptest::collection::vec(any::<u8>(), 0..40), proptest::option::of(1_u64..60))
            .prop_map(|(value, ttl)| Write::Put(value, ttl)),
        1 => Just(Write::Delete),
        2 => any::<i32>().prop_map(|delta| Write::Increment(delta.into())),
    ];
    let step = prop_oneof![
        5 => proptest::collection::vec((0_u8..8, write), 0..4).prop_map(Step::Commit),
        3 => (0_u8..3, proptest::option::of(any::<u8>())).prop_map(|(session, byte)| Step::Record(session, byte)),
        1 => Just(Step::Sweep),
    ];
    // The steps of an inner list run concurrently.
    proptest::collection::vec(proptest::collection::vec(step, 1..5), 1..20)
}

/// Makes a step. An increment of a value that is not a counter, and a record write that another one
/// preceded, must be refused.
async fn make(database: Arc<Sqlite>, step: Step, now: u64) {
    match step {
        Step::Commit(writes) => {
            let writes = writes
                .into_iter()
                .map(|(key, write)| {
                    let mutation = match write {
                        Write::Put(value, ttl) => put(&value, ttl),
                        Write::Delete => Mutation::Delete,
                        Write::Increment(delta) => Mutation::Increment(delta),
                    };
                    (row(&key.to_string()), mutation)
                })
                .collect();
            let commit = larder_core::commit::Commit { clock: clock_at(now), writes, ..Default::default() };
            let outcome = database.commit(Arc::new(commit)).await;
            assert!(matches!(outcome, Ok(_) | Err(Error::InvalidArgument(_))), "{outcome:?}");
        }
        Step::Record(session, byte) => {
            let session = session.to_string();
            let stored = database.load_record(&record_key(&session)).await.unwrap();
            let expected = stored.map_or(0, |stored| stored.version.0);
            let bytes = byte.map(|byte| [byte]);
            let drawn = 1 + (expected ^ u64::from(byte.unwrap_or(0)) ^ now) % 1_000;
            let record = bytes.as_ref().map(|bytes| (drawn, bytes.as_slice()));
            let outcome = database.write_record(record_write(&session, expected, record)).await;
            assert!(matches!(outcome, Ok(()) | Err(Error::Conflict)), "{outcome:?}");
        }
        Step::Sweep => {
            database.sweep(sweep_at(now, 3)).await.unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_replay_in_any_portions_and_again_gives_the_same_rows_versions_and_records(
        steps in steps(),
        portions in proptest::collection::vec(1_usize..6, 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (folder, path) = folder();
            let journal = Kept::open();
            let database = journaled(&path, journal.clone()).await;
            let rounds = steps.len() as u64;
            for (now, together) in steps.into_iter().enumerate() {
                let mut tasks = tokio::task::JoinSet::new();
                for step in together {
                    tasks.spawn(make(database.clone(), step, now as u64));
                }
                while let Some(done) = tasks.join_next().await {
                    done.unwrap();
                }
            }
            database.settled().await.unwrap();
            let redos: Vec<Vec<u8>> =
                journal.redos.lock().iter().map(|redo| redo.as_bytes().to_vec()).collect();
            let copy_path = folder.path().join("copy.db");
            let copy = open_positioned(&copy_path).await;
            let mut rest = redos.as_slice();
            for portion in portions.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*portion).min(rest.len()));
                // Also replay groups that are held already: before new ones, and alone.
                copy.replay(&redos[..redos.len() - later.len()].concat()).await.unwrap();
                copy.replay(&now.concat()).await.unwrap();
                rest = later;
            }
            // Sweeps have no redo, so both databases are swept as of the same time.
            for swept in [&*database, &copy] {
                swept.sweep(sweep_at(rounds, 1_000)).await.unwrap();
            }
            database.finish().await.unwrap();
            copy.finish().await.unwrap();
            let (original, copied) = (dump(&path), dump(&copy_path));
            assert_eq!(original.position, journal.spans().last().map_or(0, |(_, after)| *after));
            assert_eq!(copied, original);
        });
    }
}

/// A journal that keeps redos as files, named by the position that they lead to.
struct Folder(PathBuf);

#[async_trait]
impl Journal for Folder {
    async fn append(&self, redo: Redo) -> Result<()> {
        let name = format!("{:020}", redo.after().0);
        let draft = self.0.join("draft");
        std::fs::write(&draft, redo.as_bytes()).unwrap();
        std::fs::rename(draft, self.0.join(name)).unwrap();
        Ok(())
    }
}

/// The process that the test below kills. It runs only as the child of that test.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn child_that_commits_until_it_is_killed() {
    let Some(folder) = std::env::var_os("LARDER_REDO_CHILD").map(PathBuf::from) else { return };
    let database = journaled(&folder.join("store.db"), Arc::new(Folder(folder.join("journal")))).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4 {
        let database = database.clone();
        tasks.spawn(async move {
            for turn in 0.. {
                let key = format!("{task}-{turn}");
                if turn % 4 == 3 {
                    database.write_record(record_write(&key, 0, Some((9, b"kept")))).await.unwrap();
                } else {
                    commit(&database, &key, key.as_bytes()).await.unwrap();
                }
                println!("kept {key}");
            }
        });
    }
    tasks.join_all().await;
}

#[test]
fn what_was_acknowledged_before_a_kill_is_in_the_journal_and_the_file_tells_how_far_it_is() {
    for kill_after in [1, 40, 200] {
        let (folder, path) = folder();
        let journal = folder.path().join("journal");
        std::fs::create_dir(&journal).unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_commits_until_it_is_killed", "--nocapture", "--test-threads=1"])
            .env("LARDER_REDO_CHILD", folder.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut kept = Vec::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while kept.len() < kill_after {
            let line = lines.next().unwrap().unwrap();
            kept.extend(line.split_once("kept ").map(|(_, key)| key.to_string()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What the child still printed before it died. The last line may be incomplete.
        let said: Vec<String> = lines.map_while(|line| line.ok()).collect();
        let whole = said.len().saturating_sub(1);
        kept.extend(said[..whole].iter().filter_map(|line| line.strip_prefix("kept ").map(str::to_string)));

        let mut files: Vec<_> =
            std::fs::read_dir(&journal).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| !path.ends_with("draft"));
        files.sort();
        let bytes: Vec<u8> = files.iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
        let end = redo::decode(&bytes).unwrap().last().unwrap().after;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let copy_path = folder.path().join("copy.db");
        let local = runtime.block_on(async {
            let copy = open_positioned(&copy_path).await;
            copy.replay(&bytes).await.unwrap();
            assert_eq!(copy.redo_position().await.unwrap(), end);
            copy.finish().await.unwrap();
            Sqlite::verify(&path).await.unwrap();
            let local = open(&path).await;
            // The file is never behind the journal, so it holds all redos already.
            local.replay(&bytes).await.unwrap();
            assert_eq!(local.changes(), 0);
            let position = local.redo_position().await.unwrap();
            local.finish().await.unwrap();
            position
        });
        assert!(local >= end, "{local:?} {end:?}");
        let (copied, original) = (dump(&copy_path), dump(&path));
        for key in &kept {
            let is_row = copied.rows.contains_key(&(b"n".to_vec(), key.as_bytes().to_vec()));
            assert!(is_row || copied.records.contains_key(&record_key(key)), "{key} is lost");
        }
        let up_to_end: Vec<_> = original.rows.into_iter().filter(|(_, row)| row.version <= end).collect();
        assert_eq!(copied.rows.into_iter().collect::<Vec<_>>(), up_to_end);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_gets_no_more_at_once_than_it_can_take() {
    let (_folder, path) = folder();
    let journal = Arc::new(Sizes::default());
    let database = Sqlite::open_journaled(&path, SqliteOptions::default(), journal.clone()).await.unwrap();
    let database = Arc::new(database);
    // 200 MiB that could form one group: as many commits as a group takes wait at once.
    let large = |number: usize| {
        let database = database.clone();
        let key = number.to_string();
        let write = commit_of(0, [(key.as_str(), put(&vec![b'x'; 1 << 20], None))]);
        tokio::spawn(async move { database.commit(write).await })
    };
    for commit in (0..200).map(large).collect::<Vec<_>>() {
        commit.await.unwrap().unwrap();
    }
    let sizes = journal.0.lock().clone();
    assert!(sizes.iter().sum::<usize>() > 200 << 20);
    assert!(sizes.iter().all(|size| *size < 34 << 20), "{sizes:?}");
    database.close().await;
}

/// A journal that keeps only the size of each redo.
#[derive(Default)]
struct Sizes(Mutex<Vec<usize>>);

#[async_trait]
impl Journal for Sizes {
    async fn append(&self, redo: Redo) -> Result<()> {
        self.0.lock().push(redo.as_bytes().len());
        Ok(())
    }
}
