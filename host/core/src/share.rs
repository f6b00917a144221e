//! Shares, among which the host divides its resources.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The unit among which the host divides connections, the writer and processor time.
///
/// Queues serve the waiting shares in turn, however many requests each has. A share that is alone
/// gets the whole resource. By default each component instance is a share. If a tenant or plugin
/// runs many instances at once, the embedder gives them one label: all instances with equal labels
/// are one share.
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
    Tenant(Arc<str>),
    Host,
}

impl Share {
    /// A new share that differs from all others. Its clones are the same share.
    pub fn own() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Kind::Own(NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The share of all instances with this label.
    pub fn labelled(label: impl Into<Arc<str>>) -> Self {
        Self(Kind::Labelled(label.into()))
    }

    /// The share of a tenant's conversations. No label of an embedder is equal to it.
    pub(crate) fn tenant(name: &str) -> Self {
        Self(Kind::Tenant(name.into()))
    }

    /// The share of the host's own work, for which no guest waits.
    ///
    /// Examples are sweeps and summaries.
    pub const fn host() -> Self {
        Self(Kind::Host)
    }
}

/// Same as [`Share::own`].
impl Default for Share {
    fn default() -> Self {
        Self::own()
    }
}
