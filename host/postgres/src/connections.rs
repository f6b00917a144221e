//! The connections of one backend, and how their sessions are set up.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod};
use larder_core::commit::Commit;
use larder_core::fair::{FairPermit, FairSemaphore};
use larder_core::{Error, OpenSnapshots, Share};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Config, NoTls};

use crate::error::{Failure, Result};
use crate::queries::Queries;
use crate::session::{Held, Session};

/// The most connections that one backend has at a time.
pub const CONNECTIONS_MAX: usize = 25;

/// The most of them that snapshots have. A snapshot keeps its connection as long as its guest thinks; commits of
/// other transactions must not wait for that.
pub const SNAPSHOTS_MAX: usize = 20;

/// How long to wait for a connection, making one included.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// How often a commit that waits looks whether it was withdrawn: until then it may keep a connection from others.
const WITHDRAWN_INTERVAL: Duration = Duration::from_millis(50);

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
    /// For as many connections as there may be.
    turns: FairSemaphore,
    /// For as many snapshots as there may be.
    places: FairSemaphore,
    /// For one large commit at a time: several would take the server's processors from all others.
    large: FairSemaphore,
    /// Those of the stores, some of which have a connection.
    snapshots: Mutex<OpenSnapshots>,
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
        Ok(Self {
            pool,
            access,
            turns: FairSemaphore::new(CONNECTIONS_MAX),
            places: FairSemaphore::new(SNAPSHOTS_MAX),
            large: FairSemaphore::new(1),
            snapshots: Mutex::default(),
            closed: AtomicBool::new(false),
            queries: Arc::new(Queries::of(schema)),
            runtime,
        })
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

    pub(crate) fn queries(&self) -> &Arc<Queries> {
        &self.queries
    }

    /// The snapshots of a store, which are asked for connections if there are too few.
    pub(crate) fn attach(&self, snapshots: OpenSnapshots) {
        self.lock_snapshots().join(snapshots);
    }

    /// A connection for one piece of work.
    pub(crate) async fn session(&self, share: &Share) -> Result<Session> {
        let turn = self.turn(share).await?;
        self.connect(Held { _turn: turn, _place: None }).await
    }

    /// A connection that a snapshot may keep.
    pub(crate) async fn snapshot_session(&self, share: &Share) -> Result<Session> {
        self.check_open()?;
        let give_up = std::time::Instant::now() + WAIT_MAX;
        let snapshots = self.lock_snapshots().clone();
        let place = match snapshots.permit(&self.places, share, give_up).await {
            Err(Error::TimedOut) => {
                return Err(Failure::Stalled("too many transactions have a connection to the database"));
            }
            place => place?,
        };
        let turn = self.turn(share).await?;
        self.connect(Held { _turn: turn, _place: Some(place) }).await
    }

    /// Waits for the turn of a large commit, until the commit is withdrawn. Other commits don't wait.
    pub(crate) async fn large_turn(&self, commit: &Commit) -> Result<Option<FairPermit>> {
        if !commit.is_large() {
            return Ok(None);
        }
        let mut turn = pin!(self.large.acquire(&commit.share));
        loop {
            commit.stage.check()?;
            if let Ok(turn) = timeout(WITHDRAWN_INTERVAL, turn.as_mut()).await {
                return Ok(Some(turn?));
            }
        }
    }

    async fn turn(&self, share: &Share) -> Result<FairPermit> {
        self.check_open()?;
        match timeout(WAIT_MAX, self.turns.acquire(share)).await {
            Ok(turn) => Ok(turn?),
            Err(_) => Err(Failure::Stalled("no connection to the database became free in time")),
        }
    }

    async fn connect(&self, held: Held) -> Result<Session> {
        let Ok(client) = timeout(WAIT_MAX, self.pool.get()).await else {
            return Err(Failure::Stalled("no connection to the database became free in time"));
        };
        Ok(Session::new(client?, self.runtime.clone(), self.queries.clone(), held))
    }

    /// Replaces a connection that turned out to be gone. The server was most likely restarted, and those that nobody
    /// uses have gone with it: they are closed, so that the new one is new.
    pub(crate) async fn renew(&self, session: &mut Session) -> Result<()> {
        let Some(held) = session.give_up() else { return Err(Failure::Gone) };
        self.pool.retain(|_, _| false);
        *session = self.connect(held).await?;
        Ok(())
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.turns.close();
        self.places.close();
        self.large.close();
        self.pool.close();
    }

    /// A panic elsewhere can't have left it half changed.
    fn lock_snapshots(&self) -> MutexGuard<'_, OpenSnapshots> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
