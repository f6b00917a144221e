//! Runs the steps of a schema on a Postgres database.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join;
use larder_core::Error;
use larder_core::schema::{
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
use crate::fnv::fnv1a;
use crate::options::PostgresOptions;
use crate::param::typed;
use crate::pooler;
use crate::rows::{checked, column};
use crate::search_path::{self, quoted};
use crate::statements::{Statement, statements};

/// How long to wait for the server.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long a session may take to drop what it holds.
const CLEAR_MAX: Duration = Duration::from_secs(10);

/// How long after the server should have ended the wait for a lock it counts as one that says nothing any more.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Where tables are made, and where else they are looked for.
const SEARCH_PATH: &str = "
    SELECT current_schema()::text AS first, current_setting('search_path') AS path, current_user::text AS role,
        pg_is_in_recovery() AS is_standby";

/// Everything under one name in some schemas, whether the role may use them or not.
const HOLDERS: &str = "
    SELECT nspname::text AS schema, relkind::text AS kind
    FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relname = $1 AND nspname = ANY($2)";

/// The timeouts of a session that apply to a step's statements are for those of a server's everyday work. Which there
/// are depends on the release.
const NO_TIMEOUTS: &str = "
    SELECT set_config(name, '0', true) FROM pg_catalog.pg_settings
    WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')";

/// Removes what a step left in a session that other clients share, as far as its transaction can.
const CLEAR_SHARED: &str = "RESET ALL; DISCARD TEMPORARY; DISCARD SEQUENCES; UNLISTEN *";

const SET_STEP: &str = "
    SELECT set_config('larder.step', $1::text[]::text, true), set_config('larder.queries', $2::boolean[]::text, true)";

/// Runs the statements in the setting `larder.step` one after the other, and says which one is next. `EXECUTE` of PL/pgSQL
/// refuses `COMMIT` and its kin: sent by themselves, they would take the transaction apart. A message of level `INFO` is
/// sent whatever the step sets. `EXECUTE` keeps all rows of a query in memory; a cursor that is moved keeps none. The timeouts
/// that the step has set are lifted at its end, as they are not meant for what the runner does then.
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

/// The code of the messages that say which statement is next.
const NEXT_STATEMENT: &str = "LDR01";

/// Where in the server `EXECUTE` refuses the commands that it doesn't know.
const EXECUTE_ROUTINE: &str = "exec_stmt_dynexecute";

/// Where in the server commands are refused that run outside of transactions only.
const OUTSIDE_ROUTINE: &str = "PreventInTransactionBlock";

/// Brings a platform's own tables in a Postgres database up to date, beside those of larder.
///
/// Tables are made in the first schema of the search path, as larder's are: each schema has a ledger of its own. If another
/// schema of the path has the ledger and the first one does not, every call fails with
/// [`MigrationError::ShadowedLedger`], and if several have it, with [`MigrationError::SeveralLedgers`]. Pin the schema in the
/// data-source name (`schema=…`) if a step makes a schema that the default path, `"$user", public`, would find first.
///
/// A run stays in the schema in which it began. If a step, or another process, leads new sessions to another schema, the run
/// stops there with [`MigrationError::SchemaChanged`]. A step that removes or changes the ledger fails.
///
/// Each step is one transaction, which takes an advisory lock for the schema and the ledger, looks at the ledger again, and
/// records the step. The lock ends with the transaction: when the step is committed, when it fails, and when the future is
/// dropped.
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
/// # What a step sees
///
/// Each step has a session of its own. Temporary tables, settings such as `SET search_path` and `SET ROLE`, prepared
/// statements and whatever else belongs to a session end with the step, so it does the same whether it is applied alone or
/// after others.
///
/// Timeouts of the server are lifted for it, but no lock is waited for longer than
/// [`lock_wait`](PostgresMigrator::lock_wait): a step that stands behind a long transaction keeps all who come later
/// waiting.
///
/// # What a step can't hold
///
/// Besides what begins, ends or divides a transaction:
///
/// - What the server doesn't do within one: `VACUUM`, `CREATE INDEX CONCURRENTLY`, `CREATE DATABASE`. Run it beside the
///   migrations, by [`PostgresMigrator::with_connection`].
/// - `COPY` from or to the client, and `SELECT … INTO`, for which there is `CREATE TABLE … AS`. The statements are run by
///   PL/pgSQL's `EXECUTE`, so the database needs PL/pgSQL, as every database has unless it was dropped, and the role needs
///   `USAGE` on the language, as every role has unless it was revoked.
///
/// The rows that a query returns are not kept. Those of `RETURNING` are, in the server's memory, until the statement ends:
/// leave it out if a statement changes many rows. So are those of a query that contains a word of a statement that writes, as
/// `SELECT … FOR UPDATE` or `WITH … DELETE` does.
///
/// A step is split into statements by the rules of the server and of `psql`, which rely on `standard_conforming_strings` being on.
#[derive(Clone)]
pub struct PostgresMigrator {
    connector: Connector,
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
        Ok(Self::with_options(PostgresOptions::parse(dsn)?, steps, ledger))
    }

    /// As [`PostgresMigrator::new`], with options of the caller's own, which need not come from the environment of the
    /// process.
    pub fn with_options(options: PostgresOptions, steps: StepSet, ledger: Ledger) -> Self {
        Self { connector: Connector::new(options), steps: Arc::new(steps), ledger, lock_wait: LOCK_WAIT }
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
    /// - [`MigrationError::Schema`] if the steps don't fit the database.
    /// - [`MigrationError::ShadowedLedger`] if another schema of the search path than the first one has the ledger.
    /// - [`MigrationError::SeveralLedgers`] if several schemas of the search path have it.
    /// - [`MigrationError::Database`] if it can't be read or the search path names no schema.
    pub async fn status(&self) -> Result<Status, MigrationError> {
        Ok(Status::of(&self.steps, applied(&self.connector, &self.ledger).await?.steps)?)
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
        Ok(up(&self.connector, &self.steps, &self.ledger, self.lock_wait).await?.done)
    }

    /// Runs SQL on a connection of its own, and gives what `work` returns. What `work` changes about the session ends
    /// with it.
    ///
    /// # Errors
    /// Where there is no connection to be had. What `work` runs into is its own result.
    pub async fn with_connection<T>(&self, work: impl AsyncFnOnce(&mut Client) -> T) -> Result<T, Error> {
        with_connection(&self.connector, work).await
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

/// The steps that were applied, and the schema that they were applied in, or would be.
pub(crate) struct Applied {
    pub(crate) schema: String,
    pub(crate) steps: Vec<AppliedStep>,
    /// The host, if it is a standby.
    pub(crate) standby: Option<String>,
}

pub(crate) async fn applied(connector: &Connector, ledger: &Ledger) -> Result<Applied, MigrationError> {
    pinned(connector, async |session, _| {
        let Pinned { client, host, .. } = session;
        // The role's own transactions may be serializable, which a standby refuses, or wait until they are safe.
        let transaction = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted);
        let transaction =
            transaction.read_only(true).deferrable(false).start().await.map_err(Failure::from)?;
        let settings = format!("{}{NO_TIMEOUTS}", set_schema("SET LOCAL", connector));
        transaction.batch_execute(&settings).await.map_err(Failure::from)?;
        let place = Place::find(&transaction, ledger).await?;
        let steps = place.applied(&transaction).await?;
        let standby = place.is_standby.then(|| host.clone());
        Ok(Applied { schema: place.schema, steps, standby })
    })
    .await?
}

/// What a run did, and in which schema.
pub(crate) struct Outcome {
    pub(crate) schema: String,
    pub(crate) done: Vec<Step>,
    /// The host, if it is a standby, which needed no step.
    pub(crate) standby: Option<String>,
}

/// Brings a schema up to date. Steps run in sessions of their own: none sees what another did to its own.
pub(crate) async fn up(
    connector: &Connector,
    steps: &StepSet,
    ledger: &Ledger,
    lock_wait: Duration,
) -> Result<Outcome, MigrationError> {
    let Applied { schema, steps: applied, standby } = applied(connector, ledger).await?;
    let mut outcome = Outcome { schema, done: Vec::new(), standby };
    // If all is applied, as mostly, no lock is waited for.
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

/// What all steps of one run have in common.
struct Run<'a> {
    connector: &'a Connector,
    steps: &'a StepSet,
    ledger: &'a Ledger,
    lock_wait: Duration,
}

/// What one session of a run did.
struct Next<'a> {
    schema: String,
    /// `None` if there was none left.
    step: Option<&'a Step>,
}

impl<'a> Run<'a> {
    /// Applies the next step. The step and its entry in the ledger are committed together.
    async fn apply_next(
        &self,
        session: &mut Pinned,
        next_statement: &AtomicUsize,
        before: &Outcome,
    ) -> Result<Next<'a>, MigrationError> {
        let is_own = session.is_own;
        let transaction = begin(&mut session.client, self.lock_wait, self.connector).await?;
        let place = self.lock(&transaction).await?;
        // What others did while this one waited counts.
        let applied = place.applied(&transaction).await?;
        let next = pending(self.steps, &applied)?.first();
        self.check_goes_on(&place, next, before)?;
        let schema = place.schema.clone();
        let Some(step) = next else { return Ok(Next { schema, step: None }) };
        // The table is made only if it is missing: a role that may not make tables can use what another has made.
        if !place.has_ledger {
            transaction.batch_execute(&place.create_ledger()).await.map_err(Failure::from)?;
        }
        // Before the step's own statements, which may change the role.
        for earlier in recorded_otherwise(self.steps, &applied) {
            place.record_anew(&transaction, earlier).await?;
        }
        place.record(&transaction, step).await?;
        place.hold_search_path(&transaction).await?;
        match self.ledger == &Ledger::larder() {
            // It takes no transaction apart, so it does without PL/pgSQL.
            true => transaction.batch_execute(step.sql()).await.map_err(Failure::from)?,
            false => run(&transaction, step, next_statement).await?,
        }
        place.check_kept(&transaction, step, &applied).await?;
        if !is_own {
            transaction.batch_execute(CLEAR_SHARED).await.map_err(Failure::from)?;
        }
        transaction.commit().await.map_err(|error| match leaves_commit_open(&error) {
            true => Failure::CommitLost(Some(Box::new(error.into()))).into(),
            false => why_it_failed(step, None, error),
        })?;
        Ok(Next { schema, step: Some(step) })
    }

    /// Checks that a step follows those that this run has applied: a step, or another process, can change where new sessions
    /// look for the ledger, and what is in it.
    fn check_goes_on(
        &self,
        place: &Place,
        next: Option<&Step>,
        before: &Outcome,
    ) -> Result<(), MigrationError> {
        let Some(last) = before.done.last() else { return Ok(()) };
        if place.schema != before.schema {
            return Err(MigrationError::SchemaChanged {
                number: last.number(),
                name: last.name().to_string(),
                ledger: self.ledger.name().to_string(),
                schema: before.schema.clone(),
                found: place.schema.clone(),
            });
        }
        if next.is_some_and(|next| next.number() <= last.number()) {
            let lost = format!("{} no longer holds steps that were just applied", place.table());
            return Err(Error::Corrupt(lost).into());
        }
        Ok(())
    }

    /// Takes the lock of the schema in which the ledger is or is made. Another host may have made a schema meanwhile that
    /// comes first, so the ledger is looked for again.
    async fn lock(&self, transaction: &Transaction<'_>) -> Result<Place, MigrationError> {
        let mut place = Place::find(transaction, self.ledger).await?;
        loop {
            place.lock(transaction, self.lock_wait).await?;
            let found = Place::find(transaction, self.ledger).await?;
            let is_same = found.schema == place.schema;
            place = found;
            if is_same {
                return Ok(place);
            }
        }
    }
}

/// Begins a transaction for one step. The server notices by itself that a host which was killed in the middle is not there
/// any more. A query that a cursor runs is planned for all its rows.
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

/// Runs work on a connection that is nobody else's, and closed afterwards in any case: also where it fails, and where
/// this future is dropped. The work is also told which statement of a step comes next.
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

/// A connection of its own.
struct Pinned {
    client: Client,
    host: String,
    /// Whether its session is its own too, and not shared by a pooler.
    is_own: bool,
}

/// Sets the search path to the schema that the options name, if any.
fn set_schema(set: &str, connector: &Connector) -> String {
    let schema = connector.options().schema.as_deref();
    schema.map_or_else(String::new, |schema| format!("{set} search_path = {}; ", quoted(schema)))
}

async fn connect(connector: &Connector) -> Result<Connected> {
    let connecting = timeout(CONNECT_MAX, while_crowded(|| connector.connect()));
    connecting.await.map_err(|_| Failure::Stalled("the database could not be connected to in time"))?
}

/// Takes away what a session holds that others would notice: its locks, its temporary tables. The server does so by itself
/// once the connection is closed, at a moment that this process does not hear of. If it can't be done, the session is broken,
/// and ends.
async fn clear(client: &Client) {
    // The user of a connection may have left a transaction open. The second command can't stand beside others.
    let ready = client.batch_execute("ROLLBACK; SET statement_timeout = 0");
    let cleared = timeout(CLEAR_MAX, join(ready, client.batch_execute("DISCARD ALL"))).await;
    if !matches!(cleared, Ok((Ok(()), Ok(())))) {
        tracing::debug!("a session was closed without being cleared");
    }
}

fn hear(notice: &DbError, next_statement: &AtomicUsize) {
    if notice.code().code() != NEXT_STATEMENT {
        return tracing::debug!(message = notice.message(), "a step of the schema gave notice");
    }
    if let Ok(number) = notice.message().parse() {
        next_statement.store(number, Ordering::Relaxed);
    }
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

/// A wait as the server takes it. It would wait without end for 0.
fn lock_millis(wait: Duration) -> i32 {
    i32::try_from(wait.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// The ledger of one set of steps, in one schema.
struct Place {
    schema: String,
    /// The setting `search_path` in which it was found.
    search_path: String,
    ledger: Ledger,
    has_ledger: bool,
    is_standby: bool,
}

impl Place {
    /// Finds the ledger in the first schema of the search path, where it may not be yet.
    async fn find(client: &impl GenericClient, ledger: &Ledger) -> Result<Self, MigrationError> {
        let row = client.query_typed_one(SEARCH_PATH, &[]).await.map_err(Failure::from)?;
        let path: String = column(&row, "path")?;
        let Some(first) = column::<Option<String>>(&row, "first")? else {
            return Err(Error::invalid_argument(format!(
                "the search path {path:?} of the Postgres store names no schema that exists and that its role may use; \
                 create the schema, or grant USAGE on it, first"
            ))
            .into());
        };
        if first.starts_with("pg_") || first == "information_schema" {
            return Err(Error::invalid_argument(format!(
                "schema {first:?}, the first of the search path {path:?} of the Postgres store, belongs to the server; \
                 name another one in the data-source name, as schema=public"
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
        let place = Self {
            has_ledger: kind_in(&first).is_some(),
            is_standby: column(&row, "is_standby")?,
            schema: first,
            search_path: path,
            ledger: ledger.clone(),
        };
        match (kind_in(&place.schema), schemas.into_iter().find(|schema| kind_in(schema).is_some())) {
            (Some(kind), _) if !is_table(kind) => Err(Error::other(format!(
                "cannot use {} as the ledger of schema steps: it is not a table; rename it or drop it",
                place.table()
            ))
            .into()),
            (None, Some(holder)) => Err(MigrationError::ShadowedLedger {
                ledger: ledger.name().to_string(),
                first: place.schema,
                holder,
            }),
            _ => Ok(place),
        }
    }

    /// The ledger's table, wherever a step may have set the search path to.
    fn table(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(self.ledger.name()))
    }

    /// A key of its own for each ledger in each schema: FNV-1a. That of larder's ledger is the schema's alone, as all
    /// releases have it.
    fn lock_key(&self) -> i64 {
        let ledger = if self.ledger == Ledger::larder() { "" } else { self.ledger.name() };
        // No schema's name holds NUL.
        let separator = if ledger.is_empty() { "" } else { "\0" };
        let bytes = ["larder schema ", &self.schema, separator, ledger];
        fnv1a(bytes.iter().flat_map(|part| part.bytes())).cast_signed()
    }

    /// Takes the lock for the rest of the transaction. The server ends the wait; the limit here, a little later, is for a
    /// server that says nothing any more.
    async fn lock(&self, transaction: &Transaction<'_>, lock_wait: Duration) -> Result<(), MigrationError> {
        let held = |cause: Failure| MigrationError::LockHeld { waited: lock_wait, cause: cause.into() };
        let key = self.lock_key();
        let params = typed(&[&key]);
        let locked = transaction.execute_typed("SELECT pg_catalog.pg_advisory_xact_lock($1)", &params);
        match timeout(lock_wait.saturating_add(ANSWER_MAX), locked).await {
            Ok(Err(error)) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Err(held(error.into())),
            Ok(locked) => Ok(locked.map(drop).map_err(Failure::from)?),
            Err(_) => Err(held(Failure::Stalled(
                "another process has been changing the database's schema for too long",
            ))),
        }
    }

    /// The steps that were applied: none if there is no ledger.
    async fn applied(&self, client: &impl GenericClient) -> Result<Vec<AppliedStep>> {
        if self.has_ledger { self.read(client).await } else { Ok(Vec::new()) }
    }

    async fn read(&self, client: &impl GenericClient) -> Result<Vec<AppliedStep>> {
        let sql = format!("SELECT number, name, checksum, applied_at FROM {} ORDER BY number", self.table());
        let rows = client.query_typed(&sql, &[]).await?;
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

    /// Keeps the step in the schema, also if another one that would come first is created while the step runs.
    async fn hold_search_path(&self, transaction: &Transaction<'_>) -> Result<()> {
        // Without regard to the role, which the step may change.
        let is_first = search_path::names(&self.search_path, "$user").first() == Some(&self.schema);
        if is_first {
            return Ok(());
        }
        let path = format!("{}, {}", quoted(&self.schema), self.search_path);
        let sql = "SELECT set_config('search_path', $1, true)";
        transaction.execute_typed(sql, &typed(&[&path])).await?;
        Ok(())
    }

    /// Checks that the ledger holds what was applied before a step and the step, and nothing else.
    async fn check_kept(
        &self,
        transaction: &Transaction<'_>,
        step: &Step,
        before: &[AppliedStep],
    ) -> Result<(), MigrationError> {
        // What the step has deferred could change the ledger too. It runs with the role that the step has set.
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

    /// Records the checksum of a step that is applied, in its present form.
    async fn record_anew(&self, transaction: &Transaction<'_>, step: &Step) -> Result<()> {
        let sql = format!("UPDATE {} SET checksum = $2 WHERE number = $1", self.table());
        let (number, checksum) = (number(step)?, step.checksum());
        transaction.execute_typed(&sql, &typed(&[&number, &checksum.as_slice()])).await?;
        Ok(())
    }
}

/// Whether a kind of relation is that of a table, partitioned or not.
fn is_table(kind: &str) -> bool {
    matches!(kind, "r" | "p")
}

/// A step's number as the ledger keeps it.
fn number(step: &Step) -> Result<i32> {
    i32::try_from(step.number()).map_err(|_| Failure::corrupt("a schema step's number is too large"))
}

async fn run(
    transaction: &Transaction<'_>,
    step: &Step,
    next_statement: &AtomicUsize,
) -> Result<(), MigrationError> {
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

/// At which byte of a statement the server found an error. It counts characters, and may mean the text of a function.
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
) -> MigrationError {
    let (number, name) = (step.number(), step.name().to_string());
    match reason_to_refuse(&error) {
        Some(reason) => MigrationError::ForbiddenCommand { number, name, position, reason },
        None => MigrationError::step_failed(step, position, Failure::from(error).into()),
    }
}

/// What a step did that it can't, where that is why it failed.
fn reason_to_refuse(error: &tokio_postgres::Error) -> Option<&'static str> {
    let error = error.as_db_error()?;
    match *error.code() {
        SqlState::FEATURE_NOT_SUPPORTED if error.routine() == Some(EXECUTE_ROUTINE) => Some(
            "begins, ends or divides a transaction, copies from or to the client, or selects into a table; remove the \
             command, as the runner begins and ends the transaction of each step",
        ),
        SqlState::INVALID_TRANSACTION_TERMINATION => Some(
            "ends a transaction; remove the command, as the runner begins and ends the transaction of each step",
        ),
        // What sets up a transaction is refused with the same code.
        SqlState::ACTIVE_SQL_TRANSACTION if error.routine() != Some(OUTSIDE_ROUTINE) => Some(
            "sets up a transaction that has begun already; remove the command, as the runner begins the transaction of each \
             step",
        ),
        SqlState::ACTIVE_SQL_TRANSACTION => Some(
            "can't run within a transaction, as each step does; run the command beside the migrations, on a connection \
             of its own",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(schema: &str, ledger: Ledger) -> Place {
        Place {
            schema: schema.to_string(),
            search_path: quoted(schema),
            ledger,
            has_ledger: true,
            is_standby: false,
        }
    }

    fn lock_key(schema: &str, ledger: Ledger) -> i64 {
        place(schema, ledger).lock_key()
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
        assert_eq!(place("a\"b.c", Ledger::larder()).table(), "\"a\"\"b.c\".\"larder_migrations\"");
    }

    #[test]
    fn a_password_is_not_shown() {
        let steps = crate::migrate::steps().unwrap();
        let migrator = PostgresMigrator::new("postgres://ann:hunter2@h/d", steps, Ledger::larder()).unwrap();
        assert_eq!(format!("{migrator:?}"), "PostgresMigrator { ledger: \"larder_migrations\", .. }");
    }
}
