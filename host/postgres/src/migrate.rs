//! The schema of larder's own tables.

use larder_core::schema::{LOCK_WAIT, Ledger, MigrationError, StepFileError, StepSet, check_current};
use tokio_postgres::Config;

use crate::migrator;

/// The steps. The files are the same numbers as those of the other engine.
pub(crate) fn steps() -> Result<StepSet, StepFileError> {
    StepSet::embedded(&[
        ("0001_entries.sql", include_str!("../../../migrations/postgres/0001_entries.sql")),
        ("0002_memory_state.sql", include_str!("../../../migrations/postgres/0002_memory_state.sql")),
    ])
}

/// Brings the schema up to date.
pub(crate) async fn migrate(config: &Config) -> Result<(), MigrationError> {
    migrator::up(config, &steps()?, &Ledger::larder(), LOCK_WAIT).await.map(drop)
}

/// Checks that the schema is that of this release, and changes nothing.
pub(crate) async fn check(config: &Config) -> Result<(), MigrationError> {
    let applied = migrator::applied(config, &Ledger::larder()).await?;
    Ok(check_current(&steps()?, &applied)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_step_of_this_release() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/postgres");
        assert_eq!(steps().unwrap(), StepSet::from_folder(folder).unwrap());
    }
}
