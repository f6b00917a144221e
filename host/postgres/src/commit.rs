//! Commits: when they run, and how often they are attempted.

use std::sync::Arc;
use std::time::Duration;

use larder_core::commit::{Commit, Committed};
use larder_core::to_its_end::ToItsEnd;
use larder_core::{Error, Result};
use tokio::runtime::Handle;
use tokio::task::JoinError;

use crate::answer::answered;
use crate::commit_alone::Alone;
use crate::commit_transaction::{Attempt, attempt};
use crate::connections::Connections;
use crate::error::{self, Failure};
use crate::locking::Locking;
use crate::session::Session;
use crate::versions;

/// Time limit for a commit. The deadline of its transaction no longer applies.
const COMMIT_MAX: Duration = Duration::from_secs(30);

/// Runs a commit when its turn comes, even if the caller no longer waits for it.
///
/// `session` is the session that read the snapshot, if the snapshot still has one. A transaction
/// may be open in it.
pub(crate) async fn make(
    connections: &Arc<Connections>,
    session: Option<Session>,
    commit: Arc<Commit>,
) -> Result<Committed> {
    connections.check_open()?;
    if commit.writes.is_empty() && commit.conditions.is_empty() {
        if let Some(mut session) = session.filter(Session::is_in_transaction) {
            session.commit().await?;
        }
        return Ok(Committed::default());
    }
    connections.abandoned().check()?;
    let held = connections.clone();
    let work = async move {
        let mut turn = held.large_commits().turn(&commit).await?;
        let session = match session {
            Some(session) => session,
            None => held.session(&commit.share).await?,
        };
        if let Some(turn) = &mut turn {
            turn.begin();
        }
        // Other commits may have been abandoned while this one waited for its turn.
        held.abandoned().check()?;
        let (is_large, is_new) = (turn.is_some(), session.is_idle());
        let making = Making { session, commit };
        let (mut making, outcome) = making.make(held.runtime(), is_large).await?;
        match outcome {
            // The session had no open transaction, so no snapshot is lost.
            Err(failure) if is_new && failure.is_lost_before() => {
                held.renew(&mut making.session).await?;
                making.make(held.runtime(), is_large).await?.1
            }
            outcome => outcome,
        }
    };
    Ok(ToItsEnd::new(connections.runtime(), work).await?)
}

/// A commit, and the session in which it runs.
struct Making {
    session: Session,
    commit: Arc<Commit>,
}

impl Making {
    /// Runs the commit. A large one runs on a blocking thread, because encoding its parameters does
    /// not yield.
    async fn make(
        mut self,
        runtime: &Handle,
        is_large: bool,
    ) -> error::Result<(Self, error::Result<Committed>)> {
        let work = async move {
            let commit = self.commit.clone();
            let outcome = in_time(&mut self.session, async |session| make_in(session, &commit).await).await;
            (self, outcome)
        };
        if !is_large {
            return Ok(work.await);
        }
        let blocking = runtime.clone();
        runtime.spawn_blocking(move || blocking.block_on(work)).await.map_err(not_ended)
    }
}

/// Why the task of a large commit ended without an outcome. If it panicked, the commit may have
/// been sent.
fn not_ended(error: JoinError) -> Failure {
    match error.is_panic() {
        true => Failure::CommitLost(None),
        false => Error::caused("the tokio runtime shut down before the commit was sent", error).into(),
    }
}

/// Runs work that may commit, for up to [`COMMIT_MAX`]. The error says whether the commit may have
/// been made.
pub(crate) async fn in_time<T>(
    session: &mut Session,
    work: impl AsyncFnOnce(&mut Session) -> error::Result<T>,
) -> error::Result<T> {
    match answered(session, COMMIT_MAX, work).await {
        Some(outcome) => outcome,
        None if session.is_committing() => Err(Failure::CommitLost(None)),
        None => Err(Failure::Stalled("timed out before the commit was sent to the database")),
    }
}

async fn make_in(session: &mut Session, commit: &Commit) -> error::Result<Committed> {
    if session.is_idle()
        && let Some(alone) = Alone::of(commit)
    {
        if let Some(committed) = alone.make(session, commit).await? {
            return Ok(committed);
        }
        commit.stage.wait_again();
    }
    let mut locking = Locking::of(commit);
    let mut patience = Patience::First;
    let mut was_behind = false;
    loop {
        commit.stage.check()?;
        match attempt(session, commit, &locking, patience.row_wait_millis(&locking)).await? {
            Attempt::Made(committed) => return Ok(committed),
            Attempt::Contended => {
                session.roll_back_failed().await?;
                patience = patience.next()?;
                locking = match patience {
                    Patience::Alone => locking.exclusive(),
                    Patience::First | Patience::Last => Locking::of(commit),
                };
            }
            Attempt::SequenceBehind if was_behind => {
                return Err(Failure::corrupt("rows have higher versions than the version sequence"));
            }
            Attempt::SequenceBehind => {
                was_behind = true;
                session.roll_back_failed().await?;
                versions::advance(session).await?;
            }
        }
        commit.stage.wait_again();
    }
}

/// How long a commit first waits for a row lock. Shorter than the server's `deadlock_timeout`, 1 s
/// by default.
pub(crate) const ROW_WAIT_MILLIS: u32 = 500;

/// How a commit waits for row locks that other transactions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// It waits for [`ROW_WAIT_MILLIS`].
    First,
    /// It takes exclusive locks of its namespaces, because a stream of shared row locks can starve
    /// an exclusive one.
    Alone,
    /// It waits for a transaction that is not larder's. The wait is longer if it delays no other
    /// commit.
    Last,
}

impl Patience {
    fn row_wait_millis(self, locking: &Locking<'_>) -> u32 {
        if self == Self::Last && !locking.namespaces.has_exclusive() { 10_000 } else { ROW_WAIT_MILLIS }
    }

    fn next(self) -> error::Result<Self> {
        match self {
            Self::First => Ok(Self::Alone),
            Self::Alone => Ok(Self::Last),
            Self::Last => Err(Failure::Stalled("could not obtain a database lock in time")),
        }
    }
}
