//! One SQLite database per tenant, kept in object storage.
//!
//! [`Tenants`] are those of one host: [`Tenants::get`] opens one, by taking its lease and hydrating its database into the
//! host's cache folder, and gives a [`Tenant`] that stays open as long as somebody has it. Databases are written back after
//! so many commits, after so much time, before they are closed, and when they are given up for others. A component gets the
//! store of the identity that its host bound: [`Tenants::store_of`].
//!
//! The other half of the crate speaks with object storage. A tenant is, under the [`TenantKey::object_path`] that is its
//! own:
//!
//! - `head.json`, the [`Head`]: the one object that is ever changed, and only by compare-and-swap. It names the
//!   current snapshot and those kept for restoring, and holds the lease of the one writer with its fencing epoch.
//! - `snapshots/…`, immutable and compressed, named by content and by a number that is never used twice.
//! - `segments/…`, the log of what was acknowledged since the snapshot, one object a position, never changed.
//!
//! Beside the tenants lies `larder.json`, with a number that the first host drew: cache folders note to which place they
//! belong, and are refused by every other ([`TenantError::OtherPlace`]).
//!
//! # What holds
//!
//! - After an answer that is lost, late or refused, the object is read again before anything is concluded: write ids
//!   tell whose write it was. ETags don't, as those of equal bytes are equal.
//! - Whoever takes a tenant over raises the epoch by swapping the head. So an earlier holder's swap fails, and a head
//!   with a lease's own epoch was written by that lease.
//! - A lease ends on its holder's monotonic clock before it ends on that of anybody who watches it.
//! - A segment's position is given once. A new holder reads the log to its end and seals it with a segment of its
//!   own, and from then on the earlier holder's next position is taken.
//! - No text of an error decides anything.

mod backoff;
mod cache_place;
mod deletion;
mod disk_space;
mod driver;
mod dsn;
mod error;
#[cfg(feature = "testing")]
pub mod faults;
mod folder;
mod folder_upload;
mod head;
mod key;
mod lease;
mod list;
mod local;
mod log_overview;
mod objects;
mod parts;
mod place_id;
mod probe;
mod remote;
mod repair;
mod restore;
mod segment;
mod segments;
mod snapshot_transfer;
mod snapshots;
mod unpacked_file;
mod view;
mod watch;
mod write_id;

pub use deletion::{Deletion, DeletionStage};
pub use driver::TenantsDriver;
pub use dsn::{Durability, Place, TenantsDsn};
pub use error::TenantError;
pub use folder::FolderStore;
pub use head::{Head, LeaseRecord, SnapshotRef, Takeover};
pub use key::{Scope, Slug, TenantKey};
pub use lease::{Holder, Lease};
pub use local::{
    CacheFolder, PlannedRow, PlannedSession, Quarantined, QuarantinedRow, QuarantinedStore, Reapplied,
    ReapplyPlan, ReapplyPolicy, ReapplyRows, Restored, Tenant, TenantIdentity, Tenants, TenantsBuilder,
};
pub use log_overview::LogOverview;
pub use remote::{Remote, RemoteOptions};
pub use repair::Repair;
pub use restore::RestorePoint;
pub use segments::Replay;
pub use snapshots::Collected;
pub use view::TenantView;
pub use write_id::WriteId;
