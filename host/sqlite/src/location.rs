//! The location of a database file, resolved once so that every connection and check uses one file.
//!
//! A path can come to refer to another file while a store is open: the process changes its working
//! directory, a symlink is redirected, or a file is renamed, removed or replaced. Connections to
//! two files under one store would read from one and commit to the other. So each connection is
//! opened by one absolute path, and is checked against the file that the first one opened. Once the
//! path refers to another file, or the write-ahead log or its index is gone, the store refuses all
//! further work: other processes would create new ones, and neither side would see the commits of
//! the other.

use std::ffi::c_int;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use larder_core::error::Cause;
use larder_core::{Error, Result};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, ffi};

/// The suffix of the queue file, at which processes line up for the write lock.
const TURN_SUFFIX: &str = "-turn";

/// The most symlinks that are followed to a file that does not exist yet, as many as on Linux.
const SYMLINKS_MAX: usize = 40;

/// The file of one database, for as long as a store has it open.
#[derive(Debug)]
pub(crate) struct Location {
    database: WatchedPath,
    /// The write-ahead log and its index, once a connection has created them. SQLite keeps them
    /// until the last connection closes.
    log: WatchedPath,
    index: WatchedPath,
    /// Never reset: commits that were made while the file was lost went to a file that no path
    /// refers to.
    is_lost: AtomicBool,
}

/// A path, and the file that it referred to when it was first looked up.
#[derive(Debug)]
struct WatchedPath {
    path: PathBuf,
    found: OnceLock<Identity>,
}

/// The identity of a file, whatever its name. As long as a connection has the file open, no other
/// file gets the same identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    number: u64,
}

impl Location {
    /// Resolves a path: follows symlinks, and bases a relative path on the current working
    /// directory.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the path is empty or `:memory:`, refers to something other
    ///   than a regular file, or ends with the suffix of the queue file.
    /// - [`Error::NotFound`] if the directory does not exist.
    /// - [`Error::Unavailable`] if the path cannot be resolved.
    pub(crate) fn resolve(path: &Path) -> Result<Self> {
        if path.as_os_str().is_empty() || path == Path::new(":memory:") {
            return Err(Error::invalid_argument(format!(
                "cannot open the SQLite database {path:?}: it is not the path of a file; \
                 for a private database use `Sqlite::open_private` or `sqlite::memory:`"
            )));
        }
        let path = canonical(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => missing("the directory of the database file does not exist", path),
            _ => Error::unavailable("cannot resolve the path of the database file", error),
        })?;
        if path.as_os_str().as_encoded_bytes().ends_with(TURN_SUFFIX.as_bytes()) {
            return Err(Error::invalid_argument(format!(
                "cannot open the SQLite database {path:?}: names that end with {TURN_SUFFIX:?} are reserved for the \
                 files at which processes wait for the write lock; rename the file"
            )));
        }
        check_regular(&path)?;
        Ok(Self {
            log: WatchedPath::new(with_suffix(&path, "-wal")),
            index: WatchedPath::new(with_suffix(&path, "-shm")),
            database: WatchedPath::new(path),
            is_lost: AtomicBool::new(false),
        })
    }

    /// The absolute path, without symlinks.
    pub(crate) fn path(&self) -> &Path {
        &self.database.path
    }

    /// The path of the write-ahead log.
    pub(crate) fn log_path(&self) -> &Path {
        &self.log.path
    }

    /// The path of the WAL index.
    pub(crate) fn index_path(&self) -> &Path {
        &self.index.path
    }

    /// The path of the file at which processes line up for the write lock.
    pub(crate) fn turn_path(&self) -> PathBuf {
        with_suffix(self.path(), TURN_SUFFIX)
    }

    /// Checks that the file has only one name. A process that opened it by another name would
    /// create another log, and neither would see the commits of the other.
    ///
    /// # Errors
    /// [`Error::Other`] if it has several names.
    #[cfg(unix)]
    pub(crate) fn check_single(&self) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let links = self.path().metadata().map_err(unreadable)?.nlink();
        if links <= 1 {
            return Ok(());
        }
        Err(Error::other(format!(
            "the database file has {links} names (hard links), and each would get a write-ahead log of its own; remove the \
             others, or copy the file"
        )))
    }

    #[cfg(not(unix))]
    pub(crate) fn check_single(&self) -> Result<()> {
        Ok(())
    }

    /// Counts a connection that may neither create nor write the WAL index, for as long as the
    /// result lives.
    pub(crate) fn begin_look(&self) -> Result<LookCount> {
        let file = identity(self.path()).map_err(unreadable)?.unwrap_or(Identity::UNKNOWN);
        lock_looks().push(file);
        Ok(LookCount(file))
    }

    /// Refuses to open a store for writing while another store of this process has the file open
    /// for reading only. SQLite shares one WAL index between both, and would treat it as read-only.
    ///
    /// # Errors
    /// [`Error::Other`] if there is such a store.
    pub(crate) fn check_not_looked_at(&self) -> Result<()> {
        let file = identity(self.path()).map_err(unreadable)?;
        if file.is_some_and(|file| lock_looks().contains(&file)) {
            let reason = "this process has the database open for reading only; close that store, or open the store that \
                          writes before it";
            return Err(Error::other(reason));
        }
        Ok(())
    }

    /// Checks that the file exists, without opening it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it does not exist.
    pub(crate) fn check_exists(&self) -> Result<()> {
        match identity(self.path()).map_err(unreadable)? {
            Some(_) => Ok(()),
            None => Err(missing("the database file does not exist", self.path())),
        }
    }

    /// Checks that a new connection has the same file open as the first one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the path refers to another file by now.
    pub(crate) fn admit(&self, connection: &Connection) -> Result<()> {
        let found = identity(self.path()).map_err(unreadable)?;
        let expected = *self.database.found.get_or_init(|| found.unwrap_or(Identity::UNKNOWN));
        // Check both: the file may be replaced between the two checks.
        if found != Some(expected) || has_moved(connection) {
            return Err(self.lose());
        }
        Ok(())
    }

    /// Checks that the path still refers to the open file, and that the log and its index still
    /// exist.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if not. All later calls fail as well.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_found()?;
        let is_same = self.database.is_same()? && self.log.is_same()? && self.index.is_same()?;
        if is_same { Ok(()) } else { Err(self.lose()) }
    }

    /// Fails if an earlier check found the file lost. Costs one atomic load.
    pub(crate) fn check_found(&self) -> Result<()> {
        if self.is_lost.load(Ordering::Acquire) { Err(lost()) } else { Ok(()) }
    }

    fn lose(&self) -> Error {
        if !self.is_lost.swap(true, Ordering::AcqRel) {
            tracing::error!(
                path = %self.path().display(),
                "the database file, or a file beside it, was moved, removed or replaced while it was open; the store \
                 refuses further work"
            );
        }
        lost()
    }
}

impl WatchedPath {
    fn new(path: PathBuf) -> Self {
        Self { path, found: OnceLock::new() }
    }

    /// Whether the path refers to the same file as at the first look, or did not exist until now.
    fn is_same(&self) -> Result<bool> {
        let found = identity(&self.path).map_err(unreadable)?;
        if let Some(expected) = self.found.get() {
            return Ok(found == Some(*expected));
        }
        if let Some(found) = found {
            // If another thread was first, it found the same file.
            let _ = self.found.set(found);
        }
        Ok(true)
    }
}

/// The databases that connections of this process have open for reading only.
static LOOKS: Mutex<Vec<Identity>> = Mutex::new(Vec::new());

fn lock_looks() -> MutexGuard<'static, Vec<Identity>> {
    LOOKS.lock()
}

/// Counts an open connection that only reads, until it is dropped.
#[derive(Debug)]
pub(crate) struct LookCount(Identity);

impl Drop for LookCount {
    fn drop(&mut self) {
        let mut looks = lock_looks();
        if let Some(index) = looks.iter().position(|look| *look == self.0) {
            looks.swap_remove(index);
        }
    }
}

/// The path is in the cause, which guests do not see.
pub(crate) fn missing(reason: &str, path: &Path) -> Error {
    let cause: Cause = Arc::new(io::Error::new(ErrorKind::NotFound, path.display().to_string()));
    Error::NotFound { reason: reason.to_string(), cause: Some(cause) }
}

/// Guests see this text, so it does not name the path. The log message does.
fn lost() -> Error {
    Error::Unavailable {
        reason:
            "the database file, or a file beside it, was moved, removed or replaced while it was open; put it back, or \
                 remove the old -wal and -shm files beside a new one, and open the store again"
                .to_string(),
        cause: None,
    }
}

/// Refuses a directory, a device, a pipe and a socket before SQLite opens it: a pipe would block
/// the caller, and SQLite treats a device as an empty database.
fn check_regular(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(file) if !file.is_file() => Err(Error::invalid_argument(format!(
            "cannot open the SQLite database {path:?}: it is not a regular file; check the path"
        ))),
        // The caller decides whether the file must exist.
        _ => Ok(()),
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::unavailable("cannot read the directory of the database file", error)
}

impl Identity {
    /// The identity of every file on a system that does not number files.
    const UNKNOWN: Self = Self { device: 0, number: 0 };
}

/// The identity of the file that a path refers to. `None` if there is no file.
#[cfg(unix)]
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    use std::os::unix::fs::MetadataExt;
    match path.metadata() {
        Ok(file) => Ok(Some(Identity { device: file.dev(), number: file.ino() })),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    Ok(path.try_exists()?.then_some(Identity::UNKNOWN))
}

/// Whether the file that a connection has open is no longer at the path by which it was opened.
fn has_moved(connection: &Connection) -> bool {
    let mut moved: c_int = 0;
    // SAFETY: the handle is valid while `connection` is borrowed. This operation writes one number.
    let code = unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_HAS_MOVED,
            (&raw mut moved).cast(),
        )
    };
    // A VFS that cannot tell returns another code.
    code == ffi::SQLITE_OK && moved != 0
}

/// Returns the absolute path without symlinks of a file that need not exist.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..SYMLINKS_MAX {
        match path.canonicalize() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            resolved => return resolved,
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        match path.read_link() {
            // The symlink leads to a file that does not exist yet. Its target is relative to the
            // directory of the symlink.
            Ok(target) => path = folder.join(target),
            Err(_) => {
                let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
                return Ok(folder.canonicalize()?.join(name));
            }
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// Appends a suffix to the file name, as SQLite names the files beside a database.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_symlink_is_followed_whether_or_not_its_target_exists() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("data")).unwrap();
        symlink("data/real.db", root.join("link.db")).unwrap();
        symlink("link.db", root.join("second.db")).unwrap();
        for _ in 0..2 {
            let location = Location::resolve(&root.join("second.db")).unwrap();
            assert_eq!(location.path(), root.join("data/real.db"));
            assert_eq!(location.log_path(), root.join("data/real.db-wal"));
            std::fs::write(root.join("data/real.db"), b"").unwrap();
        }
    }

    #[test]
    fn a_path_that_names_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        symlink("loop.db", folder.path().join("loop.db")).unwrap();
        assert!(matches!(Location::resolve(Path::new("")), Err(Error::InvalidArgument(_))));
        assert!(matches!(Location::resolve(Path::new(":memory:")), Err(Error::InvalidArgument(_))));
        let looped = Location::resolve(&folder.path().join("loop.db"));
        assert!(matches!(looped, Err(Error::Unavailable { .. })), "{looped:?}");
        let nowhere = Location::resolve(&folder.path().join("nowhere/a.db"));
        assert!(matches!(nowhere, Err(Error::NotFound { .. })), "{nowhere:?}");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_being_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, link) = (folder.path().join("fifo"), folder.path().join("link"));
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        symlink("/dev/null", &link).unwrap();
        for path in [&fifo, &link, folder.path(), Path::new("/dev/zero")] {
            let refused = Location::resolve(path);
            assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{path:?}: {refused:?}");
        }
    }

    #[test]
    fn a_connection_to_another_file_is_not_admitted_and_the_location_stays_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("a.db"), folder.path().join("aside.db"));
        let location = Location::resolve(&path).unwrap();
        let first = Connection::open(&path).unwrap();
        location.admit(&first).unwrap();
        std::fs::rename(&path, &aside).unwrap();
        let second = Connection::open(&path).unwrap();
        assert!(matches!(location.admit(&second), Err(Error::Unavailable { .. })));
        drop(second);
        std::fs::rename(&aside, &path).unwrap();
        assert!(matches!(location.check_found(), Err(Error::Unavailable { .. })));
    }
}
