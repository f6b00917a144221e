//! The store that a command works on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use larder_host::larder_core::backend::Backend;
use larder_host::{DriverError, Error, Handle, HandleOptions, Limits, Store, TenantsDsn, drivers};

use crate::signals::{self, until_ended};

#[derive(Args)]
pub(crate) struct StoreArgument {
    /// Data-source name of the store; see `larder --help`
    #[arg(long, value_name = "DSN")]
    store: String,
}

impl StoreArgument {
    /// Opens a store for reading: it creates, migrates and writes nothing.
    pub(crate) async fn look(&self) -> Result<Store> {
        catch_signals(&self.store)?;
        let opening = async {
            let backend = drivers().open_read_only(&self.store).await;
            let backend = backend.map_err(|error| self.not_opened(error))?;
            Ok(Store::builder_shared(backend).sweep_interval(None).build()?)
        };
        until_ended(opening).await
    }

    /// Opens an existing store for writing, or for reading if this is a dry run.
    pub(crate) async fn open_for(&self, dry_run: bool) -> Result<Store> {
        if dry_run { self.look().await } else { self.open().await }
    }

    /// Opens an existing store for writing.
    pub(crate) async fn open(&self) -> Result<Store> {
        if let Some(store) = self.find().await? {
            return Ok(store);
        }
        // Opening the store for reading returns the error that says what is missing and what to do.
        // If that succeeds, another process has just created the store.
        self.look().await?.close().await;
        self.open_or_create().await
    }

    /// Opens a store for writing. Returns `None` if it does not exist.
    pub(crate) async fn find(&self) -> Result<Option<Store>> {
        catch_signals(&self.store)?;
        let finding = async {
            if has_no_tables(&self.store).await? {
                return Ok(None);
            }
            match drivers().open(&existing(&self.store)).await {
                Ok(backend) => writable(backend).map(Some),
                Err(DriverError::Open { error: Error::NotFound { .. }, .. }) => Ok(None),
                Err(error) => Err(self.not_opened(error)),
            }
        };
        until_ended(finding).await
    }

    /// Opens a store for writing, and creates it if it does not exist.
    pub(crate) async fn open_or_create(&self) -> Result<Store> {
        catch_signals(&self.store)?;
        let opening =
            async { writable(drivers().open(&self.store).await.map_err(|error| self.not_opened(error))?) };
        until_ended(opening).await
    }

    fn not_opened(&self, error: DriverError) -> anyhow::Error {
        not_opened(&self.store, error)
    }
}

/// Whether a database certainly has no tables of larder. Opening it for writing would create them.
async fn has_no_tables(dsn: &str) -> Result<bool> {
    // A tenant's database exists only while it is open.
    if TenantsDsn::accepts(dsn) {
        return Ok(false);
    }
    let migrator = drivers().migrator(dsn).map_err(|error| not_opened(dsn, error))?;
    let Some(migrator) = migrator else { return Ok(false) };
    // If the schema cannot be read, opening the database says why.
    Ok(migrator.status().await.is_ok_and(|status| status.is_fresh()))
}

/// Builds a store that removes expired rows when it is closed.
fn writable(backend: Arc<dyn Backend>) -> Result<Store> {
    Ok(Store::builder_shared(backend).build()?)
}

/// Catches signals if the store belongs to a tenant, because its commits must be uploaded and its
/// lease released. Every other store rolls back if its process is killed.
fn catch_signals(dsn: &str) -> Result<()> {
    if TenantsDsn::accepts(dsn) { signals::catch() } else { Ok(()) }
}

/// Runs work on an open store, on a separate thread. It closes the store however the work ends,
/// even if a signal ends it.
pub(crate) async fn closing<T, W>(store: Store, work: impl FnOnce() -> W + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    W: Future<Output = Result<T>>,
{
    let outcome = signals::on_own_thread(work).await;
    store.close().await;
    signals::closed(outcome)
}

/// An error that names the store that could not be opened, and says what to do.
pub(crate) fn not_opened(dsn: &str, error: DriverError) -> anyhow::Error {
    let DriverError::Open { error, .. } = error else { return error.into() };
    let what = format!("cannot open the store {:?}", shown(dsn));
    match error {
        Error::NotFound { .. } => {
            let advice = match TenantsDsn::accepts(dsn) {
                true => "check the key after `tenant=`",
                false => "check the path, or create the store with `larder schema up`",
            };
            anyhow!("{what}: {:#}; {advice}", anyhow!(error))
        }
        error => anyhow!(error).context(what),
    }
}

/// A data-source name without its secrets: a password, or the keys of a bucket.
pub(crate) fn shown(dsn: &str) -> &str {
    let location = dsn.split('?').next().unwrap_or_default();
    match dsn.split_once(':') {
        Some(("sqlite" | "in-memory" | "tenants+file", _)) => location,
        Some((scheme, _)) if TenantsDsn::accepts(dsn) || scheme.starts_with("postgres") => scheme,
        // `host=… password=…`
        _ => "postgres",
    }
}

/// A handle for an operator, without the limits of a guest.
pub(crate) fn operator(store: &Store) -> Handle {
    let limits = Limits::default()
        .value_bytes(Limits::VALUE_BYTES_MAX)
        .result_bytes(Limits::VALUE_BYTES_MAX * 2)
        .transaction_bytes(Limits::VALUE_BYTES_MAX * 2)
        .instance_bytes(Limits::VALUE_BYTES_MAX * 16)
        .transaction_timeout(Duration::from_secs(3_600));
    store.handle(HandleOptions::default().limits(limits))
}

/// The data-source name that opens an existing store and creates nothing.
fn existing(dsn: &str) -> String {
    let makes_files = dsn.starts_with("sqlite:") && dsn != "sqlite::memory:";
    // The option may occur only once, so one that the user wrote takes precedence.
    let makes_tenants = TenantsDsn::accepts(dsn) && !dsn.contains("create=");
    if !makes_files && !makes_tenants {
        return dsn.to_string();
    }
    let separator = if dsn.contains('?') { '&' } else { '?' };
    format!("{dsn}{separator}create=no")
}
