//! Runs the steps of a schema on a SQLite file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{Error, Result};
use larder_schema::{
    AppliedStep, LOCK_WAIT, Ledger, MigrationError, SchemaMigrator, Status, Step, StepPosition, StepSet,
    pending, recorded_otherwise, version,
};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::error::{Result as SqliteResult, SqliteError};
use crate::foreign_keys::{Known, Suspects};
use crate::location::{Location, missing};
use crate::script::{self, Failed};
use crate::transaction::{self, CommitError};
use crate::unsigned::Unsigned;
use crate::{SqliteOptions, connection, file, look};

/// Migrates a platform's own tables in a SQLite file, beside those of larder.
///
/// Each step is one transaction. It takes the write lock at its beginning, reads the ledger again,
/// runs the step, and records it. So a process that is killed leaves a prefix of the steps, and
/// processes that migrate at the same time apply each step once.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use larder_schema::{Ledger, StepSet, is_missing_migration};
/// use larder_sqlite::SqliteMigrator;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("platform.db");
/// // Usually the texts are `include_str!("../migrations/0001_accounts.sql")`, or
/// // `StepSet::from_folder` reads them.
/// let steps = StepSet::embedded(&[(
///     "0001_accounts.sql",
///     "CREATE TABLE accounts (id INTEGER PRIMARY KEY, owner TEXT NOT NULL) STRICT",
/// )])?;
/// let migrator = SqliteMigrator::new(path, steps, Ledger::new("platform_migrations")?);
/// assert!(is_missing_migration(&migrator.version().await.unwrap_err()));
/// assert_eq!(migrator.up().await?.len(), 1);
/// assert_eq!(migrator.version().await?, 1);
///
/// let accounts: i64 = migrator
///     .with_connection(|connection| {
///         connection.execute("INSERT INTO accounts (owner) VALUES (?1)", ["ann"])?;
///         connection.query_row("SELECT count(*) FROM accounts", [], |row| row.get(0))
///     })
///     .await??;
/// assert_eq!(accounts, 1);
/// # Ok(()) }
/// ```
///
/// # The environment of a step
///
/// Each step runs on a connection of its own. Temporary tables, `PRAGMA`s and other properties of a
/// connection end with the step, so a step does the same whether it is applied alone or after
/// others.
///
/// Foreign keys are off during a step and are checked at its end. A step can therefore rebuild a
/// table as [SQLite's documentation describes
/// it](https://sqlite.org/lang_altertable.html#otheralter): `CREATE TABLE new_x`, `INSERT INTO
/// new_x SELECT … FROM x`, `DROP TABLE x`, `ALTER TABLE new_x RENAME TO x`. No `ON DELETE` or `ON
/// UPDATE` action runs: a step that deletes or changes rows must also delete or change the rows
/// that refer to them. If a row refers to a missing row at the end of the step, the step fails with
/// [`MigrationError::ForeignKeys`].
///
/// A violation that existed before the step does not count if it is the same after it: the same row
/// of the same table refers to the same missing values by the same key. The row is identified by
/// its row id, or by its primary key in a table without row ids. A step that rebuilds such a table
/// must keep the row ids, as `INSERT INTO new_x (rowid, …) SELECT rowid, … FROM x` does. A table or
/// column that the step renames is recognized, unless the step also drops a table or an index or
/// sets `PRAGMA writable_schema`. Tables are then identified by name only, so rename in a step of
/// its own. If SQLite cannot check a table because its key refers to columns that are not unique,
/// and could not before the step, the table is not checked.
///
/// The check reads every row that refers to another row, including rows of tables that the step did
/// not change. Its use of memory does not depend on the number of violations. The steps of larder's
/// own tables are not checked, because no key refers to these tables.
///
/// # Forbidden commands
///
/// A step must not contain commands that begin, end or divide a transaction, nor these:
///
/// - `ATTACH` and `DETACH`: changes to another file are not committed together with the ledger.
/// - `PRAGMA wal_checkpoint`, which SQLite does not run within a transaction. Larder makes
///   checkpoints by itself.
/// - `VACUUM`, which SQLite does not run within a transaction. It is safe to repeat, so run it
///   beside the migrations, with [`SqliteMigrator::with_connection`].
/// - `PRAGMA foreign_keys`, which has no effect within a transaction, and `PRAGMA`s that set a
///   property of the whole process: `soft_heap_limit`, `hard_heap_limit`, `temp_store_directory`
///   and `data_store_directory`.
#[derive(Clone, Debug)]
pub struct SqliteMigrator {
    path: PathBuf,
    steps: Arc<StepSet>,
    ledger: Ledger,
    options: SqliteOptions,
    lock_wait: Duration,
}

impl SqliteMigrator {
    /// Creates a runner for the steps of one ledger in a database file. Opens nothing yet.
    pub fn new(path: impl Into<PathBuf>, steps: StepSet, ledger: Ledger) -> Self {
        let (path, options) = (path.into(), SqliteOptions::default());
        // The working directory may change before the path is used.
        let path = std::path::absolute(&path).unwrap_or(path);
        Self { path, steps: Arc::new(steps), ledger, options, lock_wait: LOCK_WAIT }
    }

    /// Sets the options for opening the file.
    ///
    /// They decide whether it is created, and what an applied step survives.
    #[must_use]
    pub fn options(mut self, options: SqliteOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets how long to wait for the write lock, [`LOCK_WAIT`] by default.
    ///
    /// It is also the `busy_timeout` of [`SqliteMigrator::with_connection`].
    #[must_use]
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }

    /// Returns the steps that were applied and the steps that are pending.
    ///
    /// It does not change a byte, creates neither the file nor the ledger, and does not wait for
    /// other processes.
    ///
    /// # Errors
    /// - [`MigrationError::Schema`] if the steps do not match those that were applied to the
    ///   database.
    /// - [`MigrationError::Database`] if the database cannot be read.
    pub async fn status(&self) -> Result<Status, MigrationError<Error>> {
        let this = self.clone();
        blocking(move || {
            if is_missing(&this.path)? {
                return Ok(Status::of(&this.steps, Vec::new())?);
            }
            let location = Location::resolve(&this.path)?;
            let (found, _) = look::read_anew(&location, None, drop, |connection| {
                if this.ledger == Ledger::larder() {
                    file::check_belongs(connection, this.options)?;
                }
                let found = applied(connection, &this.ledger)?;
                if pending(&this.steps, &found).is_ok_and(<[Step]>::is_empty) {
                    this.check_tables(connection)?;
                }
                Ok(found)
            })?;
            Ok(Status::of(&this.steps, found)?)
        })
        .await
    }

    /// Returns the number of the newest step that was applied.
    ///
    /// # Errors
    /// - [`MigrationError::Fresh`] if no step was applied, or the file does not exist.
    /// - [`MigrationError::Schema`] if the steps do not match those that were applied to the
    ///   database.
    /// - [`MigrationError::Database`] if the database cannot be read.
    pub async fn version(&self) -> Result<u32, MigrationError<Error>> {
        version(&self.ledger, &self.status().await?)
    }

    /// Applies the pending steps and returns them.
    ///
    /// If the future is dropped, the steps still run to their end. The steps before one that fails
    /// stay applied.
    ///
    /// # Errors
    /// - [`MigrationError::Schema`] if the steps do not match those that were applied to the
    ///   database.
    /// - [`MigrationError::LockHeld`] if another process held the write lock for longer than
    ///   [`SqliteMigrator::lock_wait`].
    /// - [`MigrationError::StepFailed`] if SQLite failed to run or to commit a step. The step was
    ///   rolled back.
    /// - [`MigrationError::ForbiddenCommand`] if a step contains a command that it must not
    ///   contain.
    /// - [`MigrationError::ForeignKeys`] if a step leaves rows that refer to missing rows.
    /// - [`MigrationError::Database`] if the database cannot be opened, read or written, or the
    ///   outcome of a commit is unknown.
    pub async fn up(&self) -> Result<Vec<Step>, MigrationError<Error>> {
        let this = self.clone();
        blocking(move || {
            let location = Location::resolve(&this.path)?;
            // This connection stays open between the steps: the last connection to close would
            // checkpoint the log after each of them.
            let looking = this.connect_to(&location).map_err(|error| in_lock(error, this.lock_wait))?;
            let options = this.options.create(false);
            let fresh = this.clone().options(options);
            let done =
                up(&looking, || fresh.connect_to(&location), &this.steps, &this.ledger, this.lock_wait)?;
            this.check_tables(&looking)?;
            Ok(done)
        })
        .await
    }

    /// Refuses a database to which all of larder's steps were applied, but whose tables are not
    /// those that the steps create. Opening it as a store fails in the same way.
    fn check_tables(&self, connection: &Connection) -> Result<()> {
        if self.ledger == Ledger::larder() { file::check_tables(connection) } else { Ok(()) }
    }

    /// Runs `work` on a new connection and returns its result.
    ///
    /// It runs on a thread that may block. The connection enforces foreign keys, waits for the
    /// locks of other processes, and uses a write-ahead log. Changes that `work` makes to the
    /// settings of the connection end with it.
    ///
    /// # Errors
    /// A failure of `work` is part of its own result. The call fails if no connection can be
    /// opened:
    ///
    /// - [`Error::InvalidArgument`] if the path is empty, is `:memory:` or is not a regular file.
    /// - [`Error::NotFound`] if the directory does not exist, or the file does not and must not be
    ///   created.
    /// - [`Error::Unavailable`] if the file cannot be opened, or another process holds its lock for
    ///   too long.
    /// - [`Error::Corrupt`] if the file is not a database.
    /// - [`Error::Other`] if the process may not write the file, or SQLite cannot use a write-ahead
    ///   log.
    pub async fn with_connection<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> T + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        crate::blocking(move || {
            let mut connection = this.connect()?;
            connection::checkpoint_by_itself(&connection)?;
            Ok(work(&mut connection))
        })
        .await
    }

    fn connect(&self) -> Result<Connection> {
        self.connect_to(&Location::resolve(&self.path)?)
    }

    /// A platform's database may hold anything. Larder's own tables are added only to a database
    /// that is larder's.
    fn connect_to(&self, location: &Location) -> Result<Connection> {
        if self.ledger == Ledger::larder() {
            connection::open_for_larder(location, self.options, self.lock_wait)
        } else {
            connection::open_for_platform(location, self.options, self.lock_wait)
        }
    }
}

#[async_trait]
impl SchemaMigrator for SqliteMigrator {
    type Error = Error;

    async fn status(&self) -> Result<Status, MigrationError<Error>> {
        Self::status(self).await
    }

    async fn up(&self) -> Result<Vec<Step>, MigrationError<Error>> {
        Self::up(self).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MigrationError<Error>> + Send + 'static,
) -> Result<T, MigrationError<Error>> {
    crate::blocking(move || Ok(work())).await?
}

/// Whether the file does not exist in an existing directory.
fn is_missing(path: &Path) -> Result<bool, Error> {
    let is_missing = |path: &Path| match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::unavailable("cannot read the metadata of the database file", error)),
        Ok(_) => Ok(false),
    };
    if !is_missing(path)? {
        return Ok(false);
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && is_missing(folder)? => {
            Err(missing("the directory of the database file does not exist", path))
        }
        _ => Ok(true),
    }
}

/// Applies the pending steps, each on a connection of its own.
///
/// `connection` reads whether any step is pending. Its busy timeout is `lock_wait` from then on.
pub(crate) fn up(
    connection: &Connection,
    fresh: impl Fn() -> Result<Connection>,
    steps: &StepSet,
    ledger: &Ledger,
    lock_wait: Duration,
) -> Result<Vec<Step>, MigrationError<Error>> {
    connection::wait_for_locks(connection, lock_wait)?;
    // In the common case no step is pending, and this takes no write lock.
    let found = applied(connection, ledger).map_err(|error| in_lock(error, lock_wait))?;
    if pending(steps, &found)?.is_empty() {
        return Ok(Vec::new());
    }
    let run = Run { fresh, steps, ledger, lock_wait };
    let mut done = Vec::new();
    while let Some(step) = run.apply_next()? {
        done.push(step.clone());
        if step.number() == steps.newest() {
            break;
        }
    }
    Ok(done)
}

/// The SQL that creates a ledger. Every database keeps this text, and larder's own ledger is
/// recognized by it, so only its white space may change.
pub(crate) fn ledger_sql(name: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS main.\"{name}\" (
             number     INTEGER PRIMARY KEY,
             name       TEXT NOT NULL,
             checksum   BLOB NOT NULL,
             applied_at INTEGER NOT NULL
         ) STRICT"
    )
}

/// The context that all steps of one run share.
struct Run<'a, F> {
    fresh: F,
    steps: &'a StepSet,
    ledger: &'a Ledger,
    lock_wait: Duration,
}

/// The outcome of setting an authorizer, which cannot fail in earlier releases of `rusqlite`.
trait Outcome {
    fn outcome(self) -> rusqlite::Result<()>;
}

impl Outcome for () {
    fn outcome(self) -> rusqlite::Result<()> {
        Ok(())
    }
}

impl Outcome for rusqlite::Result<()> {
    fn outcome(self) -> rusqlite::Result<()> {
        self
    }
}

impl<'a, F: Fn() -> Result<Connection>> Run<'a, F> {
    /// Applies the next step, and commits it together with its entry in the ledger. `None` if no
    /// step is pending.
    fn apply_next(&self) -> Result<Option<&'a Step>, MigrationError<Error>> {
        let mut connection = self.connect().map_err(|error| in_lock(error, self.lock_wait))?;
        // This has no effect within a transaction, so it must come before `BEGIN`. The connection
        // ends with the step.
        connection.pragma_update(None, "foreign_keys", false).map_err(SqliteError::from)?;
        let watch = Arc::new(Watch::default());
        connection.authorizer(Some(watch.authorizer())).outcome().map_err(SqliteError::from)?;
        let transaction = begin(&mut connection).map_err(|error| in_lock(error, self.lock_wait))?;
        // Another process may have applied steps while this one waited for the lock.
        let found = applied(&transaction, self.ledger)?;
        let Some(step) = pending(self.steps, &found)?.first() else { return Ok(None) };
        self.create_ledger(&transaction).map_err(|error| failed(step, None, error))?;
        watch.over(|| script::run(&transaction, step.sql())).map_err(|error| watch.failure(step, error))?;
        self.check_foreign_keys(&transaction, step, watch.known())?;
        self.record(&transaction, step, &found).map_err(|error| failed(step, None, error))?;
        commit(transaction, step)?;
        Ok(Some(step))
    }

    fn connect(&self) -> Result<Connection> {
        let connection = (self.fresh)()?;
        connection::wait_for_locks(&connection, self.lock_wait)?;
        Ok(connection)
    }

    fn create_ledger(&self, transaction: &Transaction<'_>) -> SqliteResult<()> {
        Ok(transaction.execute_batch(&ledger_sql(self.ledger.name()))?)
    }

    /// Fails if the step leaves rows that refer to missing rows, apart from those that were there
    /// before it. The state before the step is read through another connection, and only if there
    /// are violations.
    fn check_foreign_keys(
        &self,
        transaction: &Transaction<'_>,
        step: &Step,
        known: Known,
    ) -> Result<(), MigrationError<Error>> {
        // Larder's own steps do not answer for the other tables of a platform's database.
        if *self.ledger == Ledger::larder() {
            return Ok(());
        }
        let suspects = Suspects::in_database(transaction).map_err(|error| failed(step, None, error))?;
        if suspects.is_empty() {
            return Ok(());
        }
        let before = self.connect()?;
        let violations =
            suspects.beyond(&before, transaction, known).map_err(|error| failed(step, None, error))?;
        if violations.count() == 0 {
            return Ok(());
        }
        let (number, name) = (step.number(), step.name().to_string());
        Err(MigrationError::ForeignKeys { number, name, violations })
    }

    fn record(&self, transaction: &Transaction<'_>, step: &Step, found: &[AppliedStep]) -> SqliteResult<()> {
        let name = self.ledger.name();
        for earlier in recorded_otherwise(self.steps, found) {
            let sql = format!("UPDATE main.\"{name}\" SET checksum = ?2 WHERE number = ?1");
            transaction.execute(&sql, (earlier.number(), earlier.checksum()))?;
        }
        transaction.execute(
            &format!(
                "INSERT INTO main.\"{name}\" (number, name, checksum, applied_at)
                 VALUES (?1, ?2, ?3, CAST(unixepoch('subsec') * 1000 AS INTEGER))"
            ),
            (step.number(), step.name(), step.checksum()),
        )?;
        Ok(())
    }
}

fn begin(connection: &mut Connection) -> SqliteResult<Transaction<'_>> {
    Ok(connection.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

/// The steps that were applied. Empty if the ledger does not exist.
pub(crate) fn applied(connection: &Connection, ledger: &Ledger) -> SqliteResult<Vec<AppliedStep>> {
    let name = ledger.name();
    let has_ledger = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)";
    if !connection.query_row(has_ledger, [name], |row| row.get::<_, bool>(0))? {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT number, name, checksum, applied_at FROM main.\"{name}\" ORDER BY number");
    let mut statement = connection.prepare(&sql)?;
    let rows = statement.query_map([], |row| {
        Ok(AppliedStep {
            number: row.get(0)?,
            name: row.get(1)?,
            checksum: row.get(2)?,
            applied_at: row.get::<_, Unsigned>(3)?.0,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Commits a step. If the outcome is unknown, the next run finds it in the ledger.
fn commit(transaction: Transaction<'_>, step: &Step) -> Result<(), MigrationError<Error>> {
    transaction::commit(&transaction).map_err(|error| match error {
        CommitError::NotMade(error) => failed(step, None, error),
        CommitError::Unknown(error) => MigrationError::Database(error),
    })
}

fn failed(step: &Step, position: Option<StepPosition>, error: impl Into<Error>) -> MigrationError<Error> {
    MigrationError::step_failed(step, position, error.into())
}

/// Wraps an error that occurred before any change. It becomes `LockHeld` if the wait for another
/// process's lock timed out.
fn in_lock(error: impl Into<Error>, waited: Duration) -> MigrationError<Error> {
    let cause = error.into();
    let is_busy = match &cause {
        Error::Unavailable { cause: Some(cause), .. } => {
            cause.downcast_ref::<SqliteError>().is_some_and(SqliteError::is_busy)
        }
        _ => false,
    };
    if is_busy { MigrationError::LockHeld { waited, cause } } else { cause.into() }
}

/// Denies a step the commands that would break up its transaction. SQLite asks it before it runs a
/// statement.
#[derive(Default)]
struct Watch {
    /// Whether a step is running. The runner's own `COMMIT` is allowed.
    is_on: AtomicBool,
    /// The reason of the first refusal.
    refused: OnceLock<&'static str>,
    /// Whether the root page of a table may belong to another table by now.
    has_moved_roots: AtomicBool,
}

impl Watch {
    fn authorizer(self: &Arc<Self>) -> impl for<'a> FnMut(AuthContext<'a>) -> Authorization + Send + 'static {
        let watch = self.clone();
        move |context: AuthContext<'_>| {
            if moves_roots(&context.action) {
                watch.has_moved_roots.store(true, Ordering::Relaxed);
            }
            match reason_to_refuse(&context.action) {
                Some(reason) if watch.is_on.load(Ordering::Relaxed) => {
                    let _ = watch.refused.set(reason);
                    Authorization::Deny
                }
                _ => Authorization::Allow,
            }
        }
    }

    /// How to recognize a table of the state before the step.
    fn known(&self) -> Known {
        if self.has_moved_roots.load(Ordering::Relaxed) { Known::ByName } else { Known::ByRoot }
    }

    fn over<T>(&self, work: impl FnOnce() -> T) -> T {
        self.is_on.store(true, Ordering::Relaxed);
        let outcome = work();
        self.is_on.store(false, Ordering::Relaxed);
        outcome
    }

    /// Converts the failure of a step to the error that explains it.
    fn failure(&self, step: &Step, Failed { statement, at, error }: Failed) -> MigrationError<Error> {
        let is_vacuum = || is_vacuum(step.sql().get(statement.clone()).unwrap_or_default());
        let position = || Some(StepPosition::new(step.sql(), statement.clone(), at));
        match self.refused.get().copied().or_else(|| is_vacuum().then_some(VACUUM)) {
            Some(reason) => {
                let (number, name) = (step.number(), step.name().to_string());
                MigrationError::ForbiddenCommand { number, name, position: position(), reason }
            }
            None => failed(step, position(), error),
        }
    }
}

const VACUUM: &str = "cannot run within a transaction, which each step is; run `VACUUM` beside the migrations, on a \
                      connection of its own";

fn is_vacuum(statement: &str) -> bool {
    let keyword = statement.split(|next: char| !next.is_ascii_alphanumeric()).next().unwrap_or_default();
    keyword.eq_ignore_ascii_case("vacuum")
}

/// Whether the action may give the root page of one table to another.
fn moves_roots(action: &AuthAction<'_>) -> bool {
    match action {
        AuthAction::DropTable { .. } | AuthAction::DropIndex { .. } | AuthAction::DropVtable { .. } => true,
        AuthAction::Pragma { pragma_name, .. } => pragma_name.eq_ignore_ascii_case("writable_schema"),
        _ => false,
    }
}

fn reason_to_refuse(action: &AuthAction<'_>) -> Option<&'static str> {
    match action {
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => Some(
            "begins, ends or divides a transaction; remove the command, because the runner begins and ends the \
             transaction of each step",
        ),
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => Some(
            "attaches or detaches a database; remove the command, because another file is not committed together \
             with the ledger",
        ),
        AuthAction::Pragma { pragma_name, .. } if pragma_name.eq_ignore_ascii_case("wal_checkpoint") => Some(
            "cannot run within a transaction, which each step is; remove `PRAGMA wal_checkpoint`, or run it beside the \
             migrations, on a connection of its own",
        ),
        AuthAction::Pragma { pragma_name, pragma_value: Some(_) } => reason_to_refuse_pragma(pragma_name),
        _ => None,
    }
}

fn reason_to_refuse_pragma(name: &str) -> Option<&'static str> {
    match name.to_ascii_lowercase().as_str() {
        "foreign_keys" => Some(
            "sets `foreign_keys`; remove the command, because foreign keys are off during each step and are checked at \
             its end",
        ),
        "soft_heap_limit" | "hard_heap_limit" | "temp_store_directory" | "data_store_directory" => Some(
            "sets a property of the whole process; remove the command, or run it when the process starts",
        ),
        _ => None,
    }
}
