//! How a process finds out, without a statement, that somebody has committed.
//!
//! In WAL mode all who have a database open share the index of its log, in mapped memory. It begins with a header that each
//! commit changes, and that SQLite itself compares at the beginning of each transaction. Its layout is part of SQLite's
//! documented format: <https://sqlite.org/walformat.html#walidxfmt>.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use rusqlite::Connection;
use rusqlite::ffi;

/// Numbers in the header.
const NUMBERS: usize = 12;

/// Which of them grows by one with each commit.
const CHANGE_COUNTER: usize = 2;

/// Which of them says how many frames the log has.
const FRAMES: usize = 4;

/// Which of them has the size of a page in its last two bytes; 1 stands for 65,536.
const PAGE_BYTES: usize = 3;

/// What a frame of the log has before its page.
const FRAME_HEADER_BYTES: u64 = 24;

/// SQLite maps the index in regions of this size.
const REGION_BYTES: c_int = 32_768;

/// The header, of which there are two copies: who writes it writes the second one first.
type Header = [AtomicU32; 2 * NUMBERS];

/// The header of the index of one database's log.
pub(crate) struct LogIndex {
    header: NonNull<Header>,
}

// SAFETY: the memory is shared with other processes already; it is only read, and by atomic loads.
unsafe impl Send for LogIndex {}

/// What the header held at one moment: two that are equal were read while the database was in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark([u32; NUMBERS]);

impl LogIndex {
    /// The index that a connection has mapped; none where there is no such thing, as for a VFS without shared memory.
    ///
    /// # Safety
    /// The connection has read in WAL mode, nobody uses it during the call, and it stays open for as long as
    /// [`LogIndex::mark`] is called: the memory is unmapped with the process's last connection.
    pub(crate) unsafe fn of(connection: &Connection) -> Option<Self> {
        let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
        // SAFETY: the handle is valid while `connection` is borrowed; this operation writes one pointer.
        let code = unsafe {
            ffi::sqlite3_file_control(
                connection.handle(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_FILE_POINTER,
                (&raw mut file).cast(),
            )
        };
        if code != ffi::SQLITE_OK {
            return None;
        }
        // SAFETY: SQLite gave a pointer to an open file; its methods are none where it is not really open.
        let methods = unsafe { file.as_ref()?.pMethods.as_ref()? };
        let map = methods.xShmMap.filter(|_| methods.iVersion >= 2)?;
        let mut region: *mut std::ffi::c_void = std::ptr::null_mut();
        // SAFETY: the file is open, nobody else uses its connection, and 0 has nothing made that isn't there.
        let code = unsafe { map(file, 0, REGION_BYTES, 0, (&raw mut region).cast()) };
        let header = NonNull::new(region.cast::<Header>()).filter(|header| header.is_aligned())?;
        (code == ffi::SQLITE_OK).then_some(Self { header })
    }

    /// What the header holds now; none while somebody changes it.
    pub(crate) fn mark(&self) -> Option<Mark> {
        // SAFETY: the connection that it was taken of is open, as its taker promised, and so the memory is mapped.
        let header = unsafe { self.header.as_ref() };
        let (first, second) = header.split_at(NUMBERS);
        let first = read(first);
        fence(Ordering::SeqCst);
        (read(second) == first).then_some(Mark(first))
    }
}

fn read(numbers: &[AtomicU32]) -> [u32; NUMBERS] {
    let mut read = [0; NUMBERS];
    for (read, number) in read.iter_mut().zip(numbers) {
        *read = number.load(Ordering::Acquire);
    }
    read
}

impl Mark {
    /// Whether this was read when exactly one commit had been made since `before`.
    pub(crate) fn is_one_commit_after(&self, before: &Self) -> bool {
        self.0[CHANGE_COUNTER] == before.0[CHANGE_COUNTER].wrapping_add(1)
    }

    /// How many bytes of the log count. The file may be longer.
    pub(crate) fn log_bytes(&self) -> u64 {
        let [_, _, high, low] = self.0[PAGE_BYTES].to_ne_bytes();
        let page_bytes = match u16::from_ne_bytes([high, low]) {
            1 => 65_536,
            bytes => u64::from(bytes),
        };
        u64::from(self.0[FRAMES]) * (page_bytes + FRAME_HEADER_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqliteOptions;
    use crate::connection::{BUSY_TIMEOUT, open, open_for_larder};
    use crate::location::Location;

    fn connections(path: &std::path::Path) -> (Connection, Connection) {
        let location = Location::resolve(path).unwrap();
        let options = SqliteOptions::default();
        let first = open_for_larder(&location, options, BUSY_TIMEOUT).unwrap();
        (first, open(&location, options).unwrap())
    }

    fn index(connection: &Connection) -> LogIndex {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).unwrap();
        // SAFETY: it has just read, and the tests keep it open.
        unsafe { LogIndex::of(connection) }.unwrap()
    }

    #[test]
    fn a_commit_of_any_connection_moves_the_mark_by_one_and_a_read_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = connections(&folder.path().join("a.db"));
        ours.execute_batch("CREATE TABLE t (x)").unwrap();
        let index = index(&ours);
        let before = index.mark().unwrap();
        theirs.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(index.mark().unwrap(), before);
        for connection in [&ours, &theirs] {
            let before = index.mark().unwrap();
            connection
                .execute_batch("BEGIN; INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); COMMIT")
                .unwrap();
            let after = index.mark().unwrap();
            assert!(after.is_one_commit_after(&before) && !before.is_one_commit_after(&before));
        }
        assert!(!index.mark().unwrap().is_one_commit_after(&before));
    }

    #[test]
    fn a_log_that_begins_anew_is_no_commit_and_the_next_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, _theirs) = connections(&folder.path().join("a.db"));
        ours.execute_batch("CREATE TABLE t (x)").unwrap();
        let index = index(&ours);
        let before = index.mark().unwrap();
        ours.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).unwrap();
        ours.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        let after = index.mark().unwrap();
        assert!(after.is_one_commit_after(&before));
    }

    #[test]
    fn the_index_tells_how_long_the_log_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let (ours, _theirs) = connections(&path);
        ours.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (randomblob(100000))").unwrap();
        let file_bytes = std::fs::metadata(crate::location::with_suffix(&path, "-wal")).unwrap().len();
        let log_header_bytes = 32;
        let index = index(&ours);
        assert_eq!(index.mark().unwrap().log_bytes(), file_bytes - log_header_bytes);
        ours.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, i64>(0)).unwrap();
        ours.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        assert!(index.mark().unwrap().log_bytes() < 10_000);
    }

    #[test]
    fn a_database_without_a_log_has_no_index() {
        // SAFETY: it is open during the call.
        assert!(unsafe { LogIndex::of(&Connection::open_in_memory().unwrap()) }.is_none());
    }
}
