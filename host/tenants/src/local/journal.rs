//! Ships what commits wrote, where they are acknowledged only once object storage has it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use larder_core::redo::{Journal, Redo};
use tokio::sync::Notify;

use crate::backoff::jittered;
use crate::error::TenantError;
use crate::lease::Lease;

/// Pause between two looks at a segment whose outcome is unknown.
const PAUSE: Duration = Duration::from_millis(200);

/// The log of a tenant as the journal of its database.
pub(crate) struct LogJournal {
    lease: Lease,
    shipped: AtomicU64,
    failed: Notify,
}

impl LogJournal {
    pub(crate) fn new(lease: &Lease) -> Self {
        Self { lease: lease.clone(), shipped: AtomicU64::new(0), failed: Notify::new() }
    }

    /// The position up to which object storage has all commits, as far as this journal shipped them.
    pub(crate) fn shipped(&self) -> u64 {
        self.shipped.load(Ordering::Acquire)
    }

    /// Waits until something could not be shipped: the database then holds what was not acknowledged.
    pub(crate) async fn failed(&self) {
        self.failed.notified().await;
    }

    async fn ship(&self, redo: Bytes) -> Result<u64, TenantError> {
        let mut outcome = self.lease.append(redo).await;
        // As long as the lease holds nobody else writes the log, and whoever waits is better told what happened.
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
