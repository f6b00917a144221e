//! Drives a connection, and hears what the server says besides answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::error::{DbError, Severity, SqlState};
use tokio_postgres::{AsyncMessage, Connection};

/// Whether the server has stopped waiting for a synchronous standby.
///
/// It does so if the session that commits is cancelled. It then answers that the commit was made, although a failover may lose
/// it, and only a warning tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unreplicated(Arc<AtomicBool>);

impl Unreplicated {
    /// Whether the server has warned since the last call.
    pub(crate) fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }

    /// The driver hears the warning before it passes on the answer that follows.
    fn hear(&self, notice: &DbError) {
        if is_of_replication(notice) {
            tracing::warn!(message = notice.message(), "the database server no longer waits for its standby");
            self.0.store(true, Ordering::Release);
        }
    }
}

/// A pooler may leave the name of the server's function out.
fn is_of_replication(notice: &DbError) -> bool {
    let is_warning =
        notice.parsed_severity() == Some(Severity::Warning) && *notice.code() == SqlState::WARNING;
    is_warning && notice.routine().is_none_or(|routine| routine == "SyncRepWaitForLSN")
}

/// Drives a connection until it ends, or until it must close.
pub(crate) async fn drive<S, T>(
    mut connection: Connection<S, T>,
    unreplicated: Unreplicated,
    closes: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let until_it_ends = async {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notice(notice))) => unreplicated.hear(&notice),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::debug!(%error, "a connection to the database ended");
                    return;
                }
                None => return,
            }
        }
    };
    tokio::select! {
        () = until_it_ends => {}
        () = closes => tracing::warn!("closed a connection to a database server that does not answer"),
    }
}
