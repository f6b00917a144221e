//! The connections of the pool. Their sessions have no settings: see [`opening`](crate::opening).

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use deadpool_postgres::ClientWrapper;
use futures_util::future::join;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tokio_postgres::SimpleQueryMessage;

use crate::connect_error::ConnectError;
use crate::connections::Access;
use crate::connector::{Connected, Connector};
use crate::driver::{Unreplicated, drive};
use crate::encryption::Encryption;
use crate::error::{Failure, Result};
use crate::pooler;
use crate::prober::Prober;

pub(crate) type Pool = managed::Pool<Manager>;
pub(crate) type PoolError = managed::PoolError<Failure>;

/// A connection that is checked out from the pool.
pub(crate) type Object = managed::Object<Manager>;

/// Opens and tests the connections of a pool.
pub(crate) struct Manager {
    pub(crate) connector: Connector,
    pub(crate) access: Access,
}

/// A pooled connection, with its prepared statements.
pub(crate) struct Pooled {
    client: ClientWrapper,
    encryption: Encryption,
    prober: Arc<Prober>,
    made_at: Instant,
    /// When the server last responded.
    used_at: Mutex<Instant>,
    unreplicated: Unreplicated,
    has_transaction_timeout: bool,
    /// Whether no pooler is between larder and the server. A pooler may run each transaction in
    /// another session.
    is_direct: bool,
}

/// Asks whether the server is a standby. `SHOW` needs no snapshot, which a standby refuses if the
/// role's default isolation level is serializable.
const IS_STANDBY: &str = "SHOW in_hot_standby";

/// How long after its last use a connection is reused without a test.
const TRUSTED: Duration = Duration::from_secs(1);

/// Time limit for a test.
const TEST_MAX: Duration = Duration::from_secs(1);

/// The first major version with the setting `transaction_timeout`.
const TRANSACTION_TIMEOUT_SINCE: u32 = 17;

impl managed::Manager for Manager {
    type Type = Pooled;
    type Error = Failure;

    async fn create(&self) -> Result<Pooled> {
        let Connected { client, connection, encryption, host, server, address } =
            self.connector.connect().await?;
        let release = connection.parameter("server_version").and_then(major);
        let (made_at, unreplicated) = (Instant::now(), Unreplicated::default());
        let closes = server.silence.closes(made_at);
        let task = tokio::spawn(drive(connection, unreplicated.clone(), closes));
        let has_transaction_timeout = release.is_none_or(|release| release >= TRANSACTION_TIMEOUT_SINCE);
        let client = ClientWrapper::new(client, task);
        let (answer, is_direct) = join(client.simple_query(IS_STANDBY), pooler::is_direct(&client)).await;
        let answer = answer?;
        let is_standby = answer
            .iter()
            .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("on")));
        if is_standby && self.access == Access::ReadWrite {
            return Err(ConnectError::Standby { host }.into());
        }
        let is_direct = is_direct?;
        let prober = Arc::new(Prober::new(self.connector.clone(), server, address, is_direct));
        Ok(Pooled {
            client,
            encryption,
            prober,
            made_at,
            used_at: Mutex::new(made_at),
            unreplicated,
            has_transaction_timeout,
            is_direct,
        })
    }

    /// Tests a connection before it is reused, unless it was used within the last second.
    ///
    /// A round trip before each use would double the cost of most transactions. A closed connection
    /// is noticed without a test. If the first statement of a caller finds the connection broken,
    /// the caller takes another one.
    ///
    /// Behind a pooler no test is sent. The pooler tests its server connections itself, and it may
    /// have none free, so that the test would get no response.
    async fn recycle(&self, pooled: &mut Pooled, _: &Metrics) -> RecycleResult<Failure> {
        let is_usable = !pooled.client.is_closed()
            && !pooled.prober.silence().is_doubted(pooled.made_at)
            && (!pooled.is_direct || pooled.was_used_lately() || pooled.answers().await);
        if is_usable { Ok(()) } else { Err(RecycleError::Backend(Failure::Gone)) }
    }
}

/// Parses the major version from `server_version`.
fn major(version: &str) -> Option<u32> {
    let digits = version.split(|next: char| !next.is_ascii_digit()).next()?;
    digits.parse().ok()
}

impl Pooled {
    /// Whether the server has the setting `transaction_timeout`.
    pub(crate) fn has_transaction_timeout(&self) -> bool {
        self.has_transaction_timeout
    }

    /// Whether no pooler is between larder and the server, so that prepared statements stay in the
    /// session.
    pub(crate) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Tells whether the server has stopped waiting for a synchronous standby.
    pub(crate) fn unreplicated(&self) -> &Unreplicated {
        &self.unreplicated
    }

    /// Sends a cancel request on a new connection with the same encryption.
    pub(crate) async fn cancel(&self) -> Result<()> {
        Ok(self.client.cancel_token().cancel_query(self.encryption.clone()).await?)
    }

    /// Returns the prober, which checks by a separate login whether the server responds.
    pub(crate) fn prober(&self) -> &Arc<Prober> {
        &self.prober
    }

    /// Records that the server has just responded.
    pub(crate) fn note_use(&self) {
        *self.used_at.lock() = Instant::now();
    }

    fn was_used_lately(&self) -> bool {
        self.used_at.lock().elapsed() < TRUSTED
    }

    /// Whether the server responds on this connection.
    async fn answers(&self) -> bool {
        match timeout(TEST_MAX, self.client.simple_query("")).await {
            Ok(answer) => answer.is_ok(),
            Err(_) => {
                if self.prober.has_others() {
                    self.prober.silence().doubt();
                }
                self.prober.probe();
                false
            }
        }
    }
}

impl Deref for Pooled {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        &self.client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_release_is_read_whatever_follows_it() {
        let versions = ["15.18 (Debian 15.18-0+deb12u1)", "18beta1", "17", "9.6.24", "", "devel"];
        assert_eq!(versions.map(major), [Some(15), Some(18), Some(17), Some(9), None, None]);
    }
}
