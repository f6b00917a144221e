//! The size of a tenant's log, for operators.

use crate::error::Result;
use crate::head::Head;
use crate::key::TenantKey;
use crate::remote::Remote;
use crate::segments::{SEGMENTS, position_of};

/// The size of a tenant's log after its current snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOverview {
    /// The number of segments.
    pub segments: usize,
    /// The total size of their objects, in bytes.
    pub bytes: u64,
    /// Whether there are more segments, which were not counted.
    pub has_more: bool,
}

/// The most segments that are counted.
const MAX_COUNTED: usize = 100_000;

impl Remote {
    /// Measures the log after the snapshot of a head that was read before.
    ///
    /// A host that has the tenant may append to the log meanwhile. At most 100,000 segments are
    /// counted.
    ///
    /// # Errors
    /// [`TenantError::Unavailable`](crate::TenantError::Unavailable) if object storage cannot be
    /// reached.
    pub async fn log_overview(&self, key: &TenantKey, head: &Head) -> Result<LogOverview> {
        if !head.has_log {
            return Ok(LogOverview::default());
        }
        let found = self.objects().list(&self.folder_path(key, SEGMENTS), None, MAX_COUNTED).await?;
        let mut overview = LogOverview { has_more: found.len() == MAX_COUNTED, ..LogOverview::default() };
        for segment in found {
            if position_of(&segment.location).is_some_and(|position| position > head.covers()) {
                overview.segments += 1;
                overview.bytes = overview.bytes.saturating_add(segment.size);
            }
        }
        Ok(overview)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use object_store::memory::InMemory;
    use object_store::path::Path as ObjectPath;

    use super::*;
    use crate::lease::Holder;
    use crate::remote::RemoteOptions;

    #[tokio::test]
    async fn what_is_behind_the_snapshot_is_counted() {
        let remote =
            Remote::new(Arc::new(InMemory::new()), ObjectPath::default(), RemoteOptions::default()).unwrap();
        let key: TenantKey = "acme/org".parse().unwrap();
        let lease = remote.acquire(&key, &Holder::new("one").unwrap(), Duration::ZERO).await.unwrap();
        assert_eq!(remote.log_overview(&key, &lease.head()).await.unwrap(), LogOverview::default());
        lease.append("one".into()).await.unwrap();
        lease.append("two".into()).await.unwrap();
        let overview = remote.log_overview(&key, &lease.head()).await.unwrap();
        // The seal at the beginning of the log counts too.
        assert_eq!((overview.segments, overview.has_more), (3, false));
        assert!(overview.bytes > 0);
    }
}
