//! Checkpoints, made beside the commits: on the committing connection they are half of an update's cost.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rusqlite::Connection;

use crate::SqliteOptions;
use crate::connection;
use crate::error::{Result, SqliteError};
use crate::writer::Writer;

/// How often the log is looked at, after a commit.
const INTERVAL: Duration = Duration::from_millis(100);

/// A log of this size is moved into the database, as far as no reader needs it.
const PASSIVE_BYTES: u64 = 4 << 20;

/// A log of this size is moved whole and cut off: new readers wait that long.
const TRUNCATE_BYTES: u64 = 64 << 20;

/// How long a checkpoint that cuts the log off waits for readers, and lets commits wait.
const TRUNCATE_WAIT: Duration = Duration::from_millis(100);

/// Watches the log of one database, until its writer is gone.
pub(crate) async fn watch(path: PathBuf, options: SqliteOptions, writer: Weak<Writer>) {
    let log = log_path(&path);
    loop {
        tokio::time::sleep(INTERVAL).await;
        match writer.upgrade() {
            None => return,
            Some(writer) if !writer.take_dirty() => continue,
            Some(_) => {}
        }
        let bytes = std::fs::metadata(&log).map_or(0, |file| file.len());
        if bytes < PASSIVE_BYTES {
            continue;
        }
        let path = path.clone();
        let checkpointed = tokio::task::spawn_blocking(move || checkpoint(&path, options, bytes)).await;
        if let Ok(Err(error)) = checkpointed {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a checkpoint failed; it is tried again"
            );
        }
    }
}

fn checkpoint(path: &Path, options: SqliteOptions, log_bytes: u64) -> larder_core::Result<()> {
    let connection = connection::open(path, options)?;
    Ok(run(&connection, log_bytes)?)
}

fn run(connection: &Connection, log_bytes: u64) -> Result<()> {
    let mode = if log_bytes < TRUNCATE_BYTES { "PASSIVE" } else { "TRUNCATE" };
    connection.busy_timeout(TRUNCATE_WAIT)?;
    // The first column tells that a reader or writer was in the way: the next one goes further.
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).map_err(SqliteError::from)?;
    Ok(())
}

fn log_path(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_os_string();
    log.push("-wal");
    PathBuf::from(log)
}

/// Starts watching.
pub(crate) fn spawn(path: &Path, options: SqliteOptions, writer: &Arc<Writer>) {
    tokio::spawn(watch(path.to_path_buf(), options, Arc::downgrade(writer)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_moved_and_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let writer = connection::open(&path, SqliteOptions::default()).unwrap();
        writer.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (randomblob(100000))").unwrap();
        let bytes = || std::fs::metadata(log_path(&path)).unwrap().len();
        assert!(bytes() > 100_000);
        checkpoint(&path, SqliteOptions::default(), TRUNCATE_BYTES).unwrap();
        assert_eq!(bytes(), 0);
    }
}
