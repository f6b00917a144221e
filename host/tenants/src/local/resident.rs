//! A tenant that is open on this host.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use larder_core::backend::Backend;
use larder_core::{Error, Event, Store};
use tokio::sync::{Notify, OwnedRwLockWriteGuard, OwnedSemaphorePermit, watch};

use crate::error::{Result, TenantError};
use crate::head::Takeover;
use crate::key::TenantKey;
use crate::lease::{Existence, Lease};
use crate::local::engine::{Engine, SharedEngine};
use crate::local::hydrate::{self, Hydrated};
use crate::local::journal::LogJournal;
use crate::local::state::LocalState;
use crate::local::tenants::Surroundings;

/// How long giving up a tenant waits for its users.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

pub(crate) struct Resident {
    pub(crate) key: TenantKey,
    pub(crate) around: Arc<Surroundings>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) journal: Option<Arc<LogJournal>>,
    pub(crate) store: Store,
    /// The position of the database up to which snapshots in object storage contain it.
    pub(crate) sent: AtomicU64,
    /// Lets one checkpoint run at a time, and has the recorded state of the database in the cache
    /// folder.
    pub(crate) checkpointing: tokio::sync::Mutex<LocalState>,
    /// Why the tenant must be given up, if it must.
    end: watch::Sender<Option<End>>,
    /// The permit of the open tenant. `None` while its uploads fail, so that it does not keep other
    /// tenants from being opened.
    pub(crate) permit: parking_lot::Mutex<Option<OwnedSemaphorePermit>>,
    pub(crate) is_stuck: AtomicBool,
    /// Notified when uploads work again.
    pub(crate) recovered: Notify,
}

/// The changes of a newly opened tenant that are still to be sent.
pub(crate) struct Unsent {
    /// Whether an earlier process left commits that object storage does not have.
    pub(crate) is_ahead: bool,
    /// Counts the changes since the tenant was opened.
    pub(crate) changes: watch::Receiver<u64>,
}

/// Why a tenant cannot stay open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was closed normally.
    Closed,
    /// Another host took it over.
    Fenced,
    /// Its database contains commits that were not acknowledged.
    Failed,
}

impl Resident {
    /// Takes the lease and opens the newest state of the database.
    pub(crate) async fn open(
        around: Arc<Surroundings>,
        key: TenantKey,
        permit: OwnedSemaphorePermit,
        existence: Existence,
    ) -> Result<(Arc<Self>, Unsent)> {
        hydrate::adopt_leftover(&around, &key).await?;
        let lease = acquire(&around, &key, existence).await?;
        // Downloading a large database takes longer than a lease is valid.
        let keeping = tokio::spawn(keep(lease.clone()));
        let hydrated = hydrate::hydrate(&around, &lease).await;
        let opened = match hydrated {
            Ok(hydrated) => Self::start(around.clone(), key, permit, lease.clone(), hydrated).await,
            Err(error) => Err(error),
        };
        keeping.abort();
        if opened.is_err() && hydrate::is_leftover_noted(&around, &lease) {
            // Another host may succeed. If the release fails, the lease expires.
            let _ = lease.release().await;
        }
        opened
    }

    async fn start(
        around: Arc<Surroundings>,
        key: TenantKey,
        permit: OwnedSemaphorePermit,
        lease: Lease,
        hydrated: Hydrated,
    ) -> Result<(Arc<Self>, Unsent)> {
        let Hydrated { database, journal, sent, is_ahead, state } = hydrated;
        let mut unsent = Unsent { is_ahead, changes: database.watch_changes() };
        let engine = Arc::new(Engine::new(database, lease));
        let mut store = Store::builder(SharedEngine(engine.clone()))
            .name(format!("tenant {key}"))
            .events(around.events.clone())
            .clock(around.remote.options().clock.clone())
            .sweep_interval(around.options.sweep_interval);
        if let Some(bytes) = around.options.quota_bytes {
            store = store.quota_bytes(bytes);
        }
        let store = store.build().map_err(|error| TenantError::database(&key, error))?;
        let resident = Self {
            key,
            around,
            engine,
            journal,
            store,
            sent: AtomicU64::new(sent),
            checkpointing: tokio::sync::Mutex::new(state),
            end: watch::Sender::new(None),
            permit: parking_lot::Mutex::new(Some(permit)),
            is_stuck: AtomicBool::new(false),
            recovered: Notify::new(),
        };
        if unsent.is_ahead && resident.journal.is_some() {
            // The log cannot continue from commits that object storage does not have.
            if let Err(error) = resident.checkpoint().await {
                resident.end(End::Closed);
                resident.store.close().await;
                resident.engine.database().close().await;
                return Err(error);
            }
            unsent.is_ahead = false;
        }
        Ok((Arc::new(resident), unsent))
    }

    /// Whether a caller may use it.
    pub(crate) fn is_usable(&self) -> bool {
        self.end.borrow().is_none() && !self.engine.lease().is_fenced() && !self.has_failed()
    }

    /// Whether its database may contain commits that were not acknowledged.
    pub(crate) fn has_failed(&self) -> bool {
        self.engine.database().has_failed()
    }

    /// Marks that it cannot stay open. The first reason counts.
    pub(crate) fn end(&self, end: End) {
        self.end.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(end);
            is_first
        });
    }

    pub(crate) fn watch_end(&self) -> watch::Receiver<Option<End>> {
        self.end.subscribe()
    }

    /// Writes it back and closes it. If that fails, it stays open.
    pub(crate) async fn leave(&self) -> Result<()> {
        let _shut = self.shut().await?;
        self.checkpoint().await?;
        self.finish().await;
        self.release().await;
        if !self.around.options.keep_copies {
            self.remove_copy();
        }
        self.give_permit_back();
        Ok(())
    }

    /// Rejects new calls while the returned guard exists, and waits for the running ones to end.
    pub(crate) async fn shut(&self) -> Result<OwnedRwLockWriteGuard<()>> {
        let in_use = || TenantError::InUse { key: self.key.to_string() };
        self.engine.shut(LEAVE_WAIT).await.ok_or_else(in_use)
    }

    /// Closes the database, all of which is in object storage.
    pub(crate) async fn finish(&self) {
        self.end(End::Closed);
        self.store.close().await;
        if let Err(error) = self.engine.database().finish().await {
            // The commits are in object storage already, and the local file is removed.
            self.report("close", error);
        }
    }

    /// Removes the closed database, all of which is in object storage.
    pub(crate) fn remove_copy(&self) {
        if let Err(error) = self.around.cache.remove(&self.key) {
            // The next opening finds that all of it is in object storage.
            self.report("remove", error.into());
        }
    }

    /// Releases the permit. Users may keep a closed tenant for long, and other tenants must not
    /// wait for them.
    pub(crate) fn give_permit_back(&self) {
        drop(self.lock_permit().take());
    }

    /// Takes a permit again, unless it has one, its uploads fail again, or it has ended.
    pub(crate) fn take_permit(&self, permit: OwnedSemaphorePermit) {
        let mut own = self.lock_permit();
        if self.lacks_permit(&own) {
            *own = Some(permit);
        }
    }

    /// Whether it should have a permit and has none.
    pub(crate) fn needs_permit(&self) -> bool {
        self.lacks_permit(&self.lock_permit())
    }

    fn lacks_permit(&self, own: &Option<OwnedSemaphorePermit>) -> bool {
        own.is_none() && self.end.borrow().is_none() && !self.is_stuck.load(Ordering::Acquire)
    }

    fn lock_permit(&self) -> parking_lot::MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.permit.lock()
    }

    /// Closes it for its users, whether or not it can be written back.
    pub(crate) async fn close_for_users(&self) {
        self.store.close().await;
    }

    /// Gives it up, because another host took it over or because it contains commits that were not
    /// acknowledged.
    ///
    /// Acknowledged commits that were not sent go into quarantine.
    pub(crate) async fn give_up(&self, end: End) -> Result<()> {
        self.end(end);
        self.store.close().await;
        self.give_permit_back();
        // Running calls get an error from the database. An open snapshot ends a little later.
        let _shut = self.engine.shut(LEAVE_WAIT).await;
        let position = self.engine.database().redo_position().await;
        let finished = self.engine.database().finish().await;
        let sent = self.sent_position();
        let unsent = match (&position, &self.journal) {
            (Ok(position), None) => position.0 > sent,
            // A commit that the journal did not ship was not acknowledged.
            (_, Some(_)) => false,
            (Err(_), None) => true,
        };
        if unsent {
            let position = position.ok().map(|position| position.0);
            let reason = match end {
                End::Fenced => "another host took over the tenant before these commits were sent",
                End::Closed | End::Failed => "the tenant was given up before these commits could be sent",
            };
            hydrate::quarantine(&self.around, self.engine.lease(), reason, Some(sent), position)?;
        } else {
            self.around.cache.remove(&self.key)?;
        }
        if end == End::Failed {
            self.release().await;
        }
        if let (Err(error), None) = (finished, &self.journal) {
            self.report("close", error);
        }
        Ok(())
    }

    pub(crate) async fn release(&self) {
        if let Err(error) = self.engine.lease().release().await {
            // The lease expires, or this host soon takes it again.
            self.report("release the lease", error.into());
        }
    }

    pub(crate) fn sent_position(&self) -> u64 {
        let shipped = self.journal.as_ref().map_or(0, |journal| journal.shipped());
        self.sent.load(Ordering::Acquire).max(shipped)
    }

    pub(crate) fn report(&self, work: &'static str, error: Error) {
        let store = format!("tenant {}", self.key);
        self.around.events.emit(Event::BackgroundFailed { store, work, error });
    }
}

/// Takes the lease of a tenant, and reports the earlier holder if it had not released its lease.
pub(crate) async fn acquire(around: &Surroundings, key: &TenantKey, existence: Existence) -> Result<Lease> {
    let (holder, wait) = (around.cache.holder(), around.options.lease_wait);
    let lease = around.remote.acquire_of(key, holder, wait, existence).await?;
    // After a restart of the machine, this folder has a new holder name, and continues with its own
    // database.
    if let Some(Takeover { holder, folder, .. }) =
        lease.takeover().filter(|takeover| !around.cache.is_earlier(takeover))
    {
        around.events.emit(Event::TenantTakenOver { tenant: key.to_string(), holder, folder });
    }
    Ok(lease)
}

/// Renews a lease until it is lost.
pub(crate) async fn keep(lease: Lease) {
    loop {
        tokio::time::sleep(lease.renewal_interval()).await;
        if let Err(TenantError::Fenced { .. } | TenantError::Closed { .. }) = lease.renew().await {
            return;
        }
    }
}
