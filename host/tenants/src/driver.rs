//! The driver that opens one tenant by its data-source name.

use std::sync::Arc;

use async_trait::async_trait;
use larder_core::backend::Backend;
use larder_core::{Driver, Error, Result};
use larder_schema::SchemaMigrator;

use crate::dsn::TenantsDsn;
use crate::key::TenantKey;
use crate::local::TenantsBuilder;

/// Opens one tenant by a data-source name such as `tenants+file:///FOLDER?tenant=acme/users/ann`.
///
/// [`TenantsDsn`] has all forms and options. While the store is open, this process has the tenant's
/// lease and the cache folder; see [`TenantsDsn::cache_folder`]. Closing the store writes the
/// tenant back. If that fails, its database stays in the cache folder for the next process that
/// opens the folder, and an error is logged. To open more than one tenant, use
/// [`Tenants`](crate::Tenants).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use larder_core::{Driver, Store};
/// use larder_tenants::TenantsDriver;
///
/// # let folder = tempfile::tempdir()?;
/// # let root = folder.path().display();
/// let dsn = format!("tenants+file://{root}/tenants?tenant=acme/users/ann&cache={root}/cache");
/// let store = Store::builder_shared(TenantsDriver.open(&dsn).await?).build()?;
/// store.close().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct TenantsDriver;

/// The most open tenants: the named one, and those that an earlier process did not send.
const CAPACITY: usize = 8;

#[async_trait]
impl Driver for TenantsDriver {
    fn name(&self) -> &'static str {
        "tenants"
    }

    fn accepts(&self, dsn: &str) -> bool {
        TenantsDsn::accepts(dsn)
    }

    async fn open(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        open(&TenantsDsn::parse(dsn)?).await
    }

    /// Opens a read-only view of a tenant that exists; see [`Remote::view`](crate::Remote::view).
    /// Downloads the database into the system's directory for temporary files.
    async fn open_read_only(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        let dsn = TenantsDsn { create: false, ..TenantsDsn::parse(dsn)? };
        let key = tenant_of(&dsn)?;
        let view = dsn.open_remote()?.view(key, &std::env::temp_dir()).await?;
        let view = view.ok_or_else(|| missing(key))?;
        warn_of_local_database(&dsn, key);
        Ok(view.backend)
    }

    fn migrator(&self, dsn: &str) -> Result<Option<Box<dyn SchemaMigrator<Error = Error>>>> {
        TenantsDsn::parse(dsn)?;
        Err(Error::invalid_argument(
            "the tables of a tenant are brought up to date when a tenant is opened, and can't be migrated separately",
        ))
    }
}

fn tenant_of(dsn: &TenantsDsn) -> Result<&TenantKey> {
    dsn.tenant.as_ref().ok_or_else(|| {
        Error::invalid_argument(
            "the data-source name of a store must name a tenant; say which with `tenant=ORG/users/USER`, \
             `tenant=ORG/org`, `tenant=ORG/apps/APP` or `tenant=ORG/apps/APP/projects/PROJECT` after the `?`",
        )
    })
}

fn missing(key: &TenantKey) -> Error {
    Error::NotFound { reason: format!("the tenant {key} does not exist"), cause: None }
}

/// Warns of commits that this host has not sent, because a view does not show them.
fn warn_of_local_database(dsn: &TenantsDsn, key: &TenantKey) {
    let Ok(folder) = dsn.cache_folder(None) else { return };
    let database = key.local_path(&folder);
    if database.exists() {
        let database = database.display();
        tracing::warn!(
            target: "larder",
            "{database} may hold commits of {key} that were not sent yet and are not shown; \
             if no process has it open, `larder tenants checkpoint` sends them"
        );
    }
}

async fn open(dsn: &TenantsDsn) -> Result<Arc<dyn Backend>> {
    let key = tenant_of(dsn)?;
    if !dsn.create && dsn.open_remote()?.head(key).await?.is_none() {
        return Err(missing(key));
    }
    let mut builder = TenantsBuilder::from_dsn(dsn)?.cache_folder(dsn.cache_folder(None)?);
    if dsn.lease_wait.is_none() {
        builder = builder.outwait_lease();
    }
    let tenants = builder.capacity(CAPACITY).open().await?;
    match tenants.get(key).await {
        Ok(tenant) => Ok(Arc::new(tenant.backend_closing(tenants))),
        Err(error) => {
            tenants.close_or_log().await;
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use larder_core::{HandleOptions, Mode, Store};

    use super::*;

    #[tokio::test]
    async fn a_tenant_is_opened_by_name_and_written_back_when_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display();
        let dsn = |cache: &str, more: &str| {
            format!("tenants+file://{root}/place?tenant=acme/users/ann&cache={root}/{cache}{more}")
        };
        let store = async |dsn: String| {
            Store::builder_shared(TenantsDriver.open(&dsn).await.unwrap()).build().unwrap()
        };
        let refused = TenantsDriver.open(&dsn("one", "&create=no")).await;
        assert!(matches!(refused, Err(Error::NotFound { .. })), "it was created");
        let first = store(dsn("one", "")).await;
        let mut update = first.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
        update.put("n".into(), "key".into(), b"value".to_vec()).unwrap();
        update.commit().await.unwrap();
        first.close().await;
        let second = store(dsn("two", "&create=no")).await;
        let mut view = second.handle(HandleOptions::default()).begin(Mode::View).unwrap();
        assert_eq!(view.get("n".into(), "key".into()).await.unwrap(), Some(b"value".to_vec()));
        drop(view);
        second.close().await;
        assert!(matches!(second.ping().await, Err(Error::Closed)));
    }

    #[tokio::test]
    async fn without_a_tenant_it_is_said_how_to_name_one() {
        assert!(TenantsDriver.accepts("tenants+ftp://x") && !TenantsDriver.accepts("sqlite:x"));
        let Err(Error::InvalidArgument(reason)) = TenantsDriver.open("tenants+file:///x").await else {
            panic!("it was opened");
        };
        assert!(reason.contains("`tenant=ORG/users/USER`"), "{reason}");
        assert!(matches!(TenantsDriver.migrator("tenants+file:///x"), Err(Error::InvalidArgument(_))));
    }
}
