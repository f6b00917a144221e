//! The writer of a database, which commits for all callers (group commit).
//!
//! Only one thread at a time holds the writer. A caller that finds it free commits a group: its own
//! request and others that wait. A caller that finds it taken only queues its request, which the
//! holder or a thread of the blocking pool commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use larder_core::backend::{SweepOptions, Swept};
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::commit::{Commit, Committed, Plan, RowWrite};
use larder_core::commit_log::CommitLog;
use larder_core::memory::records::RecordWrite;
use larder_core::name::RowKey;
use larder_core::redo::{Group, Journal, Redo, RedoWriter};
use larder_core::row::Version;
use larder_core::validation::{Attempt, Validity};
use larder_core::{Error, Result, Share};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::cache::{Cache, CommitUnderWay, Given};
use crate::connection::BUSY_TIMEOUT;
use crate::current_rows::CurrentRows;
use crate::error::{Result as SqliteResult, SqliteError};
use crate::journal::{GroupNumber, Queue, Reply, Status};
use crate::log_bound::LogBound;
use crate::readers::Readers;
use crate::transaction::{CommitError, commit, forget_pages, roll_back};
use crate::turn::{Look, Turns};
use crate::waiting::{Next, Request, Waiting, Work};
use crate::{SqliteOptions, Synchronous, records, redo, rows};

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
    /// `None` if the connection has no WAL index by which to notice commits of other processes.
    cache: Option<Cache>,
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

struct State {
    connection: Option<Connection>,
    lock: WriteLock,
    log: CommitLog,
    journal: Option<Journaled>,
    /// Whether record writes move the position too.
    positioned: bool,
    min_version: Version,
    /// Set after a commit whose outcome is unknown. The contents of the file are unknown until the
    /// database is reopened.
    failed: bool,
}

/// The state of a database whose commits are kept in a journal.
struct Journaled {
    queue: Queue,
    status: Arc<Status>,
    /// The position at which the last redo ended. A commit of another process after it would be a
    /// gap in the journal.
    position: Version,
}

/// The result of a group that was committed.
struct Made {
    /// When the group got SQLite's write lock.
    began: Instant,
    /// The outcomes of the members, in order. If the group reached its time limit, the members
    /// without an outcome wait for the next group.
    outcomes: Vec<Result<Reply>>,
    /// The position of the database after the group.
    position: Version,
    /// How many members changed something.
    changes: u64,
    redo: Option<Redo>,
    /// The number of the group in the journal. `None` without a journal.
    number: Option<GroupNumber>,
}

/// Whether the writer may wait for another process's lock, which blocks its thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    None,
    BusyTimeout,
}

/// Why a group was not committed as a whole.
enum GroupError {
    /// Another process holds the lock. The group may be tried again.
    Busy,
    /// The transaction could not begin, so the error is not that of any single member.
    NotBegun(Error),
    /// The transaction was rolled back, so nothing was written.
    RolledBack(Error),
    /// The disk did not confirm the commit, so its outcome is unknown.
    Unknown(Error),
}

/// A group commits once it has taken this long to plan and write. Its other members wait for the
/// next group.
const GROUP_TIME: Duration = Duration::from_millis(5);

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
        // cache first. Without a close, both are dropped with the writer, which shares the cache
        // with no other owner.
        let cache = unsafe { Cache::new(readers.clone(), &connection, options.cache_bytes) }?;
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
                cache,
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
        let swept = state.sweep(self.cache.as_ref(), options);
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
        let replayed = state.replay(groups);
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

    /// The cache. `None` if the connection has no WAL index.
    pub(crate) fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
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
        self.cache.as_ref().map_or(0, Cache::log_bytes)
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
        if let Some(cache) = &self.cache {
            // If this fails, the next process continues after the reserved versions.
            if let Err(error) = self.lock_state().give_back_versions(cache) {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "cannot give back reserved versions; they are left unused"
                );
            }
            cache.close();
        }
        let mut state = self.lock_state();
        let (connection, queue) = (state.connection.take(), state.journal.take());
        state.lock.turns.remove();
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
        match state.commit_group(&group, self.cache.as_ref(), patience) {
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
            match state.commit_group(&alone, self.cache.as_ref(), patience) {
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

impl From<GroupError> for Error {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Busy => Self::Unavailable {
                reason: "another process holds the lock of the database; try again".to_string(),
                cause: None,
            },
            GroupError::NotBegun(error) | GroupError::RolledBack(error) | GroupError::Unknown(error) => error,
        }
    }
}

impl From<CommitError> for GroupError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::NotMade(error) => Self::RolledBack(error),
            CommitError::Unknown(error) => Self::Unknown(error),
        }
    }
}

impl State {
    /// Commits a group in one transaction, and returns the outcome of each member. A member that
    /// conflicts, or whose request is invalid, fails alone.
    fn commit_group(
        &mut self,
        group: &[Request],
        cache: Option<&Cache>,
        patience: Patience,
    ) -> Result<Made, GroupError> {
        self.check_usable().map_err(GroupError::NotBegun)?;
        let Some(connection) = &self.connection else {
            return Err(GroupError::NotBegun(Error::Closed));
        };
        let begun = match patience {
            Patience::None => self.lock.try_begin(connection, cache),
            Patience::BusyTimeout => self.lock.begin(connection, cache).map(|()| true),
        };
        if !begun.map_err(|error| GroupError::NotBegun(error.into()))? {
            return Err(GroupError::Busy);
        }
        let began = Instant::now();
        // Taken before the commit, because the commit is visible as soon as it is made.
        let number = self.journal.as_ref().map(|journal| journal.status.begin());
        let journaled_to = self.journal.as_ref().map(|journal| journal.position);
        // A positioned database writes the exact version with every commit, because it is the
        // position.
        let reserve = if self.positioned { 0 } else { RESERVED_VERSIONS };
        let clock = group.iter().find_map(|request| request.work.clock());
        let versions = Versions { min: self.min_version, reserve };
        let result = GroupCommit::begin(connection, &mut self.log, cache, clock, journaled_to, versions)
            .map_err(GroupError::RolledBack)
            .and_then(|group_commit| group_commit.make(group, self.positioned, began));
        match result {
            Ok(made) => {
                self.move_to(made.position);
                Ok(Made { number, ..made })
            }
            Err(error) => {
                self.abandon(matches!(error, GroupError::Unknown(_)));
                if let (Some(journal), Some(number)) = (&self.journal, number) {
                    if let GroupError::Unknown(error) = &error {
                        journal.status.fail(error.clone());
                    }
                    journal.queue.push(number, None, Vec::new());
                }
                Err(error)
            }
        }
    }

    /// After a failure, nothing is written until the database is reopened.
    fn check_usable(&self) -> Result<()> {
        if self.failed {
            return Err(Error::Unavailable {
                reason: "the disk did not confirm an earlier commit; open the store again".to_string(),
                cause: None,
            });
        }
        self.journal.as_ref().and_then(|journal| journal.status.failure()).map_or(Ok(()), Err)
    }

    fn move_to(&mut self, position: Version) {
        if let Some(journal) = &mut self.journal {
            journal.position = position;
        }
    }

    fn replay(&mut self, groups: &[Group]) -> Result<(Version, u64)> {
        if !self.positioned {
            // The sequence in the table then counts reserved versions, so a redo that the database
            // lacks would look like one that it holds.
            let reason =
                "cannot replay a redo: the database does not count positions; open it as a positioned one";
            return Err(Error::invalid_argument(reason));
        }
        self.check_usable()?;
        let connection = self.connection.as_ref().ok_or(Error::Closed)?;
        self.lock.begin(connection, None)?;
        let replayed = redo::replay(connection, groups)
            .and_then(|replayed| commit(connection).map(|()| replayed).map_err(Error::from));
        match &replayed {
            Ok((position, _)) => {
                // The commit log does not contain these commits, so it starts anew.
                self.log = CommitLog::default();
                self.move_to(*position);
            }
            Err(_) => self.abandon(is_unknown(&replayed)),
        }
        replayed
    }

    /// Sweeps, and returns the bytes of each removed row and when SQLite's write lock was obtained.
    fn sweep(&mut self, cache: Option<&Cache>, options: &SweepOptions) -> Result<(Vec<u64>, Instant)> {
        self.check_usable()?;
        let connection = self.connection.as_ref().ok_or(Error::Closed)?;
        if !options.is_closing {
            self.lock.begin(connection, cache)?;
        } else if !self.lock.try_begin(connection, cache)? {
            return Ok((Vec::new(), Instant::now()));
        }
        let began = Instant::now();
        let swept = sweep(connection, &mut self.log, cache, options);
        if swept.is_err() {
            self.abandon(is_unknown(&swept));
        }
        swept.map(|swept| (swept, began))
    }

    /// Writes down the exact last version, so that the next process does not skip the reserved
    /// ones.
    fn give_back_versions(&mut self, cache: &Cache) -> Result<()> {
        if self.positioned || !cache.has_reserved() {
            return Ok(());
        }
        self.check_usable()?;
        let connection = self.connection.as_ref().ok_or(Error::Closed)?;
        if !self.lock.try_begin(connection, Some(cache))? {
            return Ok(());
        }
        let given_back = give_back_versions(connection, cache);
        if given_back.is_err() {
            self.abandon(is_unknown(&given_back));
        }
        given_back
    }

    /// Rolls back. The commit log holds members of the group that are not committed, so it starts
    /// anew.
    fn abandon(&mut self, unknown: bool) {
        self.log = CommitLog::default();
        self.failed |= unknown;
        if let Some(connection) = &self.connection {
            self.failed |= roll_back(connection).is_err();
            forget_pages(connection);
        }
    }
}

/// For how long after it met another process this one checks whether another process waits for the
/// lock.
const COMPANY: Duration = Duration::from_secs(5);

/// Takes SQLite's write lock, and shares it fairly with other processes.
struct WriteLock {
    turns: Turns,
    /// When another process was last found to hold the lock or to wait for it.
    was_busy: Option<Instant>,
}

impl WriteLock {
    fn new(turns: Turns) -> Self {
        Self { turns, was_busy: None }
    }

    /// Begins a write transaction without waiting. False if another process holds the lock or waits
    /// for it.
    fn try_begin(&mut self, connection: &Connection, cache: Option<&Cache>) -> SqliteResult<bool> {
        let turn = match self.has_company(cache) {
            true => self.turns.try_take(),
            false => Look::Without,
        };
        let begun = !matches!(turn, Look::Taken) && begin_at_once(connection)?;
        if !begun {
            self.was_busy = Some(Instant::now());
        }
        Ok(begun)
    }

    /// Begins a write transaction after the processes that came before. Blocks for [`BUSY_TIMEOUT`]
    /// at most.
    fn begin(&mut self, connection: &Connection, cache: Option<&Cache>) -> SqliteResult<()> {
        if self.try_begin(connection, cache)? {
            return Ok(());
        }
        let since = Instant::now();
        let _turn = self.turns.take(TURN_MAX);
        while since.elapsed() < BUSY_TIMEOUT {
            if begin_at_once(connection)? {
                return Ok(());
            }
            std::thread::sleep((since.elapsed() / 8).clamp(PAUSE_MIN, PAUSE_MAX));
        }
        begin_immediate(connection)
    }

    fn has_company(&self, cache: Option<&Cache>) -> bool {
        self.was_busy.is_some_and(|busy| busy.elapsed() < COMPANY)
            || cache.is_some_and(|cache| cache.has_company(COMPANY))
    }
}

/// The longest wait for the turn. Its holder may be a stopped process while SQLite's lock is free.
const TURN_MAX: Duration = Duration::from_secs(1);

/// Bounds of the pause between two attempts to take the lock. The pause is an eighth of the time
/// waited so far.
const PAUSE_MIN: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// Returns false if another process holds the lock.
fn begin_at_once(connection: &Connection) -> SqliteResult<bool> {
    match begin_immediate(connection) {
        Ok(()) => Ok(true),
        Err(error) if error.is_busy() => Ok(false),
        Err(error) => {
            forget_pages(connection);
            Err(error)
        }
    }
}

fn begin_immediate(connection: &Connection) -> SqliteResult<()> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}

/// Whether the outcome of the commit is unknown.
fn is_unknown<T>(outcome: &Result<T>) -> bool {
    matches!(outcome, Err(Error::CommitUnknown { .. }))
}

/// Sweeps in the transaction that has begun, and commits it.
///
/// The sweep leaves a state of its own: a snapshot that has read a row at a time before its expiry
/// must still find it.
fn sweep(
    connection: &Connection,
    log: &mut CommitLog,
    cache: Option<&Cache>,
    options: &SweepOptions,
) -> Result<Vec<u64>> {
    // A sweep changes nothing that a read could observe, so it has no time of its own.
    let mut cached = cache.map(|cache| cache.begin_commit(connection, None)).transpose()?;
    let swept = rows::sweep(connection, options.clock.now(), options)?;
    let wrote = !swept.is_empty();
    let mut sizes = Vec::with_capacity(swept.len());
    for (name, bytes) in swept {
        if let (Some(cached), Some(row)) = (&mut cached, name.row()) {
            cached.note(&row, &RowWrite::Delete, Version::ABSENT);
        }
        sizes.push(bytes);
    }
    if let Some(cached) = &mut cached {
        if wrote {
            log.push(cached.move_on().as_version(), []);
        }
        cached.asked(None);
    }
    commit(connection)?;
    if let Some(cached) = cached {
        let given = cached.given;
        cached.done(given, wrote);
    }
    Ok(sizes)
}

/// Gives back reserved versions in the transaction that has begun, and commits it.
fn give_back_versions(connection: &Connection, cache: &Cache) -> Result<()> {
    let cached = cache.begin_commit(connection, None)?;
    let Given { last, reserved } = cached.given;
    let wrote = last < reserved;
    if wrote {
        rows::set_last_version(connection, last)?;
    }
    commit(connection)?;
    cached.done(Given::read(last), wrote);
    Ok(())
}

/// How many versions are reserved at once. Only one commit in this many writes the bound in the
/// table.
const RESERVED_VERSIONS: u64 = 1_000;

/// Rules for the versions of a group.
#[derive(Clone, Copy)]
struct Versions {
    /// The lower bound.
    min: Version,
    /// How many versions to reserve beyond the last one.
    reserve: u64,
}

/// A group of commits in a transaction that has begun.
struct GroupCommit<'a> {
    connection: &'a Connection,
    log: &'a mut CommitLog,
    before: Version,
    /// The allocated versions, including that of the last member that wrote.
    given: Given,
    versions: Versions,
    /// When the first row expires that a member rests on.
    expires_at: Option<UnixMillis>,
    /// Whether any page was written.
    wrote: bool,
    redo: Option<RedoWriter>,
    cached: Option<CommitUnderWay<'a>>,
}

impl<'a> GroupCommit<'a> {
    /// `journaled_to` is the position of the journal; `None` without a journal.
    fn begin(
        connection: &'a Connection,
        log: &'a mut CommitLog,
        cache: Option<&'a Cache>,
        clock: Option<&ForwardClock>,
        journaled_to: Option<Version>,
        versions: Versions,
    ) -> Result<Self> {
        let cached = cache.map(|cache| cache.begin_commit(connection, clock)).transpose()?;
        let given = match &cached {
            Some(cached) => cached.given,
            None => Given::read(rows::last_version(connection)?),
        };
        if journaled_to.is_some_and(|position| position != given.last) {
            let reason = "another process wrote to the database, so its journal lacks a commit";
            return Err(Error::other(reason));
        }
        let redo = journaled_to.map(RedoWriter::new);
        // Without the cache, a commit of another process goes unnoticed, so reserved versions could
        // be allocated twice.
        let reserve = if cached.is_some() { versions.reserve } else { 0 };
        Ok(Self {
            connection,
            log,
            before: given.last,
            given,
            versions: Versions { reserve, ..versions },
            expires_at: None,
            wrote: false,
            redo,
            cached,
        })
    }

    /// Plans and writes the members, and commits them.
    fn make(mut self, group: &[Request], positioned: bool, began: Instant) -> Result<Made, GroupError> {
        let (outcomes, changes) = self.write(group, positioned, began).map_err(GroupError::RolledBack)?;
        if let Some(cached) = &self.cached {
            cached.asked(self.expires_at);
        }
        commit(self.connection)?;
        if let Some(cached) = self.cached {
            cached.done(self.given, self.wrote);
        }
        let position = self.given.last;
        let redo = self.redo.and_then(|redo| redo.finish(position));
        Ok(Made { began, outcomes, position, changes, redo, number: None })
    }

    /// Plans and writes the members, until the time limit of a group. Returns the outcome of each,
    /// and how many changed something.
    ///
    /// Only a refusal by core's rules is the outcome of a single member. After an error of SQLite
    /// the members before it may be lost too, because SQLite rolls back whole transactions by
    /// itself.
    fn write(
        &mut self,
        group: &[Request],
        positioned: bool,
        began: Instant,
    ) -> Result<(Vec<Result<Reply>>, u64)> {
        let mut changes = 0;
        let mut outcomes = Vec::with_capacity(group.len());
        for request in group {
            if !outcomes.is_empty() && began.elapsed() > GROUP_TIME {
                break;
            }
            let outcome = match &request.work {
                Work::Commit(commit, attempt) => match self.plan(commit, *attempt) {
                    Ok(Some(plan)) => Ok(Reply::Made(self.apply(commit, plan)?)),
                    Ok(None) => Ok(Reply::Unvalidated),
                    Err(error) if error.is_refusal() => Err(error),
                    Err(error) => return Err(error),
                },
                Work::Record(write) if records::write(self.connection, write)? => {
                    if let Some(redo) = &mut self.redo {
                        redo.record(write);
                    }
                    self.wrote = true;
                    changes += 1;
                    Ok(Reply::Made(Committed::default()))
                }
                Work::Record(_) => Err(Error::Conflict),
            };
            changes +=
                u64::from(matches!(&outcome, Ok(Reply::Made(made)) if made.version != Version::ABSENT));
            outcomes.push(outcome);
        }
        if positioned && changes > 0 && self.given.last == self.before {
            // Only records were written. The position moves all the same, so that it reflects every
            // change.
            self.move_on(self.next_version(), []);
        }
        if self.given.last > self.given.reserved {
            self.given.reserved = Version(self.given.last.0 + self.versions.reserve);
            rows::set_last_version(self.connection, self.given.reserved)?;
            self.wrote = true;
        }
        Ok((outcomes, changes))
    }

    fn next_version(&self) -> Version {
        Version(self.given.last.0 + 1).max(self.versions.min)
    }

    /// Records that a member has written these rows.
    fn move_on(&mut self, version: Version, written: impl IntoIterator<Item = RowKey>) {
        self.given.last = version;
        if let Some(cached) = &mut self.cached {
            self.log.push(cached.move_on().as_version(), written);
        }
    }

    /// Validates and plans a member, without writing. `None` if its reads must be validated first.
    ///
    /// The time of the member is read here: SQLite's write lock keeps every other commit from
    /// coming before it.
    fn plan<'c>(&self, commit: &'c Commit, attempt: Attempt) -> Result<Option<Plan<'c>>> {
        let connection = self.connection;
        let now = commit.clock.now();
        let newest = self.cached.as_ref().map(|cached| cached.state.as_version());
        let mut current = rows::Current { connection, now };
        match attempt.validate(&commit.reads, self.log, newest, &mut current)? {
            Validity::Holds => {
                let mut stored = CurrentRows::new(connection);
                commit.plan(now, |row, need| stored.get(row, need)).map(Some)
            }
            Validity::Changed => Err(Error::Conflict),
            Validity::Unknown => Ok(None),
        }
    }

    /// Writes the rows that a member planned. An error fails the whole group.
    fn apply(&mut self, commit: &Commit, plan: Plan<'_>) -> Result<Committed> {
        if plan.writes.is_empty() {
            return Ok(Committed::default());
        }
        let version = self.next_version();
        self.expires_at = self.expires_at.into_iter().chain(plan.expires_at).min();
        for (row, write) in &plan.writes {
            self.wrote |= rows::write(self.connection, row, write, version)?;
            if let Some(redo) = &mut self.redo {
                redo.row(row, write, version);
            }
            if let Some(cached) = &mut self.cached {
                cached.note(row, write, version);
            }
        }
        self.move_on(version, commit.writes.keys().cloned());
        Ok(Committed { version, growth: plan.growth })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use larder_core::backend::Backend;
    use larder_core::commit::Mutation;
    use larder_core::name::{Key, Namespace, Value};
    use larder_core::{HandleOptions, Limits, Mode, Store};

    use super::*;
    use crate::Sqlite;
    use crate::connection::open_writer;
    use crate::location::Location;

    /// The write lock as one process takes it.
    fn process(folder: &std::path::Path) -> (WriteLock, Connection) {
        let location = Location::resolve(&folder.join("a.db")).unwrap();
        let connection = open_writer(&location, SqliteOptions::default()).unwrap();
        connection.busy_timeout(Duration::ZERO).unwrap();
        (WriteLock::new(Turns::new(location.turn_path())), connection)
    }

    #[test]
    fn a_process_that_commits_without_end_lets_one_that_waits_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, connection) = process(folder.path());
        // It has met the other process before.
        ours.was_busy = Some(Instant::now());
        ours.begin(&connection, None).unwrap();
        let (mut theirs, their_connection) = process(folder.path());
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let waiting = std::thread::spawn(move || {
            theirs.begin(&their_connection, None).unwrap();
            finished.recv().unwrap();
            commit(&their_connection).unwrap();
        });
        // Wait until the other process has the turn.
        let mut look = Turns::new(folder.path().canonicalize().unwrap().join("a.db-turn"));
        while !matches!(look.try_take(), Look::Taken) {
            std::thread::yield_now();
        }
        commit(&connection).unwrap();
        for _ in 0..1_000 {
            assert!(!ours.try_begin(&connection, None).unwrap());
        }
        finish.send(()).unwrap();
        ours.begin(&connection, None).unwrap();
        commit(&connection).unwrap();
        waiting.join().unwrap();
    }

    #[test]
    fn a_process_alone_makes_no_queue() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, connection) = process(folder.path());
        ours.begin(&connection, None).unwrap();
        commit(&connection).unwrap();
        assert!(!folder.path().join("a.db-turn").exists());
    }

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
        Sqlite::open(folder.join("a.db"), SqliteOptions { synchronous, ..SqliteOptions::default() })
            .await
            .unwrap()
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
        let limits = Limits { transaction_timeout: Duration::from_millis(200), ..Limits::default() };
        let handle = store.handle(HandleOptions { limits: limits.into(), ..HandleOptions::default() });
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
