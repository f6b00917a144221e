//! The tenants of one host.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use larder_core::{Event, EventSink};
use object_store::ObjectStore;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::blocking::blocking;
use crate::error::{Result, TenantError};
use crate::key::TenantKey;
use crate::lease::Existence;
use crate::local::cache::CacheFolder;
use crate::local::options::{LocalOptions, TenantsBuilder};
use crate::local::resident::{End, Resident};
use crate::local::tenant::Tenant;
use crate::local::tenant_entry::{Pin, TenantEntry};
use crate::local::write_back::{keep_lease, write_back};
use crate::location_id;
use crate::remote::Remote;
use crate::view::TenantView;

/// The most tenants that are written back at once by [`Tenants::close`] or idle eviction.
const CLOSED_AT_ONCE: usize = 16;

/// The most tenants that are recovered at once, and the pause before those whose leases are held
/// are retried.
const RECOVERED_AT_ONCE: usize = 16;
const RECOVER_AGAIN: Duration = Duration::from_secs(1);

/// How often to look for a tenant to evict when none could be evicted.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long one attempt of a recovered tenant to get its permit back may take.
const RETAKE: Duration = Duration::from_secs(1);

/// The most files that an open tenant keeps open for long: those of the writer, a few readers and a
/// running copy.
const FILES_A_TENANT: u64 = 12;

/// The files that the rest of the process may have open.
const FILES_BESIDE: u64 = 256;

pub(crate) type EntryState = OwnedMutexGuard<Option<Arc<Resident>>>;

/// What all open tenants share.
pub(crate) struct Surroundings {
    pub(crate) remote: Remote,
    pub(crate) cache: CacheFolder,
    pub(crate) options: LocalOptions,
    pub(crate) events: Arc<dyn EventSink>,
}

/// The tenants of one host. Clones share the same state.
///
/// Below the capacity, no call waits for another tenant's download, upload or lock.
///
/// Call [`Tenants::close`] at the end. If the last clone is dropped without it, changes that were
/// not written back stay in the cache folder for the next process that opens it, and leases expire.
/// See [`Tenants::builder`] for an example.
#[derive(Clone)]
pub struct Tenants {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) around: Arc<Surroundings>,
    entries: Mutex<HashMap<TenantKey, Arc<TenantEntry>>>,
    permits: Arc<Semaphore>,
    /// Notified when the last user of an open tenant drops it.
    left: Arc<Notify>,
    closed: AtomicBool,
}

impl Tenants {
    /// Returns a builder for the tenants of a host, over an object store.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::Arc;
    /// use larder_core::{HandleOptions, Mode};
    /// use larder_tenants::{Tenants, TenantKey};
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let cache = folder.path();
    /// let objects = Arc::new(object_store::memory::InMemory::new());
    /// let tenants = Tenants::builder(objects).cache_folder(cache).open().await?;
    /// let key: TenantKey = "acme/users/ann".parse()?;
    /// let handle = tenants.get(&key).await?.store().handle(HandleOptions::default());
    /// let mut update = handle.begin(Mode::Update)?;
    /// update.put("notes".into(), "first".into(), b"hello".to_vec())?;
    /// update.commit().await?;
    /// drop(handle);
    /// tenants.close().await?;
    /// # Ok(()) }
    /// ```
    pub fn builder(store: Arc<dyn ObjectStore>) -> TenantsBuilder {
        TenantsBuilder::new(store)
    }

    pub(crate) async fn open(builder: TenantsBuilder) -> Result<Self> {
        let TenantsBuilder { store, prefix, cache, local, remote, events } = builder;
        raise_file_limit(local.capacity)?;
        let remote = Remote::new(store, prefix, remote)?;
        let cache = blocking(move || CacheFolder::open(&cache)).await?;
        location_id::settle(&remote, &cache, remote.probe()).await?;
        let permits = Arc::new(Semaphore::new(local.capacity));
        let around = Arc::new(Surroundings { remote, cache, options: local, events });
        let inner = Arc::new(Inner {
            around,
            entries: Mutex::default(),
            permits,
            left: Arc::default(),
            closed: AtomicBool::new(false),
        });
        if let Some(idle) = inner.around.options.idle {
            tokio::spawn(evict_idle(Arc::downgrade(&inner), idle));
        }
        tokio::spawn(recover(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// The tenants in object storage.
    pub fn remote(&self) -> &Remote {
        &self.inner.around.remote
    }

    /// The cache folder of this host.
    pub fn cache(&self) -> &CacheFolder {
        &self.inner.around.cache
    }

    pub(crate) fn emit(&self, event: Event) {
        self.inner.around.events.emit(event);
    }

    /// Opens a tenant, or returns it if it is already open.
    ///
    /// Creates it if it does not exist.
    ///
    /// The tenant stays open for at least as long as the caller keeps the returned value or
    /// anything made from it.
    ///
    /// # Errors
    /// - [`TenantError::LeaseHeld`] if another host has the tenant.
    /// - [`TenantError::Fenced`] or [`TenantError::LeaseLapsed`] if the lease is lost meanwhile.
    /// - [`TenantError::Deleted`] if the tenant is deleted and not yet purged.
    /// - [`TenantError::Full`] if every tenant that this host can keep open is in use.
    /// - [`TenantError::Corrupt`] if stored data fails a check.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the tenant.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    /// - [`TenantError::DiskFull`] if the database would fill the disk.
    /// - [`TenantError::File`] if the cache folder cannot be read or written.
    /// - [`TenantError::Database`] if the database cannot be opened.
    /// - [`TenantError::ShutDown`] after [`Tenants::close`].
    pub async fn get(&self, key: &TenantKey) -> Result<Tenant> {
        self.get_of(key, Existence::Optional).await
    }

    /// Opens a tenant that exists, or returns it if it is already open.
    ///
    /// Never creates it.
    ///
    /// # Errors
    /// - [`TenantError::NotFound`] if the tenant does not exist.
    /// - [`TenantError::LeaseHeld`] if another host has the tenant.
    /// - [`TenantError::Fenced`] or [`TenantError::LeaseLapsed`] if the lease is lost meanwhile.
    /// - [`TenantError::Deleted`] if the tenant is deleted and not yet purged.
    /// - [`TenantError::Full`] if every tenant that this host can keep open is in use.
    /// - [`TenantError::Corrupt`] if stored data fails a check.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the tenant.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    /// - [`TenantError::DiskFull`] if the database would fill the disk.
    /// - [`TenantError::File`] if the cache folder cannot be read or written.
    /// - [`TenantError::Database`] if the database cannot be opened.
    /// - [`TenantError::ShutDown`] after [`Tenants::close`].
    pub async fn get_existing(&self, key: &TenantKey) -> Result<Tenant> {
        self.get_of(key, Existence::Required).await
    }

    async fn get_of(&self, key: &TenantKey, existence: Existence) -> Result<Tenant> {
        let entry = self.inner.entry(key)?;
        let state = entry.state.clone().lock_owned().await;
        self.inner.check_open()?;
        if let Some(resident) = state.as_ref().filter(|resident| resident.is_usable()) {
            return Ok(Tenant::new(resident.clone(), Pin::new(&entry)));
        }
        let inner = self.inner.clone();
        to_its_end(async move { inner.open(entry, state, existence).await }).await
    }

    /// Opens a read-only view of a tenant as object storage has it.
    ///
    /// `None` if the tenant does not exist.
    ///
    /// A view needs no lease, so another host may have the tenant open; see [`Remote::view`]. It
    /// does not count towards the capacity. Each view keeps a copy of the database in the cache
    /// folder until its backend is closed or dropped.
    ///
    /// # Errors
    /// - [`TenantError::Deleted`] if the tenant is deleted.
    /// - [`TenantError::Corrupt`] if stored data fails a check.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the tenant.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    /// - [`TenantError::DiskFull`] if the database would fill the disk.
    /// - [`TenantError::File`] if the cache folder cannot be written.
    /// - [`TenantError::Database`] if the copy of the database cannot be opened.
    /// - [`TenantError::ShutDown`] after [`Tenants::close`].
    pub async fn view(&self, key: &TenantKey) -> Result<Option<TenantView>> {
        self.inner.check_open()?;
        self.remote().view(key, &self.cache().temporary_folder()).await
    }

    /// The tenants that are open on this host, sorted by key.
    pub fn resident(&self) -> Vec<TenantKey> {
        let entries = self.inner.lock_entries();
        let is_open =
            |entry: &&Arc<TenantEntry>| entry.state.try_lock().map_or(true, |state| state.is_some());
        let mut keys: Vec<_> = entries.values().filter(is_open).map(|entry| entry.key.clone()).collect();
        keys.sort();
        keys
    }

    /// Uploads a snapshot of a tenant now, if it is open and has changed.
    ///
    /// Returns whether a snapshot was uploaded. This is the checkpoint of a tenant, not that of
    /// SQLite's write-ahead log.
    ///
    /// # Errors
    /// After any error but [`TenantError::Fenced`], the tenant stays open and the host retries.
    ///
    /// - [`TenantError::Fenced`] if another host has taken over the tenant.
    /// - [`TenantError::LeaseLapsed`] if the lease was not renewed in time.
    /// - [`TenantError::Closed`] if the lease was released meanwhile.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    /// - [`TenantError::InvalidArgument`] if the database is larger than
    ///   [`TenantsBuilder::max_database`].
    /// - [`TenantError::Corrupt`] or [`TenantError::Database`] if the database cannot be read.
    /// - [`TenantError::File`] if the cache folder cannot be written.
    pub async fn checkpoint(&self, key: &TenantKey) -> Result<bool> {
        let Some(entry) = self.inner.known_entry(key) else { return Ok(false) };
        let resident = entry.state.lock().await.clone();
        match resident {
            None => Ok(false),
            Some(resident) => {
                to_its_end(async move {
                    let outcome = resident.checkpoint().await;
                    resident.note_write_back(outcome.is_ok());
                    outcome
                })
                .await
            }
        }
    }

    /// Writes a tenant back and closes it, if it is open.
    ///
    /// Returns whether it was open.
    ///
    /// # Errors
    /// After any error but [`TenantError::Fenced`], the tenant stays open.
    ///
    /// - [`TenantError::InUse`] if a caller on this host is using the tenant.
    /// - [`TenantError::Fenced`] if another host has taken over the tenant.
    /// - [`TenantError::LeaseLapsed`] if the lease was not renewed in time.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    /// - [`TenantError::InvalidArgument`] if the database is larger than
    ///   [`TenantsBuilder::max_database`].
    /// - [`TenantError::Corrupt`] or [`TenantError::Database`] if the database cannot be read.
    /// - [`TenantError::File`] if the cache folder cannot be written.
    pub async fn evict(&self, key: &TenantKey) -> Result<bool> {
        match self.inner.known_entry(key) {
            None => Ok(false),
            Some(entry) => self.inner.evict(entry).await,
        }
    }

    /// Writes all tenants back and closes them. Later calls that open a tenant fail.
    ///
    /// Several tenants are closed at once. The caller may call this again to retry those that could
    /// not be written back.
    ///
    /// # Errors
    /// [`TenantError::NotWrittenBack`] if some tenants could not be written back. They stay open,
    /// and their databases stay on this host's disk.
    pub async fn close(&self) -> Result<()> {
        self.inner.closed.store(true, Ordering::Release);
        let entries: Vec<_> = self.inner.lock_entries().values().cloned().collect();
        let closed = futures_util::stream::iter(entries).map(|entry| async move {
            let key = entry.key.clone();
            let outcome = to_its_end(async move { entry.close().await }).await;
            outcome.err().map(|error| (key, error))
        });
        let mut failed: Vec<_> =
            closed.buffer_unordered(CLOSED_AT_ONCE).filter_map(std::future::ready).collect().await;
        failed.sort_by(|(a, _), (b, _)| a.cmp(b));
        if failed.is_empty() { Ok(()) } else { Err(TenantError::NotWrittenBack { failed: failed.into() }) }
    }

    /// Closes, and logs an error, for callers that cannot return one.
    pub(crate) async fn close_or_log(&self) {
        if let Err(error) = self.close().await {
            let folder = self.cache().folder().display();
            tracing::error!(target: "larder", "{error}; the databases stay in {folder}, and \
                 are sent when that folder is opened again");
        }
    }
}

impl std::fmt::Debug for Tenants {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tenants").field("cache", &self.inner.around.cache).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    /// Ends the tasks of open tenants. No caller can reach those tenants any more.
    fn drop(&mut self) {
        for entry in self.lock_entries().values() {
            if let Ok(state) = entry.state.try_lock()
                && let Some(resident) = state.as_ref()
            {
                resident.end(End::Closed);
            }
        }
    }
}

impl Inner {
    /// Opens a tenant that is not open, or that cannot stay open.
    async fn open(
        self: Arc<Self>,
        entry: Arc<TenantEntry>,
        mut state: EntryState,
        existence: Existence,
    ) -> Result<Tenant> {
        let resident = self.open_in(&entry, &mut state, existence).await?;
        Ok(Tenant::new(resident, Pin::new(&entry)))
    }

    /// Returns the open tenant of an entry whose state the caller holds. Opens it if it is not open
    /// or cannot stay open.
    pub(crate) async fn open_in(
        self: &Arc<Self>,
        entry: &Arc<TenantEntry>,
        state: &mut EntryState,
        existence: Existence,
    ) -> Result<Arc<Resident>> {
        if let Some(resident) = state.as_ref().filter(|resident| resident.is_usable()) {
            return Ok(resident.clone());
        }
        give_up(state).await?;
        let permit = self.permit().await?;
        let (resident, unsent) =
            Resident::open(self.around.clone(), entry.key.clone(), permit, existence).await?;
        tokio::spawn(keep_lease(resident.clone()));
        tokio::spawn(write_back(resident.clone(), unsent));
        tokio::spawn(await_end(Arc::downgrade(self), resident.clone()));
        tokio::spawn(retake_permit(Arc::downgrade(self), resident.clone()));
        **state = Some(resident.clone());
        Ok(resident)
    }

    /// Opens a tenant that an earlier process left in the cache folder, unless a caller has opened
    /// it meanwhile.
    ///
    /// The tenant is not pinned, so it can be evicted. If it was deleted and purged, what this host
    /// still has of it is erased.
    async fn recover(self: &Arc<Self>, key: &TenantKey) -> Result<()> {
        let entry = self.entry(key)?;
        let mut state = entry.state.clone().lock_owned().await;
        self.check_open()?;
        let inner = self.clone();
        to_its_end(async move {
            let recovered = inner.recover_in(&entry, &mut state).await;
            drop(state);
            inner.forget(entry);
            recovered
        })
        .await
    }

    async fn recover_in(self: &Arc<Self>, entry: &Arc<TenantEntry>, state: &mut EntryState) -> Result<()> {
        let opened = match self.around.cache.has_database(&entry.key) {
            true => self.open_in(entry, state, Existence::Required).await.map(drop),
            // The cache folder has only a quarantined database of the tenant.
            false => Err(TenantError::NotFound { key: entry.key.to_string() }),
        };
        match opened {
            Err(missing @ TenantError::NotFound { .. }) => {
                if state.is_some() || self.around.remote.purged(&entry.key).await?.is_none() {
                    return if self.around.cache.has_database(&entry.key) { Err(missing) } else { Ok(()) };
                }
                self.erase(&entry.key)
            }
            opened => opened,
        }
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(TenantError::ShutDown) } else { Ok(()) }
    }

    /// A panic elsewhere cannot leave the map inconsistent: each use is a single insert, removal or
    /// lookup.
    fn lock_entries(&self) -> MutexGuard<'_, HashMap<TenantKey, Arc<TenantEntry>>> {
        self.entries.lock()
    }

    pub(crate) fn entry(&self, key: &TenantKey) -> Result<Arc<TenantEntry>> {
        self.check_open()?;
        let make = || Arc::new(TenantEntry::new(key.clone(), self.left.clone()));
        Ok(self.lock_entries().entry(key.clone()).or_insert_with(make).clone())
    }

    /// Returns the entry of a tenant that is not in use on this host, with its locked state.
    pub(crate) async fn unused_entry(&self, key: &TenantKey) -> Result<(Arc<TenantEntry>, EntryState)> {
        let entry = self.entry(key)?;
        let state = entry.state.clone().lock_owned().await;
        self.check_open()?;
        match entry.is_pinned() {
            true => Err(TenantError::InUse { key: key.to_string() }),
            false => Ok((entry, state)),
        }
    }

    fn known_entry(&self, key: &TenantKey) -> Option<Arc<TenantEntry>> {
        self.lock_entries().get(key).cloned()
    }

    /// Removes an entry that is not in use. All clones come from the map, so no new one can appear
    /// while the map is locked.
    pub(crate) fn forget(&self, entry: Arc<TenantEntry>) {
        let mut entries = self.lock_entries();
        let is_closed = entry.state.try_lock().is_ok_and(|state| state.is_none());
        // One in the map, and this one.
        if is_closed && Arc::strong_count(&entry) == 2 {
            entries.remove(&entry.key);
        }
    }

    /// Acquires the permit for one more open tenant.
    async fn permit(self: &Arc<Self>) -> Result<OwnedSemaphorePermit> {
        let options = &self.around.options;
        let full = |_| TenantError::Full { capacity: options.capacity };
        tokio::time::timeout(options.room_wait, self.make_room()).await.map_err(full)
    }

    async fn make_room(self: &Arc<Self>) -> OwnedSemaphorePermit {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            // From here on, no notification is missed.
            left.as_mut().enable();
            if let Ok(permit) = self.permits.clone().try_acquire_owned() {
                return permit;
            }
            if let Some(entry) = self.least_recently_used() {
                let key = entry.key.clone();
                match self.evict(entry).await {
                    Ok(_) | Err(TenantError::InUse { .. }) => {}
                    // The tenant stays open, but its permit is free for another tenant, which must
                    // not fail because of it.
                    Err(error) => self.note_failed_eviction(&key, error).await,
                }
                continue;
            }
            tokio::select! {
                () = left => {}
                // A tenant whose state was locked for a moment does not count as evictable, so look
                // again.
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                Ok(permit) = self.permits.clone().acquire_owned() => return permit,
            }
        }
    }

    fn least_recently_used(&self) -> Option<Arc<TenantEntry>> {
        let entries = self.lock_entries();
        let is_evictable = |entry: &&Arc<TenantEntry>| {
            !entry.is_pinned()
                && entry.state.try_lock().is_ok_and(|state| {
                    let is_stuck = |resident: &Arc<Resident>| resident.is_stuck.load(Ordering::Acquire);
                    state.as_ref().is_some_and(|resident| !is_stuck(resident))
                })
        };
        entries.values().filter(is_evictable).min_by_key(|entry| entry.last_used()).cloned()
    }

    async fn note_failed_eviction(&self, key: &TenantKey, error: TenantError) {
        let Some(entry) = self.known_entry(key) else { return };
        if let Some(resident) = entry.state.lock().await.as_ref() {
            resident.note_write_back(false);
            resident.report("evict", error.into());
        }
    }

    /// Writes a tenant back and closes it. Returns `false` if it was not open.
    async fn evict(self: &Arc<Self>, entry: Arc<TenantEntry>) -> Result<bool> {
        let inner = self.clone();
        to_its_end(async move {
            let was_open = entry.evict().await?;
            // This call keeps no other clone of the entry now.
            inner.forget(entry);
            Ok(was_open)
        })
        .await
    }
}

impl TenantEntry {
    async fn evict(&self) -> Result<bool> {
        let mut state = self.state.lock().await;
        let Some(resident) = state.as_ref() else { return Ok(false) };
        if !resident.is_usable() {
            return give_up(&mut state).await.map(|()| true);
        }
        if self.is_pinned() {
            return Err(TenantError::InUse { key: self.key.to_string() });
        }
        resident.leave().await?;
        *state = None;
        Ok(true)
    }

    /// Closes the tenant even if it is in use, which ends that use.
    async fn close(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        let Some(resident) = state.as_ref() else { return Ok(()) };
        if !resident.is_usable() {
            return give_up(&mut state).await;
        }
        resident.close_for_users().await;
        resident.leave().await?;
        *state = None;
        Ok(())
    }
}

/// Runs work that must not stop halfway, even if the caller drops its future.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let failed = |error| TenantError::file("the work was cancelled", error);
    tokio::spawn(work).await.map_err(failed)?
}

/// Gives up a tenant that cannot stay open. Afterwards it is closed, even if this returns an error.
pub(crate) async fn give_up(state: &mut Option<Arc<Resident>>) -> Result<()> {
    let Some(resident) = state.take() else { return Ok(()) };
    let end = *resident.watch_end().borrow();
    let is_failed = resident.has_failed();
    resident.give_up(end.unwrap_or(if is_failed { End::Failed } else { End::Fenced })).await
}

/// Gives up a tenant as soon as it cannot stay open, even if no caller asks for it.
async fn await_end(inner: Weak<Inner>, resident: Arc<Resident>) {
    let mut end = resident.watch_end();
    let shipping_failed = async {
        match &resident.journal {
            Some(journal) => journal.failed().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = end.wait_for(Option::is_some) => {}
        () = shipping_failed => resident.end(End::Failed),
    }
    if *resident.watch_end().borrow() == Some(End::Closed) {
        return;
    }
    let Some(inner) = inner.upgrade() else { return };
    let Some(entry) = inner.known_entry(&resident.key) else { return };
    let mut state = entry.state.lock().await;
    if state.as_ref().is_some_and(|current| Arc::ptr_eq(current, &resident))
        && let Err(error) = give_up(&mut state).await
    {
        resident.report("give up", error.into());
    }
}

/// Acquires a permit again for a tenant whose uploads failed and have recovered. As for a tenant
/// that is opened, another one may have to be evicted.
async fn retake_permit(inner: Weak<Inner>, resident: Arc<Resident>) {
    let mut end = resident.watch_end();
    loop {
        tokio::select! {
            _ = end.wait_for(Option::is_some) => return,
            () = resident.recovered.notified() => {}
        }
        while resident.needs_permit() {
            let Some(inner) = inner.upgrade() else { return };
            // Each attempt is short. While it runs it keeps the host alive, so it would delay
            // noticing a drop of the last handle.
            if let Ok(permit) = tokio::time::timeout(RETAKE, inner.make_room()).await {
                resident.take_permit(permit);
            }
        }
    }
}

async fn evict_idle(inner: Weak<Inner>, idle: Duration) {
    loop {
        tokio::time::sleep((idle / 4).max(Duration::from_millis(10))).await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.check_open().is_err() {
            return;
        }
        let is_idle = |entry: &&Arc<TenantEntry>| !entry.is_pinned() && entry.last_used().elapsed() >= idle;
        let entries: Vec<_> = inner.lock_entries().values().filter(is_idle).cloned().collect();
        let evicted = futures_util::stream::iter(entries).map(|entry| {
            let inner = inner.clone();
            async move {
                // It may have been used since, and then it stays open.
                if entry.last_used().elapsed() < idle {
                    return;
                }
                let key = entry.key.clone();
                match inner.evict(entry).await {
                    Ok(_) | Err(TenantError::InUse { .. }) => {}
                    Err(error) => inner.note_failed_eviction(&key, error).await,
                }
            }
        });
        evicted.buffer_unordered(CLOSED_AT_ONCE).collect::<Vec<()>>().await;
    }
}

/// Opens the tenants that a killed process left, and sends what it acknowledged and did not send.
async fn recover(inner: Weak<Inner>) {
    let report = |inner: &Inner, key: String, error: TenantError| {
        let store = format!("tenant {key}");
        inner.around.events.emit(Event::BackgroundFailed { store, work: "recover", error: error.into() });
    };
    let Some(upgraded) = inner.upgrade() else { return };
    let cache = &upgraded.around.cache;
    let quarantined = cache.quarantined().map(|found| {
        found.iter().filter_map(|quarantined| quarantined.tenant.parse().ok()).collect::<Vec<TenantKey>>()
    });
    let mut keys = BTreeSet::new();
    for found in [cache.tenants(), quarantined] {
        match found {
            Ok(found) => keys.extend(found),
            Err(error) => report(&upgraded, "of the cache folder".to_string(), error),
        }
    }
    let at_once = upgraded.around.options.capacity.clamp(1, RECOVERED_AT_ONCE);
    drop(upgraded);
    // Each tenant, with the time when its lease was first found to be held.
    let mut left: Vec<(TenantKey, Option<Instant>)> = keys.into_iter().map(|key| (key, None)).collect();
    while !left.is_empty() {
        let recovered = futures_util::stream::iter(left).map(|(key, held_since)| {
            let inner = inner.clone();
            async move {
                let inner = inner.upgrade()?;
                match inner.recover(&key).await {
                    Ok(()) | Err(TenantError::ShutDown) => None,
                    // After a restart of the machine, this folder's own lease counts as another
                    // host's and expires after its time to live. A lease that lasts longer belongs
                    // to a live host.
                    Err(error @ TenantError::LeaseHeld { ttl, .. }) => {
                        let since = held_since.unwrap_or_else(Instant::now);
                        if since.elapsed() < ttl + inner.around.remote.options().lease_margin * 2 {
                            return Some((key, Some(since)));
                        }
                        report(&inner, key.to_string(), error);
                        None
                    }
                    Err(error) => {
                        report(&inner, key.to_string(), error);
                        None
                    }
                }
            }
        });
        left = recovered.buffer_unordered(at_once).filter_map(std::future::ready).collect().await;
        if !left.is_empty() {
            tokio::time::sleep(RECOVER_AGAIN).await;
        }
    }
}

/// Raises the limit of open files to what the capacity needs.
fn raise_file_limit(capacity: usize) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let needed = (capacity as u64).saturating_mul(FILES_A_TENANT).saturating_add(FILES_BESIDE);
    let failed = |error: nix::Error| TenantError::file("the limit of open files can't be read", error);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft >= needed {
        return Ok(());
    }
    let refused = || {
        TenantError::invalid_argument(format!(
            "{capacity} open tenants need {needed} open files, and this process may open {hard}; lower the capacity, or \
             raise the limit (`ulimit -n`)"
        ))
    };
    if hard < needed {
        return Err(refused());
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    async fn tenants(folder: &tempfile::TempDir, capacity: usize) -> Tenants {
        let builder = Tenants::builder(Arc::new(InMemory::new())).cache_folder(folder.path());
        builder.capacity(capacity).idle(None).open().await.unwrap()
    }

    #[tokio::test]
    async fn tenants_that_were_evicted_cost_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let tenants = tenants(&folder, 2).await;
        for number in 0..5 {
            tenants.get(&format!("acme/users/u{number}").parse().unwrap()).await.unwrap();
        }
        assert_eq!(tenants.inner.lock_entries().len(), 2);
        for key in tenants.resident() {
            assert!(tenants.evict(&key).await.unwrap());
        }
        assert!(tenants.inner.lock_entries().is_empty());
    }

    #[tokio::test]
    async fn a_caller_that_waits_for_room_sees_a_tenant_that_was_briefly_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let tenants = tenants(&folder, 1).await;
        let (ann, bob) = ("acme/users/ann".parse().unwrap(), "acme/users/bob".parse().unwrap());
        tenants.get(&ann).await.unwrap();
        let looking = tenants.inner.known_entry(&ann).unwrap().state.clone().lock_owned().await;
        let waiting = tokio::spawn({
            let tenants = tenants.clone();
            async move { tenants.get(&bob).await.map(drop) }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiting.is_finished());
        drop(looking);
        waiting.await.unwrap().unwrap();
    }
}
