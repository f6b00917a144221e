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
const MOVED_BYTES: u64 = 4 << 20;

/// A log of so many pages begins anew once it is moved, 32 MiB of SQLite's usual pages. As long as it does not, each commit
/// makes it longer, which costs more than writing over what is there.
const ANEW_PAGES: i64 = 8_192;

/// Pages that are moved while commits wait, about: what was committed during the pass before.
const LAST_PAGES: i64 = 500;

/// Passes beside the commits until so little is left.
const PASSES_MAX: usize = 4;

/// A log so many times as long begins anew however much is left: the disk may be slower than the commits are, and these
/// have to wait for it.
const LONG: i64 = 4;

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
        if bytes < MOVED_BYTES {
            continue;
        }
        let Some(writer) = writer.upgrade() else { return };
        let checkpointed =
            tokio::task::spawn_blocking(move || checkpoint(&readers, &writer, ANEW_PAGES)).await;
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

/// Moves the log, and has it begin anew where it has so many pages.
fn checkpoint(readers: &Arc<Readers>, writer: &Arc<Writer>, anew_pages: i64) -> larder_core::Result<()> {
    let beside = readers.open_beside()?;
    let connection = &beside.connection;
    let mut moved = 0;
    for pass_number in 1..=PASSES_MAX {
        let pass = move_log(connection)?;
        // Where a reader is in the way, the next time it goes further.
        if pass.moved < pass.in_log || pass.in_log < anew_pages {
            return Ok(());
        }
        let is_long = pass.in_log >= LONG * anew_pages;
        if pass.moved - moved <= LAST_PAGES || is_long && pass_number == PASSES_MAX {
            // Once all of it is moved and nobody reads it, the next commit begins it anew.
            writer.between_commits(|_| move_log(connection))?;
            return Ok(());
        }
        moved = pass.moved;
    }
    Ok(())
}

/// How far a checkpoint came, in pages since the log was begun.
struct Pass {
    in_log: i64,
    moved: i64,
}

fn move_log(connection: &Connection) -> Result<Pass> {
    let pass = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        Ok(Pass { in_log: row.get(1)?, moved: row.get(2)? })
    });
    pass.map_err(SqliteError::from)
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

    /// A database with a table, and a connection that writes to it.
    fn database(path: &Path) -> (Connection, Arc<Readers>, Arc<Writer>) {
        let options = SqliteOptions::default();
        let mut connection = connection::open(path, options).unwrap();
        crate::migrate::migrate(&mut connection).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        let readers = Arc::new(Readers::new(path.to_path_buf(), options));
        let writer = connection::open_writer(path, options).unwrap();
        let writer = Writer::new(writer, &readers, options.cache_bytes, false, None).unwrap();
        (connection, readers, writer)
    }

    fn write(connection: &Connection) {
        connection.execute_batch("INSERT INTO t VALUES (randomblob(100000))").unwrap();
    }

    fn log_bytes(path: &Path) -> u64 {
        std::fs::metadata(log_path(path)).unwrap().len()
    }

    #[tokio::test]
    async fn a_log_begins_anew_once_it_is_moved_unless_somebody_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let (connection, readers, writer) = database(&path);
        write(&connection);
        let before = log_bytes(&path);
        checkpoint(&readers, &writer, 1).unwrap();
        write(&connection);
        assert_eq!(log_bytes(&path), before);
        // One more, so that there is something that the reader does not see.
        let reader = readers.take_now().unwrap();
        write(&connection);
        let longer = log_bytes(&path);
        checkpoint(&readers, &writer, 1).unwrap();
        write(&connection);
        assert!(before < longer && longer < log_bytes(&path));
        drop(reader);
    }

    #[tokio::test]
    async fn a_log_that_had_become_long_is_cut_off_as_it_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let (connection, readers, writer) = database(&path);
        let rows = connection::LOG_BYTES_KEPT / 100_000 + 1;
        (0..rows).for_each(|_| write(&connection));
        assert!(log_bytes(&path) > connection::LOG_BYTES_KEPT);
        checkpoint(&readers, &writer, 1).unwrap();
        write(&connection);
        assert_eq!(log_bytes(&path), connection::LOG_BYTES_KEPT);
    }
}
