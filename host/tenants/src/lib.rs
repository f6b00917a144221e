//! One SQLite database per tenant, kept in object storage.
//!
//! [`Tenants`] manages the tenants of one host. [`Tenants::get`] opens a tenant: it takes the
//! tenant's lease, downloads its database into the host's cache folder and returns a [`Tenant`].
//! The tenant stays open for at least as long as a caller keeps that value. The host uploads a
//! snapshot of the database after a number of commits, after an interval, before it closes the
//! tenant and before it evicts the tenant to make room for another. A component gets the store of
//! the identity that its host bound: [`Tenants::store_of`].
//!
//! The other half of the crate, [`Remote`], reads and writes object storage. These are the objects
//! of a tenant, below its [`TenantKey::object_path`]:
//!
//! - `head.json`, the [`Head`]: the only object that is modified, and only by compare-and-swap. It
//!   names the current snapshot and the earlier snapshots that can be restored. It also holds the
//!   lease of the one writer, with its fencing epoch.
//! - `snapshots/…`: immutable, compressed database files. Their names consist of the hash of the
//!   content and a write id, so no name is used twice.
//! - `segments/…`: the log of the commits since the snapshot, if durability is
//!   [`Object`](Durability::Object). Each position is one immutable object.
//!
//! Beside the tenants, `larder.json` holds a random id of the location, which the first host draws.
//! A cache folder records the id of its location, and larder refuses to use the folder for any
//! other location ([`TenantError::OtherLocation`]).
//!
//! # Invariants
//!
//! - If the response to a write is lost, late or an error, the object is read again before the
//!   write counts as done or as failed. Its write id tells whose write the object holds. An ETag
//!   cannot, because equal bytes may have equal ETags.
//! - A host that takes over a tenant raises the epoch by swapping the head. Every later swap of the
//!   earlier holder fails, and a head with the epoch of a lease was written by that lease.
//! - A lease expires on the monotonic clock of its holder before it expires on the clock of any
//!   host that watches it.
//! - Each log position is assigned once. A new holder reads the log to its end and seals it with a
//!   segment of its own. From then on, the next position of the earlier holder is taken.
//! - Code decides by the variant of an error, never by its text.
//!
//! # Systems
//!
//! The crate needs Unix: it reads and writes files at offsets, checks their owners, and raises the
//! limit of open files. It does not compile on other systems.

#[cfg(not(unix))]
compile_error!("larder-tenants needs Unix; larder-host does not depend on it on other systems");

mod attempts;
mod blocking;
mod cache_location;
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
mod location_id;
mod log_overview;
mod objects;
mod parts;
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
pub use dsn::{Durability, Location, TenantsDsn};
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

/// The program of the README, as a test.
#[cfg(all(doctest, feature = "s3"))]
#[doc = include_str!("../README.md")]
struct Readme;
