//! Checkpoints, made beside the commits: on the committing connection they are half of an update's cost.

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

/// Intervals without a commit after which the file is looked at all the same.
const IDLE_INTERVALS: u32 = 10;

/// Watches the file and the log of one database, until its writer or its connections are gone.
async fn watch(readers: Weak<Readers>, writer: Weak<Writer>) {
    let mut idle_intervals = 0;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some((readers, writer)) = readers.upgrade().zip(writer.upgrade()) else { return };
        let has_committed = writer.take_dirty();
        idle_intervals = if has_committed { 0 } else { idle_intervals + 1 };
        if !has_committed && idle_intervals % IDLE_INTERVALS != 0 {
            continue;
        }
        // The disk may take long to answer.
        let looked = tokio::task::spawn_blocking(move || look(&readers, &writer, has_committed)).await;
        match looked {
            Ok(Err(larder_core::Error::Closed)) => return,
            Ok(Err(error)) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a checkpoint failed; it is tried again"
            ),
            Ok(Ok(())) | Err(_) => {}
        }
    }
}

fn look(readers: &Arc<Readers>, writer: &Arc<Writer>, has_committed: bool) -> larder_core::Result<()> {
    let location = readers.location();
    // A close removes the log.
    writer.while_open(|| location.check())?;
    if !has_committed {
        return Ok(());
    }
    let log_bytes = location.log_path().metadata().map_or(0, |file| file.len());
    if log_bytes < MOVED_BYTES { Ok(()) } else { checkpoint(readers, writer, ANEW_PAGES) }
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

/// Starts watching.
pub(crate) fn spawn(readers: &Arc<Readers>, writer: &Arc<Writer>) {
    tokio::spawn(watch(Arc::downgrade(readers), Arc::downgrade(writer)));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::location::{Location, with_suffix};
    use crate::{SqliteOptions, connection};

    /// A database with a table, and a connection that writes to it.
    fn database(path: &Path) -> (Connection, Arc<Readers>, Arc<Writer>) {
        let options = SqliteOptions::default();
        let location = Arc::new(Location::resolve(path).unwrap());
        let connection = connection::open_for_larder(&location, options, connection::BUSY_TIMEOUT).unwrap();
        crate::migrate::migrate(&connection, &location, options).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        let readers = Arc::new(Readers::new(location.clone(), options));
        let writer = connection::open_writer(&location, options).unwrap();
        let writer = Writer::new(writer, &readers, options.cache_bytes, false, None).unwrap();
        (connection, readers, writer)
    }

    fn write(connection: &Connection) {
        connection.execute_batch("INSERT INTO t VALUES (randomblob(100000))").unwrap();
    }

    fn log_bytes(path: &Path) -> u64 {
        std::fs::metadata(with_suffix(path, "-wal")).unwrap().len()
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
