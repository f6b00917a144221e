//! The connections of one backend, and how their sessions are set up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod};
use larder_core::Error;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Config, NoTls};

use crate::error::{Failure, Result};
use crate::queries::Queries;
use crate::session::Session;

/// The most connections that one backend has at a time.
pub const CONNECTIONS_MAX: usize = 25;

/// The most of them that snapshots have. A snapshot keeps its connection as long as its guest thinks; commits of
/// other transactions must not wait for that.
pub const SNAPSHOTS_MAX: usize = 20;

/// How long to wait for a connection, making one included.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// How long to ask a server again that has too many connections, and how often.
const CROWDED_MAX: Duration = Duration::from_secs(5);
const CROWDED_PAUSE: Duration = Duration::from_millis(20);

/// Does something that needs a connection, again while the server has too many: it counts a session for a moment after its
/// client has closed it, and a role may have few.
pub(crate) async fn while_crowded<T, W: Future<Output = Result<T>>>(work: impl Fn() -> W) -> Result<T> {
    let until = Instant::now() + CROWDED_MAX;
    loop {
        match work().await {
            Err(failure) if failure.is_crowded() && Instant::now() < until => sleep(CROWDED_PAUSE).await,
            outcome => return outcome,
        }
    }
}

/// What every session is set to.
///
/// - A single statement is a serializable transaction too.
/// - The server watches what a plan touches, not what it returns: a sequential scan counts as reading the whole
///   table, and a bitmap scan reads a range past its `LIMIT`. Without them every read is a walk along the primary key,
///   which is what a small table would not get by its costs. With one plan left, planning anew is a waste.
/// - A disabled plan's cost would start the compiler for a statement that takes microseconds.
/// - A cancel request can come before the statement that it is meant for. The server then notices by itself that nobody
///   is there any more, also while it waits for a lock.
/// - The timeouts are nets under those of larder, which are shorter: for a process that is stopped in the middle.
const SETUP: &str = "
    SET default_transaction_isolation = 'serializable';
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET plan_cache_mode = force_generic_plan;
    SET jit = off;
    SET client_connection_check_interval = '1s';
    SET idle_in_transaction_session_timeout = '10min';
    SET statement_timeout = '60s'";

/// What the sessions of a backend may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

/// The server refuses a write in such a session. A standby refuses serializable transactions, and what only reads sees one
/// committed state in a weaker one too.
const READ_ONLY: &str =
    "SET default_transaction_isolation = 'repeatable read'; SET default_transaction_read_only = on";

/// The connections of one backend.
pub(crate) struct Connections {
    pool: Pool,
    access: Access,
    /// For as many snapshots as there may be.
    places: Arc<Semaphore>,
    closed: AtomicBool,
    queries: Arc<Queries>,
    /// Where work goes on that nobody waits for.
    runtime: Handle,
}

impl Connections {
    /// Connections for the tables in a schema. The search path of the sessions has no part in what they find.
    pub(crate) fn new(config: Config, runtime: Handle, access: Access, schema: &str) -> Result<Self, Error> {
        // A round trip to test a connection would double the cost of most transactions. What has closed is noticed
        // without one, and who finds a connection broken at its first use takes another.
        let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let pool = Pool::builder(Manager::from_config(config, NoTls, manager))
            .max_size(CONNECTIONS_MAX)
            // The latest has its statements prepared.
            .queue_mode(QueueMode::Lifo)
            .post_create(Hook::async_fn(move |client, _| {
                Box::pin(async move {
                    let setup = match access {
                        Access::ReadWrite => SETUP.to_string(),
                        Access::ReadOnly => format!("{SETUP}; {READ_ONLY}"),
                    };
                    client.batch_execute(&setup).await.map_err(HookError::Backend)
                })
            }))
            .build()
            .map_err(|error| Error::caused("the connection pool could not be made", error))?;
        let places = Arc::new(Semaphore::new(SNAPSHOTS_MAX));
        let queries = Arc::new(Queries::of(schema));
        Ok(Self { pool, access, places, closed: AtomicBool::new(false), queries, runtime })
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed.into()) } else { Ok(()) }
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn queries(&self) -> &Queries {
        &self.queries
    }

    /// A connection for one piece of work.
    pub(crate) async fn session(&self) -> Result<Session> {
        self.check_open()?;
        let Ok(client) = timeout(WAIT_MAX, self.pool.get()).await else {
            return Err(Failure::Stalled("no connection to the database became free in time"));
        };
        Ok(Session::new(client?, self.runtime.clone(), self.queries.clone()))
    }

    /// A connection that a snapshot may keep.
    pub(crate) async fn snapshot_session(&self) -> Result<Session> {
        self.check_open()?;
        let Ok(place) = timeout(WAIT_MAX, self.places.clone().acquire_owned()).await else {
            return Err(Failure::Stalled("too many transactions have a connection to the database"));
        };
        let place = place.map_err(|_| Error::Closed)?;
        Ok(self.session().await?.with_place(Some(place)))
    }

    /// Replaces a connection that turned out to be gone. The server was most likely restarted, and those that nobody
    /// uses have gone with it: they are closed, so that the new one is new.
    pub(crate) async fn renew(&self, session: &mut Session) -> Result<()> {
        let place = session.take_place();
        self.pool.retain(|_, _| false);
        *session = self.session().await?.with_place(place);
        Ok(())
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.places.close();
        self.pool.close();
    }
}
