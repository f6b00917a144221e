//! SQLite's write lock, shared fairly with other processes.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::connection::BUSY_TIMEOUT;
use crate::error::Result;
use crate::transaction::forget_pages;
use crate::turn::{Look, Turns};

/// For how long after it met another process this one checks whether another process waits for the
/// lock.
pub(super) const COMPANY: Duration = Duration::from_secs(5);

/// Takes SQLite's write lock, and shares it fairly with other processes.
pub(super) struct WriteLock {
    turns: Turns,
    /// When another process was last found to hold the lock or to wait for it.
    was_busy: Option<Instant>,
}

impl WriteLock {
    pub(super) fn new(turns: Turns) -> Self {
        Self { turns, was_busy: None }
    }

    /// Begins a write transaction without waiting. False if another process holds the lock or waits
    /// for it.
    pub(super) fn try_begin(&mut self, connection: &Connection, others_commit: bool) -> Result<bool> {
        let turn = match self.has_company(others_commit) {
            true => self.turns.try_take(),
            false => Look::Without,
        };
        let begun = !matches!(turn, Look::Taken) && begin_at_once(connection)?;
        if !begun {
            self.was_busy = Some(Instant::now());
        }
        Ok(begun)
    }

    /// Begins a write transaction after the processes that came before. Blocks for [`BUSY_TIMEOUT`]
    /// at most.
    pub(super) fn begin(&mut self, connection: &Connection, others_commit: bool) -> Result<()> {
        if self.try_begin(connection, others_commit)? {
            return Ok(());
        }
        let since = Instant::now();
        let _turn = self.turns.take(TURN_MAX);
        while since.elapsed() < BUSY_TIMEOUT {
            if begin_at_once(connection)? {
                return Ok(());
            }
            std::thread::sleep((since.elapsed() / 8).clamp(PAUSE_MIN, PAUSE_MAX));
        }
        begin_immediate(connection)
    }

    /// Leaves the queue of processes for good.
    pub(super) fn leave(&mut self) {
        self.turns.remove();
    }

    fn has_company(&self, others_commit: bool) -> bool {
        others_commit || self.was_busy.is_some_and(|busy| busy.elapsed() < COMPANY)
    }
}

/// The longest wait for the turn. Its holder may be a stopped process while SQLite's lock is free.
const TURN_MAX: Duration = Duration::from_secs(1);

/// Bounds of the pause between two attempts to take the lock. The pause is an eighth of the time
/// waited so far.
const PAUSE_MIN: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// Returns false if another process holds the lock.
fn begin_at_once(connection: &Connection) -> Result<bool> {
    match begin_immediate(connection) {
        Ok(()) => Ok(true),
        Err(error) if error.is_busy() => Ok(false),
        Err(error) => {
            forget_pages(connection);
            Err(error)
        }
    }
}

fn begin_immediate(connection: &Connection) -> Result<()> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqliteOptions;
    use crate::connection::open_writer;
    use crate::location::Location;
    use crate::transaction::commit;

    /// The write lock as one process takes it.
    fn process(folder: &std::path::Path) -> (WriteLock, Connection) {
        let location = Location::resolve(&folder.join("a.db")).unwrap();
        let connection = open_writer(&location, SqliteOptions::default()).unwrap();
        connection.busy_timeout(Duration::ZERO).unwrap();
        (WriteLock::new(Turns::new(location.turn_path())), connection)
    }

    #[test]
    fn a_process_that_commits_without_end_lets_one_that_waits_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, connection) = process(folder.path());
        // It has met the other process before.
        ours.was_busy = Some(Instant::now());
        ours.begin(&connection, false).unwrap();
        let (mut theirs, their_connection) = process(folder.path());
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let waiting = std::thread::spawn(move || {
            theirs.begin(&their_connection, false).unwrap();
            finished.recv().unwrap();
            commit(&their_connection).unwrap();
        });
        // Wait until the other process has the turn.
        let mut look = Turns::new(folder.path().canonicalize().unwrap().join("a.db-turn"));
        while !matches!(look.try_take(), Look::Taken) {
            std::thread::yield_now();
        }
        commit(&connection).unwrap();
        for _ in 0..1_000 {
            assert!(!ours.try_begin(&connection, false).unwrap());
        }
        finish.send(()).unwrap();
        ours.begin(&connection, false).unwrap();
        commit(&connection).unwrap();
        waiting.join().unwrap();
    }

    #[test]
    fn a_process_alone_makes_no_queue() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, connection) = process(folder.path());
        ours.begin(&connection, false).unwrap();
        commit(&connection).unwrap();
        assert!(!folder.path().join("a.db-turn").exists());
    }
}
