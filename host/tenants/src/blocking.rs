//! Work that blocks its thread.

use crate::error::{Result, TenantError};

/// Runs work on a thread of the runtime's blocking pool.
///
/// # Errors
/// - Any error of the work.
/// - [`TenantError::File`] if the work panicked, or the runtime shut down before it began.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let failed = |error| TenantError::file("the work on a blocking thread did not end", error);
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
