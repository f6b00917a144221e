//! Work that cannot be sliced and takes time in proportion to its input.

use crate::error::{Error, Result};

/// The number of bytes that are parsed or written in well under a millisecond.
const SMALL: usize = 64 << 10;

/// Runs `work` on this thread if `bytes` is small, otherwise on a blocking thread.
///
/// `bytes` is the size of its input. If the future is dropped, the work still runs to its end.
///
/// # Errors
///
/// [`Error::Other`] if the runtime ended or the work panicked.
pub(crate) async fn by_size<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    if bytes <= SMALL {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::caused("the work panicked or its runtime ended", error))
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[tokio::test]
    async fn only_small_work_is_done_on_the_threads_of_the_executor() {
        let own = current().id();
        assert_eq!(by_size(SMALL, || current().id()).await.unwrap(), own);
        assert_ne!(by_size(SMALL + 1, || current().id()).await.unwrap(), own);
    }
}
