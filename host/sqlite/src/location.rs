//! Where a database lies: resolved once, so that every connection, the write-ahead log and every check mean one file.
//!
//! A path can come to mean another file while a store is open: a process changes its working directory, a symlink is
//! turned, a file is renamed, removed or replaced. Connections to two files under one store would read from one and
//! commit to the other. So each connection is opened by one absolute path, and is checked against the file that the
//! first one opened. Once the path means another file, or the log or its index is gone, the store refuses all further work:
//! other processes would make new ones, and neither side would see what the other commits.

use std::ffi::c_int;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use larder_core::error::Cause;
use larder_core::{Error, Result};
use rusqlite::{Connection, ffi};

/// What stands behind the name of a database in that of the file at which processes line up.
const TURN_SUFFIX: &str = "-turn";

/// How many symlinks are followed to a file that does not exist yet, as many as Linux follows.
const SYMLINKS_MAX: usize = 40;

/// The file of one database, for as long as a store has it open.
#[derive(Debug)]
pub(crate) struct Location {
    database: Place,
    /// The write-ahead log and its index, once a connection has made them. SQLite keeps them until the last one closes.
    log: Place,
    index: Place,
    /// It stays lost: commits made in between went to a file that nobody finds.
    is_lost: AtomicBool,
}

/// A path, and the file that it meant when it was first looked at.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    found: OnceLock<Identity>,
}

/// Which file it is, whatever its name. While a connection has the file open, no other file gets the same identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    number: u64,
}

impl Location {
    /// Resolves a path: symlinks are followed, and the working directory counts as it is now.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the path is empty, SQLite's name for a database in memory, or that of something else
    /// than a file, [`Error::NotFound`] if its folder does not exist, and [`Error::Unavailable`] if that cannot be told.
    pub(crate) fn resolve(path: &Path) -> Result<Self> {
        if path.as_os_str().is_empty() || path == Path::new(":memory:") {
            return Err(Error::invalid_argument(format!(
                "cannot open the SQLite database {path:?}: it is not the path of a file; \
                 for a private database use `Sqlite::open_private` or `sqlite::memory:`"
            )));
        }
        let path = canonical(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => missing("the folder of the database file does not exist", path),
            _ => Error::unavailable("the folder of the database file cannot be found", error),
        })?;
        if path.as_os_str().as_encoded_bytes().ends_with(TURN_SUFFIX.as_bytes()) {
            return Err(Error::invalid_argument(format!(
                "cannot open the SQLite database {path:?}: names that end with {TURN_SUFFIX:?} are kept for the files at which \
                 processes wait for the write lock; rename the file"
            )));
        }
        check_regular(&path)?;
        Ok(Self {
            log: Place::new(with_suffix(&path, "-wal")),
            index: Place::new(with_suffix(&path, "-shm")),
            database: Place::new(path),
            is_lost: AtomicBool::new(false),
        })
    }

    /// The absolute path, without symlinks.
    pub(crate) fn path(&self) -> &Path {
        &self.database.path
    }

    /// The write-ahead log that belongs to the path.
    pub(crate) fn log_path(&self) -> &Path {
        &self.log.path
    }

    /// The index of the write-ahead log.
    pub(crate) fn index_path(&self) -> &Path {
        &self.index.path
    }

    /// The file at which processes line up for the write lock.
    pub(crate) fn turn_path(&self) -> PathBuf {
        with_suffix(self.path(), TURN_SUFFIX)
    }

    /// Looks whether the file has no other name. Through another one, another process would make another log, and neither
    /// would see what the other commits.
    ///
    /// # Errors
    /// [`Error::Other`] if it has.
    #[cfg(unix)]
    pub(crate) fn check_single(&self) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let links = self.path().metadata().map_err(unreadable)?.nlink();
        if links <= 1 {
            return Ok(());
        }
        Err(Error::other(format!(
            "the database file has {links} names (hard links), and each would have a log of its own; remove the others, or copy \
             the file"
        )))
    }

    #[cfg(not(unix))]
    pub(crate) fn check_single(&self) -> Result<()> {
        Ok(())
    }

    /// Counts a connection that may neither create nor write the log's index, for as long as what it gives lives.
    pub(crate) fn begin_look(&self) -> Result<LookCount> {
        let place = identity(self.path()).map_err(unreadable)?.unwrap_or(Identity::UNKNOWN);
        lock_looks().push(place);
        Ok(LookCount(place))
    }

    /// Refuses a store that writes while another one of this process only looks: SQLite has one index for both, and took it
    /// for one that it may not write.
    ///
    /// # Errors
    /// [`Error::Other`].
    pub(crate) fn check_not_looked_at(&self) -> Result<()> {
        let place = identity(self.path()).map_err(unreadable)?;
        if place.is_some_and(|place| lock_looks().contains(&place)) {
            let reason = "this process has the database open for reading only; close that store, or open the one that \
                          writes first";
            return Err(Error::other(reason));
        }
        Ok(())
    }

    /// Looks whether there is a file, without opening it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none.
    pub(crate) fn check_exists(&self) -> Result<()> {
        match identity(self.path()).map_err(unreadable)? {
            Some(_) => Ok(()),
            None => Err(missing("the database file does not exist", self.path())),
        }
    }

    /// Checks a connection that was just opened: it must have the same file open as the first one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the path means another file by now.
    pub(crate) fn admit(&self, connection: &Connection) -> Result<()> {
        let found = identity(self.path()).map_err(unreadable)?;
        let expected = *self.database.found.get_or_init(|| found.unwrap_or(Identity::UNKNOWN));
        // Both are asked, as the file may be replaced between the two looks.
        if found != Some(expected) || has_moved(connection) {
            return Err(self.lose());
        }
        Ok(())
    }

    /// Looks whether the path still means the file that is open, and whether its log and the index are still there.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if not, now and ever after.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_found()?;
        let is_same = self.database.is_same()? && self.log.is_same()? && self.index.is_same()?;
        if is_same { Ok(()) } else { Err(self.lose()) }
    }

    /// The same as far as it was noticed already. It costs next to nothing.
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

impl Place {
    fn new(path: PathBuf) -> Self {
        Self { path, found: OnceLock::new() }
    }

    /// Whether the path means the same file as before, or had none before.
    fn is_same(&self) -> Result<bool> {
        let found = identity(&self.path).map_err(unreadable)?;
        if let Some(expected) = self.found.get() {
            return Ok(found == Some(*expected));
        }
        if let Some(found) = found {
            // Another thread may have been first, and found the same.
            let _ = self.found.set(found);
        }
        Ok(true)
    }
}

/// The databases at which connections of this process only look.
static LOOKS: Mutex<Vec<Identity>> = Mutex::new(Vec::new());

fn lock_looks() -> MutexGuard<'static, Vec<Identity>> {
    LOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that only looks is open.
#[derive(Debug)]
pub(crate) struct LookCount(Identity);

impl Drop for LookCount {
    fn drop(&mut self) {
        let mut looks = lock_looks();
        if let Some(index) = looks.iter().position(|place| *place == self.0) {
            looks.swap_remove(index);
        }
    }
}

/// The path is in the cause, which guests do not see.
pub(crate) fn missing(reason: &str, path: &Path) -> Error {
    let cause: Cause = Arc::new(io::Error::new(ErrorKind::NotFound, path.display().to_string()));
    Error::NotFound { reason: reason.to_string(), cause: Some(cause) }
}

/// The text reaches guests, so it names no path; the log does.
fn lost() -> Error {
    Error::Unavailable {
        reason:
            "the database file, or a file beside it, was moved, removed or replaced while it was open; put it back, or \
                 remove the old -wal and -shm files beside a new one, and open the store again"
                .to_string(),
        cause: None,
    }
}

/// Refuses a folder, a device, a pipe and a socket before anything opens it: a pipe would keep the caller waiting, and
/// SQLite takes a device for an empty database.
fn check_regular(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(file) if !file.is_file() => Err(Error::invalid_argument(format!(
            "cannot open the SQLite database {path:?}: it is not a regular file; check the path"
        ))),
        // Whether there has to be a file is not asked here.
        _ => Ok(()),
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::unavailable("the folder of the database file cannot be read", error)
}

impl Identity {
    /// Of a system that does not tell files apart by number: all are the same.
    const UNKNOWN: Self = Self { device: 0, number: 0 };
}

/// Which file a path means; `None` if there is none.
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

/// Whether the file that a connection has open is no longer the one at the path by which it was opened.
fn has_moved(connection: &Connection) -> bool {
    let mut moved: c_int = 0;
    // SAFETY: the handle is valid while `connection` is borrowed; this operation writes one number.
    let code = unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_HAS_MOVED,
            (&raw mut moved).cast(),
        )
    };
    // A VFS that cannot tell answers with another code.
    code == ffi::SQLITE_OK && moved != 0
}

/// The absolute path without symlinks, of a file that need not exist.
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
            // It leads to a file that does not exist yet, from the symlink's folder.
            Ok(target) => path = folder.join(target),
            Err(_) => {
                let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
                return Ok(folder.canonicalize()?.join(name));
            }
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// The path with something behind its last name, as SQLite names the files beside a database.
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
