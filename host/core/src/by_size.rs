//! Work in one piece that takes as long as its input is large.

use crate::error::{Error, Result};

/// Bytes that are parsed or written in well under a millisecond.
const SMALL: usize = 64 << 10;

/// Does work on so many bytes: here if they are few, otherwise on a blocking thread, so that no thread of the executor is held.
///
/// If the future is dropped, the work still ends, and its outcome is dropped.
///
/// # Errors
/// [`Error::Other`] if the runtime ended or the work panicked.
pub(crate) async fn by_size<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    if bytes <= SMALL {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::caused("the work was cancelled", error))
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
