//! Test beds: factories of fresh stores, one store for each case.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use futures_util::TryStreamExt;
use larder_host::larder_core::Driver;
use larder_host::larder_core::backend::Backend;
use larder_host::larder_postgres::{PostgresDriver, PostgresOptions};
use larder_host::{Drivers, InMemory};
use larder_tenants::{Durability, TenantError, TenantKey, Tenants, TenantsBuilder, TenantsDsn};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use tempfile::TempDir;

/// A factory of fresh stores of one kind of backend.
#[async_trait]
pub trait TestBed: Send + Sync + 'static {
    /// The name of the kind in reports, for example `sqlite`.
    fn name(&self) -> &'static str;

    /// Makes an empty store.
    ///
    /// # Errors
    ///
    /// If the backend is not available. Every case then fails.
    async fn scratch(&self) -> Result<Box<dyn Scratch>>;

    /// Removes what the stores had in common, after the last of them is removed.
    ///
    /// # Errors
    ///
    /// If something could not be removed.
    async fn end(&self) -> Result<()> {
        Ok(())
    }
}

/// A store that can be opened again, and by several hosts at once.
#[async_trait]
pub trait Scratch: Send + Sync + 'static {
    /// Opens the store as another process would.
    ///
    /// # Errors
    ///
    /// If the store cannot be opened.
    async fn open(&self) -> Result<Arc<dyn Backend>>;

    /// The data-source name by which another process opens the store.
    ///
    /// `None` if no other process can open it.
    fn dsn(&self) -> Option<&str> {
        None
    }

    /// Removes the store. Every backend that was opened on it must be closed.
    ///
    /// # Errors
    ///
    /// If something could not be removed.
    async fn remove(self: Box<Self>) -> Result<()>;
}

/// Makes a test bed for the kind of store that a data-source name describes.
///
/// Its fresh stores are next to the named store, which is never touched.
///
/// # Errors
///
/// - If the suite cannot make fresh stores of this kind.
/// - For tenants, the errors of [`TenantsTestBed::beside`]: if the object storage cannot be reached
///   or does not honour conditional writes.
pub async fn test_bed_for(dsn: &str, drivers: Drivers) -> Result<Arc<dyn TestBed>> {
    let sqlite = dsn.strip_prefix("sqlite:");
    Ok(match (dsn, sqlite) {
        ("in-memory:", _) => Arc::new(InMemoryTestBed),
        (dsn, _) if TenantsDsn::accepts(dsn) => Arc::new(TenantsTestBed::beside(dsn).await?),
        (_, Some(":memory:")) => Arc::new(SqliteTestBed::in_temporary_folder(drivers)),
        (_, Some(path)) => {
            let (path, options) = path.split_once('?').map_or((path, ""), |(path, query)| (path, query));
            let folder = Path::new(path).parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).to_path_buf();
            Arc::new(SqliteTestBed { folder, options: options.to_string(), drivers })
        }
        _ if PostgresDriver::new().accepts(dsn) => {
            Arc::new(PostgresTestBed { dsn: dsn.to_string(), drivers })
        }
        _ => {
            bail!(
                "the suite cannot make fresh stores for this name; use `in-memory:`, `sqlite:PATH`, `sqlite::memory:`, Postgres or `tenants+…`"
            )
        }
    })
}

/// A test bed of in-memory stores.
#[derive(Clone, Copy, Debug)]
pub struct InMemoryTestBed;

#[async_trait]
impl TestBed for InMemoryTestBed {
    fn name(&self) -> &'static str {
        "in-memory"
    }

    async fn scratch(&self) -> Result<Box<dyn Scratch>> {
        Ok(Box::new(InMemoryScratch(InMemory::new())))
    }
}

struct InMemoryScratch(InMemory);

#[async_trait]
impl Scratch for InMemoryScratch {
    async fn open(&self) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(self.0.attach()))
    }

    async fn remove(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// A test bed of SQLite files, each in its own temporary folder.
#[derive(Clone, Debug)]
pub struct SqliteTestBed {
    /// The folder for the temporary folders.
    pub folder: PathBuf,
    /// Options of the data-source name, for example `durability=full`.
    pub options: String,
    /// The drivers, which must include `sqlite`.
    pub drivers: Drivers,
}

impl SqliteTestBed {
    /// Makes a test bed in the system's folder for temporary files.
    pub fn in_temporary_folder(drivers: Drivers) -> Self {
        Self { folder: std::env::temp_dir(), options: String::new(), drivers }
    }
}

#[async_trait]
impl TestBed for SqliteTestBed {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    async fn scratch(&self) -> Result<Box<dyn Scratch>> {
        let folder = tempfile::Builder::new()
            .prefix("larder-conformance-")
            .tempdir_in(&self.folder)
            .with_context(|| format!("cannot make a temporary folder in {}", self.folder.display()))?;
        let path = folder.path().join("case.db");
        let path = path.to_str().context("the path of the temporary folder is not UTF-8")?;
        let dsn = format!("sqlite:{}?{}", path.replace('%', "%25").replace('?', "%3F"), self.options);
        Ok(Box::new(SqliteScratch { folder, dsn, drivers: self.drivers.clone() }))
    }
}

struct SqliteScratch {
    folder: TempDir,
    dsn: String,
    drivers: Drivers,
}

#[async_trait]
impl Scratch for SqliteScratch {
    async fn open(&self) -> Result<Arc<dyn Backend>> {
        Ok(self.drivers.open(&self.dsn).await?)
    }

    fn dsn(&self) -> Option<&str> {
        Some(&self.dsn)
    }

    async fn remove(self: Box<Self>) -> Result<()> {
        Ok(self.folder.close()?)
    }
}

/// A test bed of stores in one Postgres database, each in its own schema.
#[derive(Clone)]
pub struct PostgresTestBed {
    /// The data-source name of the database.
    pub dsn: String,
    /// The drivers, which must include `postgres`.
    pub drivers: Drivers,
}

/// Numbers the schemas of this process. The process id in their names tells processes apart.
static SCHEMAS: AtomicU64 = AtomicU64::new(1);

#[async_trait]
impl TestBed for PostgresTestBed {
    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn scratch(&self) -> Result<Box<dyn Scratch>> {
        let number = SCHEMAS.fetch_add(1, Ordering::Relaxed);
        let schema = format!("larder_conformance_{}_{number}", std::process::id());
        execute(&self.dsn, &format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}"))
            .await?;
        let dsn = with_schema(&self.dsn, &schema);
        Ok(Box::new(PostgresScratch {
            database: self.dsn.clone(),
            schema,
            dsn,
            drivers: self.drivers.clone(),
        }))
    }
}

struct PostgresScratch {
    database: String,
    schema: String,
    dsn: String,
    drivers: Drivers,
}

#[async_trait]
impl Scratch for PostgresScratch {
    async fn open(&self) -> Result<Arc<dyn Backend>> {
        Ok(self.drivers.open(&self.dsn).await?)
    }

    fn dsn(&self) -> Option<&str> {
        Some(&self.dsn)
    }

    async fn remove(self: Box<Self>) -> Result<()> {
        execute(&self.database, &format!("DROP SCHEMA {} CASCADE", self.schema)).await
    }
}

/// A test bed of the tenants of one host. Each tenant is a store.
#[derive(Clone, Debug)]
pub struct TenantsTestBed {
    host: Arc<TenantsHost>,
}

#[derive(Debug)]
struct TenantsHost {
    tenants: Tenants,
    objects: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    next: AtomicU64,
    /// The cache folder, which lives as long as the host.
    _folder: TempDir,
}

impl TenantsTestBed {
    /// Makes a test bed below a prefix of an object store.
    ///
    /// # Errors
    ///
    /// If the object store cannot be reached or does not honour conditional writes.
    pub async fn on(
        objects: Arc<dyn ObjectStore>,
        prefix: ObjectPath,
        durability: Durability,
    ) -> Result<Self> {
        let builder = Tenants::builder(objects.clone()).durability(durability);
        Self::of(builder, objects, prefix).await
    }

    /// Makes a test bed below a new prefix, next to the tenants of a data-source name.
    ///
    /// # Errors
    ///
    /// - If the name is invalid.
    /// - If the object storage cannot be reached or does not honour conditional writes.
    pub async fn beside(dsn: &str) -> Result<Self> {
        let dsn = TenantsDsn::parse(dsn)?;
        let name = format!("conformance-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let prefix = dsn.prefix.clone().join(name);
        Self::of(TenantsBuilder::from_dsn(&dsn)?, dsn.open_store()?, prefix).await
    }

    async fn of(builder: TenantsBuilder, objects: Arc<dyn ObjectStore>, prefix: ObjectPath) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("larder-conformance-").tempdir()?;
        // The capacity and the checkpoint interval are so small that tenants are evicted and
        // written back while cases run.
        let builder = builder.capacity(16).checkpoint_writes(5).sweep_interval(None);
        let tenants = builder.prefix(prefix.clone()).cache_folder(folder.path()).open().await?;
        let next = AtomicU64::new(1);
        Ok(Self { host: Arc::new(TenantsHost { tenants, objects, prefix, next, _folder: folder }) })
    }
}

#[async_trait]
impl TestBed for TenantsTestBed {
    fn name(&self) -> &'static str {
        "tenants"
    }

    async fn scratch(&self) -> Result<Box<dyn Scratch>> {
        let number = self.host.next.fetch_add(1, Ordering::Relaxed);
        let key = TenantKey::user("larder".parse()?, format!("case-{number}").parse()?);
        Ok(Box::new(TenantScratch { host: self.host.clone(), key }))
    }

    async fn end(&self) -> Result<()> {
        let closed = self.host.tenants.close().await;
        self.host.remove(&self.host.prefix).await?;
        Ok(closed?)
    }
}

impl TenantsHost {
    async fn remove(&self, prefix: &ObjectPath) -> Result<()> {
        let found: Vec<_> = self.objects.list(Some(prefix)).try_collect().await?;
        for object in found {
            self.objects.delete(&object.location).await?;
        }
        Ok(())
    }
}

struct TenantScratch {
    host: Arc<TenantsHost>,
    key: TenantKey,
}

#[async_trait]
impl Scratch for TenantScratch {
    /// Only one host may hold a tenant at a time, so two opens of it share the open database. If no
    /// handle uses the tenant, it is evicted first and loaded from object storage again.
    async fn open(&self) -> Result<Arc<dyn Backend>> {
        match self.host.tenants.evict(&self.key).await {
            Ok(_) | Err(TenantError::InUse { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Arc::new(self.host.tenants.get(&self.key).await?.backend()))
    }

    async fn remove(self: Box<Self>) -> Result<()> {
        self.host.tenants.evict(&self.key).await?;
        let whole = self
            .host
            .prefix
            .clone()
            .parts()
            .chain(ObjectPath::from(self.key.object_path()).parts())
            .collect();
        self.host.remove(&whole).await
    }
}

/// Adds the schema to a data-source name, as a URL parameter or a libpq keyword.
fn with_schema(dsn: &str, schema: &str) -> String {
    if !dsn.contains("://") {
        return format!("{dsn} schema={schema}");
    }
    let separator = if dsn.contains('?') { '&' } else { '?' };
    format!("{dsn}{separator}schema={schema}")
}

/// Connects with the same options as a store.
async fn execute(dsn: &str, sql: &str) -> Result<()> {
    let options = PostgresOptions::parse(dsn)?;
    Ok(options.with_connection(async |client| client.batch_execute(sql).await).await??)
}
