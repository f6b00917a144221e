//! A semaphore that divides permits among shares.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::share::Share;

/// A semaphore that gives a free permit to the waiting share that holds the fewest.
///
/// A share that is alone may hold all permits. Clones are the same semaphore.
///
/// ```
/// use larder_core::Share;
/// use larder_core::fair::FairSemaphore;
///
/// let (semaphore, share) = (FairSemaphore::new(1), Share::own());
/// let permit = semaphore.try_acquire(&share).unwrap();
/// assert!(semaphore.try_acquire(&share).is_none());
/// drop(permit);
/// assert!(semaphore.try_acquire(&share).is_some());
/// ```
#[derive(Clone, Debug)]
pub struct FairSemaphore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    free: usize,
    held: HashMap<Share, usize>,
    waiting: HashMap<Share, VecDeque<Waiter>>,
    arrivals: u64,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    arrival: u64,
    granted: oneshot::Sender<FairPermit>,
}

/// A permit of a [`FairSemaphore`]. Dropping it returns it.
#[derive(Debug)]
pub struct FairPermit {
    /// `None` once it is returned.
    owner: Option<(Arc<Mutex<State>>, Share)>,
}

impl FairSemaphore {
    /// Creates a semaphore with `permits` permits.
    pub fn new(permits: usize) -> Self {
        let state = State {
            free: permits,
            held: HashMap::new(),
            waiting: HashMap::new(),
            arrivals: 0,
            closed: false,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Returns a permit if one is free, no share waits and the semaphore is open.
    pub fn try_acquire(&self, share: &Share) -> Option<FairPermit> {
        let mut state = self.state.lock();
        let is_free = !state.closed && state.free > 0 && state.waiting.is_empty();
        is_free.then(|| {
            state.free -= 1;
            self.grant(&mut state, share)
        })
    }

    /// Waits for a permit in the share's turn. Dropping the future gives up the turn.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the semaphore is closed, or closes during the wait.
    pub async fn acquire(&self, share: &Share) -> Result<FairPermit> {
        if let Some(permit) = self.try_acquire(share) {
            return Ok(permit);
        }
        let (granted, grant) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Error::Closed);
            }
            state.arrivals += 1;
            let arrival = state.arrivals;
            state.waiting.entry(share.clone()).or_default().push_back(Waiter { arrival, granted });
            // A permit may have become free since `try_acquire`.
            if state.free > 0 {
                state.free -= 1;
                drop(state);
                hand_on(&self.state);
            }
        }
        grant.await.map_err(|_| Error::Closed)
    }

    /// The number of callers that wait for a permit.
    pub fn waiting(&self) -> usize {
        let state = self.state.lock();
        let waiters = state.waiting.values().flatten();
        waiters.filter(|waiter| !waiter.granted.is_closed()).count()
    }

    /// Refuses waiting and later requests. Permits that are held stay valid.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
    }

    fn grant(&self, state: &mut State, share: &Share) -> FairPermit {
        *state.held.entry(share.clone()).or_default() += 1;
        FairPermit { owner: Some((self.state.clone(), share.clone())) }
    }
}

impl State {
    /// Removes the first waiter of the share that holds the fewest permits. Of several shares, the
    /// longest waiter wins.
    fn next_waiter(&mut self) -> Option<(Share, Waiter)> {
        let held = |share: &Share| self.held.get(share).copied().unwrap_or_default();
        let first = |waiters: &VecDeque<Waiter>| waiters.front().map(|waiter| waiter.arrival);
        let next =
            self.waiting.iter().min_by_key(|(share, waiters)| (held(share), first(waiters)))?.0.clone();
        let waiters = self.waiting.get_mut(&next)?;
        let waiter = waiters.pop_front();
        if waiters.is_empty() {
            self.waiting.remove(&next);
        }
        Some((next, waiter?))
    }

    fn forget(&mut self, share: &Share) {
        if let Some(held) = self.held.get_mut(share) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.held.remove(share);
            }
        }
    }
}

/// Gives a returned permit to a waiter whose future still exists, or marks it free.
fn hand_on(state: &Arc<Mutex<State>>) {
    loop {
        let mut locked = state.lock();
        let Some((share, waiter)) = locked.next_waiter() else {
            locked.free += 1;
            return;
        };
        *locked.held.entry(share.clone()).or_default() += 1;
        drop(locked);
        let permit = FairPermit { owner: Some((state.clone(), share)) };
        let Err(mut refused) = waiter.granted.send(permit) else { return };
        // The waiter has gone. Dropping its permit here would call this function recursively.
        if let Some((_, share)) = refused.owner.take() {
            state.lock().forget(&share);
        }
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        if let Some((state, share)) = self.owner.take() {
            state.lock().forget(&share);
            hand_on(&state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_share_that_is_alone_may_hold_all() {
        let semaphore = FairSemaphore::new(3);
        let share = Share::own();
        let held: Vec<_> = (0..3).map(|_| semaphore.try_acquire(&share).unwrap()).collect();
        assert!(semaphore.try_acquire(&share).is_none());
        drop(held);
        assert!(semaphore.try_acquire(&share).is_some());
    }

    #[test]
    fn a_permit_goes_to_the_waiting_share_that_holds_the_fewest() {
        let semaphore = FairSemaphore::new(3);
        let (greedy, modest) = (Share::own(), Share::own());
        let mut held: Vec<_> = (0..3).map(|_| semaphore.try_acquire(&greedy).unwrap()).collect();
        let mut first = pin!(semaphore.acquire(&greedy));
        let mut second = pin!(semaphore.acquire(&modest));
        assert!(poll(first.as_mut()).is_none() && poll(second.as_mut()).is_none());
        held.pop();
        assert!(poll(first.as_mut()).is_none());
        let got = poll(second.as_mut()).unwrap().unwrap();
        held.pop();
        assert!(poll(first).is_some());
        drop(got);
        assert!(semaphore.try_acquire(&modest).is_some());
    }

    #[test]
    fn a_waiter_that_gives_up_takes_no_permit_with_it() {
        let semaphore = FairSemaphore::new(1);
        let share = Share::own();
        let held = semaphore.try_acquire(&share);
        // Recursion over so many waiters would overflow the stack.
        let mut waiting: Vec<_> = (0..100_000).map(|_| Box::pin(semaphore.acquire(&share))).collect();
        assert!(waiting.iter_mut().all(|waiter| poll(waiter.as_mut()).is_none()));
        let last = waiting.pop();
        drop(waiting);
        drop(held);
        let permit = poll(last.unwrap().as_mut()).unwrap().unwrap();
        drop(permit);
        // A permit that was granted to a future and never polled comes back too.
        let held = semaphore.try_acquire(&share).unwrap();
        let mut granted = Box::pin(semaphore.acquire(&share));
        assert!(poll(granted.as_mut()).is_none());
        drop(held);
        drop(granted);
        assert!(semaphore.try_acquire(&share).is_some());
        assert!(semaphore.state.lock().held.is_empty());
    }

    #[test]
    fn a_closed_semaphore_refuses_those_who_wait_and_those_who_come() {
        let semaphore = FairSemaphore::new(1);
        let share = Share::own();
        let held = semaphore.try_acquire(&share);
        let mut waiting = pin!(semaphore.acquire(&share));
        assert!(poll(waiting.as_mut()).is_none());
        semaphore.close();
        assert!(matches!(poll(waiting), Some(Err(Error::Closed))));
        drop(held);
        assert!(semaphore.try_acquire(&share).is_none());
        assert!(matches!(poll(pin!(semaphore.acquire(&share))), Some(Err(Error::Closed))));
    }
}
