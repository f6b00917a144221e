//! Brings larder's own tables up to date, by one process at a time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_core::Error;
use larder_core::schema::{AppliedStep, Step, pending};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{Client, Config, IsolationLevel, NoTls};

use crate::error::{Failure, Result};
use crate::rows::{column, saturating};

const STEPS: &[Step] = &[
    Step { number: 1, name: "entries", sql: include_str!("../../../migrations/postgres/0001_entries.sql") },
    Step {
        number: 2,
        name: "memory_state",
        sql: include_str!("../../../migrations/postgres/0002_memory_state.sql"),
    },
];

/// How long to wait for the server.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long to wait for others who bring the same schema up to date. The server ends the wait; larder's own
/// limit, a little later, is for a server that says nothing any more.
const LOCK_WAIT: &str = "SET lock_timeout = '60s'; SET statement_timeout = 0";
const LOCK_MAX: Duration = Duration::from_secs(65);

/// In the schema where tables are made, and in no other of the search path.
const HAS_LEDGER: &str =
    "SELECT to_regclass(quote_ident(current_schema()) || '.larder_migrations') IS NOT NULL AS has_ledger";

const CREATE_LEDGER: &str = "
    CREATE TABLE larder_migrations (
        number     INTEGER PRIMARY KEY,
        name       TEXT NOT NULL,
        checksum   BYTEA NOT NULL,
        applied_at BIGINT NOT NULL
    )";

/// Brings the schema up to date.
pub(crate) async fn migrate(config: &Config) -> Result<()> {
    let Ok(connected) = timeout(CONNECT_MAX, config.connect(NoTls)).await else {
        return Err(Failure::Stalled("the database could not be connected to in time"));
    };
    let (client, connection) = connected?;
    // The lock belongs to the session, which is closed in any case: at the end, and where this future is dropped.
    let mut connection = Connection(tokio::spawn(async move { drop(connection.await) }));
    let outcome = migrate_alone(client).await;
    if outcome.is_ok() {
        connection.closed().await;
    }
    outcome
}

struct Connection(JoinHandle<()>);

impl Connection {
    /// Waits until the server has been told goodbye.
    async fn closed(&mut self) {
        drop(timeout(Duration::from_secs(1), &mut self.0).await);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn migrate_alone(mut client: Client) -> Result<()> {
    let key = lock_key(&current_schema(&client).await?);
    client.batch_execute(LOCK_WAIT).await?;
    let Ok(locked) = timeout(LOCK_MAX, client.execute("SELECT pg_advisory_lock($1)", &[&key])).await else {
        return Err(Failure::Stalled("another process has been changing the database's schema for too long"));
    };
    locked?;
    // What others did while this one waited counts.
    let applied = ledger(&mut client).await?;
    for step in pending(STEPS, &applied).map_err(Error::from)? {
        apply(&mut client, step).await?;
    }
    client.execute("SELECT pg_advisory_unlock($1)", &[&key]).await?;
    Ok(())
}

async fn current_schema(client: &Client) -> Result<String> {
    let row = client.query_one("SELECT current_schema() AS name", &[]).await?;
    column::<Option<String>>(&row, "name")?.ok_or_else(|| {
        let reason = "the search path of the Postgres store names no schema that exists; create it first";
        Error::invalid_argument(reason).into()
    })
}

/// A key that is larder's own, and another for each schema: FNV-1a.
fn lock_key(schema: &str) -> i64 {
    let bytes = "larder schema ".bytes().chain(schema.bytes());
    bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        .cast_signed()
}

/// The steps that were applied. The table is made only where it is missing: a role that may not make tables can use
/// what another has made.
async fn ledger(client: &mut Client) -> Result<Vec<AppliedStep>> {
    if !column::<bool>(&client.query_one(HAS_LEDGER, &[]).await?, "has_ledger")? {
        client.batch_execute(CREATE_LEDGER).await?;
    }
    let rows = client.query("SELECT number, checksum FROM larder_migrations ORDER BY number", &[]).await?;
    rows.iter()
        .map(|row| {
            let number = u32::try_from(column::<i32>(row, "number")?)
                .map_err(|_| Failure::corrupt("the ledger of schema steps has a negative number"))?;
            Ok(AppliedStep { number, checksum: column(row, "checksum")? })
        })
        .collect()
}

/// A step and its entry in the ledger come together or not at all.
async fn apply(client: &mut Client, step: &Step) -> Result<()> {
    let number =
        i32::try_from(step.number).map_err(|_| Failure::corrupt("a schema step's number is too large"))?;
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::ReadCommitted)
        .read_only(false)
        .start()
        .await?;
    transaction.batch_execute(step.sql).await?;
    transaction
        .execute(
            "INSERT INTO larder_migrations (number, name, checksum, applied_at) VALUES ($1, $2, $3, $4)",
            &[&number, &step.name, &step.checksum().as_slice(), &unix_millis()],
        )
        .await?;
    Ok(transaction.commit().await?)
}

fn unix_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    saturating(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_follow_each_other() {
        assert_eq!(pending(STEPS, &[]).unwrap().len(), STEPS.len());
    }

    #[test]
    fn each_schema_has_a_lock_of_its_own() {
        assert_eq!(lock_key("public"), lock_key("public"));
        assert_ne!(lock_key("public"), lock_key("tenant_a"));
    }
}
