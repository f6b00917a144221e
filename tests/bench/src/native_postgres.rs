//! The baseline on Postgres: prepared statements on one connection.

use anyhow::{Context, Result};
use async_trait::async_trait;
use larder_bench_workload::{BATCH, Digest, Key, Random, Rows, Shape};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, Statement};

use crate::guest::Workload;
use crate::row::{Side, Work};

/// A connection, and the rows of its database.
pub(crate) struct NativePostgres {
    client: Client,
    get: Statement,
    put: Statement,
    rows: Rows,
    workload: Workload,
    _connection: JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl NativePostgres {
    pub(crate) async fn connect(dsn: &str, shape: Shape, workload: Workload) -> Result<Self> {
        let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
        let connection = tokio::spawn(connection);
        // larder guarantees the same isolation; otherwise the sides would do different work.
        client.batch_execute("SET default_transaction_isolation = 'serializable'").await?;
        let get = "SELECT value FROM larder_entries WHERE namespace = $1 AND key = $2";
        let put = "INSERT INTO larder_entries (namespace, key, value, version) VALUES ($1, $2, $3, 1)
             ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value";
        let (get, put) = (client.prepare(get).await?, client.prepare(put).await?);
        Ok(Self { client, get, put, rows: Rows::new(shape), workload, _connection: connection })
    }

    async fn update_get_put(&mut self, work: Work) -> Result<Digest> {
        let (mut random, mut digest) = (Random::new(work.seed), Digest::default());
        for _ in 0..work.count {
            let index = random.below(self.rows.count());
            self.client.batch_execute("BEGIN").await?;
            digest.add(&self.get(index).await?);
            self.put(index, work.salt).await?;
            self.client.batch_execute("COMMIT").await?;
        }
        Ok(digest)
    }

    async fn update_hundred_puts(&mut self, work: Work) -> Result<Digest> {
        let mut random = Random::new(work.seed);
        for _ in 0..work.count {
            self.client.batch_execute("BEGIN").await?;
            for _ in 0..BATCH {
                self.put(random.below(self.rows.count()), work.salt).await?;
            }
            self.client.batch_execute("COMMIT").await?;
        }
        Ok(Digest::default())
    }

    async fn gets(&mut self, work: Work) -> Result<Digest> {
        let (mut random, mut digest) = (Random::new(work.seed), Digest::default());
        self.client.batch_execute("BEGIN").await?;
        for _ in 0..work.count * BATCH {
            digest.add(&self.get(random.below(self.rows.count())).await?);
        }
        self.client.batch_execute("COMMIT").await?;
        Ok(digest)
    }

    async fn get(&self, index: u64) -> Result<Vec<u8>> {
        let (namespace, key) = (self.rows.namespace(index).as_bytes(), Key::of(index));
        let found = self.client.query_opt(&self.get, &[&namespace, &key.as_bytes()]).await?;
        Ok(found.with_context(|| format!("row {index} is missing"))?.try_get(0)?)
    }

    async fn put(&mut self, index: u64, salt: u64) -> Result<()> {
        self.rows.value(index, salt);
        let (namespace, key) = (self.rows.namespace(index).as_bytes(), Key::of(index));
        let value = self.rows.last_value();
        self.client.execute(&self.put, &[&namespace, &key.as_bytes(), &value]).await?;
        Ok(())
    }
}

#[async_trait]
impl Side for NativePostgres {
    async fn run(&mut self, work: Work) -> Result<u64> {
        let digest = match self.workload {
            Workload::UpdateGetPut => self.update_get_put(work).await?,
            Workload::UpdateHundredPuts => self.update_hundred_puts(work).await?,
            Workload::GetMany => self.gets(work).await?,
            other => anyhow::bail!("{other:?} is not measured on Postgres"),
        };
        Ok(digest.sum())
    }
}
