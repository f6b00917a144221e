//! Checkpoints, made beside the commits: on the committing connection they are half of an update's cost.

use std::sync::{Arc, Weak};
use std::time::Duration;

use larder_core::SnapshotEndReason;
use rusqlite::Connection;

use crate::error::{Result, SqliteError};
use crate::readers::Readers;
use crate::writer::Writer;

/// How often the log is looked at, after a commit.
const INTERVAL: Duration = Duration::from_millis(100);

/// A log of this part of its bound is moved into the database, as far as no reader needs it: 4 MiB by default.
const MOVED_PART: u64 = 64;

/// A log of this part begins anew once it is moved: 32 MiB by default. As long as it does not, each commit makes it longer,
/// which costs more than writing over what is there.
const ANEW_PART: u64 = 8;

/// Pages that are moved while commits wait, about: what was committed during the pass before.
const LAST_PAGES: i64 = 500;

/// Passes beside the commits until so little is left.
const PASSES_MAX: usize = 4;

/// A log of this part begins anew however much is left: the disk may be slower than the commits are, and these have to wait
/// for it.
const LONG_PART: u64 = 2;

/// Intervals without a commit after which the file is looked at all the same.
const IDLE_INTERVALS: u32 = 10;

/// How often snapshots are ended in a row: one that was being taken may be in the way.
const ENDS_MAX: usize = 3;

/// How long commits wait for readers that are about to end, so that the log begins anew.
const READERS_END_MAX: Duration = Duration::from_millis(10);

/// How old a snapshot is at least that is ended because the log is so long, by the quarters of the bound that the log has. One
/// that is young most likely ends by itself.
fn ended_age(log_bytes: u64, bytes_max: u64) -> Option<Duration> {
    match log_bytes.saturating_mul(4) / bytes_max.max(1) {
        0 => None,
        1 => Some(Duration::from_secs(1)),
        2 => Some(Duration::from_millis(100)),
        3 => Some(Duration::from_millis(10)),
        _ => Some(Duration::ZERO),
    }
}

/// Watches the file and the log of one database, until its writer or its connections are gone.
async fn watch(readers: Weak<Readers>, writer: Weak<Writer>) {
    let mut idle_intervals = 0;
    loop {
        let Some(full) = writer.upgrade().map(|writer| writer.log_bound().full()) else { return };
        // Either way there is something to look at.
        let _ = tokio::time::timeout(INTERVAL, full.notified()).await;
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
    let bytes_max = writer.log_bound().bytes_max();
    let moved = match has_committed && file_bytes(readers) >= bytes_max / MOVED_PART {
        true => checkpoint(readers, writer, bytes_max),
        false => Ok(()),
    };
    // Also if nothing was committed here: another process may wait for readers of this one.
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

/// Moves the log, and has it begin anew where it is long enough.
fn checkpoint(readers: &Arc<Readers>, writer: &Arc<Writer>, bytes_max: u64) -> larder_core::Result<()> {
    let beside = readers.open_beside()?;
    let connection = &beside.connection;
    let page_bytes = page_bytes(connection)?;
    let pages = |bytes: u64| i64::try_from(bytes / page_bytes).unwrap_or(i64::MAX);
    let mut moved = 0;
    for pass_number in 1..=PASSES_MAX {
        let pass = move_log(connection)?;
        // Where a reader is in the way, the next time it goes further.
        if pass.moved < pass.in_log || pass.in_log < pages(bytes_max / ANEW_PART) {
            return Ok(());
        }
        let is_long = pass.in_log >= pages(bytes_max / LONG_PART);
        if pass.moved - moved <= LAST_PAGES || is_long && pass_number == PASSES_MAX {
            // Once all of it is moved and nobody reads it, the next commit begins it anew.
            writer.between_commits(|_| move_log(connection))?;
            return Ok(());
        }
        moved = pass.moved;
    }
    Ok(())
}

/// Ends snapshots of that age or older, and has the log begin anew while commits wait; false if a reader is left. Younger
/// snapshots have a moment to end by themselves. Readers of other processes, and copies of the database, can't be ended.
fn end_readers(readers: &Arc<Readers>, writer: &Arc<Writer>, age: Duration) -> larder_core::Result<bool> {
    let beside = readers.open_beside()?;
    let connection = &beside.connection;
    connection.busy_timeout(READERS_END_MAX).map_err(SqliteError::from)?;
    // Perhaps it is moved already, and no snapshot of that age reads it.
    let is_moved = move_log(connection).is_ok_and(|pass| pass.moved == pass.in_log);
    if is_moved && writer.between_commits(|_| begin_anew(connection))? {
        return Ok(true);
    }
    for _ in 0..ENDS_MAX {
        readers.snapshots().end_older_than(age, SnapshotEndReason::LogFull);
        // What is left for the time in which commits wait is little.
        move_log(connection)?;
        if writer.between_commits(|_| begin_anew(connection))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Has the next commit begin the log anew; false if a reader is in the way.
fn begin_anew(connection: &Connection) -> Result<bool> {
    let busy: i64 = connection
        .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0))
        .map_err(SqliteError::from)?;
    Ok(busy == 0)
}

fn page_bytes(connection: &Connection) -> Result<u64> {
    let bytes: u64 =
        connection.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(SqliteError::from)?;
    Ok(bytes.max(1))
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

    /// A bound of which the part at which a log begins anew is one page.
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
    async fn a_log_begins_anew_once_it_is_moved_unless_somebody_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let (connection, readers, writer) = database(&path);
        write(&connection);
        let before = log_bytes(&path);
        checkpoint(&readers, &writer, BYTES_MAX).unwrap();
        write(&connection);
        assert_eq!(log_bytes(&path), before);
        // One more, so that there is something that the reader does not see.
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
