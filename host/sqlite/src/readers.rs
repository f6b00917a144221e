//! The pool of connections that snapshots read with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder_core::fair::{FairPermit, FairSemaphore};
use larder_core::row::Version;
use larder_core::{Error, OpenSnapshots, Result, Share};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, InterruptHandle};
use tokio::sync::Notify;

use crate::error::SqliteError;
use crate::location::Location;
use crate::transaction::roll_back;
use crate::{SqliteOptions, connection, rows};

/// The most connections for snapshots of one store. Further snapshots wait. Each connection has
/// three open files.
const READERS_MAX: usize = 64;

/// The most connections, in addition to these, that pin superseded states.
const PINS_MAX: usize = 32;

/// The most idle connections that the pool keeps.
const IDLE_MAX: usize = 8;

/// How long a snapshot waits for a connection.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// All connections of one store, apart from its writer's.
pub(crate) struct Readers {
    location: Arc<Location>,
    options: SqliteOptions,
    permits: FairSemaphore,
    /// Permits for pins. A commit needs them without waiting.
    pins: FairSemaphore,
    /// The open snapshots of the stores that share this database. Some of them hold a connection.
    snapshots: Mutex<OpenSnapshots>,
    pool: Mutex<Pool>,
    /// Counts that run beside commits, and may be interrupted.
    counts: Mutex<Vec<Arc<Count>>>,
    /// Notified when the last connection in use is dropped after a close.
    gone: Notify,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    in_use: usize,
    closed: bool,
}

impl Readers {
    pub(crate) fn new(location: Arc<Location>, options: SqliteOptions) -> Self {
        Self {
            location,
            options,
            permits: FairSemaphore::new(READERS_MAX),
            pins: FairSemaphore::new(PINS_MAX),
            snapshots: Mutex::default(),
            pool: Mutex::default(),
            counts: Mutex::default(),
            gone: Notify::new(),
        }
    }

    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// Adds the snapshots of a store. The oldest of them are ended if there are too few
    /// connections.
    pub(crate) fn attach(&self, snapshots: OpenSnapshots) {
        self.snapshots.lock().join(snapshots);
    }

    pub(crate) fn snapshots(&self) -> OpenSnapshots {
        self.snapshots.lock().clone()
    }

    /// Takes a connection, outside of a transaction.
    pub(crate) async fn take(self: &Arc<Self>, share: &Share, deadline: Instant) -> Result<Reader> {
        let permit = self.permit(share, deadline).await?;
        self.reader(permit)
    }

    /// Takes a connection and begins a transaction on the newest state. `None` if no connection is
    /// free.
    pub(crate) fn take_now(self: &Arc<Self>) -> Option<Reader> {
        let share = Share::host();
        let permit = loop {
            if let Some(permit) = self.pins.try_acquire(&share) {
                break permit;
            }
            // Several snapshots may share one state. Its connection becomes free with the last of
            // them.
            if !self.snapshots().end_one_that_keeps_a_state() {
                return None;
            }
        };
        let reader = self.reader(permit).ok()?;
        reader.begin().ok()?;
        Some(reader)
    }

    fn reader(self: &Arc<Self>, permit: FairPermit) -> Result<Reader> {
        let (in_use, idle) = {
            let mut pool = self.lock();
            (self.enter(&mut pool)?, pool.idle.pop())
        };
        let connection = match idle {
            Some(connection) => connection,
            None => connection::open_reader(&self.location, self.options)?,
        };
        let has_failed = AtomicBool::new(false);
        Ok(Reader { connection: Some(connection), has_failed, in_use, _permit: permit })
    }

    /// Opens a connection outside of the pool, for work on the whole file that must not wait for
    /// readers.
    pub(crate) fn open_beside(self: &Arc<Self>) -> Result<Beside> {
        let in_use = self.enter(&mut self.lock())?;
        Ok(Beside { connection: connection::open(&self.location, self.options)?, _in_use: in_use })
    }

    /// Counts the bytes of all rows and records. The count ends with [`Error::TimedOut`] if it
    /// keeps the log from restarting.
    pub(crate) fn recount(self: &Arc<Self>) -> Result<u64> {
        let beside = self.open_beside()?;
        let handle = beside.connection.get_interrupt_handle();
        let count = Arc::new(Count { handle, is_ended: AtomicBool::new(false) });
        self.counts.lock().push(count.clone());
        let counted = rows::stored_bytes(&beside.connection);
        self.counts.lock().retain(|other| !Arc::ptr_eq(other, &count));
        let is_ended = count.is_ended.load(Ordering::Acquire);
        counted.map_err(|error| if is_ended { Error::TimedOut } else { error })
    }

    /// Ends the counts that run beside commits.
    pub(crate) fn end_recounts(&self) {
        for count in self.counts.lock().iter() {
            count.is_ended.store(true, Ordering::Release);
            count.handle.interrupt();
        }
    }

    /// Refuses new readers, ends counts, and drops the idle connections.
    pub(crate) fn close(&self) {
        self.end_recounts();
        self.permits.close();
        self.pins.close();
        let mut pool = self.lock();
        pool.closed = true;
        let idle = std::mem::take(&mut pool.idle);
        drop(pool);
        drop(idle);
    }

    /// Waits until all connections in use are dropped after a close. False if that takes longer
    /// than `max`.
    pub(crate) async fn wait_until_gone(&self, max: Duration) -> bool {
        let gone = async {
            loop {
                // Registered before the check, so that no drop in between is missed.
                let notified = self.gone.notified();
                if self.lock().in_use == 0 {
                    return;
                }
                notified.await;
            }
        };
        tokio::time::timeout(max, gone).await.is_ok()
    }

    fn enter(self: &Arc<Self>, pool: &mut Pool) -> Result<InUse> {
        if pool.closed {
            return Err(Error::Closed);
        }
        pool.in_use += 1;
        Ok(InUse(self.clone()))
    }

    async fn permit(&self, share: &Share, deadline: Instant) -> Result<FairPermit> {
        if let Some(permit) = self.permits.try_acquire(share) {
            return Ok(permit);
        }
        let give_up = deadline.min(Instant::now() + WAIT_MAX);
        self.snapshots().permit(&self.permits, share, give_up).await.map_err(|error| match error {
            Error::TimedOut => Error::unavailable(
                format!("all {READERS_MAX} connections for reading are in use; try again later"),
                error,
            ),
            error => error,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock()
    }
}

/// Counts a connection in use. Its holder must drop the connection first.
struct InUse(Arc<Readers>);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut pool = self.0.lock();
        pool.in_use = pool.in_use.saturating_sub(1);
        let is_last = pool.closed && pool.in_use == 0;
        drop(pool);
        if is_last {
            self.0.gone.notify_waiters();
        }
    }
}

/// A count that runs beside commits.
struct Count {
    handle: InterruptHandle,
    is_ended: AtomicBool,
}

/// A connection outside of the pool.
pub(crate) struct Beside {
    pub(crate) connection: Connection,
    _in_use: InUse,
}

/// A connection that returns to the pool when it is dropped.
pub(crate) struct Reader {
    connection: Option<Connection>,
    /// Whether a read has failed. The connection is then closed, because its page cache may hold
    /// damaged pages.
    has_failed: AtomicBool,
    in_use: InUse,
    _permit: FairPermit,
}

impl Reader {
    /// Reads outside of a transaction, which sees the newest state.
    pub(crate) fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.note(work(self.connection()?))
    }

    /// Reads in the transaction. `None` if a failed read has ended it: another transaction would
    /// see a newer state.
    pub(crate) fn read_in_transaction<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T>,
    ) -> Option<Result<T>> {
        let connection = self.connection.as_ref().filter(|_| self.is_in_transaction())?;
        Some(self.note(work(connection)))
    }

    /// Whether the transaction is still open.
    pub(crate) fn is_in_transaction(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| !connection.is_autocommit())
    }

    fn note<T>(&self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        outcome
    }

    fn connection(&self) -> Result<&Connection> {
        self.connection.as_ref().ok_or(Error::Closed)
    }

    /// Begins a transaction, and returns an upper bound of the versions in the state that it sees.
    pub(crate) fn begin(&self) -> Result<Version> {
        let connection = self.connection()?;
        let mut begin = rows::prepare(connection, "BEGIN")?;
        begin.execute([]).map_err(SqliteError::from)?;
        // The first read fixes the state that the transaction sees.
        self.note(rows::last_version(connection))
    }

    /// Ends the transaction.
    pub(crate) fn end(&self) -> Result<()> {
        Ok(roll_back(self.connection()?)?)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let is_clean = !*self.has_failed.get_mut() && roll_back(&connection).is_ok();
        let mut pool = self.in_use.0.lock();
        if is_clean && pool.idle.len() < IDLE_MAX && !pool.closed {
            pool.idle.push(connection);
            return;
        }
        // The last connection to close checkpoints the log, which must not happen under the lock.
        drop(pool);
        drop(connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_beside_commits_can_be_ended_and_the_next_one_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let database = Connection::open(&path).unwrap();
        let rows = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 300000)";
        database
            .execute_batch(&format!(
                "CREATE TABLE larder_entries (namespace, key, value, expires_at, version);
                 CREATE TABLE larder_memory_state (tenant_id, user_id, session_id, run_id, kind, bytes);
                 INSERT INTO larder_entries {rows} SELECT 'n', n, 'value', NULL, 1 FROM n"
            ))
            .unwrap();
        let location = Arc::new(Location::resolve(&path).unwrap());
        let readers = Arc::new(Readers::new(location, SqliteOptions::default()));
        let is_done = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    readers.end_recounts();
                }
            });
            let ended = readers.recount();
            is_done.store(true, Ordering::Relaxed);
            ended
        });
        assert!(matches!(ended, Err(Error::TimedOut)), "{ended:?}");
        assert!(readers.recount().unwrap() > 300_000 * 6);
        assert!(readers.counts.lock().is_empty());
    }
}
