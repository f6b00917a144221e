//! The pool's connections, and how their sessions are set up.

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
}

/// What every session is set to.
///
/// - A single statement is a serializable transaction too. The settings of the role or the database must not make it read-only
///   or deferrable.
/// - The server watches what a plan touches, not what it returns: a sequential scan counts as reading the whole
///   table, and a bitmap scan reads a range past its `LIMIT`. Without them every read is a walk along the primary key,
///   which is what a small table would not get by its costs. With one plan left, planning anew is a waste.
/// - A disabled plan's cost would start the compiler for a statement that takes microseconds.
/// - A cancel request can come before the statement that it is meant for. The server then notices by itself that nobody
///   is there any more, also while it waits for a lock.
/// - The timeouts are a safety net for a larder process that is stopped. Timeouts of larder itself are shorter.
const SETUP: &str = "
    SET default_transaction_isolation = 'serializable';
    SET default_transaction_read_only = off;
    SET default_transaction_deferrable = off;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET plan_cache_mode = force_generic_plan;
    SET jit = off;
    SET client_connection_check_interval = '1s';
    SET idle_in_transaction_session_timeout = '10min';
    SET lock_timeout = 0;
    SET statement_timeout = '60s'";

/// The server refuses a write in such a session. A standby refuses serializable transactions, and what only reads sees one
/// committed state in a weaker one too.
const READ_ONLY: &str =
    "SET default_transaction_isolation = 'repeatable read'; SET default_transaction_read_only = on";

/// Asks whether the server is a standby. `SHOW` needs no snapshot: a standby refuses one to a serializable transaction.
const IS_STANDBY: &str = "SHOW in_hot_standby";

/// Removes the limit of a transaction's duration. Releases before 17 do not have the setting.
const NO_TRANSACTION_TIMEOUT: &str = "
    SELECT set_config('transaction_timeout', '0', false) WHERE current_setting('transaction_timeout', true) IS NOT NULL";

impl managed::Manager for Manager {
    type Type = Pooled;
    type Error = Failure;

    async fn create(&self) -> Result<Pooled> {
        let Connected { client, connection, encryption, host } = self.connector.connect().await?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the database ended");
            }
        });
        let pooled = Pooled { client: ClientWrapper::new(client, task), encryption };
        let setup = match self.access {
            Access::ReadWrite => format!("{SETUP}; {IS_STANDBY}"),
            Access::ReadOnly => format!("{SETUP}; {READ_ONLY}"),
        };
        let (answer, lifted) =
            join(pooled.client.simple_query(&setup), pooled.client.simple_query(NO_TRANSACTION_TIMEOUT))
                .await;
        let answer = answer?;
        let is_standby = answer
            .iter()
            .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("on")));
        if is_standby {
            return Err(ConnectError::Standby { host }.into());
        }
        lifted?;
        Ok(pooled)
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

impl Pooled {
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
