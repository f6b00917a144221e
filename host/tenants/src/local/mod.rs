//! The half of the crate that keeps open databases on this host.

mod cache;
mod delete;
mod engine;
pub(crate) mod folder_owner;
mod grant;
pub(crate) mod hydrate;
mod journal;
mod options;
mod quarantine;
mod reapply;
mod resident;
mod restore;
mod state;
mod tenant;
mod tenant_entry;
mod tenants;
mod write_back;

pub use cache::CacheFolder;
pub use grant::TenantIdentity;
pub use options::TenantsBuilder;
pub use quarantine::Quarantined;
pub use reapply::{
    PlannedRow, PlannedSession, QuarantinedRow, QuarantinedStore, Reapplied, ReapplyPlan, ReapplyPolicy,
    ReapplyRows,
};
pub use restore::Restored;
pub use tenant::Tenant;
pub use tenants::Tenants;
