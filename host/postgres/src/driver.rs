//! Drives a connection, and handles the notices that the server sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::error::{DbError, Severity, SqlState};
use tokio_postgres::{AsyncMessage, Connection};

/// Whether the server has stopped waiting for a synchronous standby.
///
/// The server stops if the committing session is cancelled. It then reports the commit as made,
/// although a failover may lose it, and sends a warning.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unreplicated(Arc<AtomicBool>);

impl Unreplicated {
    /// Whether the server has sent the warning since the last call.
    pub(crate) fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }

    /// Handles a notice. The driver receives the warning before it passes on the response that
    /// follows it.
    fn hear(&self, notice: &DbError) {
        if is_of_replication(notice) {
            tracing::warn!(
                message = notice.message(),
                "the database server stopped waiting for its synchronous standby"
            );
            self.0.store(true, Ordering::Release);
        }
    }
}

/// Matches the warning by its severity, SQLSTATE and routine. A pooler may omit the routine.
fn is_of_replication(notice: &DbError) -> bool {
    let is_warning =
        notice.parsed_severity() == Some(Severity::Warning) && *notice.code() == SqlState::WARNING;
    is_warning && notice.routine().is_none_or(|routine| routine == "SyncRepWaitForLSN")
}

/// Drives a connection until it ends or must close.
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
        () = closes => tracing::warn!("closed a connection to a database server that does not respond"),
    }
}
