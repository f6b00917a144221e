//! The store that a command works on.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use larder_host::{Handle, HandleOptions, Limits, Store, TenantsDsn, drivers};

#[derive(Args)]
pub(crate) struct StoreArgument {
    /// The store's data-source name
    #[arg(long, value_name = "DSN")]
    store: String,
}

impl StoreArgument {
    /// Opens a store that is there: looking into one must not make it.
    pub(crate) async fn open(&self) -> Result<Store> {
        open(&existing(&self.store)).await
    }

    /// Opens a store, and makes it where it isn't there.
    pub(crate) async fn open_or_create(&self) -> Result<Store> {
        open(&self.store).await
    }
}

async fn open(dsn: &str) -> Result<Store> {
    Ok(Store::builder_shared(drivers().open(dsn).await?).sweep_interval(None).build()?)
}

/// A handle for an operator, who is bound by nothing that a guest is.
pub(crate) fn operator(store: &Store) -> Handle {
    let limits = Limits {
        value_bytes: Limits::VALUE_BYTES_MAX,
        result_bytes: Limits::VALUE_BYTES_MAX * 2,
        transaction_bytes: Limits::VALUE_BYTES_MAX * 2,
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
