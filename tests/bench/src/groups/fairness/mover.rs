//! Moves computing guests between the worker threads.
//!
//! A tokio worker takes a task from another one only if it is idle. Guests that compute leave none
//! idle, so each stays on the worker on which it began: two on each, or three on one and one on the
//! other. A request of the victim waits for a tick of each guest on its worker, so its median would
//! depend on how the guests happened to begin.

use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::task::{Poll, Waker};
use std::thread;

/// One yield in this many moves the guest.
const YIELDS: u64 = 8;

/// Wakes tasks from a thread that is no worker. The runtime gives such a task to the worker that
/// looks for one next.
#[derive(Clone, Debug)]
pub(super) struct Mover(Sender<Waker>);

impl Mover {
    pub(super) fn start() -> Self {
        let (sender, receiver) = channel::<Waker>();
        thread::spawn(move || receiver.into_iter().for_each(Waker::wake));
        Self(sender)
    }

    /// Whether the yield with this number moves the guest.
    pub(super) fn moves(number: u64) -> bool {
        number.is_multiple_of(YIELDS)
    }

    /// Yields the task's thread until any worker takes the task.
    pub(super) fn give_to_any(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (mover, mut is_given) = (self.clone(), false);
        Box::pin(std::future::poll_fn(move |context| {
            // If the mover's thread has ended, this is an ordinary yield.
            if std::mem::replace(&mut is_given, true) || mover.0.send(context.waker().clone()).is_err() {
                return Poll::Ready(());
            }
            Poll::Pending
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_is_given_to_any_worker_goes_on() {
        let mover = Mover::start();
        mover.give_to_any().await;
        mover.give_to_any().await;
        assert_eq!((0..80).filter(|number| Mover::moves(*number)).count(), 10);
    }
}
