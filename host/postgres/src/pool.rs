//! The pool's connections. Their sessions have no settings: see [openings](crate::opening).

use std::ops::Deref;

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use deadpool_postgres::ClientWrapper;
use futures_util::future::join;
use tokio_postgres::SimpleQueryMessage;

use crate::connect_error::ConnectError;
use crate::connections::Access;
use crate::connector::{Connected, Connector};
use crate::encryption::Encryption;
use crate::error::{Failure, Result};
use crate::pooler;

pub(crate) type Pool = managed::Pool<Manager>;
pub(crate) type PoolError = managed::PoolError<Failure>;

/// A connection on loan from the pool.
pub(crate) type Object = managed::Object<Manager>;

/// Makes the connections of a pool.
pub(crate) struct Manager {
    pub(crate) connector: Connector,
    pub(crate) access: Access,
}

/// A connection of a pool, with its prepared statements.
pub(crate) struct Pooled {
    client: ClientWrapper,
    encryption: Encryption,
    has_transaction_timeout: bool,
    keeps_statements: bool,
}

/// Asks whether the server is a standby. `SHOW` needs no snapshot: a standby refuses one if the role's transactions are serializable.
const IS_STANDBY: &str = "SHOW in_hot_standby";

/// The first release with the setting `transaction_timeout`.
const TRANSACTION_TIMEOUT_SINCE: u32 = 17;

impl managed::Manager for Manager {
    type Type = Pooled;
    type Error = Failure;

    async fn create(&self) -> Result<Pooled> {
        let Connected { client, connection, encryption, host } = self.connector.connect().await?;
        let release = connection.parameter("server_version").and_then(major);
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the database ended");
            }
        });
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
        let keeps_statements = is_direct?;
        Ok(Pooled { client, encryption, has_transaction_timeout, keeps_statements })
    }

    /// Does not test the connection: a round trip would double the cost of most transactions. A closed connection is noticed
    /// without one, and a caller whose first statement finds the connection broken takes another.
    async fn recycle(&self, pooled: &mut Pooled, _: &Metrics) -> RecycleResult<Failure> {
        match pooled.client.is_closed() {
            true => Err(RecycleError::Backend(Failure::Gone)),
            false => Ok(()),
        }
    }
}

/// The major number of a server's release.
fn major(version: &str) -> Option<u32> {
    let digits = version.split(|next: char| !next.is_ascii_digit()).next()?;
    digits.parse().ok()
}

impl Pooled {
    /// Whether the server can be told to end transactions after some time.
    pub(crate) fn has_transaction_timeout(&self) -> bool {
        self.has_transaction_timeout
    }

    /// Whether the session keeps the statements that are prepared in it.
    pub(crate) fn keeps_statements(&self) -> bool {
        self.keeps_statements
    }

    /// Sends a cancel request, on a new connection with the same encryption.
    pub(crate) async fn cancel(&self) -> Result<()> {
        Ok(self.client.cancel_token().cancel_query(self.encryption.clone()).await?)
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
