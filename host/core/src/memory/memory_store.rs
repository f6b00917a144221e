//! The conversations of a store, and the background work on them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::clock::UnixMillis;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::held::HeldBytes;
use crate::limits::Limits;
use crate::memory::identity::{Identity, IdentityParts, IdentityScope};
use crate::memory::records::RecordKey;
use crate::memory::rules::{Begun, Effect, Rules};
use crate::memory::session::Memory;
use crate::memory::strategy::{MemoryOptions, Strategy};
use crate::memory::summarizer::{Summarizer, SummaryError, SummaryRequest};
use crate::memory::tokens::{ByteTokens, TokenEstimator, summary_tokens};
use crate::memory::update::{Change, update};
use crate::store::Store;

/// The conversations of a store, kept as the host declared.
///
/// Clones share the same conversations.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use std::sync::Arc;
/// use larder_core::{
///     EchoSummarizer, IdentityParts, IdentityScope, InMemory, Limits, MemoryOptions, MemoryStore,
///     Store, Strategy, Turn,
/// };
///
/// let store = Store::builder(InMemory::new()).build()?;
/// let memories = MemoryStore::builder(&store, MemoryOptions::new(Strategy::RollingSummary))
///     .summarizer(Arc::new(EchoSummarizer))
///     .build()?;
/// let scope = IdentityScope::user("acme", "ann")?;
/// let parts = IdentityParts::session("acme", "ann", "monday");
/// let memory = memories.open(parts, &scope, &Arc::new(Limits::default()))?;
/// for question in ["a", "b", "c", "d", "e"] {
///     memory.add_turn(Turn { user_message: question.into(), ..Turn::default() }).await?;
/// }
/// let context = memory.llm_context().await?;
/// assert_eq!((context.summary.as_str(), context.recent_turns.len()), ("U:a A:", 4));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) options: MemoryOptions,
    tokens: Arc<dyn TokenEstimator>,
    summarizer: Option<Arc<dyn Summarizer>>,
    /// One lock for each session. Calls of this host queue here instead of failing with a conflict
    /// at the backend.
    sessions: Mutex<HashMap<RecordKey, Weak<tokio::sync::Mutex<()>>>>,
    summary_permits: Arc<Semaphore>,
    /// Becomes true when the store is closed. Running summaries then stop.
    closing: watch::Sender<bool>,
    closed: AtomicBool,
    running: Mutex<JoinSet<()>>,
}

/// Configures a [`MemoryStore`].
pub struct MemoryStoreBuilder {
    store: Store,
    options: MemoryOptions,
    tokens: Arc<dyn TokenEstimator>,
    summarizer: Option<Arc<dyn Summarizer>>,
    background: bool,
    concurrent_summaries: usize,
}

impl MemoryStoreBuilder {
    /// Sets the summarizer, which [`Strategy::RollingSummary`] requires.
    pub fn summarizer(mut self, summarizer: Arc<dyn Summarizer>) -> Self {
        self.summarizer = Some(summarizer);
        self
    }

    /// Sets how tokens are counted. Default: [`ByteTokens`].
    pub fn token_estimator(mut self, tokens: Arc<dyn TokenEstimator>) -> Self {
        self.tokens = tokens;
        self
    }

    /// Sets how many summaries may run at once; at least 1. Default: 64.
    ///
    /// Further ones wait.
    pub fn concurrent_summaries(mut self, count: usize) -> Self {
        self.concurrent_summaries = count.max(1);
        self
    }

    /// Sets whether the host looks for due work every second. Default: true.
    ///
    /// Due work is failed summaries to retry, backlogs, and sessions whose host died. If false,
    /// call [`MemoryStore::run_due`] instead.
    pub fn background(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    /// Builds the memory store. Call it within a tokio runtime.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidArgument`] if an option is out of range, or if the strategy is a rolling
    ///   summary and there is no summarizer.
    /// - [`Error::Other`] outside a tokio runtime.
    pub fn build(self) -> Result<MemoryStore> {
        self.options.validate()?;
        let rolls = self.options.strategy == Strategy::RollingSummary;
        if rolls && self.summarizer.is_none() {
            return Err(Error::invalid_argument("the strategy rolling-summary needs a summarizer"));
        }
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::caused("cannot open a memory store outside a tokio runtime", error))?;
        let inner = Arc::new(Inner {
            store: self.store,
            options: self.options,
            tokens: self.tokens,
            summarizer: self.summarizer,
            sessions: Mutex::default(),
            summary_permits: Arc::new(Semaphore::new(self.concurrent_summaries.min(Semaphore::MAX_PERMITS))),
            closing: watch::channel(false).0,
            closed: AtomicBool::new(false),
            running: Mutex::default(),
        });
        if rolls && self.background {
            runtime.spawn(look_for_due(Arc::downgrade(&inner)));
        }
        Ok(MemoryStore { inner })
    }
}

/// The interval between two looks for due work.
const DUE_INTERVAL: Duration = Duration::from_secs(1);

/// The number of sessions that one look finds at most.
const DUE_MAX: u32 = 100;

/// How long [`MemoryStore::close`] waits for running summaries to return their turns.
const CLOSE_MAX: Duration = Duration::from_secs(2);

impl MemoryStore {
    /// Returns a builder for the conversations of `store`, kept as `options` say.
    pub fn builder(store: &Store, options: MemoryOptions) -> MemoryStoreBuilder {
        MemoryStoreBuilder {
            store: store.clone(),
            options,
            tokens: Arc::new(ByteTokens),
            summarizer: None,
            background: true,
            concurrent_summaries: 64,
        }
    }

    /// Opens the conversation of an identity for a guest that is bound to `scope`.
    ///
    /// Reads and writes nothing yet.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the store or the memory store is closed.
    /// - [`Error::IdentityRequired`] if tenant, user or session is empty. The host also emits
    ///   [`Event::MemoryIdentityRejected`].
    /// - [`Error::AccessDenied`] if `scope` does not permit the identity. The host also emits
    ///   [`Event::MemoryIdentityRejected`].
    /// - [`Error::LimitExceeded`] if a part of the identity is too long.
    pub fn open(&self, parts: IdentityParts, scope: &IdentityScope, limits: &Arc<Limits>) -> Result<Memory> {
        self.open_within(parts, scope, limits, &HeldBytes::at_most(limits.instance_bytes))
    }

    /// Opens a conversation and counts its memory in `held`, which the guest's handles share.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the store or the memory store is closed.
    /// - [`Error::IdentityRequired`] if tenant, user or session is empty. The host also emits
    ///   [`Event::MemoryIdentityRejected`].
    /// - [`Error::AccessDenied`] if `scope` does not permit the identity. The host also emits
    ///   [`Event::MemoryIdentityRejected`].
    /// - [`Error::LimitExceeded`] if a part of the identity is too long.
    pub fn open_within(
        &self,
        parts: IdentityParts,
        scope: &IdentityScope,
        limits: &Arc<Limits>,
        held: &HeldBytes,
    ) -> Result<Memory> {
        self.check_open()?;
        let identity = match Identity::new(parts.clone(), limits) {
            Err(Error::IdentityRequired(reason)) => {
                self.inner.reject(parts, reason.clone());
                return Err(Error::IdentityRequired(reason));
            }
            identity => identity?,
        };
        if !scope.permits(&parts) {
            let reason = "the host did not bind this identity to the guest";
            self.inner.reject(parts, reason.to_string());
            return Err(Error::AccessDenied(reason.to_string()));
        }
        Ok(Memory::new(self.clone(), identity, limits.clone(), held.clone()))
    }

    /// How this store keeps conversations.
    pub fn options(&self) -> &MemoryOptions {
        &self.inner.options
    }

    /// Runs the background work that is due now.
    ///
    /// Returns the number of sessions that had some, at most 100.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the store or the memory store is closed.
    /// - Any error of the backend.
    pub async fn run_due(&self) -> Result<usize> {
        self.check_open()?;
        let now = self.inner.store.clock().now();
        let due = self.inner.store.backend().due_records(now, DUE_MAX).await?;
        let tasks: Vec<_> = due.iter().cloned().map(|key| self.clone().work_off(key)).collect();
        let mut running = JoinSet::new();
        for task in tasks {
            running.spawn(task);
        }
        while running.join_next().await.is_some() {}
        Ok(due.len())
    }

    /// Closes the conversations; later calls on them get [`Error::Closed`].
    ///
    /// Running summaries stop and return their turns to the record, for this host or another to
    /// resume. Returns within two seconds, whatever a summarizer does. The store stays open.
    /// Closing again does nothing.
    pub async fn close(&self) {
        if self.inner.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.inner.closing.send_replace(true);
        self.inner.summary_permits.close();
        let mut running = std::mem::take(&mut *self.inner.lock_running());
        let ended = async { while running.join_next().await.is_some() {} };
        // Dropping the set aborts the tasks that are still running.
        let _ = tokio::time::timeout(CLOSE_MAX, ended).await;
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.inner.store.check_open()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Runs a summary to its end, even if the caller is dropped.
    pub(crate) async fn summarize(&self, key: RecordKey, begun: Begun, permit: OwnedSemaphorePermit) {
        let (done, finished) = tokio::sync::oneshot::channel();
        let memories = self.clone();
        let task = async move {
            memories.inner.run(&key, begun).await;
            drop(permit);
            // Fails if the caller was dropped.
            let _ = done.send(());
        };
        if self.inner.spawn(task) {
            // An error says that the task was aborted.
            let _ = finished.await;
        }
    }

    /// Summarises the waiting turns of a session once a permit is free, or leaves them for later.
    pub(crate) async fn summarize_in_turn(&self, key: &RecordKey) {
        let acquired = self.inner.summary_permits.clone().acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout(self.inner.options.summary_timeout, acquired).await else {
            return;
        };
        if let Some(begun) = self.inner.begin(key).await {
            self.summarize(key.clone(), begun, permit).await;
        }
    }

    /// Summarises the waiting turns of a session until none are due.
    async fn work_off(self, key: RecordKey) {
        while let Some(permit) = self.inner.summary_permit() {
            let Some(begun) = self.inner.begin(&key).await else { return };
            self.summarize(key.clone(), begun, permit).await;
        }
    }
}

impl Inner {
    pub(crate) fn rules(&self) -> Rules<'_> {
        Rules { options: &self.options, tokens: self.tokens.as_ref() }
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.store.clock().now()
    }

    /// A permit to run a summary; `None` if too many are running, the store is closed, or it has no
    /// summarizer.
    pub(crate) fn summary_permit(&self) -> Option<OwnedSemaphorePermit> {
        if self.closed.load(Ordering::Acquire) || self.summarizer.is_none() {
            return None;
        }
        self.summary_permits.clone().try_acquire_owned().ok()
    }

    /// The lock on a session in this host. It is held for one read and one write, never while a
    /// summarizer works.
    pub(crate) async fn turn_of(&self, key: &RecordKey) -> OwnedMutexGuard<()> {
        let session = {
            let mut sessions = self.sessions.lock();
            match sessions.get(key).and_then(Weak::upgrade) {
                Some(session) => session,
                None => {
                    // Drop unused locks only when the map would grow, so that the cost is
                    // amortized. The map then holds at most twice the locks in use.
                    if sessions.len() == sessions.capacity() {
                        sessions.retain(|_, session| session.strong_count() > 0);
                    }
                    let session = Arc::new(tokio::sync::Mutex::new(()));
                    sessions.insert(key.clone(), Arc::downgrade(&session));
                    session
                }
            }
        };
        session.lock_owned().await
    }

    pub(crate) fn emit(&self, identity: &Identity, effects: Vec<Effect>) {
        for effect in effects {
            self.store.emit(match effect {
                Effect::HealthChanged { prior, new, reason } => {
                    Event::MemoryHealthChanged { identity: identity.parts(), prior, new, reason }
                }
                Effect::RecoveryDropped { turns } => Event::MemoryRecoveryDropped {
                    identity: identity.parts(),
                    reason: "backlog_overflow",
                    turns,
                },
            });
        }
    }

    fn reject(&self, parts: IdentityParts, reason: String) {
        let shown = |part: String| if part.is_empty() { "<missing>".to_string() } else { part };
        let IdentityParts { tenant, user, session, run } = parts;
        let identity =
            IdentityParts { tenant: shown(tenant), user: shown(user), session: shown(session), run };
        self.store.emit(Event::MemoryIdentityRejected { operation: "open", reason, identity });
    }

    /// Claims the due turns of a session.
    async fn begin(self: &Arc<Self>, key: &RecordKey) -> Option<Begun> {
        let inner = self.clone();
        let begun = update(self, key, None, 0, move |record| {
            let Some(record) = record else { return Ok(Change::Leave(None)) };
            let begun = inner.rules().begin(record, inner.now(), fastrand::u64(..));
            Ok(match begun {
                Some((begun, effects)) => Change::Write(Some(begun), effects),
                None => Change::Leave(None),
            })
        })
        .await;
        begun.unwrap_or_else(|error| {
            self.report("begin a summary", error);
            None
        })
    }

    /// Calls the summarizer, then writes its summary or its failure to the record.
    async fn run(self: &Arc<Self>, key: &RecordKey, begun: Begun) {
        let Begun { claim, previous_summary, turns } = begun;
        let request = SummaryRequest {
            identity: key.identity.clone(),
            previous_summary,
            turns,
            max_tokens: self.options.summary_tokens_max(),
        };
        let mut closing = self.closing.subscribe();
        let outcome = tokio::select! {
            summary = self.ask(request) => Some(summary),
            () = async { drop(closing.wait_for(|closing| *closing).await) } => None,
        };
        if let Some(Err(error)) = &outcome {
            tracing::debug!(target: "larder", %error, "summarising failed; the host retries it");
        }
        let inner = self.clone();
        let settled = update(self, key, None, 0, move |record| {
            let Some(record) = record else { return Ok(Change::Leave(())) };
            let now = inner.now();
            let effects = match &outcome {
                Some(Ok(summary)) => inner.rules().succeed(record, claim, now, summary.clone()),
                Some(Err(_)) => inner.rules().fail(record, claim, now),
                None => inner.rules().abandon(record, claim, now),
            };
            Ok(match effects {
                Some(effects) => Change::Write((), effects),
                // The session was flushed or restored meanwhile, so the summary is obsolete.
                None => Change::Leave(()),
            })
        });
        if let Err(error) = settled.await {
            self.report("write a summary", error);
        }
    }

    /// Calls the summarizer with a timeout and checks the length of its summary.
    async fn ask(&self, request: SummaryRequest) -> Result<String, SummaryError> {
        let summarizer =
            self.summarizer.clone().ok_or_else(|| SummaryError::new("the memory store has no summarizer"))?;
        // A separate task contains a panic of the summarizer.
        let mut asked = JoinSet::new();
        asked.spawn(async move { summarizer.summarize(request).await });
        let summary = match tokio::time::timeout(self.options.summary_timeout, asked.join_next()).await {
            Ok(Some(Ok(summary))) => summary?,
            Ok(Some(Err(error))) => return Err(SummaryError::caused("the summarizer panicked", error)),
            Ok(None) => return Err(SummaryError::new("the memory store has no summarizer")),
            Err(_) => return Err(SummaryError::new("the summarizer exceeded its timeout")),
        };
        let tokens = summary_tokens(self.tokens.as_ref(), &summary);
        let is_too_long = self.options.summary_tokens_max().is_some_and(|max| tokens > max)
            || summary.len() as u64 > self.options.memory_bytes / 2;
        if is_too_long {
            return Err(SummaryError::new(format!("the summary is too long: {tokens} tokens")));
        }
        if summary.is_empty() {
            return Err(SummaryError::new("the summary is empty"));
        }
        Ok(summary)
    }

    /// Spawns a task that `close` waits for, then aborts. Returns false if the store is closed.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let mut running = self.lock_running();
        // Checked under the lock, so every task spawned before `close` takes the set is in the set.
        if self.closed.load(Ordering::Acquire) {
            return false;
        }
        while running.try_join_next().is_some() {}
        running.spawn(task);
        true
    }

    fn report(&self, work: &'static str, error: Error) {
        if !matches!(error, Error::Closed) {
            self.store.emit(Event::BackgroundFailed { store: self.store.name().to_string(), work, error });
        }
    }

    fn lock_running(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.running.lock()
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("MemoryStore").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

/// Looks for due work until the memory store is dropped or closed. Each session is worked on in a
/// task of its own, so a slow summary delays no other.
async fn look_for_due(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(DUE_INTERVAL).await;
        let Some(inner) = inner.upgrade() else { return };
        let memories = MemoryStore { inner };
        if memories.check_open().is_err() {
            return;
        }
        let now = memories.inner.now();
        match memories.inner.store.backend().due_records(now, DUE_MAX).await {
            Ok(due) => {
                for key in due {
                    memories.inner.spawn(memories.clone().work_off(key));
                }
            }
            Err(error) => memories.inner.report("look for due summaries", error),
        }
    }
}
