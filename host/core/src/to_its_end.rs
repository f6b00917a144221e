//! Work that continues after its caller has stopped waiting.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

/// A future that a task continues if it is dropped before its end.
///
/// For work that may commit. It runs in the task that awaits it, because a task of its own would
/// cost two task switches.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use larder_core::to_its_end::ToItsEnd;
/// use tokio::runtime::Handle;
///
/// assert_eq!(ToItsEnd::new(&Handle::current(), async { 7 }).await, 7);
/// # }
/// ```
pub struct ToItsEnd<T: Send + 'static> {
    work: Option<Work<T>>,
    runtime: Handle,
}

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<T: Send + 'static> ToItsEnd<T> {
    /// Wraps `work`. If the future is dropped, a task of `runtime` continues the work.
    pub fn new(runtime: &Handle, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self { work: Some(Box::pin(work)), runtime: runtime.clone() }
    }
}

impl<T: Send + 'static> std::fmt::Debug for ToItsEnd<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ToItsEnd").field("ended", &self.work.is_none()).finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Future for ToItsEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // Work that panics is not put back, because it cannot be polled again.
        let Some(mut work) = self.work.take() else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for ToItsEnd<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            drop(self.runtime.spawn(work));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_whose_future_is_dropped_goes_on() {
        let (go, gone) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let mut work = ToItsEnd::new(&Handle::current(), async move {
            gone.await.unwrap();
            tell.send(7).unwrap();
        });
        let polled = std::pin::pin!(&mut work).poll(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(polled.is_pending());
        drop(work);
        go.send(()).unwrap();
        assert_eq!(told.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn work_that_is_awaited_gives_its_outcome() {
        assert_eq!(ToItsEnd::new(&Handle::current(), async { 7 }).await, 7);
    }
}
