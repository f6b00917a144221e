//! Schema migrations of larder's own tables.

use larder_core::Error;
use larder_schema::{LOCK_WAIT, Ledger, MigrationError, StepFileError, StepSet, check_current};

use crate::connect_error::ConnectError;
use crate::connector::Connector;
use crate::error::Failure;
use crate::migrator::{self, Applied};

/// Returns the steps. The first two have the same numbers and names as those of the SQLite backend.
pub(crate) fn steps() -> Result<StepSet, StepFileError> {
    StepSet::larders(&[
        ("0001_entries.sql", include_str!("../migrations/0001_entries.sql")),
        ("0002_memory_state.sql", include_str!("../migrations/0002_memory_state.sql")),
        ("0003_namespace_locks.sql", include_str!("../migrations/0003_namespace_locks.sql")),
    ])
}

/// Migrates larder's tables, and returns their schema.
pub(crate) async fn migrate(connector: &Connector) -> Result<String, MigrationError<Error>> {
    let outcome = migrator::up(connector, &steps()?, &Ledger::larder(), LOCK_WAIT).await?;
    match outcome.standby {
        Some(host) => Err(Failure::from(ConnectError::Standby { host }).into()),
        None => Ok(outcome.schema),
    }
}

/// Checks that larder's tables match this release, without changes to the database. Returns their
/// schema.
pub(crate) async fn check(connector: &Connector) -> Result<String, MigrationError<Error>> {
    let Applied { schema, steps: applied, .. } = migrator::applied(connector, &Ledger::larder()).await?;
    check_current(&steps()?, &applied)?;
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_step_of_this_release() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        assert_eq!(steps().unwrap(), StepSet::from_folder(folder).unwrap());
    }
}
