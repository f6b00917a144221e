//! The connections of one backend, and the permits that limit them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool::managed::QueueMode;
use larder_core::fair::{FairPermit, FairSemaphore};
use larder_core::{ConnectionWait, Error, OpenSnapshots, Share};
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::abandoned_commits::AbandonedCommits;
use crate::answer::answered_or_stalled;
use crate::connector::Connector;
use crate::crowd::Crowd;
use crate::error::{Failure, Result};
use crate::large_commits::LargeCommits;
use crate::options::PoolSize;
use crate::pool::{Manager, Object, Pool};
use crate::queries::Queries;
use crate::session::{Held, Returned, Session};
use crate::versions;

/// How long to wait for a connection, including the time to open one.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(10);

/// How long, and how often, to retry while the server has too many connections.
const CROWDED_MAX: Duration = Duration::from_secs(5);
const CROWDED_PAUSE: Duration = Duration::from_millis(20);

/// How long to wait for a connection to return to the pool before the next attempt to open one on a
/// crowded server.
const CROWDED_RETRY: Duration = Duration::from_millis(100);

/// Runs `work`, which needs a connection, and retries it while the server has too many connections.
///
/// The server counts a session for a short time after its client has closed it, and a role may have
/// a low connection limit.
pub(crate) async fn while_crowded<T, W: Future<Output = Result<T>>>(work: impl Fn() -> W) -> Result<T> {
    let until = Instant::now() + CROWDED_MAX;
    loop {
        match work().await {
            Err(failure) if failure.is_crowded() && Instant::now() < until => sleep(CROWDED_PAUSE).await,
            outcome => return outcome,
        }
    }
}

/// Whether the sessions of a backend may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

/// The connection pool of one backend, with fair queues in front of it.
pub(crate) struct Connections {
    pool: Pool,
    access: Access,
    /// One permit for each connection, `pool_size` in total.
    turns: FairSemaphore,
    /// One permit for each snapshot, `pool_snapshots` in total.
    snapshot_permits: FairSemaphore,
    large: LargeCommits,
    /// The open snapshots of the stores. Some of them hold a connection.
    snapshots: Mutex<OpenSnapshots>,
    closed: AtomicBool,
    abandoned: AbandonedCommits,
    /// Notified when a connection has returned to the pool.
    returned: Arc<Notify>,
    /// Callers that wait for that, because the server accepts no more connections.
    crowd: Crowd,
    queries: Arc<Queries>,
    /// Runs work that outlives its caller.
    runtime: Handle,
}

impl Connections {
    /// Creates the connections for the tables in `schema`. The search path of their sessions does
    /// not matter.
    pub(crate) fn new(
        connector: Connector,
        runtime: Handle,
        access: Access,
        schema: &str,
    ) -> Result<Self, Error> {
        let PoolSize { connections, snapshots } = connector.options().pool;
        let pool = Pool::builder(Manager { connector, access })
            .max_size(connections)
            // The connection that was used last has its statements prepared.
            .queue_mode(QueueMode::Lifo)
            .build()
            .map_err(|error| Error::caused("cannot create the connection pool", error))?;
        Ok(Self {
            pool,
            access,
            turns: FairSemaphore::new(connections),
            snapshot_permits: FairSemaphore::new(snapshots),
            large: LargeCommits::new(),
            snapshots: Mutex::default(),
            closed: AtomicBool::new(false),
            abandoned: AbandonedCommits::at_most(connections),
            returned: Arc::default(),
            crowd: Crowd::new(),
            queries: Arc::new(Queries::of(schema)),
            runtime,
        })
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed.into()) } else { Ok(()) }
    }

    pub(crate) fn abandoned(&self) -> &AbandonedCommits {
        &self.abandoned
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn queries(&self) -> &Arc<Queries> {
        &self.queries
    }

    /// Adds the snapshots of a store. They are asked to give up connections when there are too few.
    pub(crate) fn attach(&self, snapshots: OpenSnapshots) {
        self.lock_snapshots().join(snapshots);
    }

    /// Returns a session for one operation.
    pub(crate) async fn session(&self, share: &Share) -> Result<Session> {
        let _wait = self.wait();
        let turn = self.turn(share).await?;
        self.connect(self.held(turn, None, share)).await
    }

    /// Returns a session that a snapshot may hold until it ends.
    pub(crate) async fn snapshot_session(&self, share: &Share) -> Result<Session> {
        self.check_open()?;
        let give_up = std::time::Instant::now() + WAIT_MAX;
        let snapshots = self.lock_snapshots().clone();
        let permit = match snapshots.permit(&self.snapshot_permits, share, give_up).await {
            Err(Error::TimedOut) => {
                return Err(Failure::Stalled(
                    "timed out because too many transactions hold a database connection",
                ));
            }
            permit => permit?,
        };
        let _wait = self.wait();
        let turn = self.turn(share).await?;
        self.connect(self.held(turn, Some(permit), share)).await
    }

    pub(crate) fn large_commits(&self) -> &LargeCommits {
        &self.large
    }

    fn wait(&self) -> ConnectionWait<impl Fn() -> OpenSnapshots> {
        ConnectionWait::new(|| self.lock_snapshots().clone())
    }

    async fn turn(&self, share: &Share) -> Result<FairPermit> {
        self.check_open()?;
        match timeout(WAIT_MAX, self.turns.acquire(share)).await {
            Ok(turn) => Ok(turn?),
            Err(_) => Err(Failure::Stalled("timed out while waiting for a free database connection")),
        }
    }

    async fn connect(&self, held: Held) -> Result<Session> {
        let Ok(client) = timeout(WAIT_MAX, self.client(&held.share)).await else {
            return Err(Failure::Stalled("timed out while waiting for a free database connection"));
        };
        let client = client?;
        let is_new = Object::metrics(&client).recycle_count == 0;
        let mut session = Session::new(client, self.runtime.clone(), self.queries.clone(), held);
        if is_new && self.access == Access::ReadWrite {
            answered_or_stalled(&mut session, WAIT_MAX, versions::follow_clock).await?;
        }
        Ok(session)
    }

    fn held(&self, turn: FairPermit, snapshot_permit: Option<FairPermit>, share: &Share) -> Held {
        let returned = Returned(self.returned.clone());
        let (share, abandoned) = (share.clone(), self.abandoned.clone());
        Held { _turn: turn, _snapshot_permit: snapshot_permit, share, abandoned, _returned: returned }
    }

    /// Takes a connection from the pool, which opens one if none is idle.
    ///
    /// If the server accepts no more connections, the call waits for one to return to the pool, and
    /// the shares take turns. If the pool has no open connection, the call retries the server for
    /// [`CROWDED_MAX`].
    async fn client(&self, share: &Share) -> Result<Object> {
        if !self.crowd.is_waited_for() {
            match self.pool.get().await {
                Ok(client) => return Ok(client),
                Err(error) => match Failure::from(error) {
                    failure if failure.is_crowded() => {}
                    failure => return Err(failure),
                },
            }
        }
        let since = Instant::now();
        let _first = self.crowd.first(share).await?;
        loop {
            let failure = match self.pool.get().await {
                Ok(client) => return Ok(client),
                Err(error) => Failure::from(error),
            };
            let has_others = self.pool.status().size > 0;
            if !failure.is_crowded() || !has_others && since.elapsed() >= CROWDED_MAX {
                return Err(failure);
            }
            // Snapshots of idle guests may hold all connections.
            let snapshots = self.lock_snapshots().clone();
            snapshots.reclaim_for(share, since.elapsed());
            // The server does not notify clients when it accepts connections again.
            drop(timeout(CROWDED_RETRY, self.returned.notified()).await);
        }
    }

    /// Replaces the broken connection of a session.
    ///
    /// The server was most likely restarted, and idle connections broke with it. They are closed,
    /// so that the session gets a newly opened connection.
    pub(crate) async fn renew(&self, session: &mut Session) -> Result<()> {
        let Some(held) = session.give_up() else { return Err(Failure::Gone) };
        self.pool.retain(|_, _| false);
        *session = self.connect(held).await?;
        Ok(())
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.turns.close();
        self.snapshot_permits.close();
        self.large.close();
        self.crowd.close();
        self.pool.close();
    }

    /// A panic of another thread cannot have left the value inconsistent.
    fn lock_snapshots(&self) -> MutexGuard<'_, OpenSnapshots> {
        self.snapshots.lock()
    }
}
