//! A queue of the processes that write to one database.
//!
//! SQLite has no queue for its write lock: a waiting process tries again after pauses that grow to
//! 100 ms, so a process that commits continuously always gets the lock first. Larder's processes
//! therefore line up at a file beside the database. The process that holds the lock of this file is
//! the next, and keeps it only until it has SQLite's write lock. The others, including the process
//! whose commit is under way, queue up behind it, and the kernel serves them in the order in which
//! they came.
//!
//! Only fairness depends on this. A process that cannot open the file, or waits too long for it,
//! goes without. So does a process that finds something else at the path: only an empty regular
//! file is opened, and removed. Larder refuses databases with such a name, because opening and
//! closing one drops the locks that SQLite has on it.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// The queue of one database.
pub(crate) struct Turns {
    path: PathBuf,
    /// The open file, for as long as the path refers to it.
    file: Option<File>,
    /// Whether a thread still waits for a turn that came too late.
    is_waiting: Arc<AtomicBool>,
}

/// The right to take SQLite's write lock next. Dropping it gives the turn to the process behind.
#[derive(Debug)]
pub(crate) struct Turn {
    file: File,
}

/// The result of trying to take the turn.
#[derive(Debug)]
pub(crate) enum Look {
    /// The turn. No other process waits.
    Turn(Turn),
    /// Another process is next.
    Taken,
    /// The queue cannot be used.
    Without,
}

impl Turns {
    /// The queue at a path. Opens nothing yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, file: None, is_waiting: Arc::default() }
    }

    /// Takes the turn if no other process waits. Never blocks.
    pub(crate) fn try_take(&mut self) -> Look {
        let file = match self.handle() {
            Ok(file) => file,
            Err(error) => return self.give_up(&error),
        };
        match file.try_lock() {
            Ok(()) => Look::Turn(Turn { file }),
            Err(TryLockError::WouldBlock) => Look::Taken,
            Err(TryLockError::Error(error)) => self.give_up(&error),
        }
    }

    /// Waits for the turn, for at most `max`. `None` if the caller must go without.
    pub(crate) fn take(&mut self, max: Duration) -> Option<Turn> {
        match self.try_take() {
            Look::Turn(turn) => Some(turn),
            Look::Without => None,
            Look::Taken => self.wait(max),
        }
    }

    /// Waits on a thread of its own, because the kernel's wait has no deadline. A turn that comes
    /// too late is given back.
    fn wait(&mut self, max: Duration) -> Option<Turn> {
        if self.is_waiting.swap(true, Ordering::AcqRel) {
            return None;
        }
        // A separate open file: the lock of a turn that comes too late must not count as held by
        // this process.
        let file = match open(&self.path) {
            Ok(file) => file,
            Err(error) => {
                self.is_waiting.store(false, Ordering::Release);
                self.give_up(&error);
                return None;
            }
        };
        let is_waiting = self.is_waiting.clone();
        let (give, given) = mpsc::sync_channel(0);
        let waiting = std::thread::Builder::new().name("larder-turn".to_string()).spawn(move || {
            let turn = file.lock().map(|()| Turn { file });
            is_waiting.store(false, Ordering::Release);
            drop(give.send(turn));
        });
        match waiting {
            Ok(_) => match given.recv_timeout(max) {
                Ok(Ok(turn)) => Some(turn),
                Ok(Err(error)) => {
                    self.give_up(&error);
                    None
                }
                Err(_) => None,
            },
            Err(error) => {
                self.is_waiting.store(false, Ordering::Release);
                self.give_up(&error);
                None
            }
        }
    }

    /// A handle of the file that is kept open.
    fn handle(&mut self) -> io::Result<File> {
        let file = match self.file.take().filter(|file| is_at(file, &self.path)) {
            Some(file) => file,
            None => open(&self.path)?,
        };
        self.file.insert(file).try_clone()
    }

    fn give_up(&mut self, error: &io::Error) -> Look {
        tracing::debug!(%error, "cannot use the queue for the write lock of the database; taking the lock without it");
        self.file = None;
        Look::Without
    }

    /// Removes the file, unless another process has the turn. Processes that still have it open
    /// notice.
    pub(crate) fn remove(&mut self) {
        if self.file.as_ref().is_some_and(|file| is_at(file, &self.path))
            && let Look::Turn(_turn) = self.try_take()
        {
            drop(std::fs::remove_file(&self.path));
        }
        self.file = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Unlock explicitly: other handles of the same open file may remain.
        drop(self.file.unlock());
    }
}

/// Opens the file, and creates it if it does not exist. A file of another user can only be read,
/// which is enough.
fn open(path: &Path) -> io::Result<File> {
    let created = options().write(true).create_new(true).open(path);
    match created {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_existing(path),
        created => created,
    }
}

fn open_existing(path: &Path) -> io::Result<File> {
    check_ours(&path.symlink_metadata()?)?;
    let writable = options().write(true).open(path);
    let file = writable.or_else(|_| options().read(true).open(path))?;
    // The file may have been replaced in between.
    check_ours(&file.metadata()?)?;
    Ok(file)
}

fn check_ours(found: &Metadata) -> io::Result<()> {
    if found.is_file() && found.len() == 0 {
        return Ok(());
    }
    Err(io::Error::other("the path of the queue refers to something other than an empty file"))
}

/// Does not follow a symlink that replaced the file in between, and does not block on a pipe.
#[cfg(unix)]
fn options() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed());
    options
}

#[cfg(not(unix))]
fn options() -> OpenOptions {
    File::options()
}

/// Whether a path still refers to an open file. Another process may have removed the file when it
/// closed.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(file), Ok(found)) => {
            (file.dev(), file.ino()) == (found.dev(), found.ino()) && check_ours(&found).is_ok()
        }
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// The queues of two processes at one path. Each opens the file by itself.
    fn two(folder: &Path) -> (Turns, Turns) {
        let path = folder.join("a.db-turn");
        (Turns::new(path.clone()), Turns::new(path))
    }

    #[test]
    fn one_has_the_turn_and_the_next_one_gets_it_when_it_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, mut theirs) = two(folder.path());
        let Look::Turn(turn) = ours.try_take() else { panic!("the turn is free") };
        assert!(matches!(theirs.try_take(), Look::Taken));
        let waiting = std::thread::spawn(move || (theirs.take(Duration::from_secs(60)).is_some(), theirs));
        drop(turn);
        let (has_come, mut theirs) = waiting.join().unwrap();
        assert!(has_come);
        assert!(matches!(theirs.try_take(), Look::Turn(_)) && matches!(ours.try_take(), Look::Turn(_)));
    }

    #[test]
    fn a_process_that_waits_too_long_goes_without_a_turn_and_keeps_no_other_from_one() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, mut theirs) = two(folder.path());
        let turn = ours.take(Duration::ZERO).unwrap();
        let since = Instant::now();
        assert!(
            theirs.take(Duration::from_millis(20)).is_none() && since.elapsed() >= Duration::from_millis(20)
        );
        // The thread still waits, and a second one must not be started.
        assert!(theirs.take(Duration::from_secs(60)).is_none());
        drop(turn);
        while theirs.is_waiting.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        assert!(ours.take(Duration::from_secs(60)).is_some());
        assert!(theirs.take(Duration::from_secs(60)).is_some());
    }

    #[test]
    fn the_file_is_removed_unless_another_has_the_turn_and_both_go_on_with_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, mut theirs) = two(folder.path());
        let turn = ours.take(Duration::ZERO).unwrap();
        assert!(matches!(theirs.try_take(), Look::Taken));
        theirs.remove();
        assert!(ours.path.exists());
        drop(turn);
        ours.remove();
        assert!(!ours.path.exists());
        let turn = theirs.take(Duration::ZERO).unwrap();
        assert!(matches!(ours.try_take(), Look::Taken));
        drop(turn);
    }

    #[test]
    fn a_foreign_file_under_the_name_is_neither_opened_nor_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db-turn");
        let look = || {
            let mut turns = Turns::new(path.clone());
            assert!(matches!(turns.try_take(), Look::Without));
            assert!(turns.take(Duration::from_secs(60)).is_none());
            turns.remove();
        };
        std::fs::write(&path, "notes").unwrap();
        look();
        assert_eq!(std::fs::read(&path).unwrap(), b"notes");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        look();
        std::fs::remove_dir(&path).unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(folder.path().join("target"), &path).unwrap();
            look();
            assert!(path.is_symlink() && !folder.path().join("target").exists());
        }
    }

    #[test]
    fn a_file_that_is_no_longer_the_queues_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, _) = two(folder.path());
        drop(ours.take(Duration::ZERO).unwrap());
        std::fs::write(&ours.path, "notes").unwrap();
        ours.remove();
        assert_eq!(std::fs::read(&ours.path).unwrap(), b"notes");
    }

    #[test]
    fn without_a_folder_there_is_no_queue() {
        let mut turns = Turns::new(PathBuf::from("/nowhere/a.db-turn"));
        assert!(matches!(turns.try_take(), Look::Without));
        assert!(turns.take(Duration::from_secs(60)).is_none());
    }
}
