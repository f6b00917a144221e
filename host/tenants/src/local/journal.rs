//! Ships commits to object storage before they are acknowledged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use larder_core::backoff::jittered;
use larder_core::redo::{Journal, Redo};
use tokio::sync::Notify;

use crate::error::TenantError;
use crate::lease::Lease;

/// The pause before a segment whose outcome is unknown is sent again.
const PAUSE: Duration = Duration::from_millis(200);

/// The log of a tenant, as the journal of its database.
pub(crate) struct LogJournal {
    lease: Lease,
    shipped: AtomicU64,
    failed: Notify,
}

impl LogJournal {
    pub(crate) fn new(lease: &Lease) -> Self {
        Self { lease: lease.clone(), shipped: AtomicU64::new(0), failed: Notify::new() }
    }

    /// The position up to which this journal has shipped all commits.
    pub(crate) fn shipped(&self) -> u64 {
        self.shipped.load(Ordering::Acquire)
    }

    /// Waits until a commit could not be shipped. The database then has a commit that was not
    /// acknowledged.
    pub(crate) async fn failed(&self) {
        self.failed.notified().await;
    }

    async fn ship(&self, redo: Bytes) -> Result<u64, TenantError> {
        let mut outcome = self.lease.append(redo).await;
        // While the lease holds, no other host writes the log, and the caller is better off with a
        // known outcome.
        while let Err(TenantError::OutcomeUnknown { .. }) = &outcome
            && self.lease.check().is_ok()
        {
            tokio::time::sleep(jittered(PAUSE)).await;
            outcome = match self.lease.settle().await {
                Ok(Some(position)) => Ok(position),
                Ok(None) => break,
                Err(error) => Err(error),
            };
        }
        outcome
    }
}

#[async_trait]
impl Journal for LogJournal {
    async fn append(&self, redo: Redo) -> larder_core::Result<()> {
        let after = redo.after();
        match self.ship(Bytes::from(redo.into_bytes())).await {
            Ok(_) => {
                self.shipped.store(after.0, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                self.failed.notify_one();
                Err(error.into())
            }
        }
    }
}
