//! One guest and one Postgres server.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use larder_host::{Store, drivers};
use tokio_postgres::{Client, NoTls};

use crate::form::USUAL;
use crate::guest::Workload;
use crate::larder_side::OneGuest;
use crate::native_postgres::NativePostgres;
use crate::row::{Evidence, Row};
use crate::runner::{PostgresDatabase, Runner};

/// The schemas of both sides.
const LARDER: &str = "larder_bench";
const NATIVE: &str = "larder_bench_native";

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    let Some(database) = runner.postgres() else { return Ok(()) };
    let client = connect(&database.dsn).await?;
    client.batch_execute(&drop_schemas()).await?;
    client.batch_execute(&format!("CREATE SCHEMA {LARDER}; CREATE SCHEMA {NATIVE}")).await?;
    let measured = measure_on(runner, &database, &client).await;
    client.batch_execute(&drop_schemas()).await?;
    measured
}

fn drop_schemas() -> String {
    format!("DROP SCHEMA IF EXISTS {LARDER} CASCADE; DROP SCHEMA IF EXISTS {NATIVE} CASCADE")
}

pub(super) async fn connect(dsn: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Adds a search path to a data-source name, as a URL parameter or a libpq keyword.
pub(super) fn within(dsn: &str, schema: &str) -> String {
    if !dsn.contains("://") {
        return format!("{dsn} options='-csearch_path={schema}'");
    }
    let separator = if dsn.contains('?') { '&' } else { '?' };
    format!("{dsn}{separator}options=-csearch_path%3D{schema}")
}

async fn measure_on(runner: &mut Runner<'_>, database: &PostgresDatabase, client: &Client) -> Result<()> {
    let backend = drivers().open(&within(&database.dsn, LARDER)).await?;
    let store = Store::builder_shared(backend).name("bench").build()?;
    fill(runner, &store, client).await?;
    if database.is_private {
        wait_for_disk(client, false).await?;
    }
    let pairs = [
        ("update: get and put", Workload::UpdateGetPut, 0.90),
        ("update: 100 puts", Workload::UpdateHundredPuts, 0.35),
        ("100 gets of known keys", Workload::GetMany, 0.20),
    ];
    for (name, workload, bound) in pairs {
        measure_pair(runner, database, &store, (name, workload, Some(bound))).await?;
    }
    if database.is_private {
        wait_for_disk(client, true).await?;
        let pair = ("update: get and put, waiting for the disk", Workload::UpdateGetPut, None);
        measure_pair(runner, database, &store, pair).await?;
    }
    store.close().await;
    Ok(())
}

/// Fills larder's table by a guest, and copies it for the baseline.
async fn fill(runner: &Runner<'_>, store: &Store, client: &Client) -> Result<()> {
    let mut filler = runner.bench.larder.instance(store).await?;
    filler.open(USUAL).await?;
    filler.fill(0, USUAL.rows).await?;
    let copy = format!(
        "CREATE TABLE {NATIVE}.larder_entries (LIKE {LARDER}.larder_entries INCLUDING ALL);
         INSERT INTO {NATIVE}.larder_entries SELECT * FROM {LARDER}.larder_entries"
    );
    client.batch_execute(&copy).await?;
    for schema in [LARDER, NATIVE] {
        client.batch_execute(&format!("VACUUM ANALYZE {schema}.larder_entries")).await?;
    }
    Ok(())
}

/// Lets a private server acknowledge commits that are not on disk, for rows that do not measure the
/// disk.
pub(super) async fn stop_waiting_for_disk(runner: &Runner<'_>) -> Result<()> {
    match &runner.bench.postgres {
        Ok(database) if database.is_private => wait_for_disk(&connect(&database.dsn).await?, false).await,
        _ => Ok(()),
    }
}

/// Sets whether the server waits until a commit is on disk. If a sync takes a millisecond, it
/// dominates the update, and rows about statements and round trips show nothing.
pub(super) async fn wait_for_disk(client: &Client, wait: bool) -> Result<()> {
    let value = if wait { "on" } else { "off" };
    client.batch_execute(&format!("ALTER SYSTEM SET fsync = {value}")).await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    for _ in 0..100 {
        let row = client.query_one("SHOW fsync", &[]).await?;
        if row.try_get::<_, String>(0)? == value {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("the server did not apply fsync = {value}")
}

async fn measure_pair(
    runner: &mut Runner<'_>,
    database: &PostgresDatabase,
    store: &Store,
    (name, workload, bound): (&str, Workload, Option<f64>),
) -> Result<()> {
    let larder = OneGuest::new(&runner.bench.larder, store, USUAL, workload).await?;
    let native = NativePostgres::connect(&within(&database.dsn, NATIVE), USUAL, workload).await?;
    let client = connect(&database.dsn).await?;
    let before = match workload {
        Workload::GetMany => None,
        _ => Some(contents(&client, NATIVE).await?),
    };
    let evidence = SameTables { client, before };
    runner.measure(Row::against(name, larder, ("tokio-postgres", native), bound).evidence(evidence)).await
}

/// Checks that the tables of both sides are the same, and if the row writes, differ from before.
struct SameTables {
    client: Client,
    before: Option<String>,
}

#[async_trait]
impl Evidence for SameTables {
    async fn check(&mut self) -> Result<()> {
        let (larder, native) = (contents(&self.client, LARDER).await?, contents(&self.client, NATIVE).await?);
        ensure!(
            larder == native,
            "the rows of larder differ from those of the baseline: {larder} and {native}"
        );
        ensure!(self.before.as_ref() != Some(&native), "nothing was written");
        Ok(())
    }
}

/// The number of rows and a digest of them.
async fn contents(client: &Client, schema: &str) -> Result<String> {
    let sql = format!(
        "SELECT count(*) || ' ' || coalesce(md5(string_agg(md5(namespace || key || value), '' ORDER BY namespace, key)), '')
         FROM {schema}.larder_entries"
    );
    client
        .query_one(&sql, &[])
        .await?
        .try_get::<_, Option<String>>(0)?
        .context("the query returned no digest")
}
