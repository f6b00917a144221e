//! Runs the steps of a schema on a Postgres database.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_core::Error;
use larder_core::schema::{
    AppliedStep, LOCK_WAIT, Ledger, MigrationError, SchemaMigrator, Status, Step, StepSet, pending, version,
};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, IsolationLevel, NoTls, Transaction};

use crate::dsn;
use crate::error::{Failure, Result, leaves_commit_open};
use crate::rows::{checked, column};

/// How long to wait for the server.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long after the server should have ended the wait for a lock it counts as one that says nothing any more.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Whether there is a ledger, in the schema where tables are made, and in no other of the search path.
const HAS_LEDGER: &str = "
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_class
        WHERE relname = $2 AND relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1)
    ) AS has_ledger";

/// The timeouts of a session that apply to a step's statements are for those of a server's everyday work. Which there
/// are depends on the release.
const NO_TIMEOUTS: &str = "
    SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings
    WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')";

/// Runs the statements in the setting `larder.step`. PL/pgSQL runs them one after the other, as the server does with a
/// text that it is sent, but refuses `COMMIT` and its kin: sent as a text, they would take the transaction apart.
const RUN_STEP: &str = "DO 'BEGIN EXECUTE current_setting(''larder.step''); END'";

/// Where in the server `EXECUTE` refuses the commands that it doesn't know.
const EXECUTE_ROUTINE: &str = "exec_stmt_dynexecute";

/// Brings a platform's own tables in a Postgres database up to date, beside those of larder.
///
/// Tables are made in the first schema of the search path, as larder's are: each schema has a ledger of its own. Say it
/// in the data-source name (`options=-c search_path=…`) where a step may make a schema that the default path, `"$user",
/// public`, would find first. Each step is one transaction that also records it, and all are applied by the one connection that holds an advisory lock
/// for the schema and the ledger. The lock is given back on the same connection, which is closed at the end, where
/// a step fails, and where the future is dropped: then nobody holds it any more.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use larder_core::schema::{Ledger, StepSet, is_missing_migration};
/// use larder_postgres::PostgresMigrator;
///
/// let steps = StepSet::from_folder("migrations")?;
/// let ledger = Ledger::new("platform_migrations")?;
/// let migrator = PostgresMigrator::new("postgres://ann:secret@db.internal/platform", steps, ledger)?;
/// match migrator.version().await {
///     Ok(version) => println!("version {version}"),
///     Err(error) if is_missing_migration(&error) => println!("the database is fresh"),
///     Err(error) => return Err(error.into()),
/// }
/// for step in migrator.up().await? {
///     println!("applied {:04}_{}", step.number(), step.name());
/// }
/// let accounts: i64 = migrator
///     .with_connection(async |client| client.query_one_scalar("SELECT count(*) FROM accounts", &[]).await)
///     .await??;
/// # drop(accounts); Ok(()) }
/// ```
///
/// # What a step can't hold
///
/// Besides what begins, ends or divides a transaction: what the server doesn't do within one (`VACUUM`, `CREATE INDEX
/// CONCURRENTLY`, `CREATE DATABASE`), `COPY` from or to the client, and `SELECT … INTO`, for which there is `CREATE
/// TABLE … AS`. The statements are run by PL/pgSQL's `EXECUTE`, which every database has that nobody took it from.
///
/// What a step does to the settings of its session, such as `SET search_path` and `SET ROLE`, ends with the step.
/// Timeouts of the server are lifted for it, but no lock is waited for longer than
/// [`lock_wait`](PostgresMigrator::lock_wait): a step that stands behind a long transaction keeps all who come later
/// waiting.
#[derive(Clone)]
pub struct PostgresMigrator {
    config: Config,
    steps: Arc<StepSet>,
    ledger: Ledger,
    lock_wait: Duration,
}

impl PostgresMigrator {
    /// A runner for the steps of one ledger in the database that the data-source name says. Nothing is connected to
    /// yet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the name is malformed.
    pub fn new(dsn: &str, steps: StepSet, ledger: Ledger) -> Result<Self, Error> {
        let config = dsn::parse(dsn)?;
        Ok(Self { config, steps: Arc::new(steps), ledger, lock_wait: LOCK_WAIT })
    }

    /// How long to wait for others who migrate, and for each lock that a step needs: [`LOCK_WAIT`] where it isn't
    /// said. The server counts milliseconds, and at least one.
    #[must_use]
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }

    /// What was applied, and what is still to apply. It writes nothing, and makes no ledger.
    ///
    /// # Errors
    /// [`MigrationError::Schema`] where the steps don't fit the database, and [`MigrationError::Database`] where it
    /// can't be read or the search path names no schema.
    pub async fn status(&self) -> Result<Status, MigrationError> {
        let applied = pinned(&self.config, async |client| {
            let place = Place::find(client, &self.ledger).await?;
            place.applied(client).await
        });
        Ok(Status::of(&self.steps, applied.await??.unwrap_or_default())?)
    }

    /// The number of the newest step that was applied.
    ///
    /// # Errors
    /// As [`PostgresMigrator::status`], and [`MigrationError::Fresh`] where no step was applied.
    pub async fn version(&self) -> Result<u32, MigrationError> {
        version(&self.ledger, &self.status().await?)
    }

    /// Applies what is pending and returns it. Where the future is dropped, the step that it is at is rolled back.
    ///
    /// # Errors
    /// Those of [`MigrationError`], [`MigrationError::Fresh`] aside. The steps before one that fails stay.
    pub async fn up(&self) -> Result<Vec<Step>, MigrationError> {
        up(&self.config, &self.steps, &self.ledger, self.lock_wait).await
    }

    /// Runs SQL on a connection of its own, and gives what `work` returns. What `work` changes about the session ends
    /// with it.
    ///
    /// # Errors
    /// Where there is no connection to be had. What `work` runs into is its own result.
    pub async fn with_connection<T>(&self, work: impl AsyncFnOnce(&mut Client) -> T) -> Result<T, Error> {
        Ok(pinned(&self.config, work).await?)
    }
}

impl std::fmt::Debug for PostgresMigrator {
    /// Without the data-source name, which may hold a password.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ledger = self.ledger.name();
        formatter.debug_struct("PostgresMigrator").field("ledger", &ledger).finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaMigrator for PostgresMigrator {
    async fn status(&self) -> Result<Status, MigrationError> {
        Self::status(self).await
    }

    async fn up(&self) -> Result<Vec<Step>, MigrationError> {
        Self::up(self).await
    }
}

/// Brings a schema up to date.
pub(crate) async fn up(
    config: &Config,
    steps: &StepSet,
    ledger: &Ledger,
    lock_wait: Duration,
) -> Result<Vec<Step>, MigrationError> {
    pinned(config, async |client| {
        let place = Place::find(client, ledger).await?;
        // Where all is applied, as mostly, nobody is waited for.
        let applied = place.applied(client).await?.unwrap_or_default();
        if pending(steps, &applied)?.is_empty() {
            return Ok(Vec::new());
        }
        place.lock(client, lock_wait).await?;
        let done = apply_all(client, steps, &place, lock_wait).await?;
        place.unlock(client).await?;
        Ok(done)
    })
    .await?
}

/// Under the lock.
async fn apply_all(
    client: &mut Client,
    steps: &StepSet,
    place: &Place,
    lock_wait: Duration,
) -> Result<Vec<Step>, MigrationError> {
    // What others did while this one waited counts.
    let applied = place.applied(client).await?;
    let mut has_ledger = applied.is_some();
    let mut done = Vec::new();
    for step in pending(steps, &applied.unwrap_or_default())? {
        set_up(client, lock_wait).await?;
        place.apply(client, step, has_ledger).await?;
        has_ledger = true;
        done.push(step.clone());
    }
    Ok(done)
}

/// Runs work on a connection that is nobody else's, and closed afterwards in any case: also where it fails, and where
/// this future is dropped.
async fn pinned<T>(config: &Config, work: impl AsyncFnOnce(&mut Client) -> T) -> Result<T> {
    let Ok(connected) = timeout(CONNECT_MAX, config.connect(NoTls)).await else {
        return Err(Failure::Stalled("the database could not be connected to in time"));
    };
    let (mut client, connection) = connected?;
    let mut connection = Connection(tokio::spawn(async move { drop(connection.await) }));
    let outcome = work(&mut client).await;
    drop(client);
    connection.closed().await;
    Ok(outcome)
}

struct Connection(JoinHandle<()>);

impl Connection {
    /// Waits until the server has been told goodbye.
    async fn closed(&mut self) {
        drop(timeout(Duration::from_secs(1), &mut self.0).await);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sets up the session for one step: nothing is left of what another did to it. The server notices by itself that a
/// host which was killed in the middle is not there any more.
async fn set_up(client: &Client, lock_wait: Duration) -> Result<()> {
    let millis = lock_millis(lock_wait);
    let settings = format!(
        "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; SET lock_timeout = {millis};
         SET client_connection_check_interval = '1s'; {NO_TIMEOUTS}"
    );
    Ok(client.batch_execute(&settings).await?)
}

/// A wait as the server takes it. It would wait without end for 0.
fn lock_millis(wait: Duration) -> i32 {
    i32::try_from(wait.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// The ledger of one set of steps, in one schema.
struct Place {
    schema: String,
    ledger: Ledger,
}

impl Place {
    async fn find(client: &Client, ledger: &Ledger) -> Result<Self> {
        let row = client.query_one("SELECT current_schema()::text AS name", &[]).await?;
        let schema = column::<Option<String>>(&row, "name")?.ok_or_else(|| {
            Error::invalid_argument(
                "the search path of the Postgres store names no schema that exists; create it first",
            )
        })?;
        Ok(Self { schema, ledger: ledger.clone() })
    }

    /// The ledger's table, wherever a step may have set the search path to.
    fn table(&self) -> String {
        format!("\"{}\".\"{}\"", self.schema.replace('"', "\"\""), self.ledger.name())
    }

    /// A key of its own for each ledger in each schema: FNV-1a. That of larder's ledger is the schema's alone, as all
    /// releases have it.
    fn lock_key(&self) -> i64 {
        let ledger = if self.ledger == Ledger::larder() { "" } else { self.ledger.name() };
        // No schema's name holds NUL.
        let separator = if ledger.is_empty() { "" } else { "\0" };
        let bytes = ["larder schema ", &self.schema, separator, ledger];
        bytes
            .iter()
            .flat_map(|part| part.bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
            .cast_signed()
    }

    /// Takes the lock. The server ends the wait; the limit here, a little later, is for a server that says nothing any
    /// more.
    async fn lock(&self, client: &Client, lock_wait: Duration) -> Result<(), MigrationError> {
        set_up(client, lock_wait).await?;
        let held = |cause: Failure| MigrationError::LockHeld { waited: lock_wait, cause: cause.into() };
        let key = self.lock_key();
        let locked = async { client.execute("SELECT pg_catalog.pg_advisory_lock($1)", &[&key]).await };
        match timeout(lock_wait.saturating_add(ANSWER_MAX), locked).await {
            Ok(Err(error)) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Err(held(error.into())),
            Ok(locked) => Ok(locked.map(drop).map_err(Failure::from)?),
            Err(_) => Err(held(Failure::Stalled(
                "another process has been changing the database's schema for too long",
            ))),
        }
    }

    /// Gives the lock back on the connection that holds it. Others could have it a moment later without, once the server
    /// has closed the session.
    async fn unlock(&self, client: &Client) -> Result<()> {
        client.execute("SELECT pg_catalog.pg_advisory_unlock($1)", &[&self.lock_key()]).await?;
        Ok(())
    }

    /// The steps that were applied; none at all where there is no ledger.
    async fn applied(&self, client: &Client) -> Result<Option<Vec<AppliedStep>>> {
        let has_ledger = client.query_one(HAS_LEDGER, &[&self.schema, &self.ledger.name()]).await?;
        if !column::<bool>(&has_ledger, "has_ledger")? {
            return Ok(None);
        }
        let sql = format!("SELECT number, name, checksum, applied_at FROM {} ORDER BY number", self.table());
        let rows = client.query(&sql, &[]).await?;
        let steps = rows.iter().map(|row| {
            let number = u32::try_from(column::<i32>(row, "number")?)
                .map_err(|_| Failure::corrupt("the ledger of schema steps has a negative number"))?;
            Ok(AppliedStep {
                number,
                name: column(row, "name")?,
                checksum: column(row, "checksum")?,
                applied_at: checked(column(row, "applied_at")?)?,
            })
        });
        steps.collect::<Result<_>>().map(Some)
    }

    /// A step and its entry in the ledger come together or not at all.
    async fn apply(&self, client: &mut Client, step: &Step, has_ledger: bool) -> Result<(), MigrationError> {
        let transaction = client
            .build_transaction()
            .isolation_level(IsolationLevel::ReadCommitted)
            .read_only(false)
            .start()
            .await
            .map_err(Failure::from)?;
        // The table is made only where it is missing: a role that may not make tables can use what another has made.
        if !has_ledger {
            transaction.batch_execute(&self.create_ledger()).await.map_err(Failure::from)?;
        }
        self.record(&transaction, step).await?;
        let run = run(&transaction, step).await;
        run.map_err(|error| why_it_failed(step, error))?;
        transaction.commit().await.map_err(|error| match leaves_commit_open(&error) {
            true => Failure::CommitLost(Some(Box::new(error.into()))).into(),
            // As by a constraint that is checked last.
            false => why_it_failed(step, error),
        })
    }

    fn create_ledger(&self) -> String {
        format!(
            "CREATE TABLE {} (
                 number     INTEGER PRIMARY KEY,
                 name       TEXT NOT NULL,
                 checksum   BYTEA NOT NULL,
                 applied_at BIGINT NOT NULL
             )",
            self.table()
        )
    }

    /// Before the step's own statements, which may change the role.
    async fn record(&self, transaction: &Transaction<'_>, step: &Step) -> Result<()> {
        let number = i32::try_from(step.number())
            .map_err(|_| Failure::corrupt("a schema step's number is too large"))?;
        let sql = format!(
            "INSERT INTO {} (number, name, checksum, applied_at)
             VALUES ($1, $2, $3, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)",
            self.table()
        );
        transaction.execute(&sql, &[&number, &step.name(), &step.checksum().as_slice()]).await?;
        Ok(())
    }
}

async fn run(transaction: &Transaction<'_>, step: &Step) -> Result<(), tokio_postgres::Error> {
    transaction.execute("SELECT set_config('larder.step', $1, true)", &[&step.sql()]).await?;
    transaction.batch_execute(RUN_STEP).await
}

fn why_it_failed(step: &Step, error: tokio_postgres::Error) -> MigrationError {
    let (number, name) = (step.number(), step.name().to_string());
    match reason_to_refuse(&error) {
        Some(reason) => MigrationError::ForbiddenCommand { number, name, reason },
        None => MigrationError::StepFailed { number, name, cause: Failure::from(error).into() },
    }
}

/// What a step did that it can't, where that is why it failed.
fn reason_to_refuse(error: &tokio_postgres::Error) -> Option<&'static str> {
    let error = error.as_db_error()?;
    match *error.code() {
        SqlState::FEATURE_NOT_SUPPORTED if error.routine() == Some(EXECUTE_ROUTINE) => Some(
            "begins, ends or divides a transaction, copies from or to the client, or selects into a table",
        ),
        SqlState::INVALID_TRANSACTION_TERMINATION => Some("ends a transaction"),
        SqlState::ACTIVE_SQL_TRANSACTION => Some("holds a command that can't be run within a transaction"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock_key(schema: &str, ledger: Ledger) -> i64 {
        Place { schema: schema.to_string(), ledger }.lock_key()
    }

    #[test]
    fn each_ledger_of_each_schema_has_a_lock_of_its_own() {
        let mine = || Ledger::new("mine").unwrap();
        assert_eq!(lock_key("public", mine()), lock_key("public", mine()));
        assert_ne!(lock_key("public", mine()), lock_key("tenant_a", mine()));
        assert_ne!(lock_key("public", mine()), lock_key("public", Ledger::larder()));
        assert_ne!(lock_key("public", mine()), lock_key("publicmine", Ledger::larder()));
    }

    #[test]
    fn the_lock_of_larders_own_tables_is_that_of_every_release() {
        assert_eq!(lock_key("public", Ledger::larder()), 1_952_253_759_785_392_747);
    }

    #[test]
    fn a_wait_is_never_without_end() {
        assert_eq!(lock_millis(Duration::ZERO), 1);
        assert_eq!(lock_millis(Duration::from_secs(60)), 60_000);
        assert_eq!(lock_millis(Duration::MAX), i32::MAX);
    }

    #[test]
    fn a_table_is_named_with_its_schema_whatever_that_is_named() {
        let place = Place { schema: "a\"b.c".to_string(), ledger: Ledger::larder() };
        assert_eq!(place.table(), "\"a\"\"b.c\".\"larder_migrations\"");
    }

    #[test]
    fn a_password_is_not_shown() {
        let steps = crate::migrate::steps().unwrap();
        let migrator = PostgresMigrator::new("postgres://ann:hunter2@h/d", steps, Ledger::larder()).unwrap();
        assert_eq!(format!("{migrator:?}"), "PostgresMigrator { ledger: \"larder_migrations\", .. }");
    }
}
