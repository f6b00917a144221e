//! Drivers: what opens the backends of one kind.

use std::sync::Arc;

use async_trait::async_trait;
use larder_schema::SchemaMigrator;

use crate::backend::Backend;
use crate::error::Error;

/// Opens backends of one kind.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// The driver's unique name, such as `sqlite`.
    fn name(&self) -> &'static str;

    /// Whether a data-source name is meant for this driver, valid or not.
    fn accepts(&self, dsn: &str) -> bool;

    /// Opens a backend and applies larder's own schema migrations to it.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidArgument`] if the data-source name is malformed.
    /// - Any error of the engine.
    async fn open(&self, dsn: &str) -> Result<Arc<dyn Backend>, Error>;

    /// Opens an existing backend for reading only.
    ///
    /// This creates, migrates and writes nothing: no file appears, and no byte of the store
    /// changes. It does not wait for other processes. A write to the backend fails with
    /// [`Error::AccessDenied`]. [`ReadOnly`](crate::ReadOnly) ensures that for any backend.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidArgument`] if the data-source name is malformed.
    /// - [`Error::NotFound`] if the store does not exist.
    /// - [`Error::Other`] if its schema is older or newer than this release, or is not larder's.
    /// - Any other error of the engine.
    async fn open_read_only(&self, dsn: &str) -> Result<Arc<dyn Backend>, Error>;

    /// Returns a migrator for larder's own tables in a database, without opening it.
    ///
    /// Returns `None` if the backend has no tables that outlive the process, which is the default.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the data-source name is malformed.
    fn migrator(&self, dsn: &str) -> Result<Option<Box<dyn SchemaMigrator<Error = Error>>>, Error> {
        let _ = dsn;
        Ok(None)
    }
}
