//! The connections of one backend, and how their sessions are set up.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool::managed::QueueMode;
use larder_core::commit::Commit;
use larder_core::fair::{FairPermit, FairSemaphore};
use larder_core::{ConnectionWait, Error, OpenSnapshots, Share};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::abandoned_commits::AbandonedCommits;
use crate::answer::answered_or_stalled;
use crate::connector::Connector;
use crate::crowd::Crowd;
use crate::error::{Failure, Result};
use crate::options::PoolSize;
use crate::pool::{Manager, Object, Pool};
use crate::queries::Queries;
use crate::session::{Held, Returned, Session};
use crate::versions;

/// How long to wait for a connection, making one included.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(10);

/// How often a commit that waits looks whether it was withdrawn: until then it may keep a connection from others.
const WITHDRAWN_INTERVAL: Duration = Duration::from_millis(50);

/// How long to ask a server again that has too many connections, and how often.
const CROWDED_MAX: Duration = Duration::from_secs(5);
const CROWDED_PAUSE: Duration = Duration::from_millis(20);

/// How long to wait for a connection to come back to the pool before a server that has too many is asked again.
const CROWDED_RETRY: Duration = Duration::from_millis(100);

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

/// What the sessions of a backend may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

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
    abandoned: AbandonedCommits,
    /// Told when a connection is back in the pool.
    returned: Arc<Notify>,
    /// Those who wait for that, as the server has no room for more.
    crowd: Crowd,
    queries: Arc<Queries>,
    /// Where work goes on that nobody waits for.
    runtime: Handle,
}

impl Connections {
    /// Connections for the tables in a schema. The search path of the sessions has no part in what they find.
    pub(crate) fn new(
        connector: Connector,
        runtime: Handle,
        access: Access,
        schema: &str,
    ) -> Result<Self, Error> {
        let PoolSize { connections, snapshots } = connector.options().pool;
        let pool = Pool::builder(Manager { connector, access })
            .max_size(connections)
            // The latest has its statements prepared.
            .queue_mode(QueueMode::Lifo)
            .build()
            .map_err(|error| Error::caused("the connection pool could not be made", error))?;
        Ok(Self {
            pool,
            access,
            turns: FairSemaphore::new(connections),
            places: FairSemaphore::new(snapshots),
            large: FairSemaphore::new(1),
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

    /// The snapshots of a store, which are asked for connections if there are too few.
    pub(crate) fn attach(&self, snapshots: OpenSnapshots) {
        self.lock_snapshots().join(snapshots);
    }

    /// A connection for one piece of work.
    pub(crate) async fn session(&self, share: &Share) -> Result<Session> {
        let _wait = self.wait();
        let turn = self.turn(share).await?;
        self.connect(self.held(turn, None, share)).await
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
        let _wait = self.wait();
        let turn = self.turn(share).await?;
        self.connect(self.held(turn, Some(place), share)).await
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

    fn wait(&self) -> ConnectionWait<impl Fn() -> OpenSnapshots> {
        ConnectionWait::new(|| self.lock_snapshots().clone())
    }

    async fn turn(&self, share: &Share) -> Result<FairPermit> {
        self.check_open()?;
        match timeout(WAIT_MAX, self.turns.acquire(share)).await {
            Ok(turn) => Ok(turn?),
            Err(_) => Err(Failure::Stalled("no connection to the database became free in time")),
        }
    }

    async fn connect(&self, held: Held) -> Result<Session> {
        let Ok(client) = timeout(WAIT_MAX, self.client(&held.share)).await else {
            return Err(Failure::Stalled("no connection to the database became free in time"));
        };
        let client = client?;
        let is_new = Object::metrics(&client).recycle_count == 0;
        let mut session = Session::new(client, self.runtime.clone(), self.queries.clone(), held);
        if is_new && self.access == Access::ReadWrite {
            answered_or_stalled(&mut session, WAIT_MAX, versions::follow_clock).await?;
        }
        Ok(session)
    }

    fn held(&self, turn: FairPermit, place: Option<FairPermit>, share: &Share) -> Held {
        let returned = Returned(self.returned.clone());
        let (share, abandoned) = (share.clone(), self.abandoned.clone());
        Held { _turn: turn, _place: place, share, abandoned, _returned: returned }
    }

    /// A connection of the pool. If the server accepts no more, the call waits for one of the pool's, in the share's turn. If
    /// the pool has none, the server is asked again for a short time.
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
            // Snapshots may hold all connections while their guests are idle.
            let snapshots = self.lock_snapshots().clone();
            snapshots.reclaim_for(share, since.elapsed());
            // The server does not announce that it accepts connections again.
            drop(timeout(CROWDED_RETRY, self.returned.notified()).await);
        }
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
        self.crowd.close();
        self.pool.close();
    }

    /// A panic elsewhere can't have left it half changed.
    fn lock_snapshots(&self) -> MutexGuard<'_, OpenSnapshots> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
