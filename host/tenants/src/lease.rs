//! The lease of a tenant, which has one writer at a time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_core::Error;
use larder_core::backoff::jittered;
use object_store::UpdateVersion;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::error::{Result, TenantError};
use crate::head::{Head, LeaseRecord, MAX_HEAD_BYTES, Takeover};
use crate::key::TenantKey;
use crate::objects::{Found, Written};
use crate::remote::Remote;
use crate::segments::Log;
use crate::write_id::WriteId;

/// The holder of a lease: the name of one cache folder of one host.
///
/// The name is 1 to 200 bytes of visible ASCII. The process that uses it must hold an exclusive
/// lock on that cache folder. A lease of the same holder is taken over at once, because the lock
/// proves that the earlier process has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    name: Arc<str>,
    folder: Option<Arc<str>>,
}

/// The longest path of a cache folder that a lease records, in bytes.
const FOLDER_BYTES_MAX: usize = 4_096;

impl Holder {
    /// Validates a name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the name is empty, longer than 200 bytes, or has a byte that
    /// is not visible ASCII.
    pub fn new(name: &str) -> Result<Self, Error> {
        let is_visible = name.bytes().all(|byte| byte.is_ascii_graphic());
        if name.is_empty() || name.len() > 200 || !is_visible {
            return Err(Error::invalid_argument(
                "the name of a lease holder must be 1 to 200 bytes of visible ASCII without spaces",
            ));
        }
        Ok(Self { name: name.into(), folder: None })
    }

    /// Records the cache folder in leases.
    ///
    /// An operator can then find commits that a lost host did not send. A path of more than 4,096
    /// bytes is not recorded.
    #[must_use]
    pub fn in_folder(self, folder: &Path) -> Self {
        let folder = folder.to_string_lossy();
        Self { folder: (folder.len() <= FOLDER_BYTES_MAX).then(|| folder.into()), ..self }
    }

    /// The name of the holder.
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

/// The exclusive right to write a tenant, until it is released, lapses or is lost.
///
/// Clones are the same lease. A lease does not renew itself: the caller must call [`Lease::renew`]
/// every [`Lease::renewal_interval`]. Dropping a lease does not release it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use std::time::Duration;
/// use larder_tenants::{Holder, Remote, RemoteOptions, TenantKey};
///
/// let objects = Arc::new(object_store::memory::InMemory::new());
/// let remote = Remote::new(objects, Default::default(), RemoteOptions::default())?;
/// let key: TenantKey = "acme/users/ann".parse()?;
/// let lease = remote.acquire(&key, &Holder::new("host-1")?, Duration::ZERO).await?;
/// lease.check()?;
/// lease.renew().await?;
/// lease.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Lease {
    inner: Arc<Inner>,
}

struct Inner {
    remote: Remote,
    key: TenantKey,
    holder: Holder,
    epoch: u64,
    state: Mutex<State>,
    /// Held during each swap of the head. Lock order: `publishing` and `log` before this one.
    swapping: tokio::sync::Mutex<()>,
    /// Held while snapshots are added to or removed from the head.
    publishing: tokio::sync::Mutex<()>,
    log: tokio::sync::Mutex<Log>,
}

struct State {
    /// The head as it was last known, with its version.
    head: Head,
    version: UpdateVersion,
    /// The write ids of the last head that is known to be stored, and of every head sent since. Any
    /// of them may be stored by now.
    sent: Vec<WriteId>,
    /// When the lease expires, counted from before the last swap was sent.
    deadline: Instant,
    end: Option<TenantError>,
}

/// Lost races for a free lease before [`Remote::acquire`] fails.
const MAX_RACES: u32 = 20;

/// Retries of a swap that finds an earlier swap of the same lease stored.
const MAX_ADOPTIONS: u32 = 10;

/// Whether acquiring a lease creates a tenant that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existence {
    Optional,
    Required,
}

enum Attempt {
    Acquired(Lease),
    /// Another host changed the head meanwhile.
    Raced,
    Held {
        record: LeaseRecord,
        free_at: Instant,
    },
}

impl Remote {
    /// Takes the lease of a tenant, and creates the tenant if it does not exist.
    ///
    /// If another holder has the lease, this waits up to `wait`: until the lease is released, or
    /// until the head has been unchanged for the time to live of the lease plus the margin.
    /// Observations count for later calls too, so repeated calls with a short `wait` succeed in the
    /// end.
    ///
    /// # Errors
    /// - [`TenantError::LeaseHeld`] if another holder still has the lease after `wait`.
    /// - [`TenantError::Deleted`] if the tenant is deleted and not yet purged.
    /// - [`TenantError::Corrupt`] if the head is invalid, or is missing while other objects exist.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the head.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached, or if other hosts keep
    ///   changing the head.
    pub async fn acquire(&self, key: &TenantKey, holder: &Holder, wait: Duration) -> Result<Lease> {
        self.acquire_of(key, holder, wait, Existence::Optional).await
    }

    /// The same, but fails with [`TenantError::NotFound`] if the tenant must exist and does not.
    pub(crate) async fn acquire_of(
        &self,
        key: &TenantKey,
        holder: &Holder,
        wait: Duration,
        existence: Existence,
    ) -> Result<Lease> {
        let start = Instant::now();
        let mut races = 0;
        loop {
            let pause = match self.try_acquire(key, holder, existence).await? {
                Attempt::Acquired(lease) => {
                    self.watches().forget(key);
                    return Ok(lease);
                }
                Attempt::Raced if races < MAX_RACES => {
                    races += 1;
                    Duration::from_millis(20)
                }
                Attempt::Raced => return Err(changes_all_the_time(key)),
                Attempt::Held { record, free_at } => {
                    let left = wait.saturating_sub(start.elapsed());
                    if left.is_zero() {
                        let (key, ttl) = (key.to_string(), record.ttl());
                        return Err(TenantError::LeaseHeld { key, holder: record.holder, ttl });
                    }
                    let poll = (record.ttl() / 10).clamp(Duration::from_millis(20), Duration::from_secs(1));
                    let until_free = free_at.saturating_duration_since(Instant::now());
                    jittered(poll).min(left).min(until_free.max(Duration::from_millis(1)))
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_acquire(&self, key: &TenantKey, holder: &Holder, existence: Existence) -> Result<Attempt> {
        let found = self.read_head(key).await?;
        let exists = match &found {
            Some((Head { deletion: Some(deletion), .. }, _)) if !deletion.is_done() => {
                return Err(deletion.error(key));
            }
            Some((head, _)) => head.deletion.is_none(),
            None => false,
        };
        if !exists && existence == Existence::Required {
            return Err(TenantError::NotFound { key: key.to_string() });
        }
        if let Some((head, _)) = &found
            && let Some(record) = head.lease.clone()
            && record.holder != holder.as_str()
        {
            let since = self.watches().observe(key, head.write_id);
            let free_at = since + record.ttl() + self.options().lease_margin;
            if Instant::now() < free_at {
                return Ok(Attempt::Held { record, free_at });
            }
        }
        self.take(key, holder, found).await
    }

    /// Swaps the head for one with a new lease and a new epoch. The swap fails if the head is not
    /// the one that was watched, so a renewal that came in between is never overruled.
    async fn take(&self, key: &TenantKey, holder: &Holder, found: Option<(Head, Found)>) -> Result<Attempt> {
        let (earlier, version) = match found {
            Some((head, found)) => (head, Some(found.version)),
            None => (Head::new(key), None),
        };
        let lease = Some(self.record(holder));
        let mut head = Head { lease, deletion: None, ..earlier.successor()? };
        head.next_epoch()?;
        if let Some(record) = earlier.lease.filter(|record| record.holder != holder.as_str()) {
            head.note_takeover(record, earlier.epoch);
        }
        let epoch = head.epoch;
        let (path, bytes) = (self.head_path(key), Bytes::from(head.to_bytes()?));
        let is_own = |found: &[u8]| is_write(key, found, &head);
        let sent = Instant::now();
        let written = match &version {
            Some(version) => self.objects().swap(&path, bytes, version, is_own, MAX_HEAD_BYTES).await?,
            None => self.objects().create(&path, bytes, is_own, MAX_HEAD_BYTES).await?,
        };
        Ok(match written {
            Written::Done(version) => {
                let deadline = sent + self.options().lease_ttl;
                let sent = vec![head.write_id];
                let state = State { head, version, sent, deadline, end: None };
                Attempt::Acquired(Lease::new(self.clone(), key.clone(), holder.clone(), epoch, state))
            }
            Written::Lost(_) => Attempt::Raced,
        })
    }

    fn record(&self, holder: &Holder) -> LeaseRecord {
        let ttl_ms = u64::try_from(self.options().lease_ttl.as_millis()).unwrap_or(u64::MAX);
        let folder = holder.folder.as_deref().map(str::to_string);
        LeaseRecord { holder: holder.as_str().to_string(), ttl_ms, folder }
    }
}

pub(crate) fn changes_all_the_time(key: &TenantKey) -> TenantError {
    TenantError::Unavailable { reason: format!("the head of {key} keeps changing"), cause: None }
}

/// Whether stored bytes are exactly this write of the head.
pub(crate) fn is_write(key: &TenantKey, found: &[u8], head: &Head) -> bool {
    Head::parse(key, found).is_ok_and(|found| found.write_id == head.write_id)
}

impl Lease {
    fn new(remote: Remote, key: TenantKey, holder: Holder, epoch: u64, state: State) -> Self {
        let inner = Inner {
            remote,
            key,
            holder,
            epoch,
            state: Mutex::new(state),
            swapping: tokio::sync::Mutex::default(),
            publishing: tokio::sync::Mutex::default(),
            log: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The object storage of the tenant.
    pub fn remote(&self) -> &Remote {
        &self.inner.remote
    }

    /// The tenant of the lease.
    pub fn key(&self) -> &TenantKey {
        &self.inner.key
    }

    /// The holder of the lease.
    pub fn holder(&self) -> &Holder {
        &self.inner.holder
    }

    /// The fencing epoch of the lease.
    ///
    /// It is larger than that of every earlier lease of the tenant.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// The head as this lease last wrote it.
    pub fn head(&self) -> Head {
        self.state().head.clone()
    }

    /// The lease that this one took over.
    ///
    /// `None` if the earlier holder had released its lease.
    pub fn takeover(&self) -> Option<Takeover> {
        let before = self.epoch().checked_sub(1);
        self.head().takeovers.into_iter().rev().find(|takeover| Some(takeover.epoch) == before)
    }

    /// How often to call [`Lease::renew`].
    ///
    /// Two renewals in a row may fail before the lease lapses.
    pub fn renewal_interval(&self) -> Duration {
        (self.remote().options().lease_ttl - self.remote().options().lease_margin) / 3
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock()
    }

    pub(crate) async fn publishing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.inner.publishing.lock().await
    }

    pub(crate) async fn log(&self) -> tokio::sync::MutexGuard<'_, Log> {
        self.inner.log.lock().await
    }

    /// Checks that the lease is held, and will be for at least the margin.
    ///
    /// Sends no request.
    ///
    /// # Errors
    /// - [`TenantError::Fenced`] if another holder is known to have taken over.
    /// - [`TenantError::Closed`] if the lease was released.
    /// - [`TenantError::LeaseLapsed`] if the lease was not renewed in time. A renewal may still
    ///   succeed.
    pub fn check(&self) -> Result<()> {
        let state = self.state();
        if let Some(end) = &state.end {
            return Err(end.clone());
        }
        if Instant::now() + self.remote().options().lease_margin < state.deadline {
            Ok(())
        } else {
            Err(TenantError::LeaseLapsed { key: self.key().to_string() })
        }
    }

    /// Whether another holder is known to have taken over.
    pub fn is_fenced(&self) -> bool {
        matches!(self.state().end, Some(TenantError::Fenced { .. }))
    }

    /// When [`Lease::check`] starts to fail if the lease is not renewed.
    pub fn valid_until(&self) -> Instant {
        let deadline = self.state().deadline;
        deadline.checked_sub(self.remote().options().lease_margin).unwrap_or(deadline)
    }

    /// Extends the lease to its full time to live.
    ///
    /// A lapsed lease becomes valid again, unless another holder has taken over.
    ///
    /// # Errors
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::Closed`] if the lease was released.
    /// - [`TenantError::Corrupt`] if the head is missing or invalid.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the head.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    pub async fn renew(&self) -> Result<()> {
        self.change(|_| Ok(())).await.map(drop)
    }

    /// Releases the lease. Releasing it again does nothing.
    ///
    /// Changes that were not published are not in the snapshot.
    ///
    /// # Errors
    /// After an error other than [`TenantError::Fenced`], the caller may retry. Until then the
    /// lease counts as lapsed, because another host may already have it.
    ///
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::Corrupt`] if the head is missing or invalid.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the head.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    pub async fn release(&self) -> Result<()> {
        let released = self.change(|head| {
            head.lease = None;
            Ok(())
        });
        match released.await {
            Ok(_) | Err(TenantError::Closed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Swaps the head for an edited one. `edit` runs again if an earlier swap of this lease, whose
    /// response was lost, turns out to be stored.
    pub(crate) async fn change(&self, edit: impl Fn(&mut Head) -> Result<()>) -> Result<Head> {
        let _turn = self.inner.swapping.lock().await;
        for _ in 0..MAX_ADOPTIONS {
            let (mut head, version) = self.next_head()?;
            edit(&mut head)?;
            let (path, bytes) = (self.remote().head_path(self.key()), Bytes::from(head.to_bytes()?));
            let is_own = |found: &[u8]| is_write(self.key(), found, &head);
            let objects = self.remote().objects();
            // Other hosts count from when they see the write, which is later.
            let sent = Instant::now();
            self.state().sent.push(head.write_id);
            if head.lease.is_none() {
                // Once this is sent, another host may take the lease at any time, even if the
                // response is lost.
                self.state().deadline = sent;
            }
            match objects.swap(&path, bytes, &version, is_own, MAX_HEAD_BYTES).await? {
                Written::Done(version) => {
                    let released = || TenantError::Closed { key: self.key().to_string() };
                    let end = head.lease.is_none().then(released);
                    let deadline = sent + self.remote().options().lease_ttl;
                    let sent = vec![head.write_id];
                    *self.state() = State { head: head.clone(), version, sent, deadline, end };
                    return Ok(head);
                }
                Written::Lost(found) => self.adopt(found)?,
            }
        }
        Err(changes_all_the_time(self.key()))
    }

    fn next_head(&self) -> Result<(Head, UpdateVersion)> {
        let state = self.state();
        if let Some(end) = &state.end {
            return Err(end.clone());
        }
        let lease = Some(self.remote().record(self.holder()));
        Ok((Head { lease, ..state.head.successor()? }, state.version.clone()))
    }

    /// Adopts a head that was found instead of the expected one. Every lease has its own epoch, so
    /// a head with this epoch was written by this lease, in a swap that seemed to fail. If this
    /// process never sent that head, a clone of the machine has the same lease, and this one is
    /// fenced.
    fn adopt(&self, found: Option<Found>) -> Result<()> {
        let found = found.ok_or_else(|| TenantError::corrupt(self.key(), "the head no longer exists"))?;
        let head = Head::parse(self.key(), &found.bytes)?;
        let mut state = self.state();
        match head.epoch.cmp(&self.epoch()) {
            std::cmp::Ordering::Equal if state.sent.contains(&head.write_id) => {
                state.head = head;
                state.version = found.version;
                Ok(())
            }
            std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => {
                let by = head.lease.map(|lease| lease.holder).unwrap_or_default();
                let fenced = TenantError::Fenced { key: self.key().to_string(), epoch: head.epoch, by };
                state.end = Some(fenced.clone());
                Err(fenced)
            }
            std::cmp::Ordering::Less => {
                Err(TenantError::corrupt(self.key(), "the head's epoch has decreased"))
            }
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Lease")
            .field("key", &self.inner.key)
            .field("holder", &self.inner.holder.as_str())
            .field("epoch", &self.inner.epoch)
            .finish_non_exhaustive()
    }
}
