//! The one writer of a database. Whoever finds it free commits, for itself and for all who wait.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use larder_core::backend::{Committed, Swept, Version};
use larder_core::clock::UnixMillis;
use larder_core::commit::{Commit, Plan};
use larder_core::commit_log::{CommitLog, Verdict};
use larder_core::memory::records::RecordWrite;
use larder_core::{Error, Result};
use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::connection::BUSY_TIMEOUT;
use crate::error::{Result as SqliteResult, SqliteError};
use crate::{records, rows};

/// Commits of one database, one SQLite transaction after the other.
pub(crate) struct Writer {
    waiting: Mutex<VecDeque<Request>>,
    state: Mutex<State>,
    /// There are commits that no checkpoint has moved into the database yet.
    dirty: AtomicBool,
    runtime: Handle,
}

struct State {
    connection: Option<Connection>,
    log: CommitLog,
    /// A commit ended without an answer from the disk: what is in the file is not known until it is opened again.
    failed: bool,
}

struct Request {
    work: Work,
    answer: oneshot::Sender<Result<Committed>>,
}

enum Work {
    /// The commit of a transaction, with the version of what it read.
    Commit(Arc<Commit>, Version),
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

impl Writer {
    pub(crate) fn new(connection: Connection, runtime: Handle) -> Arc<Self> {
        let state = State { connection: Some(connection), log: CommitLog::default(), failed: false };
        Arc::new(Self {
            waiting: Mutex::default(),
            state: Mutex::new(state),
            dirty: AtomicBool::new(false),
            runtime,
        })
    }

    /// Commits. Once it is asked, the commit is made whether or not anybody waits for the answer: it is either
    /// made before this returns for the first time, or by whoever holds the writer.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        commit: Arc<Commit>,
        snapshot: Version,
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
    pub(crate) fn sweep(self: &Arc<Self>, now: UnixMillis, max_rows: u32) -> Result<Swept> {
        let mut state = lock(&self.state);
        let swept = state.sweep(now, max_rows);
        drop(state);
        self.dirty.store(true, Ordering::Release);
        self.serve_waiting();
        let bytes = swept?;
        Ok(Swept { rows: bytes.len() as u64, bytes: bytes.iter().sum() })
    }

    /// Whether there has been a commit since the last call.
    pub(crate) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, Ordering::AcqRel)
    }

    /// Refuses further commits, after those that wait, and drops the connection.
    pub(crate) fn close(self: &Arc<Self>) {
        self.drain(Patience::BusyTimeout);
        let connection = lock(&self.state).connection.take();
        drop(connection);
        // Whoever came in between is told.
        self.drain(Patience::BusyTimeout);
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
        self.commit_group(&mut state, Patience::None);
        drop(state);
        self.serve_waiting();
    }

    /// Must follow every release of the writer: who came while it was held did not find it free.
    fn serve_waiting(self: &Arc<Self>) {
        if !lock(&self.waiting).is_empty() {
            let writer = self.clone();
            self.runtime.spawn_blocking(move || writer.drain(Patience::BusyTimeout));
        }
    }

    fn drain(&self, patience: Patience) {
        while !lock(&self.waiting).is_empty() {
            let mut state = lock(&self.state);
            self.commit_group(&mut state, patience);
        }
    }

    fn commit_group(&self, state: &mut State, patience: Patience) {
        let group: Vec<Request> = {
            let mut waiting = lock(&self.waiting);
            let count = waiting.len().min(GROUP_MAX);
            waiting.drain(..count).collect()
        };
        if group.is_empty() {
            return;
        }
        self.dirty.store(true, Ordering::Release);
        match state.commit_group(&group, patience) {
            Ok(outcomes) => answer(group, outcomes),
            Err(GroupError::Busy) => self.wait_again(group),
            Err(GroupError::RolledBack(error)) if group.len() == 1 => answer_all(group, &error),
            // One of them can't be written; alone, the others can.
            Err(GroupError::RolledBack(_)) => commit_one_by_one(state, group, patience),
            Err(GroupError::NotBegun(error) | GroupError::Unknown(error)) => answer_all(group, &error),
        }
    }

    fn wait_again(&self, group: Vec<Request>) {
        let mut waiting = lock(&self.waiting);
        for request in group.into_iter().rev() {
            waiting.push_front(request);
        }
    }
}

fn commit_one_by_one(state: &mut State, group: Vec<Request>, patience: Patience) {
    for request in group {
        let alone = vec![request];
        match state.commit_group(&alone, patience) {
            Ok(outcomes) => answer(alone, outcomes),
            Err(error) => answer_all(alone, &error.into()),
        }
    }
}

/// Nobody may be there any more to hear the answer.
fn answer(group: Vec<Request>, outcomes: Vec<Result<Committed>>) {
    for (request, outcome) in group.into_iter().zip(outcomes) {
        drop(request.answer.send(outcome));
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

impl State {
    /// Commits a group in one transaction, and gives the outcome of each member: one that conflicts, or that
    /// asks for what can't be, fails alone.
    fn commit_group(
        &mut self,
        group: &[Request],
        patience: Patience,
    ) -> Result<Vec<Result<Committed>>, GroupError> {
        if self.failed {
            return Err(GroupError::NotBegun(Error::Unavailable {
                reason: "an earlier commit got no answer from the disk; open the store again".to_string(),
                cause: None,
            }));
        }
        let Some(connection) = &self.connection else {
            return Err(GroupError::NotBegun(Error::Closed));
        };
        match begin(connection, patience) {
            Ok(()) => {}
            Err(error) if error.is_busy() && patience == Patience::None => return Err(GroupError::Busy),
            Err(error) => return Err(GroupError::NotBegun(error.into())),
        }
        let outcomes = apply_group(connection, &mut self.log, group);
        let result = match outcomes {
            Ok(outcomes) => commit(connection).map(|()| outcomes),
            Err(error) => Err(GroupError::RolledBack(error)),
        };
        if let Err(error) = &result {
            self.abandon(matches!(error, GroupError::Unknown(_)));
        }
        result
    }

    fn sweep(&mut self, now: UnixMillis, max_rows: u32) -> Result<Vec<u64>> {
        let connection = self.connection.as_ref().ok_or(Error::Closed)?;
        begin(connection, Patience::BusyTimeout)?;
        let swept = rows::sweep(connection, now, max_rows)
            .and_then(|swept| connection.execute_batch("COMMIT").map(|()| swept).map_err(SqliteError::from));
        if swept.is_err() {
            self.abandon(false);
        }
        Ok(swept?)
    }

    /// Rolls back. The log holds members of the group that are not committed: it is forgotten.
    fn abandon(&mut self, unknown: bool) {
        self.log = CommitLog::default();
        self.failed |= unknown;
        if let Some(connection) = &self.connection
            && !connection.is_autocommit()
            && connection.execute_batch("ROLLBACK").is_err()
        {
            self.failed = true;
        }
    }
}

fn begin(connection: &Connection, patience: Patience) -> SqliteResult<()> {
    match patience {
        Patience::BusyTimeout => begin_immediate(connection),
        Patience::None => {
            connection.busy_timeout(Duration::ZERO)?;
            let begun = begin_immediate(connection);
            connection.busy_timeout(BUSY_TIMEOUT)?;
            begun
        }
    }
}

fn begin_immediate(connection: &Connection) -> SqliteResult<()> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}

fn commit(connection: &Connection) -> Result<(), GroupError> {
    let committed = connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([]));
    match committed.map_err(SqliteError::from) {
        Ok(_) => Ok(()),
        Err(error) if error.is_certain() => Err(GroupError::RolledBack(error.into())),
        Err(error) => Err(GroupError::Unknown(Error::CommitUnknown {
            reason: "the disk gave no answer to the commit".to_string(),
            cause: Some(Arc::new(error)),
        })),
    }
}

fn apply_group(
    connection: &Connection,
    log: &mut CommitLog,
    group: &[Request],
) -> Result<Vec<Result<Committed>>> {
    let mut last = rows::last_version(connection)?;
    let before = last;
    let mut outcomes = Vec::with_capacity(group.len());
    for request in group {
        let outcome = match &request.work {
            Work::Commit(commit, snapshot) => match plan(connection, log, commit, *snapshot, last) {
                Ok(plan) => Ok(apply(connection, log, commit, plan, &mut last)?),
                Err(error) => Err(error),
            },
            Work::Record(write) if records::write(connection, write)? => Ok(Committed::default()),
            Work::Record(_) => Err(Error::Conflict),
        };
        outcomes.push(outcome);
    }
    if last != before {
        rows::set_last_version(connection, last)?;
    }
    Ok(outcomes)
}

/// Decides what a member writes; nothing is written yet.
fn plan<'a>(
    connection: &Connection,
    log: &CommitLog,
    commit: &'a Commit,
    snapshot: Version,
    last: Version,
) -> Result<Plan<'a>> {
    let holds = match log.check(&commit.reads, snapshot, last) {
        Verdict::Untouched => true,
        Verdict::Touched => false,
        Verdict::Unknown => {
            commit.reads.holds(snapshot, &mut rows::Current { connection, now: commit.now })?
        }
    };
    if !holds {
        return Err(Error::Conflict);
    }
    commit.plan(|row, need| rows::current_row(connection, row, need))
}

/// Writes what a member decided. An error here fails the whole group.
fn apply(
    connection: &Connection,
    log: &mut CommitLog,
    commit: &Commit,
    plan: Plan<'_>,
    last: &mut Version,
) -> Result<Committed> {
    if plan.writes.is_empty() {
        return Ok(Committed::default());
    }
    let version = Version(last.0 + 1);
    for (row, write) in &plan.writes {
        rows::write(connection, row, write, version)?;
    }
    *last = version;
    log.push(version, commit.writes.keys().cloned());
    Ok(Committed { version, growth: plan.growth })
}

/// A panic while a lock was held can't have left a commit half made: SQLite rolls it back, and the next
/// `BEGIN` says so.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
