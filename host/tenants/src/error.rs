//! Errors of operations on tenants.

use std::time::Duration;

use larder_core::error::Cause;

use crate::deletion::DeletionStage;
use crate::key::TenantKey;

/// An error of an operation on a tenant.
///
/// Match on the variant; the text may change.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TenantError {
    /// Object storage cannot be reached, or its response leaves the outcome open.
    ///
    /// The caller may retry.
    #[error("object storage is unavailable: {reason}")]
    Unavailable {
        /// The operation that failed.
        reason: String,
        /// The error of the object storage client.
        #[source]
        cause: Option<Cause>,
    },
    /// A segment was sent, and its outcome is unknown.
    ///
    /// The log settles it before it writes any other segment.
    #[error("{key}: it is unknown whether segment {position} was written")]
    OutcomeUnknown {
        /// The tenant.
        key: String,
        /// The log position of the segment.
        position: u64,
        /// The error that left the outcome open.
        #[source]
        cause: Option<Cause>,
    },
    /// Another holder has taken over the tenant.
    ///
    /// The lease is lost for good. Nothing that the other holder wrote was overwritten.
    #[error("{key}: {by:?} took over the tenant with epoch {epoch}, so this host's lease is lost")]
    Fenced {
        /// The tenant.
        key: String,
        /// The epoch of the other holder's lease.
        epoch: u64,
        /// The other holder. Empty if it has already released its lease.
        by: String,
    },
    /// The lease was not renewed in time.
    ///
    /// A renewal still succeeds, unless another host has taken the lease meanwhile.
    #[error("{key}: the lease was not renewed in time")]
    LeaseLapsed {
        /// The tenant.
        key: String,
    },
    /// Another holder has the lease.
    #[error("{key}: {holder:?} holds the lease, which expires after {ttl:?} without a renewal")]
    LeaseHeld {
        /// The tenant.
        key: String,
        /// The holder of the lease.
        holder: String,
        /// How long the lease is valid after a renewal.
        ttl: Duration,
    },
    /// Stored data failed a check. It was not changed.
    #[error("{key}: stored data is corrupt: {reason}")]
    Corrupt {
        /// The tenant, or the path of the object or file.
        key: String,
        /// The check that failed.
        reason: String,
    },
    /// A newer release of larder wrote the data, in a format unknown to this release.
    #[error(
        "{key}: written by a newer release of larder, in format {format}; this release reads formats up to {supported}"
    )]
    NewerFormat {
        /// The tenant, or the path of the object or file.
        key: String,
        /// The format of the data.
        format: u64,
        /// The newest format that this release reads.
        supported: u64,
    },
    /// The object storage does not honour conditional puts.
    #[error(
        "this object storage can't keep tenants, as it does not honour conditional writes: {reason}; use one \
         that supports atomic puts with If-None-Match and If-Match"
    )]
    NoConditions {
        /// What the object storage did.
        reason: String,
    },
    /// The caller has released the lease.
    #[error("{key}: the lease was released")]
    Closed {
        /// The tenant.
        key: String,
    },
    /// The tenant is deleted.
    ///
    /// Its objects exist at least until `purge_at`, and until a purge removes them.
    #[error(
        "{key}: deleted at {at} (milliseconds since 1970); {}",
        deletion_hint(.key, *.stage, *.purge_at)
    )]
    Deleted {
        /// The tenant.
        key: String,
        /// When it was deleted, in milliseconds since 1970 by the clock of the object storage.
        at: u64,
        /// When its objects may be removed, by the same clock.
        purge_at: u64,
        /// The stage of the deletion.
        stage: DeletionStage,
    },
    /// The tenant does not exist.
    #[error("there is no tenant {key}")]
    NotFound {
        /// The tenant.
        key: String,
    },
    /// No snapshot is as old as the requested time.
    #[error("{key}: no snapshot was taken at or before {at} (milliseconds since 1970){}", oldest_hint(*.oldest))]
    NoSnapshot {
        /// The tenant.
        key: String,
        /// The requested time, in milliseconds since 1970.
        at: u64,
        /// When the oldest snapshot was taken. `None` if the tenant has no snapshot.
        oldest: Option<u64>,
    },
    /// No snapshot has the requested generation.
    #[error("{key}: no snapshot has generation {generation}")]
    NoGeneration {
        /// The tenant.
        key: String,
        /// The requested generation.
        generation: u64,
    },
    /// No snapshot has the requested version or an earlier one.
    #[error("{key}: no snapshot at version {version} or earlier{}", oldest_version_hint(*.oldest))]
    NoVersion {
        /// The tenant.
        key: String,
        /// The requested version.
        version: u64,
        /// The smallest known version of a snapshot. `None` if no snapshot has a known version.
        oldest: Option<u64>,
    },
    /// Another process is using the cache folder.
    #[error("the cache folder {folder} is in use by another process; give each process its own")]
    CacheInUse {
        /// The folder.
        folder: String,
    },
    /// The cache folder belongs to another bucket, prefix or folder. Nothing was changed in the
    /// folder or in object storage.
    #[error(
        "the cache folder {folder} belongs to other tenants: those of location {recorded}, not of {}; use a \
         separate cache folder for each location",
        found_location(found.as_deref())
    )]
    OtherLocation {
        /// The folder.
        folder: String,
        /// The id of the location that the folder belongs to.
        recorded: String,
        /// The id of the location that was opened. `None` if it has no id, because no host has kept
        /// tenants there.
        found: Option<String>,
    },
    /// A caller on this host is using the tenant.
    #[error("{key} is in use on this host")]
    InUse {
        /// The tenant.
        key: String,
    },
    /// Every tenant that this host can keep open is in use.
    #[error("all {capacity} tenants that this host can keep open are in use; raise the capacity")]
    Full {
        /// The most tenants that can be open.
        capacity: usize,
    },
    /// [`Tenants::close`](crate::Tenants::close) was called.
    #[error("the tenants of this host are closed")]
    ShutDown,
    /// [`Tenants::close`](crate::Tenants::close) could not write some tenants back.
    ///
    /// They are still open, and their databases are still on this host's disk.
    #[error("{} tenants could not be written back: {}", failed.len(), failures(failed))]
    NotWrittenBack {
        /// The tenants, each with its error.
        failed: std::sync::Arc<[(TenantKey, TenantError)]>,
    },
    /// The tenant's database failed.
    #[error("{key}: {error}")]
    Database {
        /// The tenant.
        key: String,
        /// The error of the database.
        #[source]
        error: larder_core::Error,
    },
    /// An argument is invalid.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// A database was not downloaded, because it would fill the disk.
    ///
    /// The partial file was removed.
    #[error(
        "not enough disk space in {folder}: {needed} bytes are needed, {free} bytes are free and {reserve} bytes stay \
         reserved; free some space, or use a cache folder on a larger disk"
    )]
    DiskFull {
        /// The folder of the download.
        folder: String,
        /// The bytes that are still to be written.
        needed: u64,
        /// The free bytes of the file system.
        free: u64,
        /// The bytes of the file system that larder never uses.
        reserve: u64,
    },
    /// A file on this machine can't be read or written.
    #[error("{action}")]
    File {
        /// The operation that failed.
        action: String,
        /// The error of the operation.
        #[source]
        cause: Cause,
    },
}

/// The result of an operation on a tenant.
pub(crate) type Result<T, E = TenantError> = std::result::Result<T, E>;

fn oldest_hint(oldest: Option<u64>) -> String {
    oldest.map(|oldest| format!("; the oldest was taken at {oldest}")).unwrap_or_default()
}

fn oldest_version_hint(oldest: Option<u64>) -> String {
    oldest.map(|oldest| format!("; the oldest has version {oldest}")).unwrap_or_default()
}

fn deletion_hint(key: &str, stage: DeletionStage, purge_at: u64) -> String {
    match stage {
        DeletionStage::Marked => format!(
            "its objects may be removed from {purge_at} on; until they are, `larder tenants undelete {key}` restores it"
        ),
        DeletionStage::Purging => "its objects are being removed".to_string(),
        DeletionStage::Purged => "its objects were removed".to_string(),
    }
}

fn found_location(found: Option<&str>) -> String {
    found.map_or_else(|| "a location without tenants".to_string(), |found| format!("location {found}"))
}

fn failures(failed: &[(TenantKey, TenantError)]) -> String {
    failed.iter().map(|(key, error)| format!("{key} ({error})")).collect::<Vec<_>>().join(", ")
}

impl TenantError {
    pub(crate) fn database(key: impl std::fmt::Display, error: larder_core::Error) -> Self {
        match error {
            larder_core::Error::Corrupt(reason) => Self::corrupt(key, reason),
            error => Self::Database { key: key.to_string(), error },
        }
    }

    pub(crate) fn invalid_argument(reason: impl Into<String>) -> Self {
        Self::InvalidArgument(reason.into())
    }

    pub(crate) fn corrupt(key: impl std::fmt::Display, reason: impl Into<String>) -> Self {
        Self::Corrupt { key: key.to_string(), reason: reason.into() }
    }

    pub(crate) fn unavailable(
        reason: impl Into<String>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Unavailable { reason: reason.into(), cause: Some(std::sync::Arc::new(cause)) }
    }

    pub(crate) fn file(
        action: impl Into<String>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::File { action: action.into(), cause: std::sync::Arc::new(cause) }
    }
}

impl From<TenantError> for larder_core::Error {
    /// Converts to an error whose text a guest may see. The text names no other host, key or path;
    /// the cause does.
    fn from(error: TenantError) -> Self {
        let cause = std::sync::Arc::new(error.clone());
        let unavailable =
            |reason: &str| Self::Unavailable { reason: reason.into(), cause: Some(cause.clone()) };
        match error {
            TenantError::Unavailable { .. } => unavailable("object storage can't be reached"),
            TenantError::OutcomeUnknown { .. } => Self::CommitUnknown {
                reason: "object storage did not answer in time".into(),
                cause: Some(cause),
            },
            TenantError::Fenced { .. } => unavailable("another host has taken over this tenant"),
            TenantError::LeaseLapsed { .. } => {
                unavailable("the lease of this tenant could not be renewed in time")
            }
            TenantError::LeaseHeld { .. } => unavailable("another host has this tenant open"),
            TenantError::Corrupt { reason, .. } => Self::Corrupt(reason),
            TenantError::NewerFormat { .. } => Self::Other {
                reason: "a newer release of larder wrote this tenant".into(),
                cause: Some(cause),
            },
            TenantError::NoConditions { .. } => Self::Other {
                reason: "the object storage does not honour conditional writes".into(),
                cause: Some(cause),
            },
            TenantError::Closed { .. } => Self::Closed,
            TenantError::Deleted { .. } => {
                Self::NotFound { reason: "this tenant was deleted".into(), cause: Some(cause) }
            }
            TenantError::NotFound { .. } => {
                Self::NotFound { reason: "this tenant does not exist".into(), cause: Some(cause) }
            }
            TenantError::NoSnapshot { .. }
            | TenantError::NoGeneration { .. }
            | TenantError::NoVersion { .. } => {
                Self::Other { reason: "the snapshot does not exist".into(), cause: Some(cause) }
            }
            TenantError::CacheInUse { .. } => {
                unavailable("another process is using this host's cache folder")
            }
            TenantError::OtherLocation { .. } => {
                unavailable("this host's cache folder belongs to other tenants")
            }
            TenantError::InUse { .. } => unavailable("the tenant is in use"),
            TenantError::Full { .. } => unavailable("too many tenants are in use on this host"),
            TenantError::ShutDown => Self::Closed,
            TenantError::NotWrittenBack { .. } => unavailable("some tenants could not be written back"),
            TenantError::Database { error, .. } => error,
            TenantError::InvalidArgument(reason) => Self::InvalidArgument(reason),
            TenantError::DiskFull { .. } => unavailable("the host's disk is too full for this tenant"),
            TenantError::File { .. } => unavailable("a file on the host can't be read or written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_not_told_which_host_has_the_tenant() {
        let held = TenantError::LeaseHeld {
            key: "acme/org".into(),
            holder: "secret-host".into(),
            ttl: Duration::from_secs(15),
        };
        assert!(held.to_string().contains("secret-host"));
        let core = larder_core::Error::from(held);
        assert!(matches!(core, larder_core::Error::Unavailable { .. }));
        assert!(!core.to_string().contains("secret-host"));
        assert!(std::error::Error::source(&core).unwrap().to_string().contains("secret-host"));
    }

    #[test]
    fn an_unknown_outcome_is_an_unknown_commit() {
        let unknown = TenantError::OutcomeUnknown { key: "acme/org".into(), position: 3, cause: None };
        assert!(matches!(larder_core::Error::from(unknown), larder_core::Error::CommitUnknown { .. }));
    }
}
