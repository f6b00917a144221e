//! Runs the steps of a schema on a SQLite file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::schema::{
    AppliedStep, LOCK_WAIT, Ledger, MigrationError, SchemaMigrator, Status, Step, StepPosition, StepSet,
    pending, recorded_otherwise, version,
};
use larder_core::{Error, Result};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::error::{Result as SqliteResult, SqliteError};
use crate::foreign_keys::{Known, Suspects};
use crate::location::{Location, missing};
use crate::script::{self, Failed};
use crate::transaction::{self, CommitError};
use crate::{SqliteOptions, connection, file, look};

/// Brings a platform's own tables in a SQLite file up to date, beside those of larder.
///
/// Each step is one transaction that holds the writer's lock from its beginning, looks at the ledger again, and
/// records the step: a process that is killed leaves a prefix of the steps, and several that migrate at once apply each
/// step once.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use larder_core::schema::{Ledger, StepSet, is_missing_migration};
/// use larder_sqlite::SqliteMigrator;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("platform.db");
/// // As a rule the texts are `include_str!("../migrations/0001_accounts.sql")`, or `StepSet::from_folder` reads them.
/// let steps = StepSet::embedded(&[
///     ("0001_accounts.sql", "CREATE TABLE accounts (id INTEGER PRIMARY KEY, owner TEXT NOT NULL) STRICT"),
/// ])?;
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
/// # What a step sees
///
/// Each step has a connection of its own. Temporary tables, `PRAGMA`s and whatever else belongs to a connection end with the
/// step, so it does the same whether it is applied alone or after others.
///
/// Foreign keys are off during a step and are checked at its end. A step can therefore rebuild a table as [SQLite's
/// documentation describes it](https://sqlite.org/lang_altertable.html#otheralter): `CREATE TABLE new_x`, `INSERT INTO new_x
/// SELECT … FROM x`, `DROP TABLE x`, `ALTER TABLE new_x RENAME TO x`. No `ON DELETE` and no `ON UPDATE` action runs: a step
/// that deletes or changes rows that others refer to has to delete or change these as well. If a row refers to a missing
/// row at the end of the step, the step fails with [`MigrationError::ForeignKeys`].
///
/// Rows that did so before the step do not count, if they are the same after it: the same row id (or the same primary key in
/// a table without row ids) in the same table refers to the same missing values by the same key. A step that rebuilds such a
/// table has to keep the row ids, as `INSERT INTO new_x (rowid, …) SELECT rowid, … FROM x` does. A table or column that the
/// step renames is the same, unless the step also drops a table or an index or sets `PRAGMA writable_schema`: then only the
/// names tell, so rename in a step of its own. A table whose key SQLite can't check (what it refers to is not unique) is not
/// checked if that was so before the step.
///
/// The check reads every row that refers to another, also in tables that the step did not change. Its memory does not depend
/// on how many of them refer to missing rows. The steps of larder's own tables are not checked, as nothing refers to these.
///
/// # What a step can't hold
///
/// Besides what begins, ends or divides a transaction:
///
/// - `ATTACH` and `DETACH`: what is in another file is not committed together with the ledger.
/// - `PRAGMA wal_checkpoint`, which SQLite doesn't run within a transaction either. Larder makes checkpoints by itself.
/// - `VACUUM`, which SQLite doesn't run within a transaction. It loses nothing if it is run again, so run it beside the
///   migrations, by [`SqliteMigrator::with_connection`].
/// - `PRAGMA foreign_keys`, which has no effect within a transaction, and `PRAGMA`s that set something for the whole
///   process: `soft_heap_limit`, `hard_heap_limit`, `temp_store_directory` and `data_store_directory`.
#[derive(Clone, Debug)]
pub struct SqliteMigrator {
    path: PathBuf,
    steps: Arc<StepSet>,
    ledger: Ledger,
    options: SqliteOptions,
    lock_wait: Duration,
}

impl SqliteMigrator {
    /// A runner for the steps of one ledger in a database file. Nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>, steps: StepSet, ledger: Ledger) -> Self {
        let (path, options) = (path.into(), SqliteOptions::default());
        // The working directory may be another one by the time that it is used.
        let path = std::path::absolute(&path).unwrap_or(path);
        Self { path, steps: Arc::new(steps), ledger, options, lock_wait: LOCK_WAIT }
    }

    /// How the file is opened: whether it is made, and what a step survives.
    #[must_use]
    pub fn options(mut self, options: SqliteOptions) -> Self {
        self.options = options;
        self
    }

    /// How long to wait for the writer's lock, [`LOCK_WAIT`] where it isn't said. It is also the `busy_timeout` of
    /// [`SqliteMigrator::with_connection`].
    #[must_use]
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }

    /// What was applied, and what is still to apply. It changes no byte, creates neither a file nor a ledger, and does not
    /// wait for other processes.
    ///
    /// # Errors
    /// [`MigrationError::Schema`] where the steps don't fit the database, and [`MigrationError::Database`] where it
    /// can't be read.
    pub async fn status(&self) -> Result<Status, MigrationError> {
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

    /// The number of the newest step that was applied.
    ///
    /// # Errors
    /// As [`SqliteMigrator::status`], and [`MigrationError::Fresh`] where no step was applied or there is no file yet.
    pub async fn version(&self) -> Result<u32, MigrationError> {
        version(&self.ledger, &self.status().await?)
    }

    /// Applies what is pending and returns it. Where the future is dropped, the steps go on without it.
    ///
    /// # Errors
    /// Those of [`MigrationError`], [`MigrationError::Fresh`] aside. The steps before one that fails stay.
    pub async fn up(&self) -> Result<Vec<Step>, MigrationError> {
        let this = self.clone();
        blocking(move || {
            let location = Location::resolve(&this.path)?;
            // It stays open, as the last connection that closes moves the log into the file.
            let looking = this.connect_to(&location).map_err(|error| in_lock(error, this.lock_wait))?;
            let options = SqliteOptions { create: false, ..this.options };
            let fresh = this.clone().options(options);
            let done =
                up(&looking, || fresh.connect_to(&location), &this.steps, &this.ledger, this.lock_wait)?;
            this.check_tables(&looking)?;
            Ok(done)
        })
        .await
    }

    /// Refuses a database to which all steps of larder were applied, and whose tables are others than these make. To open it
    /// as a store fails in the same way.
    fn check_tables(&self, connection: &Connection) -> Result<()> {
        if self.ledger == Ledger::larder() { file::check_tables(connection) } else { Ok(()) }
    }

    /// Runs SQL on a connection of its own, on a thread that may block, and gives what `work` returns. Every connection
    /// is set up alike: foreign keys are enforced, others' locks are waited for, and the log is written ahead. What
    /// `work` changes about the connection ends with it.
    ///
    /// # Errors
    /// Where there is no connection to be had. What `work` runs into is its own result.
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

    /// A platform's database may hold anything. Larder's own tables are only added to a database that is larder's.
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
    async fn status(&self) -> Result<Status, MigrationError> {
        Self::status(self).await
    }

    async fn up(&self) -> Result<Vec<Step>, MigrationError> {
        Self::up(self).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MigrationError> + Send + 'static,
) -> Result<T, MigrationError> {
    crate::blocking(move || Ok(work())).await?
}

/// Whether there is no file, in a folder where one can be made.
fn is_missing(path: &Path) -> Result<bool, Error> {
    let is_missing = |path: &Path| match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::unavailable("the database file can't be looked at", error)),
        Ok(_) => Ok(false),
    };
    if !is_missing(path)? {
        return Ok(false);
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && is_missing(folder)? => {
            Err(missing("the folder of the database file does not exist", path))
        }
        _ => Ok(true),
    }
}

/// Brings a schema up to date. The connection looks whether that is needed, and waits for locks as long as it is told here,
/// also afterwards. Steps run on fresh connections: none sees what another did to its own.
pub(crate) fn up(
    connection: &Connection,
    fresh: impl Fn() -> Result<Connection>,
    steps: &StepSet,
    ledger: &Ledger,
    lock_wait: Duration,
) -> Result<Vec<Step>, MigrationError> {
    connection::wait_for_locks(connection, lock_wait)?;
    // If all is applied, as mostly, no lock is waited for.
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

/// Creates a ledger. Every database keeps this text, and larder's own ledger is known by it: only its blanks may change.
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

/// What all steps of one run have in common.
struct Run<'a, F> {
    fresh: F,
    steps: &'a StepSet,
    ledger: &'a Ledger,
    lock_wait: Duration,
}

impl<'a, F: Fn() -> Result<Connection>> Run<'a, F> {
    /// Applies the next step; `None` if there is none left. The step and its entry in the ledger are committed together.
    fn apply_next(&self) -> Result<Option<&'a Step>, MigrationError> {
        let mut connection = self.connect().map_err(|error| in_lock(error, self.lock_wait))?;
        // Within a transaction this has no effect. The connection ends with the step.
        connection.pragma_update(None, "foreign_keys", false).map_err(SqliteError::from)?;
        let watch = Arc::new(Watch::default());
        connection.authorizer(Some(watch.authorizer())).map_err(SqliteError::from)?;
        let transaction = begin(&mut connection).map_err(|error| in_lock(error, self.lock_wait))?;
        // What others did while this one waited counts.
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

    /// A step must not leave rows that refer to missing ones, except for those that it found. Only then does it matter what
    /// was there before, which another connection sees until this one commits.
    fn check_foreign_keys(
        &self,
        transaction: &Transaction<'_>,
        step: &Step,
        known: Known,
    ) -> Result<(), MigrationError> {
        // What a platform keeps beside larder's tables is no concern of larder's own steps.
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

/// The steps that were applied: none where there is no ledger.
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
            applied_at: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// A commit can fail for lack of room. If its outcome is unknown, the ledger tells it to the next run.
fn commit(transaction: Transaction<'_>, step: &Step) -> Result<(), MigrationError> {
    transaction::commit(&transaction).map_err(|error| match error {
        CommitError::NotMade(error) => failed(step, None, error),
        CommitError::Unknown(error) => MigrationError::Database(error),
    })
}

fn failed(step: &Step, position: Option<StepPosition>, error: impl Into<Error>) -> MigrationError {
    MigrationError::step_failed(step, position, error.into())
}

/// An error before anything was done, where others' locks are waited for.
fn in_lock(error: impl Into<Error>, waited: Duration) -> MigrationError {
    let cause = error.into();
    let is_busy = match &cause {
        Error::Unavailable { cause: Some(cause), .. } => {
            cause.downcast_ref::<SqliteError>().is_some_and(SqliteError::is_busy)
        }
        _ => false,
    };
    if is_busy { MigrationError::LockHeld { waited, cause } } else { cause.into() }
}

/// Keeps a step from commands that would take its transaction apart. SQLite asks before it runs a statement.
#[derive(Default)]
struct Watch {
    /// Whether a step is run. The runner's own `COMMIT` is nobody's concern.
    is_on: AtomicBool,
    /// What was refused.
    refused: OnceLock<&'static str>,
    /// Whether a table's root page may belong to another table by now.
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

    /// How tables are known again after the step.
    fn known(&self) -> Known {
        if self.has_moved_roots.load(Ordering::Relaxed) { Known::ByName } else { Known::ByRoot }
    }

    fn over<T>(&self, work: impl FnOnce() -> T) -> T {
        self.is_on.store(true, Ordering::Relaxed);
        let outcome = work();
        self.is_on.store(false, Ordering::Relaxed);
        outcome
    }

    /// Why a step failed.
    fn failure(&self, step: &Step, Failed { statement, at, error }: Failed) -> MigrationError {
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

const VACUUM: &str = "can't run within a transaction, as each step does; run `VACUUM` beside the migrations, on a \
                      connection of its own";

fn is_vacuum(statement: &str) -> bool {
    let keyword = statement.split(|next: char| !next.is_ascii_alphanumeric()).next().unwrap_or_default();
    keyword.eq_ignore_ascii_case("vacuum")
}

/// Whether a table that is there before this may have another root page after it.
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
            "begins, ends or divides a transaction; remove the command, as the runner begins and ends the transaction \
             of each step",
        ),
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => Some(
            "attaches or detaches a database; remove the command, as another file is not committed together with the \
             ledger",
        ),
        AuthAction::Pragma { pragma_name, .. } if pragma_name.eq_ignore_ascii_case("wal_checkpoint") => Some(
            "can't run within a transaction, as each step does; remove `PRAGMA wal_checkpoint`, or run it beside the \
             migrations, on a connection of its own",
        ),
        AuthAction::Pragma { pragma_name, pragma_value: Some(_) } => reason_to_refuse_pragma(pragma_name),
        _ => None,
    }
}

fn reason_to_refuse_pragma(name: &str) -> Option<&'static str> {
    match name.to_ascii_lowercase().as_str() {
        "foreign_keys" => Some(
            "sets `foreign_keys`; remove the command, as foreign keys are off during each step and are checked at its \
             end",
        ),
        "soft_heap_limit" | "hard_heap_limit" | "temp_store_directory" | "data_store_directory" => Some(
            "sets something for the whole process; remove the command, or give it where the process starts",
        ),
        _ => None,
    }
}
