//! Runs the steps of a schema on a SQLite file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::schema::{
    AppliedStep, LOCK_WAIT, Ledger, MigrationError, SchemaMigrator, Status, Step, StepSet, pending, version,
};
use larder_core::{Error, Result};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::error::{Result as SqliteResult, SqliteError};
use crate::location::Location;
use crate::transaction::{self, CommitError};
use crate::{SqliteOptions, connection};

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
/// # What a step can't hold
///
/// Besides what begins, ends or divides a transaction: `ATTACH` and `DETACH`, since what is in another file is not
/// committed together with the ledger, and `PRAGMA foreign_keys`, which does nothing within a transaction and says
/// nothing about it. Foreign keys are enforced in a step, as in every connection: a step that drops a table to build it
/// anew runs the `ON DELETE` actions of those that refer to it.
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

    /// What was applied, and what is still to apply. It writes nothing, and makes neither a file nor a ledger.
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
            let connection = connection::open_existing(&Location::resolve(&this.path)?, this.lock_wait)?;
            Ok(Status::of(&this.steps, applied(&connection, &this.ledger)?)?)
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
            let mut connection = this.connect().map_err(|error| in_lock(error, this.lock_wait))?;
            up(&mut connection, &this.steps, &this.ledger, this.lock_wait)
        })
        .await
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

    /// A platform's database may hold anything. Larder's own tables are only added to a database that is larder's.
    fn connect(&self) -> Result<Connection> {
        let location = Location::resolve(&self.path)?;
        if self.ledger == Ledger::larder() {
            connection::open_for_larder(&location, self.options, self.lock_wait)
        } else {
            connection::open_for_platform(&location, self.options, self.lock_wait)
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
        Some(folder) if !folder.as_os_str().is_empty() && is_missing(folder)? => Err(Error::Unavailable {
            reason: "the folder of the database file is not there".to_string(),
            cause: None,
        }),
        _ => Ok(true),
    }
}

/// Brings a schema up to date. The connection waits for locks as long as it is told here, also afterwards.
pub(crate) fn up(
    connection: &mut Connection,
    steps: &StepSet,
    ledger: &Ledger,
    lock_wait: Duration,
) -> Result<Vec<Step>, MigrationError> {
    connection::wait_for_locks(connection, lock_wait)?;
    // Where all is applied, as mostly, nobody is waited for.
    let found = applied(connection, ledger).map_err(|error| in_lock(error, lock_wait))?;
    if pending(steps, &found)?.is_empty() {
        return Ok(Vec::new());
    }
    let watch = Arc::new(Watch::default());
    connection.authorizer(Some(watch.authorizer())).map_err(SqliteError::from)?;
    let outcome = apply_all(connection, steps, ledger, lock_wait, &watch);
    connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>).map_err(SqliteError::from)?;
    outcome
}

fn apply_all(
    connection: &mut Connection,
    steps: &StepSet,
    ledger: &Ledger,
    lock_wait: Duration,
    watch: &Watch,
) -> Result<Vec<Step>, MigrationError> {
    let mut done = Vec::new();
    loop {
        let transaction = begin(connection).map_err(|error| in_lock(error, lock_wait))?;
        // What others did while this one waited counts.
        let found = applied(&transaction, ledger)?;
        let Some(step) = pending(steps, &found)?.first() else { return Ok(done) };
        apply(&transaction, step, ledger, watch).map_err(|error| watch.failure(step, error))?;
        commit(transaction, step)?;
        done.push(step.clone());
    }
}

fn begin(connection: &mut Connection) -> SqliteResult<Transaction<'_>> {
    Ok(connection.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

/// The steps that were applied: none where there is no ledger.
fn applied(connection: &Connection, ledger: &Ledger) -> SqliteResult<Vec<AppliedStep>> {
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

/// A step and its entry in the ledger come together or not at all.
fn apply(transaction: &Transaction<'_>, step: &Step, ledger: &Ledger, watch: &Watch) -> SqliteResult<()> {
    let name = ledger.name();
    transaction.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS main.\"{name}\" (
             number     INTEGER PRIMARY KEY,
             name       TEXT NOT NULL,
             checksum   BLOB NOT NULL,
             applied_at INTEGER NOT NULL
         ) STRICT",
    ))?;
    watch.over(|| transaction.execute_batch(step.sql()))?;
    transaction.execute(
        &format!(
            "INSERT INTO main.\"{name}\" (number, name, checksum, applied_at)
             VALUES (?1, ?2, ?3, CAST(unixepoch('subsec') * 1000 AS INTEGER))"
        ),
        (step.number(), step.name(), step.checksum()),
    )?;
    Ok(())
}

/// A commit can fail by what the step did, as by a constraint that is checked last. If its outcome is unknown, the ledger
/// tells it to the next run.
fn commit(transaction: Transaction<'_>, step: &Step) -> Result<(), MigrationError> {
    transaction::commit(&transaction).map_err(|error| match error {
        CommitError::NotMade(error) => failed(step, error),
        CommitError::Unknown(error) => MigrationError::Database(error),
    })
}

fn failed(step: &Step, error: impl Into<Error>) -> MigrationError {
    MigrationError::StepFailed { number: step.number(), name: step.name().to_string(), cause: error.into() }
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
}

impl Watch {
    fn authorizer(self: &Arc<Self>) -> impl for<'a> FnMut(AuthContext<'a>) -> Authorization + Send + 'static {
        let watch = self.clone();
        move |context: AuthContext<'_>| match reason_to_refuse(&context.action) {
            Some(reason) if watch.is_on.load(Ordering::Relaxed) => {
                let _ = watch.refused.set(reason);
                Authorization::Deny
            }
            _ => Authorization::Allow,
        }
    }

    fn over<T>(&self, work: impl FnOnce() -> T) -> T {
        self.is_on.store(true, Ordering::Relaxed);
        let outcome = work();
        self.is_on.store(false, Ordering::Relaxed);
        outcome
    }

    /// Why a step failed.
    fn failure(&self, step: &Step, error: SqliteError) -> MigrationError {
        let name = || step.name().to_string();
        match self.refused.get() {
            Some(reason) => MigrationError::ForbiddenCommand { number: step.number(), name: name(), reason },
            None => failed(step, error),
        }
    }
}

fn reason_to_refuse(action: &AuthAction<'_>) -> Option<&'static str> {
    match action {
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => {
            Some("begins, ends or divides a transaction")
        }
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => Some("attaches or detaches a database"),
        AuthAction::Pragma { pragma_name, pragma_value: Some(_) }
            if pragma_name.eq_ignore_ascii_case("foreign_keys") =>
        {
            Some("sets `foreign_keys`, which has no effect within a transaction")
        }
        _ => None,
    }
}
