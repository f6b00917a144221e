//! What a host knows of one tenant, whether or not it is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::key::TenantKey;
use crate::local::resident::Resident;

pub(crate) struct TenantEntry {
    pub(crate) key: TenantKey,
    /// Held while the tenant is opened or given up. Other calls for the same tenant wait, and calls
    /// for other tenants do not.
    pub(crate) state: Arc<tokio::sync::Mutex<Option<Arc<Resident>>>>,
    /// The number of pins. It only grows while `state` is held.
    pins: AtomicUsize,
    last_used: Mutex<Instant>,
    /// Notified when the last pin is dropped.
    left: Arc<Notify>,
}

impl TenantEntry {
    pub(crate) fn new(key: TenantKey, left: Arc<Notify>) -> Self {
        Self {
            key,
            state: Arc::default(),
            pins: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
            left,
        }
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }

    pub(crate) fn last_used(&self) -> Instant {
        *self.last_used.lock()
    }

    fn touch(&self) {
        *self.last_used.lock() = Instant::now();
    }
}

/// Keeps a tenant open while it exists.
pub(crate) struct Pin(Arc<TenantEntry>);

impl Pin {
    /// Pins the tenant. The caller must hold the entry's state.
    pub(crate) fn new(entry: &Arc<TenantEntry>) -> Self {
        entry.pins.fetch_add(1, Ordering::AcqRel);
        entry.touch();
        Self(entry.clone())
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.touch();
        if self.0.pins.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.left.notify_waiters();
        }
    }
}
