//! On whose behalf work is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// On whose behalf work is done: what guests share is divided among shares, not among calls.
///
/// Connections, the writer and other queues serve the shares that wait in turn. A share that is alone gets all of it.
/// By default each component instance is a share of its own. An embedder whose tenants or plugins run many instances at
/// once gives them a label, and all instances with equal labels are one share.
///
/// ```
/// use larder_core::Share;
///
/// assert_eq!(Share::labelled("tenant a"), Share::labelled("tenant a"));
/// assert_ne!(Share::own(), Share::own());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Share(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Own(u64),
    Labelled(Arc<str>),
    Host,
}

impl Share {
    /// A share that differs from all others; its clones are the same share.
    pub fn own() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Kind::Own(NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The share of all who are given this label.
    pub fn labelled(label: impl Into<Arc<str>>) -> Self {
        Self(Kind::Labelled(label.into()))
    }

    /// The share of the host's own work, such as sweeps and records that are due.
    pub const fn host() -> Self {
        Self(Kind::Host)
    }
}

/// A share of its own.
impl Default for Share {
    fn default() -> Self {
        Self::own()
    }
}
