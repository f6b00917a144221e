//! A connection that is checked out from the pool, and the state of its transaction.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, join3};
use futures_util::{TryStreamExt, pin_mut};
use larder_core::fair::FairPermit;
use larder_core::{Error, Share};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Row, RowStream, Statement};

use crate::abandoned_commits::AbandonedCommits;
use crate::error::{Failure, Result, breaks_connection, is_of_standby, is_refusal, leaves_commit_open};
use crate::opening;
use crate::param::{Params, typed};
use crate::pool::Object;
use crate::prober::Prober;
use crate::queries::Queries;

/// A statement with its parameters.
pub(crate) type Call<'a> = (&'a str, &'a Params<'a>);

/// What happens to the transaction after a batch of statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It stays open.
    Open,
    /// It is committed in the same batch.
    Commit,
    /// It is committed in the same batch. If the response is lost, the caller may run the whole
    /// transaction again.
    Finish,
}

/// Why a transaction stopped.
#[derive(Debug)]
pub(crate) struct Stopped {
    /// The index of the statement that failed, or `None` if BEGIN or COMMIT failed.
    pub(crate) step: Option<usize>,
    pub(crate) failure: Failure,
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self { step: None, failure }
    }
}

/// Time limit for a rollback. After it, the connection is closed instead.
const ROLLBACK_MAX: Duration = Duration::from_secs(1);

/// How long to wait for the response to an abandoned commit, and how often to probe the server
/// meanwhile.
const ABANDONED_MAX: Duration = Duration::from_secs(600);
const ABANDONED_PROBES: Duration = Duration::from_secs(10);

/// Time limit for sending a cancel request.
const CANCEL_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No transaction is open.
    Idle,
    /// A transaction is open.
    InTransaction,
    /// A transaction is open, and a statement in it has failed. The server would roll back on
    /// `COMMIT`, but report success.
    Failed,
    /// A response is pending. The session stays in this state if the future that waits for it is
    /// dropped.
    Busy,
    /// A response is pending, and the statements that were sent may commit.
    Committing,
    /// The connection is unusable.
    Broken,
}

/// A connection that is checked out from the pool.
///
/// Dropping it returns the connection in a clean state: an open transaction is rolled back. If its
/// state is uncertain, the connection is closed.
///
/// The server responds to a batch of statements in order. Errors after the first one only follow
/// from it, so the first one is reported.
pub(crate) struct Session {
    client: Option<Object>,
    state: State,
    runtime: Handle,
    queries: Arc<Queries>,
    /// `None` once the session is replaced.
    held: Option<Held>,
}

/// What a session holds until its connection is back in the pool.
pub(crate) struct Held {
    pub(crate) _turn: FairPermit,
    /// The permit of a snapshot.
    pub(crate) _snapshot_permit: Option<FairPermit>,
    /// The share that the session works for.
    pub(crate) share: Share,
    pub(crate) abandoned: AbandonedCommits,
    /// Dropped last, when the connection is back in the pool or closed.
    pub(crate) _returned: Returned,
}

/// Wakes a caller that waits for a connection to return to the pool, when it is dropped.
pub(crate) struct Returned(pub(crate) Arc<Notify>);

impl Drop for Returned {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Session {
    pub(crate) fn new(client: Object, runtime: Handle, queries: Arc<Queries>, held: Held) -> Self {
        Self { client: Some(client), state: State::Idle, runtime, queries, held: Some(held) }
    }

    /// Returns the statements of the store.
    pub(crate) fn queries(&self) -> Arc<Queries> {
        self.queries.clone()
    }

    /// Closes a broken connection, so that the pool has room for another one.
    ///
    /// Returns what the session held, for the session that replaces it.
    pub(crate) fn give_up(&mut self) -> Option<Held> {
        self.state = State::Broken;
        self.client.take().map(Object::take);
        self.held.take()
    }

    /// Whether no transaction is open and no response is pending.
    pub(crate) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    pub(crate) fn is_in_transaction(&self) -> bool {
        self.state == State::InTransaction
    }

    /// Returns the prober of the connection's server.
    pub(crate) fn prober(&self) -> Option<Arc<Prober>> {
        self.client.as_ref().map(|client| client.prober().clone())
    }

    /// Whether a commit was sent and its outcome is unknown.
    pub(crate) fn is_committing(&self) -> bool {
        self.state == State::Committing
    }

    /// Runs a read-only statement outside a transaction.
    pub(crate) async fn read_alone(&mut self, sql: &str, params: &Params<'_>) -> Result<Vec<Row>> {
        let statement = self.prepare(sql, State::Idle).await?;
        let client = ready(&self.client, &mut self.state, State::Idle, State::Busy)?;
        let rows = statement.query(client, params).await;
        self.settle(rows, State::Idle)
    }

    /// Runs a statement in the open transaction.
    pub(crate) async fn query(&mut self, sql: &str, params: &Params<'_>) -> Result<Vec<Row>> {
        let statement = self.prepare(sql, State::InTransaction).await?;
        let client = ready(&self.client, &mut self.state, State::InTransaction, State::Busy)?;
        let rows = statement.query(client, params).await;
        self.settle(rows, State::InTransaction)
    }

    /// Ends an open transaction that wrote nothing.
    pub(crate) async fn commit(&mut self) -> Result<()> {
        let client = ready(&self.client, &mut self.state, State::InTransaction, State::Busy)?;
        let committed = client.batch_execute("COMMIT").await;
        self.settle(committed, State::Idle)
    }

    /// Runs a batch of statements in a transaction, in one round trip.
    ///
    /// `opening` begins the transaction. If the transaction of a snapshot is open, which wrote
    /// nothing, it is rolled back first. If `opening` is `None`, the statements run in the open
    /// transaction.
    pub(crate) async fn run(
        &mut self,
        opening: Option<&str>,
        calls: &[Call<'_>],
        end: End,
    ) -> Result<Vec<Vec<Row>>, Stopped> {
        let before = match (opening, self.state) {
            (Some(_), State::Idle) => State::Idle,
            _ => State::InTransaction,
        };
        let mut statements = Vec::with_capacity(calls.len());
        for (sql, _) in calls {
            statements.push(self.prepare(sql, before).await?);
        }
        let next = if end == End::Commit { State::Committing } else { State::Busy };
        let client = ready(&self.client, &mut self.state, before, next)?;
        let rollback = if before == State::InTransaction { "ROLLBACK; " } else { "" };
        let opening = opening.map(|opening| opened(client, rollback, opening));
        let begun = simple(client, opening.as_deref());
        let queries =
            statements.iter().zip(calls).map(|(statement, (_, params))| statement.query(client, params));
        let ended = simple(client, (end != End::Open).then_some("COMMIT"));
        // They are sent in the order in which they are first polled.
        let (begun, rows, ended) = join3(begun, join_all(queries), ended).await;
        self.settle_all(begun, rows, ended, end)
    }

    /// Evaluates the responses to [`Session::run`]. The first error is reported, because later ones
    /// follow from it.
    fn settle_all(
        &mut self,
        begun: Result<(), tokio_postgres::Error>,
        rows: Vec<Result<Vec<Row>, tokio_postgres::Error>>,
        ended: Result<(), tokio_postgres::Error>,
        end: End,
    ) -> Result<Vec<Vec<Row>>, Stopped> {
        let mut answers = Vec::with_capacity(rows.len());
        let begun = match begun {
            Err(error) if is_of_standby(&error) => {
                self.state = State::Broken;
                return Err(Failure::Standby(error).into());
            }
            begun => begun,
        };
        let mut stopped = begun.err().map(|error| (None, error));
        for (step, rows) in rows.into_iter().enumerate() {
            match rows {
                Ok(rows) => answers.push(rows),
                Err(error) if stopped.is_none() => stopped = Some((Some(step), error)),
                Err(_) => {}
            }
        }
        let after = if end == End::Open { State::InTransaction } else { State::Idle };
        match (stopped, ended) {
            // The server reports success for COMMIT of a failed transaction, but rolls back.
            (Some((step, error)), ended) if end != End::Commit || self.is_definite(&error) => {
                let failure = self.settle::<()>(Err(error), after).err().unwrap_or(Failure::Gone);
                if ended.is_err_and(|error| breaks_connection(&error)) {
                    self.state = State::Broken;
                }
                Err(Stopped { step, failure })
            }
            (Some((_, error)), _) => Ok(self.lose(error)?),
            (None, Err(error)) if end == End::Commit && leaves_commit_open(&error) => Ok(self.lose(error)?),
            (None, ended) => {
                self.settle(ended, after)?;
                if end == End::Commit {
                    self.check_replicated()?;
                }
                Ok(answers)
            }
        }
    }

    /// Rolls back the open transaction if one of its statements has failed.
    pub(crate) async fn roll_back_failed(&mut self) -> Result<()> {
        if self.state != State::Failed {
            return Ok(());
        }
        let client = ready(&self.client, &mut self.state, State::Failed, State::Busy)?;
        let ended = client.batch_execute("ROLLBACK").await;
        self.settle(ended, State::Idle)
    }

    /// Runs a writing statement outside a transaction. It commits by itself.
    pub(crate) async fn commit_alone(&mut self, sql: &str, params: &Params<'_>) -> Result<Vec<Row>> {
        let statement = self.prepare(sql, State::Idle).await?;
        let client = ready(&self.client, &mut self.state, State::Idle, State::Committing)?;
        let mut executed = false;
        match statement.query_watched(client, params, &mut executed).await {
            // The server reports the completion of a statement before it commits. Until then, an
            // error is one of the statement itself, even if it ends the session.
            Err(error) if !self.is_definite(&error) || executed && leaves_commit_open(&error) => {
                self.lose(error)
            }
            // Settings of the session may forbid the statement. A transaction can override them.
            Err(error) if is_refusal(&error) => {
                self.state = State::Idle;
                Err(error.into())
            }
            rows => {
                let rows = self.settle(rows, State::Idle)?;
                self.check_replicated()?;
                Ok(rows)
            }
        }
    }

    /// Runs one statement in a transaction, as [`Session::run`] does, and commits it.
    pub(crate) async fn commit_one(&mut self, opening: &str, call: Call<'_>) -> Result<Vec<Row>> {
        self.run_one(opening, call, End::Commit).await
    }

    /// Runs one statement in a transaction that may run again if the connection is lost.
    pub(crate) async fn finish_one(&mut self, opening: &str, call: Call<'_>) -> Result<Vec<Row>> {
        self.run_one(opening, call, End::Finish).await
    }

    async fn run_one(&mut self, opening: &str, call: Call<'_>, end: End) -> Result<Vec<Row>> {
        match self.run(Some(opening), &[call], end).await {
            Ok(mut answers) => Ok(answers.pop().unwrap_or_default()),
            Err(stopped) => Err(stopped.failure),
        }
    }

    /// Prepares a statement, which costs a round trip the first time. Prepared statements stay with
    /// the connection.
    async fn prepare<'s>(&mut self, sql: &'s str, state: State) -> Result<Ready<'s>> {
        let client = ready(&self.client, &mut self.state, state, State::Busy)?;
        if !client.is_direct() {
            self.state = state;
            return Ok(Ready::Text(sql));
        }
        let statement = match client.prepare_cached(sql).await {
            // Outside a transaction, the settings of the role apply. The server may refuse to
            // prepare the statement, or time out while it waits for a lock. The opening of the
            // transaction overrides these settings.
            Err(error) if state == State::Idle && is_refusal(&error) => Ok(Ready::Text(sql)),
            statement => statement.map(Ready::Prepared),
        };
        // A transaction that cannot prepare its statement has failed, even if it has not begun.
        let state = if statement.is_ok() { state } else { State::Failed };
        self.settle(statement, state)
    }

    fn settle<T>(&mut self, result: Result<T, tokio_postgres::Error>, state: State) -> Result<T> {
        self.state = match &result {
            Err(error) if breaks_connection(error) => State::Broken,
            Err(_) if state == State::InTransaction => State::Failed,
            _ => state,
        };
        Ok(result?)
    }

    /// Whether an error of a statement proves that a commit in the same batch was not made.
    ///
    /// If a pooler ends the session, it may have lost the server's response, so only a refusal by
    /// the server proves it.
    fn is_definite(&self, error: &tokio_postgres::Error) -> bool {
        let is_direct = self.client.as_ref().is_some_and(|client| client.is_direct());
        if is_direct { error.as_db_error().is_some() } else { is_refusal(error) }
    }

    /// Fails if the server stopped waiting for a synchronous standby, because a failover may lose
    /// the commit.
    fn check_replicated(&self) -> Result<()> {
        match self.client.as_ref().is_some_and(|client| client.unreplicated().take()) {
            true => Err(Failure::NotReplicated),
            false => Ok(()),
        }
    }

    fn lose<T>(&mut self, error: tokio_postgres::Error) -> Result<T> {
        self.state = State::Broken;
        Err(Failure::CommitLost(Some(Box::new(error.into()))))
    }
}

/// Returns the connection if the session is in state `expected`, and sets the state to `next`.
fn ready<'a>(
    client: &'a Option<Object>,
    state: &mut State,
    expected: State,
    next: State,
) -> Result<&'a Object> {
    match client {
        // Noticed before anything is sent, so it is certain that nothing was done. Afterwards that
        // could not be known.
        Some(client) if *state == expected && client.is_closed() => {
            *state = State::Broken;
            Err(Failure::Gone)
        }
        Some(client) if *state == expected => {
            if next == State::Committing {
                client.unreplicated().take();
            }
            *state = next;
            Ok(client)
        }
        _ => Err(Error::other(
            "the database connection is unusable after an earlier call failed or was cancelled",
        )
        .into()),
    }
}

/// Returns the statements that begin a transaction on this connection.
fn opened(client: &Object, before: &str, opening: &str) -> String {
    let lifted = if client.has_transaction_timeout() { opening::NO_TRANSACTION_TIMEOUT } else { "" };
    match opening.split_once(';') {
        Some((begin, settings)) => [before, begin, lifted, ";", settings].concat(),
        None => [before, opening, lifted].concat(),
    }
}

/// Runs statements without parameters, if there are any.
async fn simple(client: &Object, sql: Option<&str>) -> Result<(), tokio_postgres::Error> {
    match sql {
        Some(sql) => client.batch_execute(sql).await,
        None => Ok(()),
    }
}

/// A statement that is ready to be sent.
enum Ready<'s> {
    /// It is prepared on the server.
    Prepared(Statement),
    /// Its text is sent.
    Text(&'s str),
}

impl Ready<'_> {
    async fn stream(&self, client: &Object, params: &Params<'_>) -> Result<RowStream, tokio_postgres::Error> {
        match self {
            Self::Prepared(statement) => {
                client.query_raw(statement, params.iter().map(|param| param.sql())).await
            }
            Self::Text(sql) => client.query_typed_raw(sql, typed(params)).await,
        }
    }

    async fn query(&self, client: &Object, params: &Params<'_>) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.stream(client, params).await?.try_collect().await
    }

    /// Like `query`, and sets `executed` once the server has reported that the statement completed.
    async fn query_watched(
        &self,
        client: &Object,
        params: &Params<'_>,
        executed: &mut bool,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let stream = self.stream(client, params).await?;
        pin_mut!(stream);
        let mut rows = Vec::new();
        loop {
            let next = stream.try_next().await;
            *executed = stream.rows_affected().is_some();
            match next? {
                Some(row) => rows.push(row),
                None => return Ok(rows),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        let held = self.held.take();
        match self.state {
            State::Idle => {
                client.note_use();
                drop(client);
            }
            State::InTransaction | State::Failed => drop(self.runtime.spawn(roll_back(client, held))),
            State::Busy => drop(self.runtime.spawn(abandon(client, held))),
            State::Committing => drop(self.runtime.spawn(wait_for_commit(client, held))),
            State::Broken => drop(Object::take(client)),
        }
    }
}

async fn roll_back(client: Object, held: Option<Held>) {
    match timeout(ROLLBACK_MAX, client.batch_execute("ROLLBACK")).await {
        Ok(Ok(())) => {
            client.note_use();
            drop(client);
        }
        _ => abandon(client, held).await,
    }
}

/// Waits up to [`ABANDONED_MAX`] for the response to an abandoned commit, and closes the
/// connection.
///
/// The commit is not cancelled, because the server would then show it before a synchronous standby
/// has received it. Closing the connection at once would not end the server's session either, but
/// only hide it from [`AbandonedCommits`], which limits such sessions.
async fn wait_for_commit(client: Object, held: Option<Held>) {
    let _abandoned = held.as_ref().map(|held| held.abandoned.add());
    // Leaves the pool room for another connection.
    let client = Object::take(client);
    drop(held);
    // The server responds to it after everything that was sent before.
    let mut answer = pin!(client.batch_execute("ROLLBACK"));
    let until = Instant::now() + ABANDONED_MAX;
    while Instant::now() < until {
        client.prober().probe();
        if timeout(ABANDONED_PROBES, answer.as_mut()).await.is_ok() {
            return;
        }
    }
    tracing::warn!("closed a connection to the database whose abandoned commit has not ended");
}

/// Cancels the running statement and closes the connection.
///
/// Without the cancel request, the server would notice that the client is gone only when it sends a
/// response.
async fn abandon(client: Object, held: Option<Held>) {
    if !client.is_closed() {
        client.prober().probe();
        let heard = timeout(CANCEL_MAX, client.cancel()).await;
        tracing::debug!(
            heard = matches!(heard, Ok(Ok(()))),
            "closed a connection to the database while a statement was running"
        );
    }
    drop(Object::take(client));
    drop(held);
}
