//! The baseline on SQLite: cached statements on one connection.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use larder_bench_workload::{BATCH, Digest, Key, Random, Rows, SCAN, Shape};
use rusqlite::{Connection, OptionalExtension};

use crate::guest::Workload;
use crate::row::{Side, Work};
use crate::sqlite_fixture::Durability;

/// A connection, and the rows of its database.
pub(crate) struct Native {
    connection: Connection,
    rows: Rows,
}

/// The statements of the loops. They omit what larder does in addition: times to live, versions and
/// the commit number.
const GET: &str = "SELECT value FROM larder_entries WHERE namespace = ?1 AND key = ?2";
const PUT: &str = "INSERT INTO larder_entries (namespace, key, value, version) VALUES (?1, ?2, ?3, 1)
    ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value";
const SCAN_FROM: &str = "SELECT key, value FROM larder_entries WHERE namespace = ?1 AND key >= ?2
    ORDER BY key LIMIT ?3";

impl Native {
    pub(crate) fn open(path: &Path, durability: Durability, shape: Shape) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(60))?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        ensure!(mode == "wal", "cannot set the journal mode to WAL; it is {mode}");
        connection.pragma_update(None, "synchronous", durability.synchronous())?;
        Ok(Self { connection, rows: Rows::new(shape) })
    }

    pub(crate) fn run(&mut self, workload: Workload, work: Work) -> Result<u64> {
        let digest = match workload {
            Workload::GetInOneView => self.get_in_one_view(work)?,
            Workload::ViewOfOneGet => self.view_of_one_get(work)?,
            Workload::UpdateGetPut => self.update_get_put(work)?,
            Workload::UpdateHundredPuts => self.update_hundred_puts(work)?,
            Workload::GetMany => self.get_many(work)?,
            Workload::Scan | Workload::ScanList => self.scan(work)?,
        };
        Ok(digest.sum())
    }

    /// The number of rows in the database.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.count()
    }

    fn get_in_one_view(&mut self, work: Work) -> Result<Digest> {
        let (mut random, mut digest) = (Random::new(work.seed), Digest::default());
        self.execute("BEGIN")?;
        for _ in 0..work.count {
            digest.add(&self.get(random.below(self.rows.count()))?);
        }
        self.execute("COMMIT")?;
        Ok(digest)
    }

    fn view_of_one_get(&mut self, work: Work) -> Result<Digest> {
        let (mut random, mut digest) = (Random::new(work.seed), Digest::default());
        for _ in 0..work.count {
            self.execute("BEGIN")?;
            digest.add(&self.get(random.below(self.rows.count()))?);
            self.execute("COMMIT")?;
        }
        Ok(digest)
    }

    fn update_get_put(&mut self, work: Work) -> Result<Digest> {
        let (mut random, mut digest) = (Random::new(work.seed), Digest::default());
        for _ in 0..work.count {
            let index = random.below(self.rows.count());
            digest.add(&self.get_and_put(index, work.salt)?);
        }
        Ok(digest)
    }

    /// Updates one row, and returns the value before.
    pub(crate) fn get_and_put(&mut self, index: u64, salt: u64) -> Result<Vec<u8>> {
        self.execute("BEGIN IMMEDIATE")?;
        let before = self.get(index)?;
        self.put(index, salt)?;
        self.execute("COMMIT")?;
        Ok(before)
    }

    fn update_hundred_puts(&mut self, work: Work) -> Result<Digest> {
        let mut random = Random::new(work.seed);
        for _ in 0..work.count {
            self.execute("BEGIN IMMEDIATE")?;
            for _ in 0..BATCH {
                self.put(random.below(self.rows.count()), work.salt)?;
            }
            self.execute("COMMIT")?;
        }
        Ok(Digest::default())
    }

    fn get_many(&mut self, work: Work) -> Result<Digest> {
        let (mut random, mut digest) = (Random::new(work.seed), Digest::default());
        self.execute("BEGIN")?;
        for _ in 0..work.count {
            let indices = (0..BATCH).map(|_| random.below(self.rows.count()));
            let found: Vec<Vec<u8>> = indices.map(|index| self.get(index)).collect::<Result<_>>()?;
            found.iter().for_each(|value| digest.add(value));
        }
        self.execute("COMMIT")?;
        Ok(digest)
    }

    fn scan(&mut self, work: Work) -> Result<Digest> {
        let (mut random, mut digest) = (Random::new(work.seed), Digest::default());
        self.execute("BEGIN")?;
        for _ in 0..work.count {
            let first = Key::at(random.next_number() >> 1);
            let entries = self.entries(&first)?;
            entries.iter().for_each(|(_, value)| digest.add(value));
        }
        self.execute("COMMIT")?;
        Ok(digest)
    }

    fn entries(&self, first: &Key) -> Result<Vec<(String, Vec<u8>)>> {
        let mut statement = self.connection.prepare_cached(SCAN_FROM)?;
        let namespace = self.rows.first_namespace().as_bytes();
        let mut rows = statement.query((namespace, first.as_bytes(), SCAN))?;
        let mut entries = Vec::new();
        while let Some(row) = rows.next()? {
            entries.push((String::from_utf8(row.get(0)?)?, row.get(1)?));
        }
        Ok(entries)
    }

    fn get(&self, index: u64) -> Result<Vec<u8>> {
        let mut statement = self.connection.prepare_cached(GET)?;
        let parameters = (self.rows.namespace(index).as_bytes(), Key::of(index));
        let parameters = (parameters.0, parameters.1.as_bytes());
        let found = statement.query_row(parameters, |row| row.get(0)).optional()?;
        found.with_context(|| format!("row {index} is missing"))
    }

    fn put(&mut self, index: u64, salt: u64) -> Result<()> {
        self.rows.value(index, salt);
        let mut statement = self.connection.prepare_cached(PUT)?;
        let key = Key::of(index);
        let namespace = self.rows.namespace(index).as_bytes();
        statement.execute((namespace, key.as_bytes(), self.rows.last_value()))?;
        Ok(())
    }

    fn execute(&self, sql: &str) -> Result<()> {
        self.connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

/// A native program with one connection, on the measuring thread.
pub(crate) struct OneNative {
    native: Native,
    workload: Workload,
}

impl OneNative {
    pub(crate) fn new(path: &Path, durability: Durability, shape: Shape, workload: Workload) -> Result<Self> {
        Ok(Self { native: Native::open(path, durability, shape)?, workload })
    }
}

#[async_trait]
impl Side for OneNative {
    async fn read_rows(&mut self, gets: Work) -> Result<()> {
        self.native.run(Workload::GetInOneView, gets).map(drop)
    }

    async fn run(&mut self, work: Work) -> Result<u64> {
        self.native.run(self.workload, work)
    }
}
