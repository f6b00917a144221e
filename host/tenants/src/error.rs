//! Why something was not done with a tenant's objects.

use std::time::Duration;

use larder_core::error::Cause;

use crate::deletion::DeletionStage;
use crate::key::TenantKey;

/// Why something was not done with a tenant's objects. Its kind decides, never its text.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TenantError {
    /// Object storage could not be reached, or gave no answer that settles anything. What was asked for may be tried
    /// again.
    #[error("object storage is unavailable: {reason}")]
    Unavailable {
        /// What could not be done.
        reason: String,
        /// The client's own error.
        #[source]
        cause: Option<Cause>,
    },
    /// A segment was sent, and nothing is known of what became of it. It stays the first in line: the next append puts
    /// it before anything else.
    #[error("{key}: whether segment {position} was written is unknown")]
    OutcomeUnknown {
        /// Whose.
        key: String,
        /// Its position.
        position: u64,
        /// Why.
        #[source]
        cause: Option<Cause>,
    },
    /// Another holder has taken the tenant over. The lease is lost for ever, and nothing of the other was overwritten.
    #[error("{key}: lost to {by:?}, which took the tenant over with epoch {epoch}")]
    Fenced {
        /// Whose.
        key: String,
        /// The epoch of the other.
        epoch: u64,
        /// The other; empty where it has already left.
        by: String,
    },
    /// The lease was not renewed in time. Nobody else need have the tenant: a renewal may still succeed.
    #[error("{key}: the lease was not renewed in time")]
    LeaseLapsed {
        /// Whose.
        key: String,
    },
    /// Another holder has the tenant now.
    #[error("{key}: {holder:?} holds the lease, which is free once that stops renewing it for {ttl:?}")]
    LeaseHeld {
        /// Whose.
        key: String,
        /// Who has it.
        holder: String,
        /// How long it holds from a renewal on.
        ttl: Duration,
    },
    /// What is stored fails a check. It is left as it is.
    #[error("{key}: stored data is corrupt: {reason}")]
    Corrupt {
        /// Whose.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer release of larder wrote this.
    #[error("{key}: written by a newer release of larder, in format {format}; this one reads {supported}")]
    NewerFormat {
        /// Whose.
        key: String,
        /// Its format.
        format: u64,
        /// The newest format that is understood.
        supported: u64,
    },
    /// The object storage does not honour the conditions of a put.
    #[error(
        "this object storage can't keep tenants, as it does not honour conditional writes: {reason}; larder needs \
         If-None-Match and If-Match on puts, atomically"
    )]
    NoConditions {
        /// What it did.
        reason: String,
    },
    /// The lease was released.
    #[error("{key}: the lease was released")]
    Closed {
        /// Whose.
        key: String,
    },
    /// The tenant was deleted. Its objects exist until `purge_at`, and longer if nothing removes them.
    #[error(
        "{key}: deleted at {at} (milliseconds since 1970); {}",
        deletion_hint(.key, *.stage, *.purge_at)
    )]
    Deleted {
        /// Whose.
        key: String,
        /// When, in milliseconds since 1970 by the clock of the object storage.
        at: u64,
        /// From when on its objects may be removed, by the same clock.
        purge_at: u64,
        /// How far the deletion is.
        stage: DeletionStage,
    },
    /// The tenant does not exist.
    #[error("there is no tenant {key}")]
    NotFound {
        /// Which.
        key: String,
    },
    /// There is nothing from that time.
    #[error("{key}: no snapshot was taken at or before {at} (milliseconds since 1970){}", oldest_hint(*.oldest))]
    NoSnapshot {
        /// Whose.
        key: String,
        /// The moment that was asked for, in milliseconds since 1970.
        at: u64,
        /// The oldest moment that can be restored.
        oldest: Option<u64>,
    },
    /// There is no snapshot of that generation.
    #[error("{key}: there is no snapshot of generation {generation}")]
    NoGeneration {
        /// Whose.
        key: String,
        /// The generation that was asked for.
        generation: u64,
    },
    /// There is no snapshot of that version or before.
    #[error("{key}: no snapshot at version {version} or earlier{}", oldest_version_hint(*.oldest))]
    NoVersion {
        /// Whose.
        key: String,
        /// The version that was asked for.
        version: u64,
        /// The smallest version of a snapshot.
        oldest: Option<u64>,
    },
    /// Another process has the cache folder.
    #[error("the cache folder {folder} is in use by another process; give each process its own")]
    CacheInUse {
        /// The folder.
        folder: String,
    },
    /// The cache folder was opened for the tenants of another bucket, prefix or folder. Nothing was done on either side.
    #[error(
        "the cache folder {folder} is of other tenants: it belongs to the place {recorded}, and this is {}; give each \
         place its own",
        place_name(found.as_deref())
    )]
    OtherPlace {
        /// The folder.
        folder: String,
        /// The number of the place that it belongs to.
        recorded: String,
        /// The number of this one; none where it has none, as nobody has kept tenants there.
        found: Option<String>,
    },
    /// Somebody on this host has the tenant open.
    #[error("{key} is in use on this host")]
    InUse {
        /// Whose.
        key: String,
    },
    /// As many tenants as can be open are in use.
    #[error("all of the {capacity} tenants that can be open here are in use; raise the capacity")]
    Full {
        /// How many can be open.
        capacity: usize,
    },
    /// The tenants of this host were closed.
    #[error("the tenants of this host are closed")]
    ShutDown,
    /// Tenants that could not be written back when all were closed. They are still open, and on this host's disk.
    #[error("{} tenants could not be written back: {}", failed.len(), failures(failed))]
    NotWrittenBack {
        /// Which, and why.
        failed: std::sync::Arc<[(TenantKey, TenantError)]>,
    },
    /// The tenant's database failed.
    #[error("{key}: {error}")]
    Database {
        /// Whose.
        key: String,
        /// How.
        #[source]
        error: larder_core::Error,
    },
    /// An argument has no meaning here.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// A database was not downloaded, as it would take the last of the disk. Nothing of it is left.
    #[error(
        "the disk of {folder} is too full: {needed} bytes are needed and {free} are free, of which {reserve} stay free; \
         make room, or use a cache folder on a larger disk"
    )]
    DiskFull {
        /// The folder of the download.
        folder: String,
        /// How many bytes it would still take.
        needed: u64,
        /// How many bytes of the file system are free.
        free: u64,
        /// How many bytes of the file system larder does not take.
        reserve: u64,
    },
    /// A file of this machine can't be read or written.
    #[error("{action}")]
    File {
        /// What could not be done.
        action: String,
        /// Why.
        #[source]
        cause: Cause,
    },
}

/// The result of something done with a tenant's objects.
pub(crate) type Result<T, E = TenantError> = std::result::Result<T, E>;

fn oldest_hint(oldest: Option<u64>) -> String {
    oldest.map(|oldest| format!("; the oldest is of {oldest}")).unwrap_or_default()
}

fn oldest_version_hint(oldest: Option<u64>) -> String {
    oldest.map(|oldest| format!("; the oldest is at {oldest}")).unwrap_or_default()
}

fn deletion_hint(key: &str, stage: DeletionStage, purge_at: u64) -> String {
    match stage {
        DeletionStage::Marked => format!(
            "its objects may be removed from {purge_at} on; until they are, `larder tenants undelete {key}` brings it back"
        ),
        DeletionStage::Purging => "its objects are being removed".to_string(),
        DeletionStage::Purged => "its objects were removed".to_string(),
    }
}

fn place_name(found: Option<&str>) -> String {
    found.map_or_else(
        || "one where nobody has kept tenants yet".to_string(),
        |found| format!("the place {found}"),
    )
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
    /// Texts of `larder-core` reach guests: they say nothing of other hosts, keys and paths. Those are in the cause.
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
            TenantError::Fenced { .. } => unavailable("another host has taken this tenant over"),
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
                Self::Other { reason: "there is no such snapshot".into(), cause: Some(cause) }
            }
            TenantError::CacheInUse { .. } => unavailable("another process has this host's cache folder"),
            TenantError::OtherPlace { .. } => unavailable("this host's cache folder is of other tenants"),
            TenantError::InUse { .. } => unavailable("the tenant is in use"),
            TenantError::Full { .. } => unavailable("too many tenants are in use on this host"),
            TenantError::ShutDown => Self::Closed,
            TenantError::NotWrittenBack { .. } => unavailable("some tenants could not be written back"),
            TenantError::Database { error, .. } => error,
            TenantError::InvalidArgument(reason) => Self::InvalidArgument(reason),
            TenantError::DiskFull { .. } => unavailable("the host's disk is too full for this tenant"),
            TenantError::File { .. } => unavailable("a file of the host can't be read or written"),
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
