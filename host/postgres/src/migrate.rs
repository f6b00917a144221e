//! The schema of larder's own tables.

use larder_core::schema::{LOCK_WAIT, Ledger, MigrationError, StepFileError, StepSet, check_current};
use tokio_postgres::Config;

use crate::migrator::{self, Applied};

/// The steps. The files are the same numbers as those of the other engine.
pub(crate) fn steps() -> Result<StepSet, StepFileError> {
    StepSet::larders(&[
        ("0001_entries.sql", include_str!("../../../migrations/postgres/0001_entries.sql")),
        ("0002_memory_state.sql", include_str!("../../../migrations/postgres/0002_memory_state.sql")),
    ])
}

/// Brings larder's tables up to date, and says in which schema they are.
pub(crate) async fn migrate(config: &Config) -> Result<String, MigrationError> {
    let outcome = migrator::up(config, &steps()?, &Ledger::larder(), LOCK_WAIT).await?;
    Ok(outcome.schema)
}

/// Checks that larder's tables are those of this release, changes nothing, and says in which schema they are.
pub(crate) async fn check(config: &Config) -> Result<String, MigrationError> {
    let Applied { schema, steps: applied } = migrator::applied(config, &Ledger::larder()).await?;
    check_current(&steps()?, &applied)?;
    Ok(schema)
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
