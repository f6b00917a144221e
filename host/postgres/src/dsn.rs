//! Driver that opens Postgres stores by data-source name.

use std::sync::Arc;

use async_trait::async_trait;
use larder_core::backend::Backend;
use larder_core::{Driver, Error, ReadOnly, Result};
use larder_schema::{Ledger, MigrationError, SchemaMigrator};

use crate::{Environment, Postgres, PostgresMigrator, PostgresOptions, migrate};

/// Opens stores named `postgres://…`, `postgresql://…` or `host=… dbname=…`.
///
/// The crate's documentation describes the forms.
///
/// ```
/// use larder_core::Drivers;
/// use larder_postgres::PostgresDriver;
///
/// let mut drivers = Drivers::new();
/// drivers.register(PostgresDriver::new())?;
/// assert_eq!(drivers.names(), ["postgres"]);
/// # Ok::<(), larder_core::DriverError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct PostgresDriver {
    /// `None` for the environment of the process.
    environment: Option<Environment>,
}

impl PostgresDriver {
    /// Creates a driver that completes data-source names from the environment of the process.
    ///
    /// It reads the environment each time a store is opened.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a driver that completes data-source names from this environment only.
    pub fn with_environment(environment: Environment) -> Self {
        Self { environment: Some(environment) }
    }

    fn options(&self, dsn: &str) -> Result<PostgresOptions> {
        match &self.environment {
            Some(environment) => PostgresOptions::parse_with(dsn, environment),
            None => PostgresOptions::parse(dsn),
        }
    }
}

#[async_trait]
impl Driver for PostgresDriver {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn accepts(&self, dsn: &str) -> bool {
        dsn.starts_with("postgres:") || dsn.starts_with("postgresql:") || begins_with_keyword(dsn)
    }

    async fn open(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(Postgres::open_with(self.options(dsn)?).await?))
    }

    async fn open_read_only(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(ReadOnly::new(Arc::new(Postgres::open_read_only(self.options(dsn)?).await?))))
    }

    fn migrator(&self, dsn: &str) -> Result<Option<Box<dyn SchemaMigrator<Error = Error>>>> {
        let steps = migrate::steps().map_err(MigrationError::from)?;
        Ok(Some(Box::new(PostgresMigrator::with_options(self.options(dsn)?, steps, Ledger::larder()))))
    }
}

fn begins_with_keyword(dsn: &str) -> bool {
    dsn.split_once('=').is_some_and(|(word, _)| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_takes_urls_and_keywords_and_nothing_else() {
        let taken =
            ["postgres://h/d", "postgresql://h/d", "host=h dbname=d", "application_name=x", "postgres:h"];
        for dsn in taken {
            assert!(PostgresDriver::new().accepts(dsn), "{dsn}");
        }
        for dsn in ["in-memory:", "sqlite:a=b", "", "=", "mysql://h/d?a=b", "plugins.db", "Host=h"] {
            assert!(!PostgresDriver::new().accepts(dsn), "{dsn}");
        }
    }
}
