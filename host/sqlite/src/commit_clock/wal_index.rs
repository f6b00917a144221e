//! The header of the WAL index, by which a process notices every commit without running a
//! statement.
//!
//! In WAL mode, all connections to a database share the WAL index, which is mapped memory. Its
//! header changes with each commit, and SQLite itself compares it at the beginning of each
//! transaction. The layout of the header is part of SQLite's documented format:
//! <https://sqlite.org/walformat.html#walidxfmt>.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use rusqlite::Connection;
use rusqlite::ffi;

/// 32-bit numbers in one copy of the header.
const NUMBERS: usize = 12;

/// Index of `iChange`, which grows by one with each commit.
const CHANGE_COUNTER: usize = 2;

/// Index of `mxFrame`, the number of valid frames in the log.
const FRAMES: usize = 4;

/// Index of the number whose last two bytes are `szPage`, the page size; 1 stands for 65,536.
const PAGE_BYTES: usize = 3;

/// Bytes of the header that precedes the page in each frame of the log.
const FRAME_HEADER_BYTES: u64 = 24;

/// Size of the regions in which SQLite maps the WAL index.
const REGION_BYTES: c_int = 32_768;

/// Both copies of the header. A writer writes the second copy first.
type Header = [AtomicU32; 2 * NUMBERS];

/// The WAL-index header of one database.
pub(crate) struct WalIndex {
    header: NonNull<Header>,
}

// SAFETY: other processes share the memory already. It is only read, by atomic loads.
unsafe impl Send for WalIndex {}

/// The contents of the header at one time. Two equal marks were read in the same state of the
/// database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark([u32; NUMBERS]);

impl WalIndex {
    /// The header in the WAL index that a connection maps. `None` if there is none, as with a VFS
    /// without shared memory.
    ///
    /// # Safety
    /// The connection must have read in WAL mode, and must not be used by another thread during the
    /// call. It must stay open for as long as [`WalIndex::mark`] is called, because the memory is
    /// unmapped when the last connection of the process closes.
    pub(crate) unsafe fn of(connection: &Connection) -> Option<Self> {
        let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
        // SAFETY: the handle is valid while `connection` is borrowed. This operation writes one
        // pointer.
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
        // SAFETY: SQLite returned a pointer to its file object. The methods are null if the file is
        // not open.
        let methods = unsafe { file.as_ref()?.pMethods.as_ref()? };
        let map = methods.xShmMap.filter(|_| methods.iVersion >= 2)?;
        let mut region: *mut std::ffi::c_void = std::ptr::null_mut();
        // SAFETY: the file is open, no other thread uses its connection, and the argument 0 keeps
        // SQLite from creating a region.
        let code = unsafe { map(file, 0, REGION_BYTES, 0, (&raw mut region).cast()) };
        let header = NonNull::new(region.cast::<Header>()).filter(|header| header.is_aligned())?;
        (code == ffi::SQLITE_OK).then_some(Self { header })
    }

    /// Reads the header. `None` if a writer is changing it.
    pub(crate) fn mark(&self) -> Option<Mark> {
        // SAFETY: the caller of `of` keeps the connection open, so the memory is mapped.
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
    /// Whether exactly one commit was made between `before` and this mark.
    pub(crate) fn is_one_commit_after(&self, before: &Self) -> bool {
        self.0[CHANGE_COUNTER] == before.0[CHANGE_COUNTER].wrapping_add(1)
    }

    /// Bytes of the valid frames in the log. The file may be longer.
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

    fn index(connection: &Connection) -> WalIndex {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).unwrap();
        // SAFETY: the connection has just read, and the tests keep it open.
        unsafe { WalIndex::of(connection) }.unwrap()
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
    fn a_header_whose_copies_differ_is_being_changed_and_has_no_mark() {
        let header: Header = std::array::from_fn(|at| AtomicU32::new((at % NUMBERS) as u32));
        let index = WalIndex { header: NonNull::from(&header) };
        let whole = Mark(std::array::from_fn(|at| at as u32));
        assert_eq!(index.mark(), Some(whole));
        for (at, number) in header.iter().enumerate() {
            let before = number.fetch_add(1, Ordering::SeqCst);
            assert_eq!(index.mark(), None, "number {at} of the two copies");
            number.store(before, Ordering::SeqCst);
        }
        assert_eq!(index.mark(), Some(whole));
    }

    #[test]
    fn a_database_without_a_log_has_no_index() {
        // SAFETY: the connection is open during the call.
        assert!(unsafe { WalIndex::of(&Connection::open_in_memory().unwrap()) }.is_none());
    }
}
