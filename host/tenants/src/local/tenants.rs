//! The tenants of one host.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use larder_core::{Event, EventSink};
use object_store::ObjectStore;
use tokio::sync::{Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::{Result, TenantError};
use crate::key::TenantKey;
use crate::lease::Existence;
use crate::local::cache::CacheFolder;
use crate::local::options::{LocalOptions, TenantsBuilder};
use crate::local::resident::{End, Resident};
use crate::local::slot::{Pin, Slot};
use crate::local::tenant::Tenant;
use crate::local::write_back::{keep_lease, write_back};
use crate::place_id;
use crate::remote::Remote;
use crate::view::TenantView;

/// Tenants that are written back at once when all are closed.
const CLOSED_AT_ONCE: usize = 16;

/// Tenants that are recovered side by side, and how long those whose leases are held wait for another attempt.
const RECOVERED_AT_ONCE: usize = 16;
const RECOVER_AGAIN: Duration = Duration::from_secs(1);

/// How often it is looked for somebody who can make room, where nobody could.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long a tenant that lost its place looks for one at a time.
const RETAKE: Duration = Duration::from_secs(1);

/// Files that an open tenant has open, at most for long: the writer's, a few readers', a copy under way.
const FILES_A_TENANT: u64 = 12;

/// Files that everything else may have open.
const FILES_BESIDE: u64 = 256;

pub(crate) type SlotState = OwnedMutexGuard<Option<Arc<Resident>>>;

/// What every open tenant needs.
pub(crate) struct Surroundings {
    pub(crate) remote: Remote,
    pub(crate) cache: CacheFolder,
    pub(crate) options: LocalOptions,
    pub(crate) events: Arc<dyn EventSink>,
}

/// The tenants of one host. Clones are the same.
///
/// No call waits for another tenant: not for its download, its upload, or its lock.
///
/// End it with [`Tenants::close`]. Where it is only dropped, what was not written back stays in the cache folder, for the
/// next process that has it, and leases run out.
#[derive(Clone)]
pub struct Tenants {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) around: Arc<Surroundings>,
    slots: Mutex<HashMap<TenantKey, Arc<Slot>>>,
    places: Arc<Semaphore>,
    /// Told whenever an open tenant is in nobody's use any more.
    left: Arc<Notify>,
    closed: AtomicBool,
}

impl Tenants {
    /// Tenants in an object store.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
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
        place_id::settle(&remote, &cache, remote.probe()).await?;
        let places = Arc::new(Semaphore::new(local.capacity));
        let around = Arc::new(Surroundings { remote, cache, options: local, events });
        let inner = Arc::new(Inner {
            around,
            slots: Mutex::default(),
            places,
            left: Arc::default(),
            closed: AtomicBool::new(false),
        });
        if let Some(idle) = inner.around.options.idle {
            tokio::spawn(evict_idle(Arc::downgrade(&inner), idle));
        }
        tokio::spawn(recover(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// What is in object storage.
    pub fn remote(&self) -> &Remote {
        &self.inner.around.remote
    }

    /// What is on this host.
    pub fn cache(&self) -> &CacheFolder {
        &self.inner.around.cache
    }

    pub(crate) fn emit(&self, event: Event) {
        self.inner.around.events.emit(event);
    }

    /// Opens a tenant, or gives the one that is open. It stays open as long as somebody has it.
    ///
    /// # Errors
    /// [`TenantError::LeaseHeld`] where another host has it, [`TenantError::Full`] where as many as can be are in use,
    /// [`TenantError::Corrupt`] where what is stored fails a check, [`TenantError::ShutDown`], and
    /// [`TenantError::Unavailable`].
    pub async fn get(&self, key: &TenantKey) -> Result<Tenant> {
        self.get_of(key, Existence::Optional).await
    }

    /// The same for a tenant that exists: no host makes it by this call.
    ///
    /// # Errors
    /// As [`Tenants::get`], and [`TenantError::NotFound`].
    pub async fn get_existing(&self, key: &TenantKey) -> Result<Tenant> {
        self.get_of(key, Existence::Required).await
    }

    async fn get_of(&self, key: &TenantKey, existence: Existence) -> Result<Tenant> {
        let slot = self.inner.slot(key)?;
        let state = slot.state.clone().lock_owned().await;
        self.inner.check_open()?;
        if let Some(resident) = state.as_ref().filter(|resident| resident.is_usable()) {
            return Ok(Tenant::new(resident.clone(), Pin::new(&slot)));
        }
        let inner = self.inner.clone();
        to_its_end(async move { inner.open(slot, state, existence).await }).await
    }

    /// Opens what object storage has of a tenant, for reading only; see [`Remote::view`]. `None` if the
    /// tenant does not exist.
    ///
    /// It needs no lease, so another host may have the tenant open. It counts for no capacity: each view
    /// has a copy of the database in the cache folder until its backend is closed or dropped.
    ///
    /// # Errors
    /// As [`Remote::view`], and [`TenantError::ShutDown`].
    pub async fn view(&self, key: &TenantKey) -> Result<Option<TenantView>> {
        self.inner.check_open()?;
        self.remote().view(key, &self.cache().temporary_folder()).await
    }

    /// The tenants that are open.
    pub fn resident(&self) -> Vec<TenantKey> {
        let slots = self.inner.lock_slots();
        let is_open = |slot: &&Arc<Slot>| slot.state.try_lock().map_or(true, |state| state.is_some());
        let mut keys: Vec<_> = slots.values().filter(is_open).map(|slot| slot.key.clone()).collect();
        keys.sort();
        keys
    }

    /// Writes a tenant back now, if it is open and has changed; says whether it did.
    ///
    /// # Errors
    /// What keeps it from being written back: it stays open and is tried again.
    pub async fn checkpoint(&self, key: &TenantKey) -> Result<bool> {
        let Some(slot) = self.inner.known_slot(key) else { return Ok(false) };
        let resident = slot.state.lock().await.clone();
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

    /// Writes a tenant back and closes it, if it is open; says whether it was.
    ///
    /// # Errors
    /// [`TenantError::InUse`] where somebody has it, and as [`Tenants::checkpoint`]: it stays open.
    pub async fn evict(&self, key: &TenantKey) -> Result<bool> {
        match self.inner.known_slot(key) {
            None => Ok(false),
            Some(slot) => self.inner.evict(slot).await,
        }
    }

    /// Writes every tenant back and closes it, many side by side, and takes no further calls. It may be called again for
    /// those that could not be written back.
    ///
    /// # Errors
    /// [`TenantError::NotWrittenBack`] names each of them and says why. They stay as they are, on this host's disk too.
    pub async fn close(&self) -> Result<()> {
        self.inner.closed.store(true, Ordering::Release);
        let slots: Vec<_> = self.inner.lock_slots().values().cloned().collect();
        let closed = futures_util::stream::iter(slots).map(|slot| async move {
            let key = slot.key.clone();
            let outcome = to_its_end(async move { slot.close().await }).await;
            outcome.err().map(|error| (key, error))
        });
        let mut failed: Vec<_> =
            closed.buffer_unordered(CLOSED_AT_ONCE).filter_map(std::future::ready).collect().await;
        failed.sort_by(|(a, _), (b, _)| a.cmp(b));
        if failed.is_empty() { Ok(()) } else { Err(TenantError::NotWrittenBack { failed: failed.into() }) }
    }

    /// Closes where nobody can be told what could not be written back.
    pub(crate) async fn close_or_log(&self) {
        if let Err(error) = self.close().await {
            let folder = self.cache().folder().display();
            tracing::error!(target: "larder", "{error}; it stays in {folder}, and is sent when that is opened again");
        }
    }
}

impl std::fmt::Debug for Tenants {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tenants").field("cache", &self.inner.around.cache).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    /// Nobody renews a lease, or writes back, for tenants that nobody can ask for any more.
    fn drop(&mut self) {
        for slot in self.lock_slots().values() {
            if let Ok(state) = slot.state.try_lock()
                && let Some(resident) = state.as_ref()
            {
                resident.end(End::Closed);
            }
        }
    }
}

impl Inner {
    /// Opens a tenant that is not open, or can't stay so.
    async fn open(
        self: Arc<Self>,
        slot: Arc<Slot>,
        mut state: SlotState,
        existence: Existence,
    ) -> Result<Tenant> {
        let resident = self.open_in(&slot, &mut state, existence).await?;
        Ok(Tenant::new(resident, Pin::new(&slot)))
    }

    /// What is open in a slot whose state is held; it is opened where it is not, or can't stay so.
    pub(crate) async fn open_in(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: &mut SlotState,
        existence: Existence,
    ) -> Result<Arc<Resident>> {
        if let Some(resident) = state.as_ref().filter(|resident| resident.is_usable()) {
            return Ok(resident.clone());
        }
        give_up(state).await?;
        let place = self.place().await?;
        let (resident, unsent) =
            Resident::open(self.around.clone(), slot.key.clone(), place, existence).await?;
        tokio::spawn(keep_lease(resident.clone()));
        tokio::spawn(write_back(resident.clone(), unsent));
        tokio::spawn(await_end(Arc::downgrade(self), resident.clone()));
        tokio::spawn(retake_place(Arc::downgrade(self), resident.clone()));
        **state = Some(resident.clone());
        Ok(resident)
    }

    /// Opens what was left of a tenant, unless a caller has opened it by now. It does not pin the tenant,
    /// so it can be evicted. What is left of a tenant that was deleted for good is erased.
    async fn recover(self: &Arc<Self>, key: &TenantKey) -> Result<()> {
        let slot = self.slot(key)?;
        let mut state = slot.state.clone().lock_owned().await;
        self.check_open()?;
        let inner = self.clone();
        to_its_end(async move {
            let recovered = inner.recover_in(&slot, &mut state).await;
            drop(state);
            inner.forget(slot);
            recovered
        })
        .await
    }

    async fn recover_in(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut SlotState) -> Result<()> {
        let opened = match self.around.cache.has_database(&slot.key) {
            true => self.open_in(slot, state, Existence::Required).await.map(drop),
            // Something of it is in quarantine.
            false => Err(TenantError::NotFound { key: slot.key.to_string() }),
        };
        match opened {
            Err(missing @ TenantError::NotFound { .. }) => {
                if state.is_some() || self.around.remote.purged(&slot.key).await?.is_none() {
                    return if self.around.cache.has_database(&slot.key) { Err(missing) } else { Ok(()) };
                }
                self.erase(&slot.key)
            }
            opened => opened,
        }
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(TenantError::ShutDown) } else { Ok(()) }
    }

    /// A panic elsewhere can't have left the map half changed: each use is one insert, remove or look.
    fn lock_slots(&self) -> MutexGuard<'_, HashMap<TenantKey, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn slot(&self, key: &TenantKey) -> Result<Arc<Slot>> {
        self.check_open()?;
        let make = || Arc::new(Slot::new(key.clone(), self.left.clone()));
        Ok(self.lock_slots().entry(key.clone()).or_insert_with(make).clone())
    }

    /// The slot of a tenant that is not in use on this host, with its state, which is held.
    pub(crate) async fn unused_slot(&self, key: &TenantKey) -> Result<(Arc<Slot>, SlotState)> {
        let slot = self.slot(key)?;
        let state = slot.state.clone().lock_owned().await;
        self.check_open()?;
        match slot.is_pinned() {
            true => Err(TenantError::InUse { key: key.to_string() }),
            false => Ok((slot, state)),
        }
    }

    fn known_slot(&self, key: &TenantKey) -> Option<Arc<Slot>> {
        self.lock_slots().get(key).cloned()
    }

    /// Forgets a slot that nobody uses. Whoever has it has it from the map, so nobody can come by it meanwhile.
    pub(crate) fn forget(&self, slot: Arc<Slot>) {
        let mut slots = self.lock_slots();
        let is_closed = slot.state.try_lock().is_ok_and(|state| state.is_none());
        // The map's and this one.
        if is_closed && Arc::strong_count(&slot) == 2 {
            slots.remove(&slot.key);
        }
    }

    /// A place for one more open tenant.
    async fn place(self: &Arc<Self>) -> Result<OwnedSemaphorePermit> {
        let options = &self.around.options;
        let full = |_| TenantError::Full { capacity: options.capacity };
        tokio::time::timeout(options.room_wait, self.make_room()).await.map_err(full)
    }

    async fn make_room(self: &Arc<Self>) -> OwnedSemaphorePermit {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            // From here on nobody leaves unheard.
            left.as_mut().enable();
            if let Ok(place) = self.places.clone().try_acquire_owned() {
                return place;
            }
            if let Some(slot) = self.least_recently_used() {
                let key = slot.key.clone();
                match self.evict(slot).await {
                    Ok(_) | Err(TenantError::InUse { .. }) => {}
                    // It stays, and its place is free for others: they must not fail with it.
                    Err(error) => self.note_failed_eviction(&key, error).await,
                }
                continue;
            }
            tokio::select! {
                () = left => {}
                // Somebody may have looked at one in passing, so that it was not among those that can be evicted.
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                Ok(place) = self.places.clone().acquire_owned() => return place,
            }
        }
    }

    fn least_recently_used(&self) -> Option<Arc<Slot>> {
        let slots = self.lock_slots();
        let is_evictable = |slot: &&Arc<Slot>| {
            !slot.is_pinned()
                && slot.state.try_lock().is_ok_and(|state| {
                    let is_stuck = |resident: &Arc<Resident>| resident.is_stuck.load(Ordering::Acquire);
                    state.as_ref().is_some_and(|resident| !is_stuck(resident))
                })
        };
        slots.values().filter(is_evictable).min_by_key(|slot| slot.last_used()).cloned()
    }

    async fn note_failed_eviction(&self, key: &TenantKey, error: TenantError) {
        let Some(slot) = self.known_slot(key) else { return };
        if let Some(resident) = slot.state.lock().await.as_ref() {
            resident.note_write_back(false);
            resident.report("evict", error.into());
        }
    }

    /// Writes a tenant back and closes it; false where it was not open.
    async fn evict(self: &Arc<Self>, slot: Arc<Slot>) -> Result<bool> {
        let inner = self.clone();
        to_its_end(async move {
            let was_open = slot.evict().await?;
            // Nothing else of this call may have it by now.
            inner.forget(slot);
            Ok(was_open)
        })
        .await
    }
}

impl Slot {
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

    /// Also where somebody has it: that is over then.
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

/// Does what must not stop halfway, whether or not somebody goes on waiting for it.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let failed = |error| TenantError::file("the work was cancelled", error);
    tokio::spawn(work).await.map_err(failed)?
}

/// Gives up a tenant that can't stay open. After this it is not there any more, also where something went wrong.
pub(crate) async fn give_up(state: &mut Option<Arc<Resident>>) -> Result<()> {
    let Some(resident) = state.take() else { return Ok(()) };
    let end = *resident.watch_end().borrow();
    let is_failed = resident.has_failed();
    resident.give_up(end.unwrap_or(if is_failed { End::Failed } else { End::Fenced })).await
}

/// Gives a tenant up as soon as it can't stay open, also where nobody asks for it any more.
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
    let Some(slot) = inner.known_slot(&resident.key) else { return };
    let mut state = slot.state.lock().await;
    if state.as_ref().is_some_and(|current| Arc::ptr_eq(current, &resident))
        && let Err(error) = give_up(&mut state).await
    {
        resident.report("give up", error.into());
    }
}

/// Has a tenant whose uploads failed, and work again, count among those that are open: it takes its place as one that is
/// opened does, and another may have to go for it.
async fn retake_place(inner: Weak<Inner>, resident: Arc<Resident>) {
    let mut end = resident.watch_end();
    loop {
        tokio::select! {
            _ = end.wait_for(Option::is_some) => return,
            () = resident.recovered.notified() => {}
        }
        while resident.needs_place() {
            let Some(inner) = inner.upgrade() else { return };
            // Not for long at a time: as long as this looks for room, nobody notices that the host was dropped.
            if let Ok(place) = tokio::time::timeout(RETAKE, inner.make_room()).await {
                resident.take_place(place);
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
        let is_idle = |slot: &&Arc<Slot>| !slot.is_pinned() && slot.last_used().elapsed() >= idle;
        let slots: Vec<_> = inner.lock_slots().values().filter(is_idle).cloned().collect();
        let evicted = futures_util::stream::iter(slots).map(|slot| {
            let inner = inner.clone();
            async move {
                // It may have been used since: whoever has it now keeps it.
                if slot.last_used().elapsed() < idle {
                    return;
                }
                let key = slot.key.clone();
                match inner.evict(slot).await {
                    Ok(_) | Err(TenantError::InUse { .. }) => {}
                    Err(error) => inner.note_failed_eviction(&key, error).await,
                }
            }
        });
        evicted.buffer_unordered(CLOSED_AT_ONCE).collect::<Vec<()>>().await;
    }
}

/// Opens what a process left that was killed: what was acknowledged and never sent is sent.
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
    // Each with when its lease was first found to be held.
    let mut left: Vec<(TenantKey, Option<Instant>)> = keys.into_iter().map(|key| (key, None)).collect();
    while !left.is_empty() {
        let recovered = futures_util::stream::iter(left).map(|(key, held_since)| {
            let inner = inner.clone();
            async move {
                let inner = inner.upgrade()?;
                match inner.recover(&key).await {
                    Ok(()) | Err(TenantError::ShutDown) => None,
                    // After a restart of the machine, the lease of this folder is waited for like that of another
                    // host. It ends after its time to live; one that goes on is that of a live host.
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

/// Makes sure that the process may open the files of as many tenants.
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
            "{capacity} open tenants need {needed} open files, and this process may have {hard}: lower the capacity, or \
             raise the limit (`ulimit -n`)"
        ))
    };
    if hard < needed {
        return Err(refused());
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map_err(|_| refused())
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let failed = |error| TenantError::file("the work was cancelled", error);
    tokio::task::spawn_blocking(work).await.map_err(failed)?
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
        assert_eq!(tenants.inner.lock_slots().len(), 2);
        for key in tenants.resident() {
            assert!(tenants.evict(&key).await.unwrap());
        }
        assert!(tenants.inner.lock_slots().is_empty());
    }

    #[tokio::test]
    async fn who_waits_for_room_sees_a_tenant_that_somebody_looked_at_in_passing() {
        let folder = tempfile::tempdir().unwrap();
        let tenants = tenants(&folder, 1).await;
        let (ann, bob) = ("acme/users/ann".parse().unwrap(), "acme/users/bob".parse().unwrap());
        tenants.get(&ann).await.unwrap();
        let looking = tenants.inner.known_slot(&ann).unwrap().state.clone().lock_owned().await;
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
