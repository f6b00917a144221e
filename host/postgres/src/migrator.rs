//! Runs schema steps on a Postgres database.

use std::collections::HashSet;
use std::future::poll_fn;
use std::hash::Hasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use fnv::FnvHasher;
use futures_util::future::join;
use larder_core::Error;
use larder_schema::{
    AppliedStep, LOCK_WAIT, Ledger, MigrationError, SchemaMigrator, Status, Step, StepPosition, StepSet,
    pending, recorded_otherwise, version,
};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::{DbError, ErrorPosition, SqlState};
use tokio_postgres::{AsyncMessage, Client, GenericClient, IsolationLevel, Transaction};

use crate::connect_error::ConnectError;
use crate::connections::while_crowded;
use crate::connector::{Connected, Connector};
use crate::error::{Failure, Result, breaks_connection, leaves_commit_open};
use crate::options::PostgresOptions;
use crate::param::typed;
use crate::pooler;
use crate::rows::{checked, column};
use crate::search_path::{self, quoted};
use crate::statements::{Statement, statements};

/// How long to wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long a session may take to release what it holds.
const CLEAR_MAX: Duration = Duration::from_secs(10);

/// How long to wait for the server after a lock wait should have timed out there.
const LOCK_ANSWER_MAX: Duration = Duration::from_secs(5);

/// Queries the schema in which tables are created, and the rest of the search path.
const SEARCH_PATH: &str = "
    SELECT current_schema()::text AS first, current_setting('search_path') AS path, current_user::text AS role,
        pg_is_in_recovery() AS is_standby";

/// Lists all relations of one name in some schemas, even if the role has no access to them.
const HOLDERS: &str = "
    SELECT nspname::text AS schema, relkind::text AS kind
    FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relname = $1 AND nspname = ANY($2)";

/// Lifts the timeouts of the session, which are meant for everyday statements and not for steps.
/// Which of the settings exist depends on the server's version.
const NO_TIMEOUTS: &str = "
    SELECT set_config(name, '0', true) FROM pg_catalog.pg_settings
    WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')";

/// Removes what a step left in a session that a pooler shares with other clients, as far as that is
/// possible in a transaction.
const CLEAR_SHARED: &str = "RESET ALL; DISCARD TEMPORARY; DISCARD SEQUENCES; UNLISTEN *";

const SET_STEP: &str = "
    SELECT set_config('larder.step', $1::text[]::text, true), set_config('larder.queries', $2::boolean[]::text, true)";

/// Runs the statements in the setting `larder.step` in order, and reports the index of the next
/// one.
///
/// - `EXECUTE` in PL/pgSQL rejects `COMMIT` and similar commands. If they were sent directly, they
///   would end the step's transaction early.
/// - A message of level `INFO` reaches the client whatever `client_min_messages` the step sets.
/// - `EXECUTE` would keep all rows of a query in memory. Moving a cursor keeps none.
/// - Timeouts that the step has set are lifted at its end, because they are not meant for the
///   runner's own statements.
const RUN_STEP: &str = "DO $larder$
    DECLARE
        statement text;
        queries boolean[] := current_setting('larder.queries')::boolean[];
        number bigint := 0;
        rows refcursor;
    BEGIN
        FOREACH statement IN ARRAY current_setting('larder.step')::text[] LOOP
            RAISE INFO USING MESSAGE = number, ERRCODE = 'LDR01';
            number := number + 1;
            IF queries[number] THEN
                OPEN rows NO SCROLL FOR EXECUTE statement;
                MOVE FORWARD ALL FROM rows;
                CLOSE rows;
            ELSE
                EXECUTE statement;
            END IF;
        END LOOP;
        PERFORM pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings
            WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout');
    END $larder$";

/// The SQLSTATE of the messages that report the next statement.
const NEXT_STATEMENT: &str = "LDR01";

/// The server routine in which `EXECUTE` rejects unsupported commands.
const EXECUTE_ROUTINE: &str = "exec_stmt_dynexecute";

/// The server routine that rejects commands which cannot run inside a transaction.
const OUTSIDE_ROUTINE: &str = "PreventInTransactionBlock";

/// Migrates a platform's own tables in a Postgres database, beside larder's tables.
///
/// Tables are created in the first schema of the search path, as larder's are. Each schema has a
/// ledger of its own. If another schema of the path has the ledger and the first one does not,
/// every call fails with [`MigrationError::ShadowedLedger`]. If several have it, every call fails
/// with [`MigrationError::SeveralLedgers`]. Pin the schema in the data-source name (`schema=…`) if
/// a step creates a schema that the default path, `"$user", public`, would find first.
///
/// A run stays in the schema in which it began. If a step or another process changes the schema
/// that new sessions find, the run stops with [`MigrationError::SchemaChanged`]. A step that
/// removes or changes the ledger fails.
///
/// Each step runs in one transaction. It takes an advisory lock for the schema and the ledger,
/// reads the ledger again, runs the step and records it. The lock ends with the transaction: when
/// the step is committed, when it fails, or when the future is dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use larder_schema::{Ledger, StepSet, is_missing_migration};
/// use larder_postgres::PostgresMigrator;
///
/// let steps = StepSet::from_folder("migrations")?;
/// let ledger = Ledger::new("platform_migrations")?;
/// let name = "postgres://ann:secret@db.internal/platform";
/// let migrator = PostgresMigrator::new(name, steps, ledger)?;
/// match migrator.version().await {
///     Ok(version) => println!("version {version}"),
///     Err(error) if is_missing_migration(&error) => println!("the database is fresh"),
///     Err(error) => return Err(error.into()),
/// }
/// for step in migrator.up().await? {
///     println!("applied {:04}_{}", step.number(), step.name());
/// }
/// let sql = "SELECT count(*) FROM accounts";
/// let accounts: i64 = migrator
///     .with_connection(async |client| client.query_one_scalar(sql, &[]).await)
///     .await??;
/// # drop(accounts); Ok(()) }
/// ```
///
/// # Environment of a step
///
/// Each step has a session of its own. Temporary tables, settings such as `SET search_path` and
/// `SET ROLE`, prepared statements and all other session state end with the step. So a step does
/// the same whether it is applied alone or after others. Behind a pooler, prepared statements
/// and session-level advisory locks remain in the server's session.
///
/// The server's timeouts are lifted for a step. Lock waits are limited to
/// [`lock_wait`](PostgresMigrator::lock_wait), because a step that waits for a long transaction
/// blocks all later transactions on the same table.
///
/// # Forbidden commands
///
/// A step cannot contain commands that begin, end or divide a transaction. It cannot contain these
/// either:
///
/// - Commands that the server does not run inside a transaction: `VACUUM`, `CREATE INDEX
///   CONCURRENTLY`, `CREATE DATABASE`. Run them outside the migrations, with
///   [`PostgresMigrator::with_connection`].
/// - `COPY` from or to the client, and `SELECT … INTO`. Use `CREATE TABLE … AS` instead of the
///   latter.
///
/// The statements are run by PL/pgSQL's `EXECUTE`. So the database needs PL/pgSQL, which every
/// database has unless it was dropped, and the role needs `USAGE` on the language, which every role
/// has unless it was revoked.
///
/// The rows that a query returns are not kept. The rows of `RETURNING` are kept in the server's
/// memory until the statement ends, so leave it out if a statement changes many rows. The same
/// applies to a query with a keyword of a writing statement, such as `SELECT … FOR UPDATE` or `WITH
/// … DELETE`.
///
/// A step is split into statements by the rules of the server and of `psql`, which assume that
/// `standard_conforming_strings` is on.
#[derive(Clone)]
pub struct PostgresMigrator {
    connector: Connector,
    steps: Arc<StepSet>,
    ledger: Ledger,
    lock_wait: Duration,
}

impl PostgresMigrator {
    /// Creates a migrator for one ledger in the database that the data-source name refers to.
    ///
    /// It does not connect yet.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the data-source name is malformed, an option is unknown, or
    ///   a value is invalid.
    /// - [`Error::Other`] if a file that the options name cannot be read or is invalid.
    pub fn new(dsn: &str, steps: StepSet, ledger: Ledger) -> Result<Self, Error> {
        Ok(Self::with_options(PostgresOptions::parse(dsn)?, steps, ledger))
    }

    /// Creates a migrator with options that the caller has built.
    ///
    /// The options need not come from the environment of the process. It does not connect yet.
    pub fn with_options(options: PostgresOptions, steps: StepSet, ledger: Ledger) -> Self {
        Self { connector: Connector::new(options), steps: Arc::new(steps), ledger, lock_wait: LOCK_WAIT }
    }

    /// Sets how long to wait for another migrator, and for each lock of a step.
    ///
    /// The default is [`LOCK_WAIT`]. The server counts in milliseconds, and the minimum is 1 ms.
    #[must_use]
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }

    /// Returns the steps that are applied, and those that are pending.
    ///
    /// It writes nothing, and does not create the ledger.
    ///
    /// # Errors
    /// - [`MigrationError::Schema`] if the steps do not match the ledger.
    /// - [`MigrationError::ShadowedLedger`] if the first schema of the search path lacks the
    ///   ledger, and a later one has it.
    /// - [`MigrationError::SeveralLedgers`] if several schemas of the search path have the ledger.
    /// - [`MigrationError::Database`] if the ledger cannot be read, or the search path names no
    ///   usable schema.
    pub async fn status(&self) -> Result<Status, MigrationError<Error>> {
        Ok(Status::of(&self.steps, applied(&self.connector, &self.ledger).await?.steps)?)
    }

    /// Returns the number of the newest applied step.
    ///
    /// # Errors
    /// - [`MigrationError::Fresh`] if no step is applied.
    /// - [`MigrationError::Schema`] if the steps do not match the ledger.
    /// - [`MigrationError::ShadowedLedger`] if the first schema of the search path lacks the
    ///   ledger, and a later one has it.
    /// - [`MigrationError::SeveralLedgers`] if several schemas of the search path have the ledger.
    /// - [`MigrationError::Database`] if the ledger cannot be read, or the search path names no
    ///   usable schema.
    pub async fn version(&self) -> Result<u32, MigrationError<Error>> {
        version(&self.ledger, &self.status().await?)
    }

    /// Applies the pending steps in order, and returns them.
    ///
    /// If the future is dropped, the current step is rolled back. If a step fails, the steps before
    /// it stay applied.
    ///
    /// # Errors
    /// - [`MigrationError::Schema`] if the steps do not match the ledger.
    /// - [`MigrationError::StepFailed`] if a statement of a step, or its commit, fails, or the step
    ///   changes the ledger.
    /// - [`MigrationError::ForbiddenCommand`] if a step contains a forbidden command.
    /// - [`MigrationError::ShadowedLedger`] if the first schema of the search path lacks the
    ///   ledger, and a later one has it.
    /// - [`MigrationError::SeveralLedgers`] if several schemas of the search path have the ledger.
    /// - [`MigrationError::SchemaChanged`] if new sessions find another schema after a step than
    ///   before it.
    /// - [`MigrationError::LockHeld`] if another migrator holds the lock for longer than
    ///   [`lock_wait`](Self::lock_wait).
    /// - [`MigrationError::Database`] if no server can be reached, the server is a standby and
    ///   steps are pending, or the search path names no usable schema.
    pub async fn up(&self) -> Result<Vec<Step>, MigrationError<Error>> {
        Ok(up(&self.connector, &self.steps, &self.ledger, self.lock_wait).await?.done)
    }

    /// Opens a connection, runs `work` with its client, and closes the connection.
    ///
    /// Returns what `work` returns. Changes that `work` makes to the session end with it.
    ///
    /// # Errors
    /// - [`Error::Unavailable`] if no server can be reached, or none matches
    ///   `target_session_attrs`.
    /// - [`Error::Other`] if the server refuses the login, or TLS fails.
    ///
    /// Errors of `work` are part of the value that it returns.
    pub async fn with_connection<T>(&self, work: impl AsyncFnOnce(&mut Client) -> T) -> Result<T, Error> {
        with_connection(&self.connector, work).await
    }
}

impl std::fmt::Debug for PostgresMigrator {
    /// Omits the data-source name, which may contain a password.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ledger = self.ledger.name();
        formatter.debug_struct("PostgresMigrator").field("ledger", &ledger).finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaMigrator for PostgresMigrator {
    type Error = Error;

    async fn status(&self) -> Result<Status, MigrationError<Error>> {
        Self::status(self).await
    }

    async fn up(&self) -> Result<Vec<Step>, MigrationError<Error>> {
        Self::up(self).await
    }
}

/// The applied steps, and the schema that holds them or would hold them.
pub(crate) struct Applied {
    pub(crate) schema: String,
    pub(crate) steps: Vec<AppliedStep>,
    /// The host, if the server is a standby.
    pub(crate) standby: Option<String>,
}

pub(crate) async fn applied(
    connector: &Connector,
    ledger: &Ledger,
) -> Result<Applied, MigrationError<Error>> {
    pinned(connector, async |session, _| {
        let Pinned { client, host, .. } = session;
        // The role's default transactions may be serializable, which a standby refuses, or
        // deferrable, which wait for a safe snapshot.
        let transaction = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted);
        let transaction =
            transaction.read_only(true).deferrable(false).start().await.map_err(Failure::from)?;
        let settings = format!("{}{NO_TIMEOUTS}", set_schema("SET LOCAL", connector));
        transaction.batch_execute(&settings).await.map_err(Failure::from)?;
        let location = LedgerLocation::find(&transaction, ledger).await?;
        let steps = location.applied(&transaction).await?;
        let standby = location.is_standby.then(|| host.clone());
        Ok(Applied { schema: location.schema, steps, standby })
    })
    .await?
}

/// The steps that a run applied, and their schema.
pub(crate) struct Outcome {
    pub(crate) schema: String,
    pub(crate) done: Vec<Step>,
    /// The host, if the server is a standby and no step was pending.
    pub(crate) standby: Option<String>,
}

/// Applies the pending steps. Each runs in a session of its own, so no step sees the session state
/// of another.
pub(crate) async fn up(
    connector: &Connector,
    steps: &StepSet,
    ledger: &Ledger,
    lock_wait: Duration,
) -> Result<Outcome, MigrationError<Error>> {
    let Applied { schema, steps: applied, standby } = applied(connector, ledger).await?;
    let mut outcome = Outcome { schema, done: Vec::new(), standby };
    // Usually all steps are applied. Then this takes no lock.
    if pending(steps, &applied)?.is_empty() {
        return Ok(outcome);
    }
    if let Some(host) = outcome.standby {
        return Err(Failure::from(ConnectError::Standby { host }).into());
    }
    let run = Run { connector, steps, ledger, lock_wait };
    let is_newest =
        |outcome: &Outcome| outcome.done.last().is_some_and(|step| step.number() == steps.newest());
    while !is_newest(&outcome) {
        let next =
            pinned(connector, async |session, next| run.apply_next(session, next, &outcome).await).await??;
        outcome.schema = next.schema;
        let Some(step) = next.step else { break };
        outcome.done.push(step.clone());
    }
    Ok(outcome)
}

/// The parameters that all steps of one run share.
struct Run<'a> {
    connector: &'a Connector,
    steps: &'a StepSet,
    ledger: &'a Ledger,
    lock_wait: Duration,
}

/// The outcome of one session of a run.
struct Next<'a> {
    schema: String,
    /// `None` if no step was pending.
    step: Option<&'a Step>,
}

impl<'a> Run<'a> {
    /// Applies the next step. The step and its entry in the ledger are committed together.
    async fn apply_next(
        &self,
        session: &mut Pinned,
        next_statement: &AtomicUsize,
        before: &Outcome,
    ) -> Result<Next<'a>, MigrationError<Error>> {
        let is_own = session.is_own;
        let transaction = begin(&mut session.client, self.lock_wait, self.connector).await?;
        let location = self.lock(&transaction).await?;
        // Another process may have applied steps while this one waited for the lock.
        let applied = location.applied(&transaction).await?;
        let next = pending(self.steps, &applied)?.first();
        self.check_goes_on(&location, next, before)?;
        let schema = location.schema.clone();
        let Some(step) = next else { return Ok(Next { schema, step: None }) };
        // The table is created only if it is missing, because the role may lack the privilege to
        // create tables.
        if !location.has_ledger {
            transaction.batch_execute(&location.create_ledger()).await.map_err(Failure::from)?;
        }
        // Before the step's own statements, which may change the role.
        for earlier in recorded_otherwise(self.steps, &applied) {
            location.record_anew(&transaction, earlier).await?;
        }
        location.record(&transaction, step).await?;
        location.hold_search_path(&transaction).await?;
        match self.ledger == &Ledger::larder() {
            // larder's own steps contain no transaction commands, so they need no PL/pgSQL.
            true => transaction.batch_execute(step.sql()).await.map_err(Failure::from)?,
            false => run(&transaction, step, next_statement).await?,
        }
        location.check_kept(&transaction, step, &applied).await?;
        if !is_own {
            transaction.batch_execute(CLEAR_SHARED).await.map_err(Failure::from)?;
        }
        transaction.commit().await.map_err(|error| match leaves_commit_open(&error) {
            true => Failure::CommitLost(Some(Box::new(error.into()))).into(),
            false => why_it_failed(step, None, error),
        })?;
        Ok(Next { schema, step: Some(step) })
    }

    /// Checks that a step follows those that this run has applied.
    ///
    /// A step or another process can change the schema in which new sessions look for the ledger,
    /// and the contents of the ledger.
    fn check_goes_on(
        &self,
        location: &LedgerLocation,
        next: Option<&Step>,
        before: &Outcome,
    ) -> Result<(), MigrationError<Error>> {
        let Some(last) = before.done.last() else { return Ok(()) };
        if location.schema != before.schema {
            return Err(MigrationError::SchemaChanged {
                number: last.number(),
                name: last.name().to_string(),
                ledger: self.ledger.name().to_string(),
                schema: before.schema.clone(),
                found: location.schema.clone(),
            });
        }
        if next.is_some_and(|next| next.number() <= last.number()) {
            let lost = format!("{} no longer contains the steps that were just applied", location.table());
            return Err(Error::Corrupt(lost).into());
        }
        Ok(())
    }

    /// Takes the lock of the schema that holds the ledger or will hold it.
    ///
    /// Meanwhile another host may have created a schema that comes first in the path. So this looks
    /// for the ledger again after it has the lock.
    async fn lock(&self, transaction: &Transaction<'_>) -> Result<LedgerLocation, MigrationError<Error>> {
        let mut location = LedgerLocation::find(transaction, self.ledger).await?;
        loop {
            location.lock(transaction, self.lock_wait).await?;
            let found = LedgerLocation::find(transaction, self.ledger).await?;
            let is_same = found.schema == location.schema;
            location = found;
            if is_same {
                return Ok(location);
            }
        }
    }
}

/// Begins a transaction for one step.
///
/// `client_connection_check_interval` lets the server notice that a host was killed during the
/// step. `cursor_tuple_fraction` makes the planner assume that all rows of a cursor are read.
async fn begin<'c>(
    client: &'c mut Client,
    lock_wait: Duration,
    connector: &Connector,
) -> Result<Transaction<'c>> {
    let builder = client.build_transaction();
    let transaction = builder.isolation_level(IsolationLevel::ReadCommitted).read_only(false).start().await?;
    let millis = lock_millis(lock_wait);
    let settings = format!(
        "{}SET LOCAL lock_timeout = {millis}; SET LOCAL client_connection_check_interval = '1s';
         SET LOCAL cursor_tuple_fraction = 1; {NO_TIMEOUTS}",
        set_schema("SET LOCAL", connector)
    );
    transaction.batch_execute(&settings).await?;
    Ok(transaction)
}

/// Runs work on a connection that is closed afterwards.
pub(crate) async fn with_connection<T>(
    connector: &Connector,
    work: impl AsyncFnOnce(&mut Client) -> T,
) -> Result<T, Error> {
    let outcome = pinned(connector, async |session, _| {
        if session.is_own && connector.options().schema.is_some() {
            session.client.batch_execute(&set_schema("SET", connector)).await?;
        }
        Ok::<T, Failure>(work(&mut session.client).await)
    });
    Ok(outcome.await??)
}

/// Runs work on a connection of its own.
///
/// The connection is closed afterwards, even if the work fails or this future is dropped. The work
/// also receives the index of the step's next statement.
async fn pinned<T>(
    connector: &Connector,
    work: impl AsyncFnOnce(&mut Pinned, &AtomicUsize) -> T,
) -> Result<T> {
    let Connected { client, mut connection, host, .. } = connect(connector).await?;
    let mut session = Pinned { client, host, is_own: true };
    let next_statement = Arc::new(AtomicUsize::new(0));
    let heard = next_statement.clone();
    let mut connection = Connection(tokio::spawn(poll_fn(move |context| {
        loop {
            match ready!(connection.poll_message(context)) {
                Some(Ok(AsyncMessage::Notice(notice))) => hear(&notice, &heard),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(()),
            }
        }
    })));
    session.is_own = pooler::is_direct(&session.client).await?;
    let outcome = work(&mut session, &next_statement).await;
    if session.is_own {
        clear(&session.client).await;
    }
    drop(session);
    connection.closed().await;
    Ok(outcome)
}

/// A connection that only one piece of work uses.
struct Pinned {
    client: Client,
    host: String,
    /// Whether the session belongs to this connection alone, and a pooler does not share it.
    is_own: bool,
}

/// Returns the statement that sets the search path to the schema in the options, if there is one.
fn set_schema(set: &str, connector: &Connector) -> String {
    let schema = connector.options().schema.as_deref();
    schema.map_or_else(String::new, |schema| format!("{set} search_path = {}; ", quoted(schema)))
}

async fn connect(connector: &Connector) -> Result<Connected> {
    let connecting = timeout(CONNECT_MAX, while_crowded(|| connector.connect()));
    connecting.await.map_err(|_| Failure::Stalled("timed out while connecting to the database"))?
}

/// Releases what a session holds that others would notice, such as locks and temporary tables.
///
/// The server does so itself when the connection closes, but this process does not learn when. If
/// this fails, the session is broken and ends anyway.
async fn clear(client: &Client) {
    // The caller's work may have left a transaction open. `DISCARD ALL` must be sent alone.
    let ready = client.batch_execute("ROLLBACK; SET statement_timeout = 0");
    let cleared = timeout(CLEAR_MAX, join(ready, client.batch_execute("DISCARD ALL"))).await;
    if !matches!(cleared, Ok((Ok(()), Ok(())))) {
        tracing::debug!("closed a session without releasing its resources first");
    }
}

fn hear(notice: &DbError, next_statement: &AtomicUsize) {
    if notice.code().code() != NEXT_STATEMENT {
        return tracing::debug!(message = notice.message(), "a schema step raised a notice");
    }
    if let Ok(number) = notice.message().parse() {
        next_statement.store(number, Ordering::Relaxed);
    }
}

struct Connection(JoinHandle<()>);

impl Connection {
    /// Waits until the connection has sent its termination message.
    async fn closed(&mut self) {
        drop(timeout(Duration::from_secs(1), &mut self.0).await);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Converts a wait to `lock_timeout`. There, 0 would mean no limit.
fn lock_millis(wait: Duration) -> i32 {
    i32::try_from(wait.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// The ledger of one set of steps, in one schema.
struct LedgerLocation {
    schema: String,
    /// The setting `search_path` with which the ledger was found.
    search_path: String,
    ledger: Ledger,
    has_ledger: bool,
    is_standby: bool,
}

impl LedgerLocation {
    /// Looks for the ledger in the search path. It may not exist in the first schema yet.
    async fn find(client: &impl GenericClient, ledger: &Ledger) -> Result<Self, MigrationError<Error>> {
        let row = client.query_typed_one(SEARCH_PATH, &[]).await.map_err(Failure::from)?;
        let path: String = column(&row, "path")?;
        let Some(first) = column::<Option<String>>(&row, "first")? else {
            return Err(Error::invalid_argument(format!(
                "the search path {path:?} of the Postgres store contains no schema that exists and that the role may use; \
                 create a schema, or grant the role USAGE on one"
            ))
            .into());
        };
        if first.starts_with("pg_") || first == "information_schema" {
            return Err(Error::invalid_argument(format!(
                "schema {first:?}, the first in the search path {path:?} of the Postgres store, is a system schema; \
                 name another schema in the data-source name, for example schema=public"
            ))
            .into());
        }
        let mut schemas = vec![first.clone()];
        schemas.extend(search_path::names(&path, &column::<String>(&row, "role")?));
        let name = ledger.name();
        let holders = client.query_typed(HOLDERS, &typed(&[&name, &schemas])).await.map_err(Failure::from)?;
        let mut kinds = Vec::new();
        for holder in &holders {
            kinds.push((column::<String>(holder, "schema")?, column::<String>(holder, "kind")?));
        }
        let mut with_table = schemas.clone();
        with_table.retain(|schema| kinds.iter().any(|(holder, kind)| holder == schema && is_table(kind)));
        let mut seen = HashSet::new();
        with_table.retain(|schema| seen.insert(schema.clone()));
        if with_table.len() > 1 {
            let ledger = ledger.name().to_string();
            return Err(MigrationError::SeveralLedgers { ledger, schemas: with_table });
        }
        let kind_in =
            |schema: &String| kinds.iter().find(|(holder, _)| holder == schema).map(|(_, kind)| kind);
        let location = Self {
            has_ledger: kind_in(&first).is_some(),
            is_standby: column(&row, "is_standby")?,
            schema: first,
            search_path: path,
            ledger: ledger.clone(),
        };
        match (kind_in(&location.schema), schemas.into_iter().find(|schema| kind_in(schema).is_some())) {
            (Some(kind), _) if !is_table(kind) => Err(Error::other(format!(
                "cannot use {} as the ledger of schema steps: it is not a table; rename or drop it",
                location.table()
            ))
            .into()),
            (None, Some(holder)) => Err(MigrationError::ShadowedLedger {
                ledger: ledger.name().to_string(),
                first: location.schema,
                holder,
            }),
            _ => Ok(location),
        }
    }

    /// Returns the qualified name of the ledger's table, because a step may change the search path.
    fn table(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(self.ledger.name()))
    }

    /// Returns the advisory-lock key of the ledger in its schema, an FNV-1a hash.
    ///
    /// The key of larder's own ledger depends on the schema alone, as in all releases.
    fn lock_key(&self) -> i64 {
        let ledger = if self.ledger == Ledger::larder() { "" } else { self.ledger.name() };
        // Schema names cannot contain NUL.
        let separator = if ledger.is_empty() { "" } else { "\0" };
        let mut hash = FnvHasher::default();
        for part in ["larder schema ", &self.schema, separator, ledger] {
            hash.write(part.as_bytes());
        }
        hash.finish().cast_signed()
    }

    /// Takes the lock until the transaction ends.
    ///
    /// The server times out the wait. The limit here is a little longer, in case the server no
    /// longer responds.
    async fn lock(
        &self,
        transaction: &Transaction<'_>,
        lock_wait: Duration,
    ) -> Result<(), MigrationError<Error>> {
        let held = |cause: Failure| MigrationError::LockHeld { waited: lock_wait, cause: cause.into() };
        let key = self.lock_key();
        let params = typed(&[&key]);
        let locked = transaction.execute_typed("SELECT pg_catalog.pg_advisory_xact_lock($1)", &params);
        match timeout(lock_wait.saturating_add(LOCK_ANSWER_MAX), locked).await {
            Ok(Err(error)) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Err(held(error.into())),
            Ok(locked) => Ok(locked.map(drop).map_err(Failure::from)?),
            Err(_) => {
                Err(held(Failure::Stalled("timed out while another process changed the database's schema")))
            }
        }
    }

    /// Returns the applied steps. Empty if there is no ledger.
    async fn applied(&self, client: &impl GenericClient) -> Result<Vec<AppliedStep>> {
        if self.has_ledger { self.read(client).await } else { Ok(Vec::new()) }
    }

    async fn read(&self, client: &impl GenericClient) -> Result<Vec<AppliedStep>> {
        let sql = format!("SELECT number, name, checksum, applied_at FROM {} ORDER BY number", self.table());
        let rows = client.query_typed(&sql, &[]).await?;
        let steps = rows.iter().map(|row| {
            let number = u32::try_from(column::<i32>(row, "number")?).map_err(|_| {
                Failure::corrupt("the ledger of schema steps contains a negative step number")
            })?;
            Ok(AppliedStep {
                number,
                name: column(row, "name")?,
                checksum: column(row, "checksum")?,
                applied_at: checked(column(row, "applied_at")?)?,
            })
        });
        steps.collect()
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

    /// Keeps the step in this schema, even if a schema that would come first is created while the
    /// step runs.
    async fn hold_search_path(&self, transaction: &Transaction<'_>) -> Result<()> {
        // Does not resolve `$user` to the role, because the step may change the role.
        let is_first = search_path::names(&self.search_path, "$user").first() == Some(&self.schema);
        if is_first {
            return Ok(());
        }
        let path = format!("{}, {}", quoted(&self.schema), self.search_path);
        let sql = "SELECT set_config('search_path', $1, true)";
        transaction.execute_typed(sql, &typed(&[&path])).await?;
        Ok(())
    }

    /// Checks that the ledger contains the previously applied steps and this step, and nothing
    /// else.
    async fn check_kept(
        &self,
        transaction: &Transaction<'_>,
        step: &Step,
        before: &[AppliedStep],
    ) -> Result<(), MigrationError<Error>> {
        // Deferred triggers of the step could change the ledger too. They run with the role that
        // the step has set.
        let deferred = transaction.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await;
        deferred.map_err(|error| why_it_failed(step, None, error))?;
        let reset = transaction.batch_execute("RESET SESSION AUTHORIZATION; RESET ROLE").await;
        reset.map_err(|error| why_it_failed(step, None, error))?;
        let failed = |cause| MigrationError::step_failed(step, None, cause);
        let changed =
            format!("the step removes or changes the ledger {}; leave the ledger as it is", self.table());
        let numbers = before.iter().map(|step| step.number).chain([step.number()]);
        match self.read(transaction).await {
            Ok(after) if after.iter().map(|step| step.number).eq(numbers) => Ok(()),
            Ok(_) => Err(failed(Error::other(changed))),
            Err(Failure::Database(error)) if !breaks_connection(&error) => {
                Err(failed(Error::caused(changed, error)))
            }
            Err(failure) => Err(failure.into()),
        }
    }

    async fn record(&self, transaction: &Transaction<'_>, step: &Step) -> Result<()> {
        let sql = format!(
            "INSERT INTO {} (number, name, checksum, applied_at)
             VALUES ($1, $2, $3, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)",
            self.table()
        );
        let checksum = step.checksum();
        let (number, name) = (number(step)?, step.name());
        transaction.execute_typed(&sql, &typed(&[&number, &name, &checksum.as_slice()])).await?;
        Ok(())
    }

    /// Updates the checksum of an applied step to its current form.
    async fn record_anew(&self, transaction: &Transaction<'_>, step: &Step) -> Result<()> {
        let sql = format!("UPDATE {} SET checksum = $2 WHERE number = $1", self.table());
        let (number, checksum) = (number(step)?, step.checksum());
        transaction.execute_typed(&sql, &typed(&[&number, &checksum.as_slice()])).await?;
        Ok(())
    }
}

/// Whether a relation kind is a table, partitioned or not.
fn is_table(kind: &str) -> bool {
    matches!(kind, "r" | "p")
}

/// Converts a step's number to the type of the ledger's column.
fn number(step: &Step) -> Result<i32> {
    i32::try_from(step.number()).map_err(|_| Failure::corrupt("the number of a schema step is too large"))
}

async fn run(
    transaction: &Transaction<'_>,
    step: &Step,
    next_statement: &AtomicUsize,
) -> Result<(), MigrationError<Error>> {
    let statements = statements(step.sql());
    let texts: Vec<&str> = statements
        .iter()
        .map(|statement| step.sql().get(statement.range.clone()).unwrap_or_default())
        .collect();
    let queries: Vec<bool> = statements.iter().map(|statement| statement.is_query).collect();
    transaction.execute_typed(SET_STEP, &typed(&[&texts, &queries])).await.map_err(Failure::from)?;
    transaction.batch_execute(RUN_STEP).await.map_err(|error| {
        let statement = statements.get(next_statement.load(Ordering::Relaxed));
        let position = statement.map(|Statement { range, .. }| {
            let at = byte_of_error(&error, step.sql().get(range.clone()).unwrap_or_default());
            StepPosition::new(step.sql(), range.clone(), at.map(|at| range.start + at))
        });
        why_it_failed(step, position, error)
    })
}

/// Returns the byte in a statement at which the server found an error.
///
/// The server counts characters. `None` if the position refers to other text, such as the body of a
/// function.
fn byte_of_error(error: &tokio_postgres::Error, statement: &str) -> Option<usize> {
    match error.as_db_error()?.position()? {
        ErrorPosition::Internal { position, query } if query == statement => {
            let characters = usize::try_from(*position).ok()?.checked_sub(1)?;
            statement.char_indices().nth(characters).map(|(byte, _)| byte)
        }
        _ => None,
    }
}

fn why_it_failed(
    step: &Step,
    position: Option<StepPosition>,
    error: tokio_postgres::Error,
) -> MigrationError<Error> {
    let (number, name) = (step.number(), step.name().to_string());
    match reason_to_refuse(&error) {
        Some(reason) => MigrationError::ForbiddenCommand { number, name, position, reason },
        None => MigrationError::step_failed(step, position, Failure::from(error).into()),
    }
}

/// Returns why a step is forbidden, if that is the reason for the error.
fn reason_to_refuse(error: &tokio_postgres::Error) -> Option<&'static str> {
    let error = error.as_db_error()?;
    match *error.code() {
        SqlState::FEATURE_NOT_SUPPORTED if error.routine() == Some(EXECUTE_ROUTINE) => Some(
            "begins, ends or divides a transaction, copies from or to the client, or selects into a table; remove the \
             command, because the runner begins and ends the transaction of each step",
        ),
        SqlState::INVALID_TRANSACTION_TERMINATION => Some(
            "ends a transaction; remove the command, because the runner begins and ends the transaction of each step",
        ),
        // The server rejects commands that set up a transaction with the same code.
        SqlState::ACTIVE_SQL_TRANSACTION if error.routine() != Some(OUTSIDE_ROUTINE) => Some(
            "sets up a transaction that has begun already; remove the command, because the runner begins the transaction of \
             each step",
        ),
        SqlState::ACTIVE_SQL_TRANSACTION => Some(
            "can't run inside a transaction, as each step does; run the command outside the migrations, on a connection \
             of its own",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(schema: &str, ledger: Ledger) -> LedgerLocation {
        LedgerLocation {
            schema: schema.to_string(),
            search_path: quoted(schema),
            ledger,
            has_ledger: true,
            is_standby: false,
        }
    }

    fn lock_key(schema: &str, ledger: Ledger) -> i64 {
        location(schema, ledger).lock_key()
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
        assert_eq!(location("a\"b.c", Ledger::larder()).table(), "\"a\"\"b.c\".\"larder_migrations\"");
    }

    #[test]
    fn a_password_is_not_shown() {
        let steps = crate::migrate::steps().unwrap();
        let migrator = PostgresMigrator::new("postgres://ann:hunter2@h/d", steps, Ledger::larder()).unwrap();
        assert_eq!(format!("{migrator:?}"), "PostgresMigrator { ledger: \"larder_migrations\", .. }");
    }
}
