//! The writer of a database, which commits for all callers (group commit).
//!
//! Only one thread at a time holds the writer. A caller that finds it free commits a group: its own
//! request and others that wait. A caller that finds it taken only queues its request, which the
//! holder or a thread of the blocking pool commits.

mod group;
mod state;
mod write_lock;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use larder_core::backend::{SweepOptions, Swept};
use larder_core::commit::Commit;
use larder_core::commit_log::CommitLog;
use larder_core::memory::records::RecordWrite;
use larder_core::redo::{Group, Journal};
use larder_core::row::Version;
use larder_core::validation::Attempt;
use larder_core::{Error, Result, Share};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::commit_clock::CommitClock;
use crate::error::SqliteError;
use crate::journal::{Queue, Reply, Status};
use crate::log_bound::LogBound;
use crate::readers::Readers;
use crate::turn::Turns;
use crate::waiting::{Next, Request, Waiting, Work};
use crate::{SqliteOptions, Synchronous, rows};
use group::{GroupError, Made};
use state::{Journaled, Patience, State};
use write_lock::WriteLock;

/// Makes the commits of one database, one SQLite transaction after another.
pub(crate) struct Writer {
    waiting: Mutex<Waiting>,
    state: Mutex<State>,
    /// Held by the thread that gets the state next, so that a thread which commits continuously
    /// does not always overtake it.
    turn: Mutex<()>,
    /// How many threads wait for the state. Each of them calls `serve_waiting` once it has released
    /// the state.
    wanted: AtomicUsize,
    /// Whether a guest's thread may commit. False if commits sync the log, because a guest's thread
    /// must not wait for the disk.
    guests_commit: bool,
    /// Whether a thread is about to commit the waiting requests.
    is_drain_due: AtomicBool,
    /// Whether a task is about to call `serve_waiting` at the end of a pause.
    is_timer_set: AtomicBool,
    clock: CommitClock,
    /// Whether there was a commit since the last look of the checkpoint task.
    dirty: AtomicBool,
    log_bound: LogBound,
    /// How many commits, record writes and sweeps changed something. Updated while the writer is
    /// held.
    changes: watch::Sender<u64>,
    /// The status of the journal. `None` if the database has none.
    journal: Option<Arc<Status>>,
    /// The task that hands redos to the journal. It ends once the queue is dropped and empty.
    shipper: Mutex<Option<JoinHandle<()>>>,
    runtime: Handle,
}

/// A sweep that takes longer counts as large work, after which other large work pauses.
const SWEEP_TIME: Duration = Duration::from_millis(5);

impl Writer {
    /// Creates the writer of a database whose schema is up to date, within a runtime.
    ///
    /// `positioned` says whether record writes move the position too. It must be true with a
    /// journal.
    pub(crate) fn new(
        connection: Connection,
        readers: &Arc<Readers>,
        options: SqliteOptions,
        positioned: bool,
        journal: Option<Arc<dyn Journal>>,
    ) -> Result<Arc<Self>> {
        let position = rows::last_version(&connection)?;
        // Only `WriteLock` waits for other processes, and never on a guest's thread.
        connection.busy_timeout(Duration::ZERO).map_err(SqliteError::from)?;
        // SAFETY: the connection has just read. The writer keeps it until `close`, which closes the
        // clock first. Without a close, both are dropped with the writer, which shares the clock
        // with no other owner.
        let clock = unsafe { CommitClock::new(readers.clone(), &connection, options.cache_bytes) }?;
        Ok(Arc::new_cyclic(|writer| {
            let journal = journal.map(|journal| {
                let status = Arc::<Status>::default();
                let (queue, shipper) = Queue::start(journal, status.clone(), writer.clone());
                (Journaled { queue, status, position }, shipper)
            });
            let (journal, shipper) = journal.unzip();
            let status = journal.as_ref().map(|journal| journal.status.clone());
            let (connection, log) = (Some(connection), CommitLog::default());
            let lock = WriteLock::new(Turns::new(readers.location().turn_path()));
            Self {
                waiting: Mutex::default(),
                turn: Mutex::default(),
                wanted: AtomicUsize::new(0),
                guests_commit: options.synchronous != Synchronous::Full,
                is_drain_due: AtomicBool::new(false),
                is_timer_set: AtomicBool::new(false),
                state: Mutex::new(State {
                    connection,
                    lock,
                    log,
                    journal,
                    positioned,
                    min_version: options.min_version,
                    failed: false,
                }),
                clock,
                dirty: AtomicBool::new(false),
                log_bound: LogBound::new(options.log_bytes),
                changes: watch::Sender::new(0),
                journal: status,
                shipper: Mutex::new(shipper),
                runtime: Handle::current(),
            }
        }))
    }

    /// Makes an attempt to commit.
    ///
    /// Once this is polled, the attempt is made even if the caller drops the future: either before
    /// the first poll returns, or by the thread that holds the writer.
    pub(crate) async fn commit(self: &Arc<Self>, commit: Arc<Commit>, attempt: Attempt) -> Result<Reply> {
        self.make(Work::Commit(commit, attempt)).await
    }

    /// Writes a conversation record, in a group with commits.
    pub(crate) async fn write_record(self: &Arc<Self>, write: Arc<RecordWrite>) -> Result<()> {
        self.make(Work::Record(write)).await.map(drop)
    }

    async fn make(self: &Arc<Self>, work: Work) -> Result<Reply> {
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().push(Request::new(work, answer), Instant::now());
        if let Some(state) = self.try_state() {
            self.lead(state);
        }
        answered.await.unwrap_or_else(|error| {
            let reason = "the writer ended before it answered".to_string();
            Err(Error::CommitUnknown { reason, cause: Some(Arc::new(error)) })
        })
    }

    /// Removes expired rows.
    pub(crate) fn sweep(self: &Arc<Self>, options: &SweepOptions) -> Result<Swept> {
        let state = if options.is_closing { self.try_state() } else { Some(self.lock_state()) };
        let Some(mut state) = state else { return Ok(Swept::default()) };
        let swept = state.sweep(&self.clock, options);
        self.count(swept.as_ref().is_ok_and(|(swept, _)| !swept.is_empty()).into());
        drop(state);
        self.dirty.store(true, Ordering::Release);
        if let Ok((_, began)) = &swept
            && began.elapsed() > SWEEP_TIME
        {
            self.waiting.lock().large_ended(&Share::host(), *began, Instant::now());
        }
        self.serve_waiting();
        let (bytes, _) = swept?;
        Ok(Swept { rows: bytes.len() as u64, bytes: bytes.iter().sum() })
    }

    /// Waits for the pause after large work, if there is one.
    pub(crate) async fn keep_pause(&self) {
        let until = self.waiting.lock().pause(Instant::now());
        if let Some(until) = until {
            tokio::time::sleep_until(until.into()).await;
        }
    }

    /// Replays the groups that the database does not hold yet, and returns its position.
    pub(crate) fn replay(self: &Arc<Self>, groups: &[Group]) -> Result<Version> {
        let mut state = self.lock_state();
        let replayed = state.replay(&self.clock, groups);
        self.count(replayed.as_ref().map_or(0, |(_, made)| *made));
        drop(state);
        self.dirty.store(true, Ordering::Release);
        self.serve_waiting();
        Ok(replayed?.0)
    }

    /// Calls `work` while no thread commits or closes the database. `work` must be quick.
    ///
    /// # Errors
    /// [`Error::Closed`] if the database is closed, and the error of `work`.
    pub(crate) fn while_open<T>(self: &Arc<Self>, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let state = self.lock_state();
        let done = if state.connection.is_some() { work() } else { Err(Error::Closed) };
        drop(state);
        self.serve_waiting();
        done
    }

    /// Calls `work` with the number of changes so far, while no thread commits. `work` must be
    /// quick.
    pub(crate) fn between_commits<T>(self: &Arc<Self>, work: impl FnOnce(u64) -> T) -> T {
        let state = self.lock_state();
        let done = work(*self.changes.borrow());
        drop(state);
        self.serve_waiting();
        done
    }

    pub(crate) fn clock(&self) -> &CommitClock {
        &self.clock
    }

    pub(crate) fn changes(&self) -> &watch::Sender<u64> {
        &self.changes
    }

    /// Waits until the journal has kept everything that is visible in the file now.
    ///
    /// # Errors
    /// The error of the journal, if it has failed.
    pub(crate) async fn kept(&self) -> Result<()> {
        match &self.journal {
            Some(status) => status.kept().await,
            None => Ok(()),
        }
    }

    /// Waits as [`Writer::kept`] does, until a deadline.
    ///
    /// # Errors
    /// [`Error::TimedOut`] at the deadline, and the error of the journal, if it has failed.
    pub(crate) async fn kept_until(&self, deadline: Instant) -> Result<()> {
        let kept = tokio::time::timeout_at(deadline.into(), self.kept());
        kept.await.unwrap_or(Err(Error::TimedOut))
    }

    /// The error of the journal, if it has failed. The file then holds a commit that the journal
    /// did not keep.
    pub(crate) fn journal_failure(&self) -> Option<Error> {
        self.journal.as_ref().and_then(|status| status.failure())
    }

    /// Commits all requests that wait. With a journal, returns a receiver for the answer once it
    /// has kept them.
    pub(crate) fn settle(self: &Arc<Self>) -> Option<oneshot::Receiver<Result<Reply>>> {
        self.commit_those_that_wait();
        let state = self.lock_state();
        let answered = state.journal.as_ref().map(|journal| {
            let (answer, answered) = oneshot::channel();
            journal.queue.push_answer(answer);
            answered
        });
        drop(state);
        self.serve_waiting();
        answered
    }

    /// Whether there was a commit since the last call.
    pub(crate) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn log_bound(&self) -> &LogBound {
        &self.log_bound
    }

    /// The length of the write-ahead log in bytes; 0 if it is unknown.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.clock.log_bytes()
    }

    /// Ends the wait for the log to restart, whether or not it can restart.
    pub(crate) fn end_log_pause(self: &Arc<Self>, begins_anew: bool) {
        if self.log_bound.is_full() {
            self.log_bound.go_on(begins_anew);
            self.serve_waiting();
        }
    }

    /// Commits the requests that wait, refuses further ones, and drops the connection.
    ///
    /// The first call returns the task that hands redos to the journal. It ends once all members
    /// are answered.
    pub(crate) fn close(self: &Arc<Self>) -> Option<JoinHandle<()>> {
        self.drain_all();
        // If this fails, the next process continues after the reserved versions.
        if let Err(error) = self.lock_state().give_back_versions(&self.clock) {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "cannot give back reserved versions; they are left unused"
            );
        }
        self.clock.close();
        let mut state = self.lock_state();
        let (connection, queue) = (state.connection.take(), state.journal.take());
        state.lock.leave();
        drop(state);
        drop((connection, queue));
        // Requests that came in the meantime fail with `Closed`.
        self.drain_all();
        self.shipper.lock().take()
    }

    /// Takes the state if it is free and no thread waits for it.
    fn try_state(&self) -> Option<MutexGuard<'_, State>> {
        if self.wanted.load(Ordering::SeqCst) > 0 {
            return None;
        }
        self.state.try_lock()
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.wanted.fetch_add(1, Ordering::SeqCst);
        let turn = self.turn.lock();
        let state = self.state.lock();
        drop(turn);
        self.wanted.fetch_sub(1, Ordering::SeqCst);
        state
    }

    /// Commits one group of small requests on this thread, which is a guest's. Another thread
    /// commits the rest.
    fn lead(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if self.guests_commit && !self.is_backlogged() {
            let group = self.waiting.lock().take_for_guest();
            self.commit_group(&mut state, group, Patience::None);
        }
        drop(state);
        self.serve_waiting();
    }

    /// Commits waiting requests, now or later, on another thread.
    ///
    /// Must be called after every release of the writer and after every shipment to the journal:
    /// requests that came in the meantime found the writer taken, or a backlog.
    pub(crate) fn serve_waiting(self: &Arc<Self>) {
        match self.next() {
            Next::Nothing => {}
            Next::Now => self.serve_soon(),
            Next::At(until) => self.serve_at(until),
        }
    }

    fn serve_soon(self: &Arc<Self>) {
        if !self.is_drain_due.swap(true, Ordering::AcqRel) {
            let writer = self.clone();
            self.runtime.spawn_blocking(move || {
                // Reset before the look: a request that comes later either spawns another thread,
                // or is found by `drain`.
                writer.is_drain_due.store(false, Ordering::Release);
                writer.drain(Patience::BusyTimeout);
            });
        }
    }

    fn serve_at(self: &Arc<Self>, until: Instant) {
        if !self.is_timer_set.swap(true, Ordering::AcqRel) {
            let writer = Arc::downgrade(self);
            self.runtime.spawn(async move {
                tokio::time::sleep_until(until.into()).await;
                if let Some(writer) = writer.upgrade() {
                    writer.is_timer_set.store(false, Ordering::Release);
                    writer.serve_waiting();
                }
            });
        }
    }

    fn drain(self: &Arc<Self>, patience: Patience) {
        while self.next() == Next::Now {
            let mut state = self.lock_state();
            let group = self.waiting.lock().take(Instant::now(), true);
            self.commit_group(&mut state, group, patience);
        }
        self.serve_waiting();
    }

    /// Commits the requests that wait now, in spite of backlog and pauses. Requests that come in
    /// the meantime keep waiting.
    fn commit_those_that_wait(&self) {
        let groups = self.waiting.lock().take_all();
        for group in groups {
            let mut state = self.lock_state();
            self.commit_group(&mut state, group, Patience::BusyTimeout);
        }
    }

    /// Commits all requests, including those that come in the meantime, in spite of backlog and
    /// pauses.
    fn drain_all(&self) {
        while !self.waiting.lock().is_empty() {
            let mut state = self.lock_state();
            let group = self.waiting.lock().take(Instant::now(), false);
            self.commit_group(&mut state, group, Patience::BusyTimeout);
        }
    }

    /// When to commit the waiting requests.
    ///
    /// The backlog must be read last. If it is found, the requests are already in the queue, so the
    /// shipper finds them when it calls `serve_waiting` after the backlog.
    fn next(&self) -> Next {
        let next = self.waiting.lock().next(Instant::now());
        if self.is_backlogged() { Next::Nothing } else { next }
    }

    fn is_backlogged(&self) -> bool {
        self.log_bound.is_full() || self.journal.as_ref().is_some_and(|status| status.is_backlogged())
    }

    fn commit_group(&self, state: &mut State, mut group: Vec<Request>, patience: Patience) {
        if group.is_empty() {
            return;
        }
        self.dirty.store(true, Ordering::Release);
        match state.commit_group(&group, &self.clock, patience) {
            Ok(made) => {
                self.log_bound.committed(self.log_bytes());
                self.keep_pace(&group, &made);
                self.wait_again(group.split_off(made.outcomes.len().min(group.len())));
                self.made(state, group, made);
            }
            Err(GroupError::Busy) => self.wait_again(group),
            Err(GroupError::RolledBack(error)) if group.len() == 1 => answer_all(group, &error),
            // One member cannot be written. Alone, the others can.
            Err(GroupError::RolledBack(_)) => self.commit_one_by_one(state, group, patience),
            Err(GroupError::NotBegun(error) | GroupError::Unknown(error)) => answer_all(group, &error),
        }
    }

    fn keep_pace(&self, group: &[Request], made: &Made) {
        if let [request] = group
            && request.is_large()
        {
            self.waiting.lock().large_ended(request.share(), made.began, Instant::now());
        }
    }

    fn commit_one_by_one(&self, state: &mut State, group: Vec<Request>, patience: Patience) {
        for request in group {
            let alone = vec![request];
            match state.commit_group(&alone, &self.clock, patience) {
                Ok(made) => {
                    self.log_bound.committed(self.log_bytes());
                    self.made(state, alone, made);
                }
                Err(error) => answer_all(alone, &error.into()),
            }
        }
    }

    /// Answers the members, or has the journal's task answer them. A member that failed is answered
    /// at once, because it has nothing to keep.
    fn made(&self, state: &State, group: Vec<Request>, made: Made) {
        self.count(made.changes);
        let mut to_keep = Vec::new();
        for (request, outcome) in group.into_iter().zip(made.outcomes) {
            match outcome {
                Ok(Reply::Made(committed)) if state.journal.is_some() => {
                    to_keep.push((request.answer, committed));
                }
                // The caller may have dropped its future.
                outcome => drop(request.answer.send(outcome)),
            }
        }
        if let (Some(journal), Some(number)) = (&state.journal, made.number) {
            journal.queue.push(number, made.redo, to_keep);
        }
    }

    fn count(&self, changes: u64) {
        if changes > 0 {
            self.changes.send_modify(|count| *count += changes);
        }
    }

    fn wait_again(&self, group: Vec<Request>) {
        self.waiting.lock().put_back(group);
    }
}

fn answer_all(group: Vec<Request>, error: &Error) {
    for request in group {
        drop(request.answer.send(Err(error.clone())));
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use larder_core::backend::Backend;
    use larder_core::commit::Committed;
    use larder_core::commit::Mutation;
    use larder_core::name::{Key, Namespace, RowKey, Value};
    use larder_core::{HandleOptions, Limits, Mode, Store};

    use super::*;
    use crate::Sqlite;

    /// A commit of `count` rows, whose keys begin with `prefix`.
    fn rows(share: &Share, prefix: &str, count: usize) -> Arc<Commit> {
        let limits = Limits::default();
        let namespace = Namespace::new("n", &limits).unwrap();
        let put = Mutation::Put { value: Value::new(b"v".to_vec(), &limits).unwrap(), ttl_ms: None };
        let writes = (0..count).map(|number| {
            let key = Key::new(format!("{prefix}{number}"), &limits).unwrap();
            (RowKey { namespace: namespace.clone(), key }, put.clone())
        });
        Arc::new(Commit { writes: writes.collect(), share: share.clone(), ..Commit::default() })
    }

    type Committing<'a> = Pin<Box<dyn Future<Output = Result<Committed>> + Send + 'a>>;

    fn committing<'a>(database: &'a Sqlite, commit: Arc<Commit>) -> Committing<'a> {
        database.commit(commit)
    }

    fn poll(commit: &mut Committing<'_>) -> Poll<Result<Committed>> {
        commit.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    async fn open(folder: &std::path::Path, synchronous: Synchronous) -> Sqlite {
        Sqlite::open(folder.join("a.db"), SqliteOptions::default().synchronous(synchronous)).await.unwrap()
    }

    /// Blocks the only thread of the runtime's blocking pool until the result is dropped.
    fn blocked(runtime: &tokio::runtime::Runtime) -> std::sync::mpsc::Sender<()> {
        let (go, gone) = std::sync::mpsc::channel();
        let (tell, told) = std::sync::mpsc::channel();
        runtime.spawn_blocking(move || {
            tell.send(()).unwrap();
            let _ = gone.recv();
        });
        told.recv().unwrap();
        go
    }

    #[test]
    fn a_guest_makes_its_small_commit_and_no_large_one_and_never_waits_for_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.enable_all().worker_threads(1).max_blocking_threads(1).build().unwrap();
        for (synchronous, count, is_made) in [
            (Synchronous::Normal, 240, true),
            (Synchronous::Normal, 260, false),
            (Synchronous::Full, 1, false),
        ] {
            let database = runtime.block_on(open(folder.path(), synchronous));
            let blocked = blocked(&runtime);
            let _in_runtime = runtime.enter();
            let mut commit = committing(&database, rows(&Share::own(), "a", count));
            let at_once = poll(&mut commit);
            drop(blocked);
            match at_once {
                Poll::Ready(made) => assert!(is_made && made.is_ok()),
                Poll::Pending => assert!(!is_made && runtime.block_on(commit).is_ok()),
            }
            runtime.block_on(database.close());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn small_commits_are_made_during_the_pause_before_a_large_one() {
        let folder = tempfile::tempdir().unwrap();
        let database = open(folder.path(), Synchronous::Normal).await;
        database.writer.waiting.lock().pause_for(Duration::from_secs(3_600));
        let mut large = committing(&database, rows(&Share::own(), "large", 600));
        assert!(poll(&mut large).is_pending());
        for number in 0..3 {
            let small = rows(&Share::own(), &format!("small{number}"), 1);
            assert_eq!(database.commit(small).await.unwrap().version, Version(number + 1));
        }
        assert!(poll(&mut large).is_pending());
        // Closing the database commits what waits.
        database.close().await;
        assert_eq!(large.await.unwrap().version, Version(4));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_large_commit_is_made_once_the_pause_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let database = open(folder.path(), Synchronous::Normal).await;
        database.writer.waiting.lock().pause_for(Duration::from_millis(20));
        let large = rows(&Share::own(), "large", 600);
        assert_eq!(database.commit(large).await.unwrap().version, Version(1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_large_commit_that_is_paused_ends_with_its_deadline_and_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let database = open(folder.path(), Synchronous::Normal).await;
        let writer = database.writer.clone();
        let store = Store::builder(database).build().unwrap();
        let limits = Limits::default().transaction_timeout(Duration::from_millis(200));
        let handle = store.handle(HandleOptions::default().limits(limits));
        writer.waiting.lock().pause_for(Duration::from_secs(3_600));
        let mut update = handle.begin(Mode::Update).unwrap();
        for number in 0..600 {
            update.put("n".into(), number.to_string(), b"v".to_vec()).unwrap();
        }
        assert!(matches!(update.commit().await, Err(Error::TimedOut)));
        store.close().await;
        drop((store, handle));
        let database = open(folder.path(), Synchronous::Normal).await;
        assert_eq!(database.stored_bytes().await.unwrap(), 0);
    }

    /// A commit of one row that expects another one to have a version.
    fn on_condition(key: &str, on: &str, version: Version) -> Arc<Commit> {
        let limits = Limits::default();
        let commit = Arc::unwrap_or_clone(rows(&Share::own(), key, 1));
        let namespace = Namespace::new("n", &limits).unwrap();
        let row = RowKey { namespace, key: Key::new(on, &limits).unwrap() };
        Arc::new(Commit { conditions: [(row, version)].into(), ..commit })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_member_of_a_group_that_fails_or_conflicts_leaves_the_others_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let database = open(folder.path(), Synchronous::Normal).await;
        // A row that larder never writes, so that a commit which depends on it fails.
        let damage = "INSERT INTO larder_entries (namespace, key, value, version)
            VALUES (CAST('n' AS BLOB), CAST('damaged' AS BLOB), x'', -5)";
        Connection::open(folder.path().join("a.db")).unwrap().execute_batch(damage).unwrap();
        for failing in [Some("damaged"), None] {
            let name = |name: &str| format!("{name} beside {failing:?}");
            let mut members = vec![
                committing(&database, rows(&Share::own(), &name("first"), 1)),
                committing(&database, on_condition(&name("conflict"), "absent", Version(9))),
                committing(&database, rows(&Share::own(), &name("last"), 1)),
            ];
            if let Some(on) = failing {
                members.insert(1, committing(&database, on_condition(&name("fails"), on, Version(9))));
            }
            let changes = {
                let _held = database.writer.lock_state();
                assert!(members.iter_mut().all(|member| poll(member).is_pending()), "they are one group");
                *database.writer.changes.borrow()
            };
            database.writer.serve_waiting();
            let mut outcomes = Vec::new();
            for member in members {
                outcomes.push(member.await);
            }
            if failing.is_some() {
                assert!(matches!(outcomes.remove(1), Err(Error::Corrupt(_))));
            }
            let [first, conflict, last] = outcomes.try_into().unwrap();
            assert_eq!(first.unwrap().version.0 + 1, last.unwrap().version.0);
            assert!(matches!(conflict, Err(Error::Conflict)));
            assert_eq!(*database.writer.changes.borrow(), changes + 2);
        }
        let rows = "SELECT count(*) FROM larder_entries WHERE version > 0";
        let kept = Connection::open(folder.path().join("a.db")).unwrap();
        assert_eq!(kept.query_row(rows, [], |row| row.get::<_, i64>(0)).unwrap(), 4);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_waiting_thread_gets_the_writer_before_the_thread_that_releases_it() {
        let folder = tempfile::tempdir().unwrap();
        let database = open(folder.path(), Synchronous::Normal).await;
        let writer = database.writer.clone();
        let state = writer.lock_state();
        let waits = std::thread::spawn({
            let writer = writer.clone();
            move || writer.between_commits(|changes| changes)
        });
        while writer.wanted.load(Ordering::SeqCst) == 0 || writer.turn.try_lock().is_some() {
            std::thread::yield_now();
        }
        drop(state);
        // This waits for the turn.
        drop(writer.lock_state());
        assert_eq!(writer.wanted.load(Ordering::SeqCst), 0);
        assert_eq!(waits.join().unwrap(), 0);
    }
}
