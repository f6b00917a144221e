//! A foreign SQLite: a process that knows the tables, but does not use larder.
//!
//! It reads the whole file in one transaction, keeps transactions open, makes checkpoints and
//! VACUUMs, opens and closes. It uses the SQLite that larder is built with, because releases before
//! 3.51.3 can corrupt a database by a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

use crate::history::{Deed, Dump, Event, FileRow, Row, Window, nanos, report, shorten};

/// The instructions of a foreign process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Foreign {
    pub(crate) file: PathBuf,
    pub(crate) seed: u64,
}

/// A different release of SQLite, Python's, which opens the file, reads, and closes it.
///
/// The close is the hazard: if a process opens and closes a file a second time, the operating
/// system drops all its locks on it. Then the next process that closes the database deletes the
/// write-ahead log under the others.
pub(crate) const OLDER_RELEASE: &str = r#"
import os, random, sqlite3, sys, threading, time

def stop_at_end_of_input():
    sys.stdin.read()
    os._exit(0)

threading.Thread(target=stop_at_end_of_input, daemon=True).start()
while True:
    connection = sqlite3.connect("file:" + sys.argv[1] + "?mode=rw", uri=True, timeout=1)
    try:
        connection.execute("SELECT count(*) FROM larder_entries").fetchone()
        print('{"Did":"OlderRelease"}', flush=True)
    except sqlite3.OperationalError:
        pass
    finally:
        connection.close()
    time.sleep(random.random() * 0.1)
"#;

const BUSY_TIMEOUT: Duration = Duration::from_millis(500);

pub(crate) fn run(foreign: &Foreign) {
    let stop = crate::round::stop_at_end_of_input();
    let mut random = Rng::with_seed(foreign.seed);
    while !stop.load(Ordering::SeqCst) {
        let mut connection = open(&foreign.file).expect("cannot open the file");
        for _ in 0..random.u32(1..8) {
            if let Err(error) = act(&mut connection, &mut random)
                && !is_busy(&error)
            {
                report(&Event::Broken(format!("a foreign process got {error:?}")));
            }
            std::thread::sleep(Duration::from_millis(random.u64(0..60)));
        }
        // The last connection to close removes the write-ahead log.
        drop(connection);
        std::thread::sleep(Duration::from_millis(random.u64(0..300)));
    }
}

fn open(file: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
}

fn act(connection: &mut Connection, random: &mut Rng) -> rusqlite::Result<()> {
    match random.u32(0..12) {
        0..5 => {
            let transaction = connection.transaction()?;
            report(&Event::Dumped(dump(&transaction)?));
            // A reader that stays open keeps SQLite from restarting the write-ahead log.
            if random.u32(0..4) == 0 {
                std::thread::sleep(Duration::from_millis(random.u64(0..200)));
            }
            transaction.rollback()
        }
        5..10 => {
            let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.usize(0..4)];
            connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))?;
            report(&Event::Did(Deed::Checkpoint));
            Ok(())
        }
        10 => {
            connection.execute_batch("VACUUM")?;
            report(&Event::Did(Deed::Vacuum));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Reads all rows in a transaction.
fn dump(transaction: &Connection) -> rusqlite::Result<Dump> {
    let from = nanos();
    let reserved = transaction.query_row("SELECT last FROM larder_commit_sequence", [], |row| row.get(0))?;
    let to = nanos();
    let mut statement = transaction.prepare(
        "SELECT namespace, key, value, version, expires_at FROM larder_entries ORDER BY namespace, key",
    )?;
    let rows = statement.query_map([], |row| {
        let text = |column| -> rusqlite::Result<String> {
            Ok(String::from_utf8_lossy(row.get_ref(column)?.as_blob()?).into_owned())
        };
        Ok(FileRow {
            row: Row(text(0)?, text(1)?),
            value: shorten(row.get_ref(2)?.as_blob()?),
            version: row.get(3)?,
            expires_at: row.get(4)?,
        })
    })?;
    Ok(Dump { window: Window { from, to }, rows: rows.collect::<rusqlite::Result<_>>()?, reserved })
}

/// Reads all rows of a file.
pub(crate) fn dump_file(file: &Path) -> rusqlite::Result<Dump> {
    dump(&open(file)?)
}

/// Returns the result of `PRAGMA integrity_check`.
pub(crate) fn integrity(file: &Path) -> rusqlite::Result<String> {
    open(file)?.query_row("PRAGMA integrity_check", [], |row| row.get(0))
}
