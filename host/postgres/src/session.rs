//! A connection on loan, and what is known of the state that it is in.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join3};
use futures_util::{TryStreamExt, pin_mut};
use larder_core::fair::FairPermit;
use larder_core::{Error, Share};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::error::{Failure, Result, breaks_connection, leaves_commit_open};
use crate::pool::Object;
use crate::queries::Queries;

/// Parameters of a statement.
pub(crate) type Params<'a> = [&'a (dyn ToSql + Sync)];

/// How long a rollback may take before the connection is given up instead.
const ROLLBACK_MAX: Duration = Duration::from_secs(1);

/// How long the server may take to hear that it needn't work on.
const CANCEL_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Ready for the next.
    Idle,
    /// A transaction is open.
    InTransaction,
    /// A transaction is open in which a statement has failed. The server would take its `COMMIT` for a rollback, and
    /// call it a success.
    Failed,
    /// An answer is awaited. A future that is dropped leaves it so.
    Busy,
    /// The same, and what was sent can commit.
    Committing,
    /// Nothing can be sent any more.
    Broken,
}

/// A connection on loan. Dropping it gives it back with nothing left behind: what is open is rolled back, and where
/// that isn't certain the connection is closed.
///
/// The statements that are sent at once are answered in their order; a later one that fails because of an earlier one
/// says less, so the first error counts.
pub(crate) struct Session {
    client: Option<Object>,
    state: State,
    runtime: Handle,
    queries: Arc<Queries>,
    /// None once the session is replaced.
    held: Option<Held>,
}

/// What a session holds as long as its connection is not back in the pool.
pub(crate) struct Held {
    pub(crate) _turn: FairPermit,
    /// Among the snapshots.
    pub(crate) _place: Option<FairPermit>,
    /// Whom it works for.
    pub(crate) share: Share,
    /// Dropped last, once the connection is back in the pool or closed.
    pub(crate) _returned: Returned,
}

/// Tells a wait for a connection of the pool that one has come back, when it is dropped.
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

    /// The statements of the store that the session is for.
    pub(crate) fn queries(&self) -> Arc<Queries> {
        self.queries.clone()
    }

    /// Closes a connection that is gone, so that the pool has room for another one. Gives what the session that replaces this
    /// one is to hold.
    pub(crate) fn give_up(&mut self) -> Option<Held> {
        self.state = State::Broken;
        self.client.take().map(Object::take);
        self.held.take()
    }

    /// Whether it has not been used yet.
    pub(crate) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    pub(crate) fn is_in_transaction(&self) -> bool {
        self.state == State::InTransaction
    }

    /// Whether a commit is under way that nobody has heard the end of.
    pub(crate) fn is_committing(&self) -> bool {
        self.state == State::Committing
    }

    /// Begins a transaction with its first statement.
    pub(crate) async fn begin(&mut self, begin: &str, sql: &str, params: &Params<'_>) -> Result<Vec<Row>> {
        let statement = self.prepare(sql, State::Idle).await?;
        let client = ready(&self.client, &mut self.state, State::Idle, State::Busy)?;
        let (begun, rows) = join(client.batch_execute(begin), client.query(&statement, params)).await;
        self.settle(begun.and(rows), State::InTransaction)
    }

    /// The same, with a statement before it.
    pub(crate) async fn begin_checked(
        &mut self,
        begin: &str,
        (check, check_params): (&str, &Params<'_>),
        sql: &str,
        params: &Params<'_>,
    ) -> Result<(Vec<Row>, Vec<Row>)> {
        let check = self.prepare(check, State::Idle).await?;
        let statement = self.prepare(sql, State::Idle).await?;
        let client = ready(&self.client, &mut self.state, State::Idle, State::Busy)?;
        let begun = client.batch_execute(begin);
        let (begun, checked, rows) =
            join3(begun, client.query(&check, check_params), client.query(&statement, params)).await;
        let both = begun.and(checked).and_then(|checked| rows.map(|rows| (checked, rows)));
        self.settle(both, State::InTransaction)
    }

    /// Runs a statement that is a transaction by itself, and only reads.
    pub(crate) async fn read_alone(&mut self, sql: &str, params: &Params<'_>) -> Result<Vec<Row>> {
        let statement = self.prepare(sql, State::Idle).await?;
        let client = ready(&self.client, &mut self.state, State::Idle, State::Busy)?;
        let rows = client.query(&statement, params).await;
        self.settle(rows, State::Idle)
    }

    /// Runs a statement of an open transaction.
    pub(crate) async fn query(&mut self, sql: &str, params: &Params<'_>) -> Result<Vec<Row>> {
        let statement = self.prepare(sql, State::InTransaction).await?;
        let client = ready(&self.client, &mut self.state, State::InTransaction, State::Busy)?;
        let rows = client.query(&statement, params).await;
        self.settle(rows, State::InTransaction)
    }

    /// Ends an open transaction that wrote nothing.
    pub(crate) async fn commit(&mut self) -> Result<()> {
        let client = ready(&self.client, &mut self.state, State::InTransaction, State::Busy)?;
        let committed = client.batch_execute("COMMIT").await;
        self.settle(committed, State::Idle)
    }

    /// Ends an open transaction with its last statement, which writes.
    pub(crate) async fn commit_with(&mut self, sql: &str, params: &Params<'_>) -> Result<Vec<Row>> {
        let statement = self.prepare(sql, State::InTransaction).await?;
        let client = ready(&self.client, &mut self.state, State::InTransaction, State::Committing)?;
        let (rows, committed) = join(client.query(&statement, params), client.batch_execute("COMMIT")).await;
        // COMMIT of a transaction that has failed is answered as if all were well: it rolled back.
        match (rows, committed) {
            (Err(error), _) if error.as_db_error().is_some() => self.settle(Err(error), State::Idle),
            (Err(error), _) => self.lose(error),
            (Ok(_), Err(error)) if leaves_commit_open(&error) => self.lose(error),
            (rows, committed) => self.settle(committed.and(rows), State::Idle),
        }
    }

    /// Runs a statement that is a transaction by itself, and writes.
    pub(crate) async fn commit_alone(&mut self, sql: &str, params: &Params<'_>) -> Result<Vec<Row>> {
        let statement = self.prepare(sql, State::Idle).await?;
        let client = ready(&self.client, &mut self.state, State::Idle, State::Committing)?;
        let mut executed = false;
        match query_watched(client, &statement, params, &mut executed).await {
            // The server says that a statement is executed before it commits. As long as it hasn't, an error
            // that it sends is the statement's own, also where it takes the session with it.
            Err(error) if error.as_db_error().is_none() || executed && leaves_commit_open(&error) => {
                self.lose(error)
            }
            rows => self.settle(rows, State::Idle),
        }
    }

    /// Runs a statement in a transaction of its own kind.
    pub(crate) async fn enclosed(&mut self, begin: &str, sql: &str, params: &Params<'_>) -> Result<Vec<Row>> {
        let statement = self.prepare(sql, State::Idle).await?;
        let client = ready(&self.client, &mut self.state, State::Idle, State::Busy)?;
        let begun = client.batch_execute(begin);
        let (begun, rows, committed) =
            join3(begun, client.query(&statement, params), client.batch_execute("COMMIT")).await;
        self.settle(begun.and(rows).and_then(|rows| committed.map(|()| rows)), State::Idle)
    }

    /// Prepared statements stay with the connection: this costs a round trip once.
    async fn prepare(&mut self, sql: &str, state: State) -> Result<Statement> {
        let client = ready(&self.client, &mut self.state, state, State::Busy)?;
        let statement = client.prepare_cached(sql).await;
        // A transaction that can't do what it was asked for ends, also where it has not begun.
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

    fn lose<T>(&mut self, error: tokio_postgres::Error) -> Result<T> {
        self.state = State::Broken;
        Err(Failure::CommitLost(Some(Box::new(error.into()))))
    }
}

/// The connection, where it is in the state that is expected, and in the next state from here on.
fn ready<'a>(
    client: &'a Option<Object>,
    state: &mut State,
    expected: State,
    next: State,
) -> Result<&'a Object> {
    match client {
        // What was not sent was not done, which can't be told afterwards.
        Some(client) if *state == expected && client.is_closed() => {
            *state = State::Broken;
            Err(Failure::Gone)
        }
        Some(client) if *state == expected => {
            *state = next;
            Ok(client)
        }
        _ => Err(Error::other("an earlier call ended this use of the database connection").into()),
    }
}

/// A query that also tells whether the server has said that it was executed.
async fn query_watched(
    client: &Object,
    statement: &Statement,
    params: &Params<'_>,
    executed: &mut bool,
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let stream = client.query_raw(statement, params.iter().copied()).await?;
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

impl Drop for Session {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        let held = self.held.take();
        match self.state {
            State::Idle => drop(client),
            State::InTransaction | State::Failed => drop(self.runtime.spawn(roll_back(client, held))),
            State::Busy | State::Committing => drop(self.runtime.spawn(abandon(client, held))),
            State::Broken => drop(Object::take(client)),
        }
    }
}

async fn roll_back(client: Object, held: Option<Held>) {
    match timeout(ROLLBACK_MAX, client.batch_execute("ROLLBACK")).await {
        Ok(Ok(())) => drop(client),
        _ => abandon(client, held).await,
    }
}

/// Closes a connection whose server may be at work for nobody: it would notice only once it has something to send.
async fn abandon(client: Object, held: Option<Held>) {
    if !client.is_closed() {
        let cancelled = timeout(CANCEL_MAX, client.cancel()).await;
        tracing::debug!(
            heard = matches!(cancelled, Ok(Ok(()))),
            "closed a connection to the database in mid-query"
        );
    }
    drop(Object::take(client));
    drop(held);
}
