//! The read-only backend, for tools that inspect a database.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use larder_core::backend::{Backend, SweepOptions, Swept};
use larder_core::chunk::{Chunk, ScanOptions};
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::commit::{Commit, Committed};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::name::{Key, KeyRange, Namespace, RowKey};
use larder_core::row::StoredValue;
use larder_core::snapshot::{Many, ManyRows, Snapshot, SnapshotOptions};
use larder_core::{Error, Result};
use larder_schema::{Ledger, MigrationError, check_current};
use parking_lot::Mutex;
use rusqlite::Connection;

use crate::error::SqliteError;
use crate::location::Location;
use crate::look::{Look, read_anew};
use crate::rows::{NextNamespace, Scanned};
use crate::{SqliteOptions, blocking, file, migrate, migrator, records, rows};

/// A database file that is opened for reading, without changing a byte of it.
pub(crate) struct SqliteReadOnly {
    shared: Arc<Shared>,
}

struct Shared {
    location: Location,
    /// A connection that no snapshot uses.
    idle: Mutex<Option<Look>>,
    /// Connections that are no longer used. They must not be closed while another connection may
    /// read under a lock: see [`Look::is_without_lock`].
    retired: Mutex<Vec<Look>>,
    closed: AtomicBool,
}

impl SqliteReadOnly {
    /// Opens a database of larder with the schema of this release.
    ///
    /// # Errors
    /// - [`Error::NotFound`] if the file does not exist.
    /// - [`Error::Other`] if it is not larder's, or its schema is that of another release.
    /// - [`Error::Corrupt`] if it is damaged.
    /// - [`Error::Unavailable`] if it cannot be read without changing it.
    pub(crate) async fn open(path: PathBuf, options: SqliteOptions) -> Result<Self> {
        let open = move || {
            let location = Location::resolve(&path)?;
            let ((), look) = read_anew(&location, None, drop, |connection| check(connection, options))?;
            let (idle, retired) = (Mutex::new(Some(look)), Mutex::default());
            Ok(Shared { location, idle, retired, closed: AtomicBool::new(false) })
        };
        Ok(Self { shared: Arc::new(blocking(open).await?) })
    }

    /// Reads the newest state.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.shared.check_open()?;
        let shared = self.shared.clone();
        blocking(move || {
            let (found, look) = shared.read_anew(work)?;
            shared.give_back(look);
            Ok(found)
        })
        .await
    }
}

/// Checks that the tables are those that this release reads.
fn check(connection: &Connection, options: SqliteOptions) -> Result<()> {
    file::check_belongs(connection, options)?;
    let applied = migrator::applied(connection, &Ledger::larder())?;
    let steps = migrate::steps().map_err(MigrationError::from)?;
    check_current(&steps, &applied)?;
    file::check_tables(connection)
}

impl Shared {
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    fn read_anew<T>(&self, work: impl FnMut(&Connection) -> Result<T>) -> Result<(T, Look)> {
        let (found, look) = read_anew(&self.location, self.take(), |look| self.retire(look), work)?;
        // The file has no log now, so no connection reads under a lock.
        if look.is_without_lock() {
            self.retired.lock().clear();
        }
        Ok((found, look))
    }

    fn take(&self) -> Option<Look> {
        self.idle.lock().take()
    }

    fn give_back(&self, look: Look) {
        if self.closed.load(Ordering::Acquire) {
            return self.retire(look);
        }
        let earlier = self.idle.lock().replace(look);
        earlier.into_iter().for_each(|look| self.retire(look));
    }

    fn retire(&self, look: Look) {
        if look.is_without_lock() {
            self.retired.lock().push(look);
        }
    }
}

/// A snapshot, whose state is fixed by its first read.
struct ReadOnlySnapshot {
    shared: Arc<Shared>,
    clock: ForwardClock,
    /// The connection, and the time at which the snapshot decides which rows have expired. Both are
    /// those of the first read.
    look: Option<(Look, UnixMillis)>,
}

impl ReadOnlySnapshot {
    async fn read<T: Send + 'static>(
        &mut self,
        mut work: impl FnMut(&Connection, UnixMillis) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.shared.check_open()?;
        let (shared, clock, look) = (self.shared.clone(), self.clock.clone(), self.look.take());
        let (found, look) = blocking(move || match look {
            Some((look, now)) => {
                let found = look.read(&shared.location, |connection| work(connection, now));
                Ok((found, (look, now)))
            }
            None => {
                let begin = move |connection: &Connection| {
                    let now = begin(connection, &clock)?;
                    Ok((work(connection, now)?, now))
                };
                let ((found, now), look) = shared.read_anew(begin)?;
                Ok((Ok(found), (look, now)))
            }
        })
        .await?;
        self.look = Some(look);
        found
    }
}

/// Begins a transaction, if none is open, and returns the time that belongs to the state that it
/// sees.
fn begin(connection: &Connection, clock: &ForwardClock) -> Result<UnixMillis> {
    if connection.is_autocommit() {
        connection.execute_batch("BEGIN").map_err(SqliteError::from)?;
    }
    // The first read fixes the state.
    rows::last_version(connection)?;
    Ok(clock.now())
}

impl Drop for ReadOnlySnapshot {
    fn drop(&mut self) {
        let Some((look, _)) = self.look.take() else { return };
        match look.end() {
            Ok(()) => self.shared.give_back(look),
            Err(_) => self.shared.retire(look),
        }
    }
}

#[async_trait]
impl Snapshot for ReadOnlySnapshot {
    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        let row = row.clone();
        self.read(move |connection, now| rows::get(connection, &row, now)).await
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        let (namespace, keys) = (namespace.clone(), keys.to_vec());
        self.read(move |connection, now| {
            let mut found = ManyRows::new(keys.len(), max_bytes);
            for key in &keys {
                let row = RowKey { namespace: namespace.clone(), key: key.clone() };
                if !found.push(rows::get(connection, &row, now)?) {
                    break;
                }
            }
            Ok(found.finish())
        })
        .await
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        let mut rest = range.clone();
        loop {
            let range = rest.clone();
            match self.read(move |connection, now| rows::scan(connection, &range, options, now)).await? {
                Scanned::Rows(chunk) => return Ok(chunk),
                Scanned::Expired(behind) => rest = behind,
            }
        }
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        let mut position = rows::position_after(after);
        loop {
            match self.read(move |connection, now| rows::next_namespace(connection, &position, now)).await? {
                NextNamespace::Found(namespace) => return Ok(namespace),
                NextNamespace::Expired(behind) => position = behind,
            }
        }
    }

    async fn commit(self: Box<Self>, _: Arc<Commit>) -> Result<Committed> {
        Err(Error::opened_read_only())
    }
}

#[async_trait]
impl Backend for SqliteReadOnly {
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        self.shared.check_open()?;
        Ok(Box::new(ReadOnlySnapshot { shared: self.shared.clone(), clock: options.clock, look: None }))
    }

    async fn commit(&self, _: Arc<Commit>) -> Result<Committed> {
        Err(Error::opened_read_only())
    }

    async fn stored_bytes(&self) -> Result<u64> {
        self.read(rows::stored_bytes).await
    }

    async fn sweep(&self, _: SweepOptions) -> Result<Swept> {
        Err(Error::opened_read_only())
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        let key = key.clone();
        self.read(move |connection| records::load(connection, &key)).await
    }

    async fn write_record(&self, _: Arc<RecordWrite>) -> Result<()> {
        Err(Error::opened_read_only())
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>> {
        let after = after.cloned();
        self.read(move |connection| records::list(connection, after.as_ref(), max)).await
    }

    async fn due_records(&self, now: UnixMillis, max: u32) -> Result<Vec<RecordKey>> {
        self.read(move |connection| records::due(connection, now, max)).await
    }

    async fn ping(&self) -> Result<()> {
        self.read(|connection| rows::last_version(connection).map(drop)).await
    }

    async fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        drop(self.shared.take());
    }
}
