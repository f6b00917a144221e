//! Read-only views of a tenant, without its lease.

use std::path::Path;
use std::sync::Arc;

use larder_core::ReadOnly;
use larder_core::backend::Backend;
use larder_core::row::Version;
use larder_sqlite::{Sqlite, SqliteOptions, Synchronous};
use tempfile::TempDir;

use crate::error::{Result, TenantError};
use crate::head::{Head, SnapshotRef};
use crate::key::TenantKey;
use crate::local::hydrate::replay;
use crate::remote::Remote;
use crate::segments::Replay;

/// A tenant as object storage had it at one moment; see [`Remote::view`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use larder_tenants::{TenantKey, Tenants};
///
/// # let folder = tempfile::tempdir()?;
/// # let cache = folder.path();
/// let objects = Arc::new(object_store::memory::InMemory::new());
/// let tenants = Tenants::builder(objects).cache_folder(cache).open().await?;
/// let key: TenantKey = "acme/users/ann".parse()?;
/// assert!(tenants.view(&key).await?.is_none());
/// tenants.get(&key).await?;
/// assert!(tenants.view(&key).await?.is_some());
/// tenants.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct TenantView {
    /// The tenant's rows and conversations, read-only.
    ///
    /// Every write fails with [`AccessDenied`](larder_core::Error::AccessDenied). Closing the
    /// backend or dropping its last clone removes the copy of the database.
    pub backend: Arc<dyn Backend>,
    /// The snapshot that it was made from. `None` if the tenant was never written back.
    pub snapshot: Option<SnapshotRef>,
    /// The version of the last commit that it shows.
    pub version: Version,
}

impl std::fmt::Debug for TenantView {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TenantView").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The most heads that are tried, if the host that has the tenant keeps removing the objects that
/// they name.
const ATTEMPTS: u32 = 5;

const DATABASE: &str = "view.db";

impl Remote {
    /// Opens a read-only view of a tenant as object storage has it now.
    ///
    /// `None` if the tenant does not exist.
    ///
    /// This takes no lease and writes nothing to object storage, so read access is enough, and
    /// another host may have the tenant open. With durability `object`, the view shows every commit
    /// that was acknowledged before the call. With durability `local`, it shows the last
    /// checkpoint. It does not show later commits; open another view for those.
    ///
    /// The database is downloaded into a new folder in `folder`.
    ///
    /// # Errors
    /// - [`TenantError::Deleted`] if the tenant is deleted and not yet purged.
    /// - [`TenantError::Corrupt`] if stored data fails a check.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the tenant.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached, or if the named objects
    ///   keep being replaced.
    /// - [`TenantError::DiskFull`] if the database would fill the disk.
    /// - [`TenantError::File`] if `folder` cannot be written.
    /// - [`TenantError::Database`] if the copy of the database cannot be opened.
    pub async fn view(&self, key: &TenantKey, folder: &Path) -> Result<Option<TenantView>> {
        for _ in 0..ATTEMPTS {
            let Some(head) = self.head(key).await? else { return Ok(None) };
            if let Some(deletion) = &head.deletion {
                return Err(deletion.error(key));
            }
            match self.view_of(key, &head, folder).await {
                Ok(Some(view)) => return Ok(Some(view)),
                // The objects that the head names may have been removed, because a newer head is
                // stored by now.
                Ok(None) => {}
                Err(damage @ TenantError::Corrupt { .. }) => {
                    if self.head(key).await?.is_some_and(|now| now.names_same(&head)) {
                        return Err(damage);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let reason = format!("the objects that the head of {key} names keep being replaced");
        Err(TenantError::Unavailable { reason, cause: None })
    }

    /// Opens a view of one head. `None` if the head has been swapped since, so that its log may be
    /// incomplete.
    async fn view_of(&self, key: &TenantKey, head: &Head, folder: &Path) -> Result<Option<TenantView>> {
        let failed = |error| TenantError::database(key, error);
        let folder = private_folder(folder)?;
        if let Some(snapshot) = &head.snapshot {
            let file = folder.path().join(DATABASE);
            self.fetch(key, snapshot, &file, self.options().max_snapshot_bytes).await?;
            Sqlite::verify(&file).await.map_err(failed)?;
        }
        // The copy is worthless after a crash.
        let options = SqliteOptions::default().synchronous(Synchronous::Off);
        let database = Sqlite::open_temporary(folder, DATABASE, options).await.map_err(failed)?;
        let version = match self.log_of(key, head).await {
            Ok(Some(log)) => replay(key, log, &database).await.map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        if let Ok(Some(version)) = version {
            let backend = Arc::new(ReadOnly::new(Arc::new(database)));
            let version = Version(version);
            return Ok(Some(TenantView { backend, snapshot: head.snapshot.clone(), version }));
        }
        database.close().await;
        version.map(|_| None)
    }

    /// The log after a head's snapshot, up to the last segment that exists now. `None` if segments
    /// may have been removed before they were listed, because a later snapshot covers them or the
    /// tenant was deleted.
    async fn log_of(&self, key: &TenantKey, head: &Head) -> Result<Option<Replay>> {
        let covers = head.covers();
        let last = match head.has_log {
            true => self.positions_after(key, covers).await?.last().copied(),
            false => None,
        };
        let now = self.head(key).await?.filter(|now| now.deletion.is_none());
        if now.is_none_or(|now| now.covers() > last.unwrap_or(covers)) {
            return Ok(None);
        }
        let (remote, own) = (self.clone(), key.clone());
        let download = move |position| {
            let (remote, key) = (remote.clone(), own.clone());
            async move {
                let missing = || TenantError::corrupt(&key, format!("segment {position} is missing"));
                remote.segment(&key, position).await?.ok_or_else(missing)
            }
        };
        Ok(Some(Replay::new(key, covers.saturating_add(1)..=last.unwrap_or(covers), download)))
    }
}

fn private_folder(folder: &Path) -> Result<TempDir> {
    let made = tempfile::Builder::new().prefix("larder-view-").tempdir_in(folder);
    made.map_err(|error| TenantError::file(format!("a folder in {} can't be made", folder.display()), error))
}
