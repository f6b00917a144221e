//! Connections for snapshots, used again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use larder_core::{Error, Result};
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::SqliteOptions;
use crate::connection;

/// Snapshots that one store has open at once; a further one waits. Each is a connection with three files.
const READERS_MAX: usize = 64;

/// Connections kept while nobody reads.
const IDLE_MAX: usize = 8;

/// How long a snapshot waits for a connection.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// The connections of one store.
pub(crate) struct Readers {
    path: PathBuf,
    options: SqliteOptions,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(crate) fn new(path: PathBuf, options: SqliteOptions) -> Self {
        Self { path, options, permits: Arc::new(Semaphore::new(READERS_MAX)), idle: Mutex::default() }
    }

    /// A connection, outside of a transaction.
    pub(crate) async fn take(self: &Arc<Self>, deadline: Instant) -> Result<Reader> {
        let permit = self.permit(deadline).await?;
        let idle = self.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => connection::open_reader(&self.path, self.options)?,
        };
        Ok(Reader { connection: Some(connection), readers: self.clone(), _permit: permit })
    }

    /// Refuses new readers, and drops the idle ones.
    pub(crate) fn close(&self) {
        self.permits.close();
        self.lock().clear();
    }

    async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let give_up = deadline.min(Instant::now() + WAIT_MAX);
        let waiting = self.permits.clone().acquire_owned();
        match tokio::time::timeout_at(give_up.into(), waiting).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Error::Closed),
            Err(error) => Err(Error::unavailable(
                format!("{READERS_MAX} snapshots are open, and none was given back"),
                error,
            )),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that goes back when it is dropped.
pub(crate) struct Reader {
    connection: Option<Connection>,
    readers: Arc<Readers>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    pub(crate) fn connection(&self) -> Result<&Connection> {
        self.connection.as_ref().ok_or(Error::Closed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let is_clean = connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok();
        let mut idle = self.readers.lock();
        if is_clean && idle.len() < IDLE_MAX && !self.readers.permits.is_closed() {
            idle.push(connection);
        }
    }
}
