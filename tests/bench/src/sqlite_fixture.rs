//! SQLite databases with the same rows, one for each side.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use larder_bench_workload::{Key, Rows, Shape};
use larder_host::{Store, drivers};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::row::Evidence;

/// The durability of commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    Normal,
    Full,
}

impl Durability {
    fn option(self) -> &'static str {
        match self {
            Self::Normal => "durability=normal",
            Self::Full => "durability=full",
        }
    }

    pub(crate) fn synchronous(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Full => "FULL",
        }
    }
}

/// A folder with copies of one database.
#[derive(Clone)]
pub(crate) struct SqliteFixture {
    folder: Arc<TempDir>,
    pub(crate) shape: Shape,
}

impl SqliteFixture {
    /// Lets larder create a database with its schema, and fills it.
    pub(crate) async fn new(shape: Shape) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("larder-bench-").tempdir()?;
        let fixture = Self { folder: Arc::new(folder), shape };
        let path = fixture.path(TEMPLATE);
        let store = open(&path, Durability::Normal).await?;
        store.close().await;
        drop(store);
        tokio::task::block_in_place(|| fill(&path, shape)).context("cannot fill the database")?;
        Ok(fixture)
    }

    /// Copies the database.
    pub(crate) fn copy(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::copy(self.path(TEMPLATE), &path)?;
        Ok(path)
    }

    /// Copies the database and opens it in larder. Returns the store and the path.
    pub(crate) async fn store(&self, name: &str, durability: Durability) -> Result<(Store, PathBuf)> {
        let path = self.copy(name)?;
        Ok((open(&path, durability).await?, path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.db"))
    }
}

const TEMPLATE: &str = "template";

async fn open(path: &Path, durability: Durability) -> Result<Store> {
    let dsn = format!("sqlite:{}?{}", path.display(), durability.option());
    let backend = drivers().open(&dsn).await?;
    Ok(Store::builder_shared(backend).name("bench").build()?)
}

/// Inserts the rows in the order of their keys, so that the file is packed.
fn fill(path: &Path, shape: Shape) -> Result<()> {
    let mut connection = Connection::open(path)?;
    let mut rows = Rows::new(shape);
    let mut order: Vec<(String, Key, u64)> =
        (0..shape.rows).map(|index| (rows.namespace(index).to_string(), Key::of(index), index)).collect();
    order.sort_by(|a, b| (&a.0, a.1.as_bytes()).cmp(&(&b.0, b.1.as_bytes())));
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction
            .prepare("INSERT INTO larder_entries (namespace, key, value, version) VALUES (?1, ?2, ?3, 1)")?;
        for (namespace, key, index) in &order {
            insert.execute((namespace.as_bytes(), key.as_bytes(), rows.value(*index, 0)))?;
        }
        transaction.execute("UPDATE larder_commit_sequence SET last = 1", [])?;
    }
    transaction.commit()?;
    // Empties the write-ahead log, so that a copy of the file is a copy of the database.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(())
}

/// Checks that two databases have the same rows, and if the row writes, other rows than before.
pub(crate) struct SameRows {
    larder: PathBuf,
    native: PathBuf,
    /// The digest before, if the rows must have changed.
    before: Option<u64>,
}

impl SameRows {
    /// For rows that only read.
    pub(crate) fn unchanged(larder: &Path, native: &Path) -> Self {
        Self { larder: larder.to_path_buf(), native: native.to_path_buf(), before: None }
    }

    /// For rows that write.
    pub(crate) fn changed(larder: &Path, native: &Path) -> Result<Self> {
        let before = Some(tokio::task::block_in_place(|| contents(native))?.1);
        Ok(Self { before, ..Self::unchanged(larder, native) })
    }
}

#[async_trait]
impl Evidence for SameRows {
    async fn check(&mut self) -> Result<()> {
        let read = || -> Result<_> { Ok((contents(&self.larder)?, contents(&self.native)?)) };
        let (larder, native) = tokio::task::block_in_place(read)?;
        ensure!(larder.0 == native.0, "larder has {} rows, the baseline {}", larder.0, native.0);
        ensure!(larder.1 == native.1, "the rows of larder differ from those of the baseline");
        ensure!(self.before != Some(native.1), "nothing was written");
        Ok(())
    }
}

/// The number of rows and a digest of them. Omits versions, which only larder assigns.
fn contents(path: &Path) -> Result<(u64, u64)> {
    let connection = Connection::open(path)?;
    // Namespaces from `s` on hold what a sleeping guest or the host writes in addition.
    let mut statement = connection.prepare(
        "SELECT namespace, key, value FROM larder_entries WHERE namespace < x'73' ORDER BY namespace, key",
    )?;
    let mut rows = statement.query([])?;
    let (mut count, mut hasher) = (0, DefaultHasher::new());
    while let Some(row) = rows.next()? {
        count += 1;
        for column in 0..3 {
            row.get_ref(column)?.as_blob()?.hash(&mut hasher);
        }
    }
    Ok((count, hasher.finish()))
}
