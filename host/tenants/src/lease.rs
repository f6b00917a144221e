//! One writer a tenant.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use larder_core::Error;
use object_store::UpdateVersion;
use tokio::time::Instant;

use crate::backoff::jittered;
use crate::error::{Result, TenantError};
use crate::head::{Head, LeaseRecord, MAX_HEAD_BYTES, Takeover};
use crate::key::TenantKey;
use crate::objects::{Found, Written};
use crate::remote::Remote;
use crate::segments::Log;
use crate::write_id::WriteId;

/// Who takes leases: the name of one cache folder of one host, 1 to 200 visible bytes.
///
/// Who uses it must hold an exclusive lock on that cache folder: a lease of the same holder is taken over at once, as
/// its earlier process must be dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    name: Arc<str>,
    folder: Option<Arc<str>>,
}

/// The longest path of a cache folder that a lease names, in bytes.
const FOLDER_BYTES_MAX: usize = 4_096;

impl Holder {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where it is empty, too long, or holds what can't be seen.
    pub fn new(name: &str) -> Result<Self, Error> {
        let is_visible = name.bytes().all(|byte| byte.is_ascii_graphic());
        if name.is_empty() || name.len() > 200 || !is_visible {
            return Err(Error::invalid_argument(
                "the holder of a lease is named by 1 to 200 visible bytes of ASCII without spaces",
            ));
        }
        Ok(Self { name: name.into(), folder: None })
    }

    /// Has leases name the cache folder, for an operator who looks for what a lost host did not send.
    #[must_use]
    pub fn in_folder(self, folder: &Path) -> Self {
        let folder = folder.to_string_lossy();
        Self { folder: (folder.len() <= FOLDER_BYTES_MAX).then(|| folder.into()), ..self }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

/// The right to write a tenant, until it is released, lapses or is lost. Clones are the same lease.
///
/// It doesn't renew itself: somebody has to call [`Lease::renew`] every [`Lease::renewal_interval`]. It isn't released
/// where it is dropped.
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
    /// Held through each swap of the head. Taken after `publishing` and `log` where those are held too.
    swapping: tokio::sync::Mutex<()>,
    /// Held by what adds snapshots to the head or removes them.
    publishing: tokio::sync::Mutex<()>,
    log: tokio::sync::Mutex<Log>,
}

struct State {
    /// The head as it was last known, and its version.
    head: Head,
    version: UpdateVersion,
    /// Heads that were sent since the last one that is known to be stored, and that one: any of them may be stored by now.
    sent: Vec<WriteId>,
    /// When the lease ends, counted from before the last swap was sent.
    deadline: Instant,
    end: Option<TenantError>,
}

/// Races for a free lease that are lost before it is given up.
const MAX_RACES: u32 = 20;

/// How often a swap is made again that met an own, late one.
const MAX_ADOPTIONS: u32 = 10;

/// Whether a tenant that does not exist is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existence {
    Optional,
    Required,
}

enum Attempt {
    Acquired(Lease),
    /// Somebody else changed the head meanwhile.
    Raced,
    Held {
        record: LeaseRecord,
        free_at: Instant,
    },
}

impl Remote {
    /// Takes the lease of a tenant. Another's is waited for, up to `wait`: until it is released, or until its head has
    /// been seen unchanged for as long as its lease holds, and the margin. What was seen counts for later calls too, so
    /// that short tries come to an end as well.
    ///
    /// # Errors
    /// [`TenantError::LeaseHeld`] where another still has it, [`TenantError::Deleted`], and what [`Remote::head`] gives.
    pub async fn acquire(&self, key: &TenantKey, holder: &Holder, wait: Duration) -> Result<Lease> {
        self.acquire_of(key, holder, wait, Existence::Optional).await
    }

    /// The same, with [`TenantError::NotFound`] if the tenant must exist and does not.
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

    /// Swaps the head for one with a lease of a new epoch. It fails if the head is any other than the one that was
    /// watched: so a renewal that came in between is never overruled.
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
    TenantError::Unavailable { reason: format!("the head of {key} changes all the time"), cause: None }
}

/// Whether stored bytes are this very write of the head.
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

    /// Where the tenant is.
    pub fn remote(&self) -> &Remote {
        &self.inner.remote
    }

    /// The tenant.
    pub fn key(&self) -> &TenantKey {
        &self.inner.key
    }

    /// Who has the lease.
    pub fn holder(&self) -> &Holder {
        &self.inner.holder
    }

    /// The lease's number: larger than that of every earlier one.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// The head as this lease last wrote it, or found it when it was taken.
    pub fn head(&self) -> Head {
        self.state().head.clone()
    }

    /// The lease that this one took over, if its holder had not released it.
    pub fn takeover(&self) -> Option<Takeover> {
        let before = self.epoch().checked_sub(1);
        self.head().takeovers.into_iter().rev().find(|takeover| Some(takeover.epoch) == before)
    }

    /// How often it should be renewed: so often that two renewals may fail.
    pub fn renewal_interval(&self) -> Duration {
        (self.remote().options().lease_ttl - self.remote().options().lease_margin) / 3
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn publishing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.inner.publishing.lock().await
    }

    pub(crate) async fn log(&self) -> tokio::sync::MutexGuard<'_, Log> {
        self.inner.log.lock().await
    }

    /// Whether the lease is surely held now, and for as long as the margin. It asks nobody.
    ///
    /// # Errors
    /// [`TenantError::Fenced`] once it is known that another has taken over, [`TenantError::Closed`] once it was
    /// released, and [`TenantError::LeaseLapsed`] where it was not renewed in time: a renewal may still succeed then.
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

    /// Whether another has taken over.
    pub fn is_fenced(&self) -> bool {
        matches!(self.state().end, Some(TenantError::Fenced { .. }))
    }

    /// When [`Lease::check`] begins to fail if the lease isn't renewed.
    pub fn valid_until(&self) -> Instant {
        let deadline = self.state().deadline;
        deadline.checked_sub(self.remote().options().lease_margin).unwrap_or(deadline)
    }

    /// Makes the lease hold for its whole time again. A lapsed one is valid again, unless another has taken over.
    ///
    /// # Errors
    /// [`TenantError::Fenced`], [`TenantError::Closed`], and [`TenantError::Unavailable`].
    pub async fn renew(&self) -> Result<()> {
        self.change(|_| Ok(())).await.map(drop)
    }

    /// Gives the lease back. What was not published is not in the snapshot. Releasing again does nothing.
    ///
    /// # Errors
    /// [`TenantError::Fenced`], and [`TenantError::Unavailable`]: it may be called again. Until then the lease counts as
    /// lapsed, as another may have it already.
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

    /// Swaps the head for an edited one. `edit` runs again where an earlier swap of this lease, whose answer was lost,
    /// comes to light.
    pub(crate) async fn change(&self, edit: impl Fn(&mut Head) -> Result<()>) -> Result<Head> {
        let _turn = self.inner.swapping.lock().await;
        for _ in 0..MAX_ADOPTIONS {
            let (mut head, version) = self.next_head()?;
            edit(&mut head)?;
            let (path, bytes) = (self.remote().head_path(self.key()), Bytes::from(head.to_bytes()?));
            let is_own = |found: &[u8]| is_write(self.key(), found, &head);
            let objects = self.remote().objects();
            // Others count from when they see the write, which is later.
            let sent = Instant::now();
            self.state().sent.push(head.write_id);
            if head.lease.is_none() {
                // Once this is sent another may take the lease at any time, whether or not the answer comes.
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

    /// Takes a head that was found in place of the expected one. Every other lease has another epoch: so a head of this
    /// one's was written by this lease, in a swap that seemed to have failed. Unless it was never sent: then a clone of this
    /// machine has the same lease.
    fn adopt(&self, found: Option<Found>) -> Result<()> {
        let found = found.ok_or_else(|| TenantError::corrupt(self.key(), "the head is gone"))?;
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
            std::cmp::Ordering::Less => Err(TenantError::corrupt(self.key(), "the head's epoch went back")),
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
