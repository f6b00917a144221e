//! Uploads checkpoints of a tenant to object storage, and renews its lease.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_core::backend::{Backend, SweepOptions};
use larder_core::backoff::Backoff;
use larder_core::clock::ForwardClock;
use larder_sqlite::Sqlite;
use tokio::time::Instant;

use crate::error::{Result, TenantError};
use crate::local::resident::{End, Resident, Unsent};
use crate::local::state::LocalState;
use crate::write_id::WriteId;

/// The first and the longest pause between two attempts of a checkpoint that fails.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How many times expired rows are removed before a copy is sent, and the limits of each time.
/// Commits run in between.
const SWEEP_STEPS: usize = 40;
const SWEEP_ROWS: u32 = 256;
const SWEEP_BYTES: u64 = 1 << 20;

/// The number of checkpoints between two searches for superseded snapshots.
const COLLECT_EVERY: u64 = 16;

impl Resident {
    /// Makes the database the current snapshot, unless object storage already has all of it.
    ///
    /// Returns whether a snapshot was published.
    pub(crate) async fn checkpoint(&self) -> Result<bool> {
        self.write_back(false).await
    }

    /// The same, but also publishes if object storage has a part of the database only in the log.
    pub(crate) async fn checkpoint_with_log(&self) -> Result<bool> {
        self.write_back(true).await
    }

    async fn write_back(&self, with_log: bool) -> Result<bool> {
        let mut state = self.checkpointing.lock().await;
        let (database, lease) = (self.engine.database(), self.engine.lease());
        let failed = |error| TenantError::database(&self.key, error);
        let position = database.redo_position().await.map_err(failed)?.0;
        if position == self.sent.load(Ordering::Acquire)
            && !(with_log && lease.log_end().await? > lease.head().covers())
        {
            return Ok(false);
        }
        self.sweep_before_copy().await;
        // The commits of all segments up to here are in the copy.
        let covers = lease.log_end().await?;
        let file = self.around.cache.temporary();
        let copy = database.backup(file.path()).await.map_err(failed)?;
        if self.journal.is_some() {
            // The copy may be ahead of the log. A commit that is never shipped must not get into a
            // snapshot.
            database.settled().await.map_err(failed)?;
        }
        // Pages may still contain parts of deleted rows, which must not be sent.
        let compacted = self.around.cache.temporary();
        Sqlite::compact(file.path(), compacted.path()).await.map_err(failed)?;
        drop(file);
        let (sent, upload) = (copy.position.0, WriteId::random());
        lease.check()?;
        // Whenever this process ends, the next one that finds this copy published must know its
        // position.
        *state = state.uploading(upload, sent);
        self.around.cache.write_state(&self.key, &state)?;
        lease.publish_as(compacted.path(), covers, upload, sent).await?;
        self.sent.store(sent, Ordering::Release);
        *state = LocalState::open(lease, self.around.options.durability, sent);
        // If this fails, the next process finds more to send than there is, and sends the same data
        // again.
        self.around.cache.write_state(&self.key, &state)?;
        let head = lease.head();
        if head.generation.is_multiple_of(COLLECT_EVERY) {
            let keep_for = self.around.remote.options().keep_for;
            if let Err(error) = lease.collect(keep_for).await {
                self.report("collect superseded snapshots", error.into());
            }
        }
        Ok(true)
    }

    /// Removes expired rows, so that they are not sent. Rows beyond the limits stay for later.
    async fn sweep_before_copy(&self) {
        let clock = ForwardClock::new(self.around.remote.options().clock.clone());
        let options = SweepOptions::new(clock, SWEEP_ROWS, SWEEP_BYTES).is_closing(true);
        for _ in 0..SWEEP_STEPS {
            match self.engine.database().sweep(options.clone()).await {
                Ok(swept) if options.is_reached_by(&swept) => {}
                Ok(_) => return,
                Err(error) => return self.report("sweep", error),
            }
        }
    }

    async fn is_dirty(&self) -> bool {
        let position = self.engine.database().redo_position().await;
        position.is_ok_and(|position| position.0 != self.sent.load(Ordering::Acquire))
    }

    /// Records whether the last checkpoint succeeded.
    pub(crate) fn note_write_back(&self, worked: bool) {
        let was_stuck = self.is_stuck.swap(!worked, Ordering::AcqRel);
        if !worked {
            self.give_permit_back();
        } else if was_stuck {
            self.recovered.notify_one();
        }
    }
}

/// Renews the lease until the tenant ends or another host takes it over.
pub(crate) async fn keep_lease(resident: Arc<Resident>) {
    let mut end = resident.watch_end();
    let lease = resident.engine.lease().clone();
    let mut pause = lease.renewal_interval();
    loop {
        tokio::select! {
            _ = end.wait_for(Option::is_some) => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = match lease.renew().await {
            Ok(()) => lease.renewal_interval(),
            Err(TenantError::Fenced { .. }) => return resident.end(End::Fenced),
            Err(TenantError::Closed { .. }) => return,
            Err(error) => {
                resident.report("renew the lease", error.into());
                lease.renewal_interval() / 4
            }
        };
    }
}

/// Writes the tenant back after a number of changes, and after an interval since the first of them.
pub(crate) async fn write_back(resident: Arc<Resident>, unsent: Unsent) {
    let Unsent { is_ahead, mut changes } = unsent;
    let options = &resident.around.options;
    let (every, interval) = (options.checkpoint_writes, options.checkpoint_interval);
    let mut end = resident.watch_end();
    let mut written_back = 0;
    let mut retries = Backoff::new(RETRY_MIN, RETRY_MAX);
    // Commits that an earlier process left are sent at once.
    let mut due = is_ahead.then(Instant::now);
    let mut failed = false;
    loop {
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = end.wait_for(Option::is_some) => return,
            () = sleep => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let made = changes.borrow_and_update().saturating_sub(written_back);
                if made < every || failed {
                    due = due.or_else(|| Some(Instant::now() + interval));
                    continue;
                }
            }
        }
        let seen = *changes.borrow();
        match resident.checkpoint().await {
            Ok(_) => {
                (written_back, due, failed) = (seen, None, false);
                retries.reset();
                resident.note_write_back(true);
                if resident.is_dirty().await {
                    due = Some(Instant::now() + interval);
                }
            }
            Err(TenantError::Fenced { .. }) => return resident.end(End::Fenced),
            Err(error) => {
                resident.note_write_back(false);
                resident.report("checkpoint", error.into());
                (due, failed) = (Some(Instant::now() + retries.next_pause()), true);
            }
        }
    }
}
