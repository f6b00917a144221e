//! The one writer of a database. Whoever finds it free commits, for itself and for all who wait.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use larder_core::backend::{Committed, SweepOptions, Swept, Version};
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::commit::{Commit, Plan, RowWrite};
use larder_core::commit_log::CommitLog;
use larder_core::memory::records::RecordWrite;
use larder_core::name::RowKey;
use larder_core::redo::{Group, Journal, Redo, RedoWriter};
use larder_core::validation::{Attempt, Validity};
use larder_core::{Error, Result, Share};
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
use crate::{Durability, SqliteOptions, records, redo, rows};

/// Commits of one database, one SQLite transaction after the other.
pub(crate) struct Writer {
    waiting: Mutex<Waiting>,
    state: Mutex<State>,
    /// Held by the next one to have the state, so that a thread which commits without end is not always there first.
    turn: Mutex<()>,
    /// How many threads wait for the state. Each serves those that wait for a commit once it lets go of it.
    wanted: AtomicUsize,
    /// Whether a guest's thread may commit. It must not wait for the disk.
    guests_commit: bool,
    /// A thread is about to commit what waits.
    is_drain_due: AtomicBool,
    /// A task is about to do so at the end of a pause.
    is_timer_set: AtomicBool,
    /// What is known of the committed state; none where nothing is kept in memory.
    cache: Option<Cache>,
    /// There are commits that no checkpoint has moved into the database yet.
    dirty: AtomicBool,
    log_bound: LogBound,
    /// Commits, writes of records and sweeps that changed something, counted while the writer is held.
    changes: watch::Sender<u64>,
    /// How the journal does, where there is one.
    journal: Option<Arc<Status>>,
    /// What hands over to the journal; it ends once the queue is dropped and empty.
    shipper: Mutex<Option<JoinHandle<()>>>,
    runtime: Handle,
}

struct State {
    connection: Option<Connection>,
    lock: WriteLock,
    log: CommitLog,
    journal: Option<Journaled>,
    /// Records move the position too.
    positioned: bool,
    min_version: Version,
    /// A commit ended without an answer from the disk: what is in the file is not known until it is opened again.
    failed: bool,
}

/// The commits of this database are kept in a journal.
struct Journaled {
    queue: Queue,
    status: Arc<Status>,
    /// Where the last redo ended. Somebody else's commits after it would be a gap in the journal.
    position: Version,
}

/// What a group came to, once it is committed.
struct Made {
    /// When it had SQLite's lock.
    began: Instant,
    /// Of each member, in order. Those without one are to wait again, as the group has taken long enough.
    outcomes: Vec<Result<Reply>>,
    /// The position of the database after it.
    position: Version,
    /// How many of the members changed something.
    changes: u64,
    redo: Option<Redo>,
    /// For the journal.
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
    /// Another process has the lock; the group may be tried again.
    Busy,
    /// No transaction could begin: there is no member whose fault it could be.
    NotBegun(Error),
    /// Nothing was written.
    RolledBack(Error),
    /// The disk gave no answer to the commit.
    Unknown(Error),
}

/// A group that has taken longer, as its members had much to look at, goes on with the next one.
const GROUP_TIME: Duration = Duration::from_millis(5);

/// A sweep that takes longer counts as large work.
const SWEEP_TIME: Duration = Duration::from_millis(5);

impl Writer {
    /// The writer of a database whose schema is up to date, within a runtime.
    /// `positioned` says that records move the position too; with a journal they must.
    pub(crate) fn new(
        connection: Connection,
        readers: &Arc<Readers>,
        options: SqliteOptions,
        positioned: bool,
        journal: Option<Arc<dyn Journal>>,
    ) -> Result<Arc<Self>> {
        let position = rows::last_version(&connection)?;
        // Other processes are waited for in one place, by `WriteLock`, and never on a guest's thread.
        connection.busy_timeout(Duration::ZERO).map_err(SqliteError::from)?;
        // SAFETY: it has just read. The writer keeps it until `close`, which closes the cache first; both go with the
        // writer, and the cache with nobody else.
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
                guests_commit: options.durability != Durability::Full,
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

    /// Makes an attempt to commit. Once it is asked, the attempt is made whether or not anybody waits for the answer: it is
    /// either made before this returns for the first time, or by whoever holds the writer.
    pub(crate) async fn commit(self: &Arc<Self>, commit: Arc<Commit>, attempt: Attempt) -> Result<Reply> {
        self.make(Work::Commit(commit, attempt)).await
    }

    /// Writes a record of memory, as a commit is made and together with others.
    pub(crate) async fn write_record(self: &Arc<Self>, write: Arc<RecordWrite>) -> Result<()> {
        self.make(Work::Record(write)).await.map(drop)
    }

    async fn make(self: &Arc<Self>, work: Work) -> Result<Reply> {
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).push(Request::new(work, answer), Instant::now());
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
            lock(&self.waiting).large_ended(&Share::host(), *began, Instant::now());
        }
        self.serve_waiting();
        let (bytes, _) = swept?;
        Ok(Swept { rows: bytes.len() as u64, bytes: bytes.iter().sum() })
    }

    /// Waits for the pause after large work, if there is one now.
    pub(crate) async fn keep_pause(&self) {
        let until = lock(&self.waiting).pause(Instant::now());
        if let Some(until) = until {
            tokio::time::sleep_until(until.into()).await;
        }
    }

    /// Makes what a redo holds and the database does not; gives the position that it is at then.
    pub(crate) fn replay(self: &Arc<Self>, groups: &[Group]) -> Result<Version> {
        let mut state = self.lock_state();
        let replayed = state.replay(groups);
        self.count(replayed.as_ref().map_or(0, |(_, made)| *made));
        drop(state);
        self.dirty.store(true, Ordering::Release);
        self.serve_waiting();
        Ok(replayed?.0)
    }

    /// Does something while nobody commits or closes the database. It must be quick.
    ///
    /// # Errors
    /// [`Error::Closed`], and those of the work.
    pub(crate) fn while_open<T>(self: &Arc<Self>, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let state = self.lock_state();
        let done = if state.connection.is_some() { work() } else { Err(Error::Closed) };
        drop(state);
        self.serve_waiting();
        done
    }

    /// Does something while nobody commits, with the number of changes made before. It must be quick.
    pub(crate) fn between_commits<T>(self: &Arc<Self>, work: impl FnOnce(u64) -> T) -> T {
        let state = self.lock_state();
        let done = work(*self.changes.borrow());
        drop(state);
        self.serve_waiting();
        done
    }

    /// What is known of the committed state, where anything is kept in memory.
    pub(crate) fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    pub(crate) fn changes(&self) -> &watch::Sender<u64> {
        &self.changes
    }

    /// Waits until the journal has kept everything that is visible in the file now.
    ///
    /// # Errors
    /// As [`Writer::journal_failure`].
    pub(crate) async fn kept(&self) -> Result<()> {
        match &self.journal {
            Some(status) => status.kept().await,
            None => Ok(()),
        }
    }

    /// The same, until a deadline.
    ///
    /// # Errors
    /// [`Error::TimedOut`], and as [`Writer::kept`].
    pub(crate) async fn kept_until(&self, deadline: Instant) -> Result<()> {
        let kept = tokio::time::timeout_at(deadline.into(), self.kept());
        kept.await.unwrap_or(Err(Error::TimedOut))
    }

    /// Why the database can't be relied on: the journal did not keep a commit that it holds.
    pub(crate) fn journal_failure(&self) -> Option<Error> {
        self.journal.as_ref().and_then(|status| status.failure())
    }

    /// Commits all that wait, and gives what is answered once the journal has kept them; none without a journal.
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

    /// Whether there has been a commit since the last call.
    pub(crate) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn log_bound(&self) -> &LogBound {
        &self.log_bound
    }

    /// How long the log is; 0 where that is not known.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.cache.as_ref().map_or(0, Cache::log_bytes)
    }

    /// Commits that waited for the log to begin anew go on, whether or not it could.
    pub(crate) fn end_log_pause(self: &Arc<Self>, begins_anew: bool) {
        if self.log_bound.is_full() {
            self.log_bound.go_on(begins_anew);
            self.serve_waiting();
        }
    }

    /// Refuses further commits, after those that wait, and drops the connection. What hands over to the journal is
    /// given to who closes first; it ends when all is answered.
    pub(crate) fn close(self: &Arc<Self>) -> Option<JoinHandle<()>> {
        self.drain_all();
        if let Some(cache) = &self.cache {
            // Where it can't be done, the next process goes on from what is reserved.
            if let Err(error) = self.lock_state().give_back_versions(cache) {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "reserved versions are left unused"
                );
            }
            cache.close();
        }
        let mut state = self.lock_state();
        let (connection, queue) = (state.connection.take(), state.journal.take());
        state.lock.turns.remove();
        drop(state);
        drop((connection, queue));
        // Whoever came in between is told.
        self.drain_all();
        lock(&self.shipper).take()
    }

    /// The state, if it is free and no thread waits for it.
    fn try_state(&self) -> Option<MutexGuard<'_, State>> {
        if self.wanted.load(Ordering::SeqCst) > 0 {
            return None;
        }
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.wanted.fetch_add(1, Ordering::SeqCst);
        let turn = lock(&self.turn);
        let state = lock(&self.state);
        drop(turn);
        self.wanted.fetch_sub(1, Ordering::SeqCst);
        state
    }

    /// Commits one group of small commits on this thread, which belongs to a guest; what else waits is for another thread.
    fn lead(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if self.guests_commit && !self.is_backlogged() {
            let group = lock(&self.waiting).take_for_guest();
            self.commit_group(&mut state, group, Patience::None);
        }
        drop(state);
        self.serve_waiting();
    }

    /// Must follow every release of the writer, and every shipment: who came meanwhile did not find the writer free, or
    /// found a backlog.
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
                // Whoever comes from now on has another thread come, or is found here.
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
            let group = lock(&self.waiting).take(Instant::now(), true);
            self.commit_group(&mut state, group, patience);
        }
        self.serve_waiting();
    }

    /// Commits all that wait now, backlog and pauses or not. Those that come meanwhile are left.
    fn commit_those_that_wait(&self) {
        let groups = lock(&self.waiting).take_all();
        for group in groups {
            let mut state = self.lock_state();
            self.commit_group(&mut state, group, Patience::BusyTimeout);
        }
    }

    /// Commits all that wait, and those that come meanwhile, backlog and pauses or not.
    fn drain_all(&self) {
        while !lock(&self.waiting).is_empty() {
            let mut state = self.lock_state();
            let group = lock(&self.waiting).take(Instant::now(), false);
            self.commit_group(&mut state, group, Patience::BusyTimeout);
        }
    }

    /// The backlog is looked at last: whoever finds one has its request among those that wait already, where the
    /// shipper finds it once the backlog is gone.
    fn next(&self) -> Next {
        let next = lock(&self.waiting).next(Instant::now());
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
            // One of them can't be written; alone, the others can.
            Err(GroupError::RolledBack(_)) => self.commit_one_by_one(state, group, patience),
            Err(GroupError::NotBegun(error) | GroupError::Unknown(error)) => answer_all(group, &error),
        }
    }

    fn keep_pace(&self, group: &[Request], made: &Made) {
        if let [request] = group
            && request.is_large()
        {
            lock(&self.waiting).large_ended(request.share(), made.began, Instant::now());
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

    /// Tells the members, or lets the journal tell them. A member that failed is told at once: nothing of it is there
    /// to be kept.
    fn made(&self, state: &State, group: Vec<Request>, made: Made) {
        self.count(made.changes);
        let mut to_keep = Vec::new();
        for (request, outcome) in group.into_iter().zip(made.outcomes) {
            match outcome {
                Ok(Reply::Made(committed)) if state.journal.is_some() => {
                    to_keep.push((request.answer, committed));
                }
                // Nobody may be there any more to hear the answer.
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
        lock(&self.waiting).put_back(group);
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
                reason: "another process holds the database's lock".to_string(),
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
    /// Commits a group in one transaction, and gives the outcome of each member: one that conflicts, or that
    /// asks for what can't be, fails alone.
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
        // Once it is committed, others see it.
        let number = self.journal.as_ref().map(|journal| journal.status.begin());
        let journaled_to = self.journal.as_ref().map(|journal| journal.position);
        // Where the version is a position, others rely on it: it stands in the table with every commit.
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

    /// After a failure nothing is written until the database is opened again.
    fn check_usable(&self) -> Result<()> {
        if self.failed {
            return Err(Error::Unavailable {
                reason: "an earlier commit got no answer from the disk; open the store again".to_string(),
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
            // Its sequence counts reserved versions: redos that it lacks would look like redos that it holds.
            let reason =
                "cannot replay a redo: the database counts no positions; open it as a positioned one";
            return Err(Error::invalid_argument(reason));
        }
        self.check_usable()?;
        let connection = self.connection.as_ref().ok_or(Error::Closed)?;
        self.lock.begin(connection, None)?;
        let replayed = redo::replay(connection, groups)
            .and_then(|replayed| commit(connection).map(|()| replayed).map_err(Error::from));
        match &replayed {
            Ok((position, _)) => {
                // The log knows nothing of these commits: it begins anew.
                self.log = CommitLog::default();
                self.move_to(*position);
            }
            Err(_) => self.abandon(is_unknown(&replayed)),
        }
        replayed
    }

    /// The bytes of each row removed, and when SQLite's lock was got.
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

    /// Writes down which versions were really given, so that the next process leaves none out.
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

    /// Rolls back. The log holds members of the group that are not committed: it is forgotten.
    fn abandon(&mut self, unknown: bool) {
        self.log = CommitLog::default();
        self.failed |= unknown;
        if let Some(connection) = &self.connection {
            self.failed |= roll_back(connection).is_err();
            forget_pages(connection);
        }
    }
}

/// For so long after another process was met, this one asks whether it waits.
const COMPANY: Duration = Duration::from_secs(5);

/// How SQLite's write lock is taken, of which other processes have their share.
struct WriteLock {
    turns: Turns,
    /// When another process was last found to have the lock.
    was_busy: Option<Instant>,
}

impl WriteLock {
    fn new(turns: Turns) -> Self {
        Self { turns, was_busy: None }
    }

    /// Begins a transaction that writes, without waiting for anybody; false if another process has the lock or waits for
    /// it.
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

    /// Begins a transaction that writes, after those that came before. It blocks for [`BUSY_TIMEOUT`] at most.
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

/// How long the turn is waited for. Whoever has it may have been stopped, and SQLite's lock be free.
const TURN_MAX: Duration = Duration::from_secs(1);

/// How long whoever is next waits between two looks at the lock: an eighth of the time that it has waited, within these.
const PAUSE_MIN: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// False if another process has the lock.
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

/// Whether it is open what became of a commit: the file may hold what nobody was told of.
fn is_unknown<T>(outcome: &Result<T>) -> bool {
    matches!(outcome, Err(Error::CommitUnknown { .. }))
}

/// Sweeps in SQLite's transaction, which has begun, and commits it. It leaves a state of its own: who has read an expired
/// row, at a moment at which it was live, goes on reading it.
fn sweep(
    connection: &Connection,
    log: &mut CommitLog,
    cache: Option<&Cache>,
    options: &SweepOptions,
) -> Result<Vec<u64>> {
    // It changes nothing that a read could tell, so it has no moment.
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

/// Gives back versions in SQLite's transaction, which has begun, and commits it.
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

/// Versions that are reserved at once: only one commit of so many has to write down how far they were given.
const RESERVED_VERSIONS: u64 = 1_000;

/// Which versions a group may give.
#[derive(Clone, Copy)]
struct Versions {
    /// The least one.
    min: Version,
    /// How many may be reserved.
    reserve: u64,
}

/// A group of commits in SQLite's transaction, which has begun.
struct GroupCommit<'a> {
    connection: &'a Connection,
    log: &'a mut CommitLog,
    before: Version,
    /// With the version of the last member that wrote.
    given: Given,
    versions: Versions,
    /// When the first row expires on which a member rests.
    expires_at: Option<UnixMillis>,
    /// Whether any page was written.
    wrote: bool,
    redo: Option<RedoWriter>,
    cached: Option<CommitUnderWay<'a>>,
}

impl<'a> GroupCommit<'a> {
    /// `journaled_to` is where the journal is, where there is one.
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
            let reason = "another process wrote to a database whose commits are kept in a journal";
            return Err(Error::other(reason));
        }
        let redo = journaled_to.map(RedoWriter::new);
        // Who can't tell whether somebody else has committed has nothing to reserve.
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

    /// Writes what the group comes to, and commits it.
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

    /// Writes all members that can be made in the time of a group; gives the outcome of each, and how many change something. Only a refusal
    /// by core's rules is a member's own outcome. After an error of SQLite the members before it may be gone: it rolls
    /// back whole transactions by itself.
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
            // Only records were written: the position moves on all the same, so that it tells of every change.
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

    /// A member has written these rows.
    fn move_on(&mut self, version: Version, written: impl IntoIterator<Item = RowKey>) {
        self.given.last = version;
        if let Some(cached) = &mut self.cached {
            self.log.push(cached.move_on().as_version(), written);
        }
    }

    /// Decides what a member writes; nothing is written yet. `None` if its reads are to be validated first. Its moment is
    /// now, when SQLite's lock keeps everything else from coming before it.
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

    /// Writes what a member decided. An error here fails the whole group.
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

/// A panic while a lock was held can't have left a commit half made: SQLite rolls it back, and the next
/// `BEGIN` says so.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The write lock as one process has it.
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
        // It has met the other one before.
        ours.was_busy = Some(Instant::now());
        ours.begin(&connection, None).unwrap();
        let (mut theirs, their_connection) = process(folder.path());
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let waiting = std::thread::spawn(move || {
            theirs.begin(&their_connection, None).unwrap();
            finished.recv().unwrap();
            commit(&their_connection).unwrap();
        });
        // Until the other one is the next.
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

    /// A commit of that many rows, under keys of that prefix.
    fn rows(share: &Share, prefix: &str, count: usize) -> Arc<Commit> {
        let limits = Limits::default();
        let namespace = Namespace::new("n", &limits).unwrap();
        let put = Mutation::Put { value: Value::new(b"v".to_vec(), &limits).unwrap(), ttl_millis: None };
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

    async fn open(folder: &std::path::Path, durability: Durability) -> Sqlite {
        Sqlite::open(folder.join("a.db"), SqliteOptions { durability, ..SqliteOptions::default() })
            .await
            .unwrap()
    }

    /// A runtime of which all threads that may block do so, until the answer is dropped.
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
        for (durability, count, is_made) in
            [(Durability::Normal, 240, true), (Durability::Normal, 260, false), (Durability::Full, 1, false)]
        {
            let database = runtime.block_on(open(folder.path(), durability));
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
        let database = open(folder.path(), Durability::Normal).await;
        lock(&database.writer.waiting).pause_for(Duration::from_secs(3_600));
        let mut large = committing(&database, rows(&Share::own(), "large", 600));
        assert!(poll(&mut large).is_pending());
        for number in 0..3 {
            let small = rows(&Share::own(), &format!("small{number}"), 1);
            assert_eq!(database.commit(small).await.unwrap().version, Version(number + 1));
        }
        assert!(poll(&mut large).is_pending());
        // Whoever closes the database makes what waits.
        database.close().await;
        assert_eq!(large.await.unwrap().version, Version(4));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_large_commit_is_made_once_the_pause_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let database = open(folder.path(), Durability::Normal).await;
        lock(&database.writer.waiting).pause_for(Duration::from_millis(20));
        let large = rows(&Share::own(), "large", 600);
        assert_eq!(database.commit(large).await.unwrap().version, Version(1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_large_commit_that_is_paused_ends_with_its_deadline_and_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let database = open(folder.path(), Durability::Normal).await;
        let writer = database.writer.clone();
        let store = Store::builder(database).build().unwrap();
        let limits = Limits { transaction_timeout: Duration::from_millis(200), ..Limits::default() };
        let handle = store.handle(HandleOptions { limits: limits.into(), ..HandleOptions::default() });
        lock(&writer.waiting).pause_for(Duration::from_secs(3_600));
        let mut update = handle.begin(Mode::Update).unwrap();
        for number in 0..600 {
            update.put("n".into(), number.to_string(), b"v".to_vec()).unwrap();
        }
        assert!(matches!(update.commit().await, Err(Error::TimedOut)));
        store.close().await;
        drop((store, handle));
        let database = open(folder.path(), Durability::Normal).await;
        assert_eq!(database.stored_bytes().await.unwrap(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_waits_for_the_writer_has_it_before_the_thread_that_lets_go_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let database = open(folder.path(), Durability::Normal).await;
        let writer = database.writer.clone();
        let state = writer.lock_state();
        let waits = std::thread::spawn({
            let writer = writer.clone();
            move || writer.between_commits(|changes| changes)
        });
        while writer.wanted.load(Ordering::SeqCst) == 0 || writer.turn.try_lock().is_ok() {
            std::thread::yield_now();
        }
        drop(state);
        // It waits for its turn.
        drop(writer.lock_state());
        assert_eq!(writer.wanted.load(Ordering::SeqCst), 0);
        assert_eq!(waits.join().unwrap(), 0);
    }
}
