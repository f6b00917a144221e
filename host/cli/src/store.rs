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
    /// The store's data-source name
    #[arg(long, value_name = "DSN")]
    store: String,
}

impl StoreArgument {
    /// Opens a store to look at it: nothing is created, migrated or written.
    pub(crate) async fn look(&self) -> Result<Store> {
        catch_signals(&self.store)?;
        let opening = async {
            let backend = drivers().open_read_only(&self.store).await;
            let backend = backend.map_err(|error| self.not_opened(error))?;
            Ok(Store::builder_shared(backend).sweep_interval(None).build()?)
        };
        until_ended(opening).await
    }

    /// Opens a store that exists, to write to it, or to say what would be written.
    pub(crate) async fn open_for(&self, dry_run: bool) -> Result<Store> {
        if dry_run { self.look().await } else { self.open().await }
    }

    /// Opens a store that exists, to write to it.
    pub(crate) async fn open(&self) -> Result<Store> {
        if let Some(store) = self.find().await? {
            return Ok(store);
        }
        // A look says what is missing, and what to do. If it finds a store, another process has just made it.
        self.look().await?.close().await;
        self.open_or_create().await
    }

    /// Opens a store to write to it; `None` if it does not exist.
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

    /// Opens a store, and makes it if it does not exist.
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

/// Whether a database can be seen to have no tables of larder, which opening it for writing would make.
async fn has_no_tables(dsn: &str) -> Result<bool> {
    // A tenant has no database before it is opened.
    if TenantsDsn::accepts(dsn) {
        return Ok(false);
    }
    let migrator = drivers().migrator(dsn).map_err(|error| not_opened(dsn, error))?;
    let Some(migrator) = migrator else { return Ok(false) };
    // If the schema cannot be read, opening the database says why.
    Ok(migrator.status().await.is_ok_and(|status| status.is_fresh()))
}

/// It removes expired rows when it is closed.
fn writable(backend: Arc<dyn Backend>) -> Result<Store> {
    Ok(Store::builder_shared(backend).build()?)
}

/// A tenant has to be written back, and its lease given up. Every other store rolls back if its process is killed.
fn catch_signals(dsn: &str) -> Result<()> {
    if TenantsDsn::accepts(dsn) { signals::catch() } else { Ok(()) }
}

/// Works on an open store, on a thread of its own, and closes it however the work ends, also if a signal ends it.
pub(crate) async fn closing<T, W>(store: Store, work: impl FnOnce() -> W + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    W: Future<Output = Result<T>>,
{
    let outcome = signals::on_own_thread(work).await;
    store.close().await;
    signals::closed(outcome)
}

/// Says which store was not opened, and what to do.
pub(crate) fn not_opened(dsn: &str, error: DriverError) -> anyhow::Error {
    let DriverError::Open { error, .. } = error else { return error.into() };
    let what = format!("cannot open the store {:?}", shown(dsn));
    match error {
        Error::NotFound { .. } => {
            let advice = match TenantsDsn::accepts(dsn) {
                true => "check the key behind `tenant=`",
                false => "check the path, or create the store with `larder migrate up`",
            };
            anyhow!("{what}: {:#}; {advice}", anyhow!(error))
        }
        error => anyhow!(error).context(what),
    }
}

/// A data-source name without what may be secret: a password, or the keys of a bucket.
pub(crate) fn shown(dsn: &str) -> &str {
    let place = dsn.split('?').next().unwrap_or_default();
    match dsn.split_once(':') {
        Some(("sqlite" | "memory" | "tenants+file", _)) => place,
        Some((scheme, _)) if TenantsDsn::accepts(dsn) || scheme.starts_with("postgres") => scheme,
        // `host=… password=…`
        _ => "postgres",
    }
}

/// A handle for an operator, who is bound by nothing that a guest is.
pub(crate) fn operator(store: &Store) -> Handle {
    let limits = Limits {
        value_bytes: Limits::VALUE_BYTES_MAX,
        result_bytes: Limits::VALUE_BYTES_MAX * 2,
        transaction_bytes: Limits::VALUE_BYTES_MAX * 2,
        instance_bytes: Limits::VALUE_BYTES_MAX * 16,
        transaction_timeout: Duration::from_secs(3_600),
        ..Limits::default()
    };
    store.handle(HandleOptions { limits: limits.into(), ..HandleOptions::default() })
}

/// The data-source name that opens what is there and makes nothing.
fn existing(dsn: &str) -> String {
    let makes_files = dsn.starts_with("sqlite:") && dsn != "sqlite::memory:";
    // The option can stand once there, and whoever wrote it knows what they want.
    let makes_tenants = TenantsDsn::accepts(dsn) && !dsn.contains("create=");
    if !makes_files && !makes_tenants {
        return dsn.to_string();
    }
    let separator = if dsn.contains('?') { '&' } else { '?' };
    format!("{dsn}{separator}create=no")
}
