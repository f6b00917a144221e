//! What the log of a tenant holds, for who looks at it from outside.

use crate::error::Result;
use crate::head::Head;
use crate::key::TenantKey;
use crate::remote::Remote;
use crate::segments::{SEGMENTS, position_of};

/// What is in a tenant's log behind its current snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOverview {
    /// How many segments there are.
    pub segments: usize,
    /// Bytes of their objects.
    pub bytes: u64,
    /// Whether there are more, which were not counted.
    pub has_more: bool,
}

/// Segments that are counted, at most.
const MAX_COUNTED: usize = 100_000;

impl Remote {
    /// What is in the log behind the snapshot of a head that was read before. A host that has the tenant may write to it
    /// meanwhile.
    ///
    /// # Errors
    /// [`crate::TenantError::Unavailable`].
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
        // The seal that the log begins with is one too.
        assert_eq!((overview.segments, overview.has_more), (3, false));
        assert!(overview.bytes > 0);
    }
}
