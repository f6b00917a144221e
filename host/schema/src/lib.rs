//! Schema migrations: the numbered steps that create and change tables in SQL databases.
//!
//! The same rules apply to larder's own tables and to those of an embedder. An engine reads its
//! [`Ledger`], asks [`pending`] for the steps to apply, and applies each [`Step`] in a transaction
//! that also records it. It holds a lock of its own meanwhile. The runners are `SqliteMigrator` of
//! `larder-sqlite` and `PostgresMigrator` of `larder-postgres`. Both implement [`SchemaMigrator`].
//!
//! # Contents of a step
//!
//! A step may hold any statement of its engine, except commands that begin, end or divide a
//! transaction: the runner begins and ends one for each step. A step with such a command fails with
//! [`MigrationError::ForbiddenCommand`] when it reaches the command, and is rolled back. The
//! documentation of each runner lists what else its engine refuses.

mod error;
mod foreign_keys;
mod ledger;
mod migrator;
mod position;
mod status;
mod step_set;

pub use error::{DatabaseError, MigrationError, is_missing_migration};
pub use foreign_keys::{ForeignKeyViolation, ForeignKeyViolations};
pub use ledger::{Ledger, LedgerNameError};
pub use migrator::{LOCK_WAIT, SchemaMigrator};
pub use position::StepPosition;
pub use status::{AppliedStep, SchemaError, Status, check_current, pending, recorded_otherwise, version};
pub use step_set::{Step, StepFileError, StepSet};

/// The program of the README, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
