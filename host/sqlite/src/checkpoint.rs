//! Checkpoints, which a task makes beside the commits.
//!
//! On the committing connection, checkpoints would be half the cost of an update.

use std::sync::{Arc, Weak};
use std::time::Duration;

use larder_core::SnapshotEndReason;
use rusqlite::Connection;

use crate::error::{Result, SqliteError};
use crate::readers::Readers;
use crate::unsigned::Unsigned;
use crate::writer::Writer;

/// How often the log is checked after a commit.
const INTERVAL: Duration = Duration::from_millis(100);

/// The log is checkpointed from this fraction of its bound on, one in 64: 4 MiB by default. Pages
/// that a reader needs stay in the log.
const MOVED_PART: u64 = 64;

/// A checkpointed log restarts from this fraction of its bound on, one in 8: 32 MiB by default.
/// Until it restarts, each commit makes it longer, which costs more than overwriting it.
const ANEW_PART: u64 = 8;

/// Commits wait for a checkpoint of this many pages at most, approximately. They are those that
/// were committed during the previous pass.
const LAST_PAGES: i64 = 500;

/// The most passes beside the commits to reduce the rest to that many pages.
const PASSES_MAX: usize = 4;

/// The log restarts from this fraction of its bound on, one in 2, however many pages are left: 128
/// MiB by default. If the disk cannot keep up, commits wait until the checkpoint finishes.
const LONG_PART: u64 = 2;

/// After this many intervals without a commit, the file is checked all the same.
const IDLE_INTERVALS: u32 = 10;

/// The most rounds of ending snapshots: a snapshot that was being taken during a round can still
/// prevent the restart.
const ENDS_MAX: usize = 3;

/// How long commits wait for readers that are about to end, so that the log can restart.
const READERS_END_MAX: Duration = Duration::from_millis(10);

/// The age from which snapshots are ended, by the length of the log in quarters of its bound;
/// `None` to end no snapshot.
///
/// A younger snapshot most likely ends by itself.
fn ended_age(log_bytes: u64, bytes_max: u64) -> Option<Duration> {
    match log_bytes.saturating_mul(4) / bytes_max.max(1) {
        0 => None,
        1 => Some(Duration::from_secs(1)),
        2 => Some(Duration::from_millis(100)),
        3 => Some(Duration::from_millis(10)),
        _ => Some(Duration::ZERO),
    }
}

/// Watches the file and the log of one database until its writer or its readers are dropped.
async fn watch(readers: Weak<Readers>, writer: Weak<Writer>) {
    let mut idle_intervals = 0;
    loop {
        let Some(full) = writer.upgrade().map(|writer| writer.log_bound().full()) else { return };
        // Check after a timeout too.
        let _ = tokio::time::timeout(INTERVAL, full.notified()).await;
        let Some((readers, writer)) = readers.upgrade().zip(writer.upgrade()) else { return };
        let has_committed = writer.take_dirty();
        idle_intervals = if has_committed { 0 } else { idle_intervals + 1 };
        if !has_committed && idle_intervals % IDLE_INTERVALS != 0 {
            continue;
        }
        // The checkpoint blocks on the disk.
        let looked = tokio::task::spawn_blocking(move || look(&readers, &writer, has_committed)).await;
        match looked {
            Ok(Err(larder_core::Error::Closed)) => return,
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "checkpoint failed; trying again")
            }
            Ok(Ok(())) | Err(_) => {}
        }
    }
}

fn look(readers: &Arc<Readers>, writer: &Arc<Writer>, has_committed: bool) -> larder_core::Result<()> {
    let location = readers.location();
    // Not during a close, which removes the log.
    writer.while_open(|| location.check())?;
    let bytes_max = writer.log_bound().bytes_max();
    let moved = match has_committed && file_bytes(readers) >= bytes_max / MOVED_PART {
        true => checkpoint(readers, writer, bytes_max),
        false => Ok(()),
    };
    // Needed without a commit of this process too: another process may wait for readers of this
    // one.
    let cut = match ended_age(writer.log_bytes(), bytes_max) {
        Some(age) => end_readers(readers, writer, age),
        None => Ok(true),
    };
    writer.end_log_pause(*cut.as_ref().unwrap_or(&false));
    moved.and(cut.map(drop))
}

fn file_bytes(readers: &Readers) -> u64 {
    readers.location().log_path().metadata().map_or(0, |file| file.len())
}

/// Checkpoints the log, and lets it restart if it is long enough.
fn checkpoint(readers: &Arc<Readers>, writer: &Arc<Writer>, bytes_max: u64) -> larder_core::Result<()> {
    let beside = readers.open_beside()?;
    let connection = &beside.connection;
    let page_bytes = page_bytes(connection)?;
    let pages = |bytes: u64| i64::try_from(bytes / page_bytes).unwrap_or(i64::MAX);
    let mut moved = 0;
    for pass_number in 1..=PASSES_MAX {
        let pass = move_log(connection)?;
        // If a reader prevents the rest, a later checkpoint continues.
        if pass.moved < pass.in_log || pass.in_log < pages(bytes_max / ANEW_PART) {
            return Ok(());
        }
        let is_long = pass.in_log >= pages(bytes_max / LONG_PART);
        if pass.moved - moved <= LAST_PAGES || is_long && pass_number == PASSES_MAX {
            // SQLite restarts the log with the next commit once all of it is checkpointed and no
            // reader uses it.
            writer.between_commits(|_| move_log(connection))?;
            return Ok(());
        }
        moved = pass.moved;
    }
    Ok(())
}

/// Ends snapshots of at least `age`, and restarts the log while commits wait. False if a reader
/// prevents it.
///
/// Younger snapshots get up to [`READERS_END_MAX`] to end by themselves. Readers of other
/// processes, and copies of the database, cannot be ended.
fn end_readers(readers: &Arc<Readers>, writer: &Arc<Writer>, age: Duration) -> larder_core::Result<bool> {
    let beside = readers.open_beside()?;
    let connection = &beside.connection;
    connection.busy_timeout(READERS_END_MAX).map_err(SqliteError::from)?;
    // First without ending any snapshot: the log may be checkpointed already, and unread.
    let is_moved = move_log(connection).is_ok_and(|pass| pass.moved == pass.in_log);
    if is_moved && writer.between_commits(|_| begin_anew(connection))? {
        return Ok(true);
    }
    for _ in 0..ENDS_MAX {
        readers.end_recounts();
        readers.snapshots().end_older_than(age, SnapshotEndReason::LogFull);
        // Checkpoint before commits wait, so that they wait for few pages.
        move_log(connection)?;
        if writer.between_commits(|_| begin_anew(connection))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lets the next commit restart the log. False if a reader prevents it.
fn begin_anew(connection: &Connection) -> Result<bool> {
    let busy: i64 = connection
        .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0))
        .map_err(SqliteError::from)?;
    Ok(busy == 0)
}

fn page_bytes(connection: &Connection) -> Result<u64> {
    let bytes: Unsigned =
        connection.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(SqliteError::from)?;
    Ok(bytes.0.max(1))
}

/// The progress of a checkpoint, in pages of the log since it last restarted.
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

/// Spawns the task that watches.
pub(crate) fn spawn(readers: &Arc<Readers>, writer: &Arc<Writer>) {
    tokio::spawn(watch(Arc::downgrade(readers), Arc::downgrade(writer)));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// With this bound, a log of one page restarts.
    const BYTES_MAX: u64 = 8 * 4_096;

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
        let writer = Writer::new(writer, &readers, options, false, None).unwrap();
        (connection, readers, writer)
    }

    fn write(connection: &Connection) {
        connection.execute_batch("INSERT INTO t VALUES (randomblob(100000))").unwrap();
    }

    fn log_bytes(path: &Path) -> u64 {
        std::fs::metadata(with_suffix(path, "-wal")).unwrap().len()
    }

    #[tokio::test]
    async fn a_log_restarts_after_a_checkpoint_unless_it_has_a_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let (connection, readers, writer) = database(&path);
        write(&connection);
        let before = log_bytes(&path);
        checkpoint(&readers, &writer, BYTES_MAX).unwrap();
        write(&connection);
        assert_eq!(log_bytes(&path), before);
        // A commit that the reader does not see.
        let reader = readers.take_now().unwrap();
        write(&connection);
        let longer = log_bytes(&path);
        checkpoint(&readers, &writer, BYTES_MAX).unwrap();
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
        checkpoint(&readers, &writer, BYTES_MAX).unwrap();
        write(&connection);
        assert_eq!(log_bytes(&path), connection::LOG_BYTES_KEPT);
    }
}
