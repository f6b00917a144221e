//! Checkpoints, made beside the commits: on the committing connection they are half of an update's cost.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rusqlite::Connection;

use crate::error::{Result, SqliteError};
use crate::readers::Readers;
use crate::writer::Writer;

/// How often the log is looked at, after a commit.
const INTERVAL: Duration = Duration::from_millis(100);

/// A log of this size is moved into the database, as far as no reader needs it.
const PASSIVE_BYTES: u64 = 4 << 20;

/// A log of this size is moved whole and cut off: new readers wait that long.
const TRUNCATE_BYTES: u64 = 64 << 20;

/// How long a checkpoint that cuts the log off waits for readers, and lets commits wait.
const TRUNCATE_WAIT: Duration = Duration::from_millis(100);

/// Watches the log of one database, until its writer or its connections are gone.
async fn watch(readers: Weak<Readers>, writer: Weak<Writer>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        match writer.upgrade() {
            None => return,
            Some(writer) if !writer.take_dirty() => continue,
            Some(_) => {}
        }
        let Some(readers) = readers.upgrade() else { return };
        let bytes = std::fs::metadata(log_path(readers.path())).map_or(0, |file| file.len());
        if bytes < PASSIVE_BYTES {
            continue;
        }
        let checkpointed = tokio::task::spawn_blocking(move || checkpoint(&readers, bytes)).await;
        match checkpointed {
            Ok(Err(larder_core::Error::Closed)) => return,
            Ok(Err(error)) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a checkpoint failed; it is tried again"
            ),
            Ok(Ok(())) | Err(_) => {}
        }
    }
}

fn checkpoint(readers: &Arc<Readers>, log_bytes: u64) -> larder_core::Result<()> {
    let beside = readers.open_beside()?;
    Ok(run(&beside.connection, log_bytes)?)
}

fn run(connection: &Connection, log_bytes: u64) -> Result<()> {
    let mode = if log_bytes < TRUNCATE_BYTES { "PASSIVE" } else { "TRUNCATE" };
    connection.busy_timeout(TRUNCATE_WAIT)?;
    // The first column tells that a reader or writer was in the way: the next one goes further.
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).map_err(SqliteError::from)?;
    Ok(())
}

/// Where SQLite keeps what is not yet in the database.
pub(crate) fn log_path(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_os_string();
    log.push("-wal");
    PathBuf::from(log)
}

/// Starts watching.
pub(crate) fn spawn(readers: &Arc<Readers>, writer: &Arc<Writer>) {
    tokio::spawn(watch(Arc::downgrade(readers), Arc::downgrade(writer)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqliteOptions;
    use crate::connection;

    #[test]
    fn a_long_log_is_moved_and_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let writer = connection::open(&path, SqliteOptions::default()).unwrap();
        writer.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (randomblob(100000))").unwrap();
        let bytes = || std::fs::metadata(log_path(&path)).unwrap().len();
        assert!(bytes() > 100_000);
        let readers = Arc::new(Readers::new(path.clone(), SqliteOptions::default()));
        checkpoint(&readers, TRUNCATE_BYTES).unwrap();
        assert_eq!(bytes(), 0);
    }
}
