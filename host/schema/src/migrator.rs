//! The trait of the runners, which apply the steps of one database.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::{DatabaseError, MigrationError};
use crate::status::Status;
use crate::step_set::Step;

/// The default time that a runner waits for another one that migrates the same database.
pub const LOCK_WAIT: Duration = Duration::from_secs(60);

/// Applies the schema migrations of one database.
#[async_trait]
pub trait SchemaMigrator: Send + Sync {
    /// The errors of the database.
    type Error: DatabaseError;

    /// Returns the applied and the pending steps, without writing anything.
    ///
    /// If there is no database or no ledger, every step is pending, and neither is created.
    ///
    /// # Errors
    ///
    /// - [`MigrationError::Schema`] if the steps do not match the ledger.
    /// - [`MigrationError::ShadowedLedger`] or [`MigrationError::SeveralLedgers`] if the ledger's
    ///   schema in Postgres is ambiguous.
    /// - [`MigrationError::Database`] if the database cannot be read.
    async fn status(&self) -> Result<Status, MigrationError<Self::Error>>;

    /// Applies the pending steps and returns them.
    ///
    /// Several processes may call this at once. Each step is applied by one of them, and all of
    /// them succeed.
    ///
    /// # Errors
    ///
    /// - [`MigrationError::Schema`] if the steps do not match the ledger.
    /// - [`MigrationError::StepFailed`], [`MigrationError::ForeignKeys`] or
    ///   [`MigrationError::ForbiddenCommand`] if a step failed and was rolled back. The steps
    ///   before it stay applied.
    /// - [`MigrationError::ShadowedLedger`], [`MigrationError::SeveralLedgers`] or
    ///   [`MigrationError::SchemaChanged`] if the ledger's schema in Postgres is ambiguous or
    ///   changed.
    /// - [`MigrationError::LockHeld`] if another process held the migration lock for too long.
    /// - [`MigrationError::Database`] if the database fails or cannot be reached.
    async fn up(&self) -> Result<Vec<Step>, MigrationError<Self::Error>>;
}
