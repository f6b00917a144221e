//! The one writer of a database. Whoever finds it free commits, for itself and for all who wait.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use larder_core::backend::{Committed, SweepOptions, Swept, Version};
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::commit::{Commit, Plan, RowWrite};
use larder_core::commit_log::{CommitLog, Verdict};
use larder_core::memory::records::RecordWrite;
use larder_core::name::RowKey;
use larder_core::redo::{Group, Journal, Redo, RedoWriter};
use larder_core::{Error, Result};
use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::cache::{Cache, CommitUnderWay, Given, StateNumber};
use crate::connection::BUSY_TIMEOUT;
use crate::error::{Result as SqliteResult, SqliteError};
use crate::journal::{Answer, Queue, Status};
use crate::log_bound::LogBound;
use crate::readers::Readers;
use crate::transaction::{CommitError, commit, forget_pages, roll_back};
use crate::turn::{Look, Turns};
use crate::{SqliteOptions, records, redo, rows};

/// Commits of one database, one SQLite transaction after the other.
pub(crate) struct Writer {
    waiting: Mutex<VecDeque<Request>>,
    state: Mutex<State>,
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

struct Request {
    work: Work,
    answer: Answer,
}

/// What a group came to, once it is committed.
struct Made {
    outcomes: Vec<Result<Committed>>,
    /// The position of the database after it.
    position: Version,
    /// How many of the members changed something.
    changes: u64,
    redo: Option<Redo>,
}

enum Work {
    /// The commit of a transaction, with the state that it read, where that is known.
    Commit(Arc<Commit>, Option<StateNumber>),
    /// One record of memory.
    Record(Arc<RecordWrite>),
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

/// A group leaves room for readers of its answers.
const GROUP_MAX: usize = 256;

/// A journal takes a group as a whole: unless a single commit is larger, it gets no more bytes at once.
const JOURNALED_BYTES_MAX: u64 = 16 << 20;

impl Work {
    /// What tells its moment; a record has none.
    fn clock(&self) -> Option<&ForwardClock> {
        match self {
            Self::Commit(commit, _) => Some(&commit.clock),
            Self::Record(_) => None,
        }
    }

    /// Bytes that it writes, about.
    fn bytes(&self) -> u64 {
        match self {
            Self::Commit(commit, _) => commit.growth_bound(),
            Self::Record(write) => write.record.as_ref().map_or(0, |record| record.bytes.len() as u64),
        }
    }
}

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
                state: Mutex::new(State { connection, lock, log, journal, positioned, failed: false }),
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

    /// Commits. Once it is asked, the commit is made whether or not anybody waits for the answer: it is either
    /// made before this returns for the first time, or by whoever holds the writer.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        commit: Arc<Commit>,
        snapshot: Option<StateNumber>,
    ) -> Result<Committed> {
        self.make(Work::Commit(commit, snapshot)).await
    }

    /// Writes a record of memory, as a commit is made and together with others.
    pub(crate) async fn write_record(self: &Arc<Self>, write: Arc<RecordWrite>) -> Result<()> {
        self.make(Work::Record(write)).await.map(drop)
    }

    async fn make(self: &Arc<Self>, work: Work) -> Result<Committed> {
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).push_back(Request { work, answer });
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
        let state = if options.is_closing { self.try_state() } else { Some(lock(&self.state)) };
        let Some(mut state) = state else { return Ok(Swept::default()) };
        let swept = state.sweep(self.cache.as_ref(), options);
        self.count(swept.as_ref().is_ok_and(|swept| !swept.is_empty()).into());
        drop(state);
        self.dirty.store(true, Ordering::Release);
        self.serve_waiting();
        let bytes = swept?;
        Ok(Swept { rows: bytes.len() as u64, bytes: bytes.iter().sum() })
    }

    /// Makes what a redo holds and the database does not; gives the position that it is at then.
    pub(crate) fn replay(self: &Arc<Self>, groups: &[Group]) -> Result<Version> {
        let mut state = lock(&self.state);
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
        let state = lock(&self.state);
        let done = if state.connection.is_some() { work() } else { Err(Error::Closed) };
        drop(state);
        self.serve_waiting();
        done
    }

    /// Does something while nobody commits, with the number of changes made before. It must be quick.
    pub(crate) fn between_commits<T>(self: &Arc<Self>, work: impl FnOnce(u64) -> T) -> T {
        let state = lock(&self.state);
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

    /// Why the database can't be relied on: the journal did not keep a commit that it holds.
    pub(crate) fn journal_failure(&self) -> Option<Error> {
        self.journal.as_ref().and_then(|status| status.failure())
    }

    /// Commits all that wait, and gives what is answered once the journal has kept them; none without a journal.
    pub(crate) fn settle(&self) -> Option<oneshot::Receiver<Result<Committed>>> {
        self.drain_all();
        let state = lock(&self.state);
        let journal = state.journal.as_ref()?;
        let (answer, answered) = oneshot::channel();
        journal.queue.push(None, vec![(answer, Committed::default())]);
        Some(answered)
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
            if let Err(error) = lock(&self.state).give_back_versions(cache) {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "reserved versions are left unused"
                );
            }
            cache.close();
        }
        let mut state = lock(&self.state);
        let (connection, queue) = (state.connection.take(), state.journal.take());
        state.lock.turns.remove();
        drop(state);
        drop((connection, queue));
        // Whoever came in between is told.
        self.drain_all();
        lock(&self.shipper).take()
    }

    fn try_state(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Commits one group on this thread, which belongs to a guest; what has come meanwhile is for another thread.
    fn lead(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if !self.is_backlogged() {
            self.commit_group(&mut state, Patience::None);
        }
        drop(state);
        self.serve_waiting();
    }

    /// Must follow every release of the writer, and every shipment: who came meanwhile did not find the writer free, or
    /// found a backlog.
    pub(crate) fn serve_waiting(self: &Arc<Self>) {
        if self.has_work() {
            let writer = self.clone();
            self.runtime.spawn_blocking(move || writer.drain(Patience::BusyTimeout));
        }
    }

    fn drain(&self, patience: Patience) {
        while self.has_work() {
            let mut state = lock(&self.state);
            self.commit_group(&mut state, patience);
        }
    }

    /// Commits all that wait, backlog or not.
    fn drain_all(&self) {
        while !lock(&self.waiting).is_empty() {
            let mut state = lock(&self.state);
            self.commit_group(&mut state, Patience::BusyTimeout);
        }
    }

    /// The backlog is looked at last: whoever finds one has its request among those that wait already, where the
    /// shipper finds it once the backlog is gone.
    fn has_work(&self) -> bool {
        !lock(&self.waiting).is_empty() && !self.is_backlogged()
    }

    fn is_backlogged(&self) -> bool {
        self.log_bound.is_full() || self.journal.as_ref().is_some_and(|status| status.is_backlogged())
    }

    fn commit_group(&self, state: &mut State, patience: Patience) {
        let group = self.next_group(state.journal.is_some());
        if group.is_empty() {
            return;
        }
        self.dirty.store(true, Ordering::Release);
        match state.commit_group(&group, self.cache.as_ref(), patience) {
            Ok(made) => {
                self.log_bound.committed(self.log_bytes());
                self.made(state, group, made);
            }
            Err(GroupError::Busy) => self.wait_again(group),
            Err(GroupError::RolledBack(error)) if group.len() == 1 => answer_all(group, &error),
            // One of them can't be written; alone, the others can.
            Err(GroupError::RolledBack(_)) => self.commit_one_by_one(state, group, patience),
            Err(GroupError::NotBegun(error) | GroupError::Unknown(error)) => answer_all(group, &error),
        }
    }

    fn next_group(&self, journaled: bool) -> Vec<Request> {
        let mut waiting = lock(&self.waiting);
        let mut bytes = 0;
        let fits = |request: &&Request| {
            bytes += request.work.bytes();
            bytes <= JOURNALED_BYTES_MAX
        };
        let count = match journaled {
            true => waiting.iter().take(GROUP_MAX).take_while(fits).count().max(1),
            false => GROUP_MAX,
        };
        let count = count.min(waiting.len());
        waiting.drain(..count).collect()
    }

    fn commit_one_by_one(&self, state: &mut State, group: Vec<Request>, patience: Patience) {
        for request in group {
            let alone = vec![request];
            match state.commit_group(&alone, self.cache.as_ref(), patience) {
                Ok(made) => self.made(state, alone, made),
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
                Ok(committed) if state.journal.is_some() => to_keep.push((request.answer, committed)),
                // Nobody may be there any more to hear the answer.
                outcome => drop(request.answer.send(outcome)),
            }
        }
        if let Some(journal) = &state.journal {
            journal.queue.push(made.redo, to_keep);
        }
    }

    fn count(&self, changes: u64) {
        if changes > 0 {
            self.changes.send_modify(|count| *count += changes);
        }
    }

    fn wait_again(&self, group: Vec<Request>) {
        let mut waiting = lock(&self.waiting);
        for request in group.into_iter().rev() {
            waiting.push_front(request);
        }
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
        let journaled_to = self.journal.as_ref().map(|journal| journal.position);
        // Where the version is a position, others rely on it: it stands in the table with every commit.
        let reserve = if self.positioned { 0 } else { RESERVED_VERSIONS };
        let clock = group.iter().find_map(|request| request.work.clock());
        let result = GroupCommit::begin(connection, &mut self.log, cache, clock, journaled_to, reserve)
            .map_err(GroupError::RolledBack)
            .and_then(|group_commit| group_commit.make(group, self.positioned));
        match &result {
            Ok(made) => self.move_to(made.position),
            Err(error) => self.abandon(matches!(error, GroupError::Unknown(_))),
        }
        result
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

    fn sweep(&mut self, cache: Option<&Cache>, options: &SweepOptions) -> Result<Vec<u64>> {
        self.check_usable()?;
        let connection = self.connection.as_ref().ok_or(Error::Closed)?;
        if !options.is_closing {
            self.lock.begin(connection, cache)?;
        } else if !self.lock.try_begin(connection, cache)? {
            return Ok(Vec::new());
        }
        let swept = sweep(connection, &mut self.log, cache, options);
        if swept.is_err() {
            self.abandon(is_unknown(&swept));
        }
        swept
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

/// A group of commits in SQLite's transaction, which has begun.
struct GroupCommit<'a> {
    connection: &'a Connection,
    log: &'a mut CommitLog,
    before: Version,
    /// With the version of the last member that wrote.
    given: Given,
    /// How many versions may be reserved.
    reserve: u64,
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
        reserve: u64,
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
        let reserve = if cached.is_some() { reserve } else { 0 };
        Ok(Self {
            connection,
            log,
            before: given.last,
            given,
            reserve,
            expires_at: None,
            wrote: false,
            redo,
            cached,
        })
    }

    /// Writes what the group comes to, and commits it.
    fn make(mut self, group: &[Request], positioned: bool) -> Result<Made, GroupError> {
        let (outcomes, changes) = self.write(group, positioned).map_err(GroupError::RolledBack)?;
        if let Some(cached) = &self.cached {
            cached.asked(self.expires_at);
        }
        commit(self.connection)?;
        if let Some(cached) = self.cached {
            cached.done(self.given, self.wrote);
        }
        let position = self.given.last;
        let redo = self.redo.and_then(|redo| redo.finish(position));
        Ok(Made { outcomes, position, changes, redo })
    }

    /// Writes all members that can be made; gives the outcome of each, and how many change something. Only a refusal
    /// by core's rules is a member's own outcome. After an error of SQLite the members before it may be gone: it rolls
    /// back whole transactions by itself.
    fn write(&mut self, group: &[Request], positioned: bool) -> Result<(Vec<Result<Committed>>, u64)> {
        let mut changes = 0;
        let mut outcomes = Vec::with_capacity(group.len());
        for request in group {
            let outcome = match &request.work {
                Work::Commit(commit, snapshot) => match self.plan(commit, *snapshot) {
                    Ok(plan) => Ok(self.apply(commit, plan)?),
                    Err(error) if error.is_refusal() => Err(error),
                    Err(error) => return Err(error),
                },
                Work::Record(write) if records::write(self.connection, write)? => {
                    if let Some(redo) = &mut self.redo {
                        redo.record(write);
                    }
                    self.wrote = true;
                    changes += 1;
                    Ok(Committed::default())
                }
                Work::Record(_) => Err(Error::Conflict),
            };
            changes += u64::from(matches!(&outcome, Ok(made) if made.version != Version::ABSENT));
            outcomes.push(outcome);
        }
        if positioned && changes > 0 && self.given.last == self.before {
            // Only records were written: the position moves on all the same, so that it tells of every change.
            let version = Version(self.before.0 + 1);
            self.move_on(version, []);
        }
        if self.given.last > self.given.reserved {
            self.given.reserved = Version(self.given.last.0 + self.reserve);
            rows::set_last_version(self.connection, self.given.reserved)?;
            self.wrote = true;
        }
        Ok((outcomes, changes))
    }

    /// A member has written these rows.
    fn move_on(&mut self, version: Version, written: impl IntoIterator<Item = RowKey>) {
        self.given.last = version;
        if let Some(cached) = &mut self.cached {
            self.log.push(cached.move_on().as_version(), written);
        }
    }

    /// Decides what a member writes; nothing is written yet. Its moment is now, when SQLite's lock keeps everything else
    /// from coming before it.
    fn plan<'c>(&self, commit: &'c Commit, snapshot: Option<StateNumber>) -> Result<Plan<'c>> {
        let connection = self.connection;
        let now = commit.clock.now();
        let verdict = snapshot.zip(self.cached.as_ref()).map_or(Verdict::Unknown, |(snapshot, cached)| {
            self.log.check(&commit.reads, snapshot.as_version(), cached.state.as_version())
        });
        let holds = match verdict {
            Verdict::Untouched => true,
            Verdict::Touched => false,
            Verdict::Unknown => commit.reads.holds(&mut rows::Current { connection, now })?,
        };
        if !holds {
            return Err(Error::Conflict);
        }
        commit.plan(now, |row, need| rows::current_row(connection, row, need))
    }

    /// Writes what a member decided. An error here fails the whole group.
    fn apply(&mut self, commit: &Commit, plan: Plan<'_>) -> Result<Committed> {
        if plan.writes.is_empty() {
            return Ok(Committed::default());
        }
        let version = Version(self.given.last.0 + 1);
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
    use super::*;
    use crate::SqliteOptions;
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
}
