//! A store's conversations: who may open them, and the work on them that no guest waits for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

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

/// The conversations of a store, kept as the host declared. Clones share it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use std::sync::Arc;
/// use larder_core::{
///     EchoSummarizer, IdentityParts, IdentityScope, InMemory, Limits, MemoryOptions, MemoryStore, Store, Strategy, Turn,
/// };
///
/// let store = Store::builder(InMemory::new()).build()?;
/// let memories = MemoryStore::builder(&store, MemoryOptions::new(Strategy::RollingSummary))
///     .summarizer(Arc::new(EchoSummarizer))
///     .build()?;
/// let scope = IdentityScope::user("acme", "ann")?;
/// let memory = memories.open(IdentityParts::session("acme", "ann", "monday"), &scope, &Arc::new(Limits::default()))?;
/// for question in ["a", "b", "c", "d", "e"] {
///     memory.add_turn(Turn { user_message: question.into(), ..Turn::default() }).await?;
/// }
/// let context = memory.context().await?;
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
    /// Calls in one session wait for each other here, rather than to find at the backend that they were too late.
    sessions: Mutex<HashMap<RecordKey, Weak<tokio::sync::Mutex<()>>>>,
    places: Arc<Semaphore>,
    /// Becomes true where the store is closed; what is under way then ends.
    closing: watch::Sender<bool>,
    closed: AtomicBool,
    running: Mutex<JoinSet<()>>,
}

/// Sets up a [`MemoryStore`].
pub struct MemoryStoreBuilder {
    store: Store,
    options: MemoryOptions,
    tokens: Arc<dyn TokenEstimator>,
    summarizer: Option<Arc<dyn Summarizer>>,
    background: bool,
    concurrent_summaries: usize,
}

impl MemoryStoreBuilder {
    /// Who makes summaries. A rolling summary needs one.
    pub fn summarizer(mut self, summarizer: Arc<dyn Summarizer>) -> Self {
        self.summarizer = Some(summarizer);
        self
    }

    /// How tokens are counted. Default: [`ByteTokens`].
    pub fn token_estimator(mut self, tokens: Arc<dyn TokenEstimator>) -> Self {
        self.tokens = tokens;
        self
    }

    /// How many summaries may be under way at once; further ones wait. At least 1. Default: 64.
    pub fn concurrent_summaries(mut self, count: usize) -> Self {
        self.concurrent_summaries = count.max(1);
        self
    }

    /// Whether due work is looked for, every second: summaries to ask for again, backlogs, and sessions whose host
    /// has died. Default: true. Without it, [`MemoryStore::run_due`] does it.
    pub fn background(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    /// Makes the memory store. It is called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where options can't be kept, or a rolling summary has no summariser;
    /// [`Error::Other`] outside of a tokio runtime.
    pub fn build(self) -> Result<MemoryStore> {
        self.options.validate()?;
        let rolls = self.options.strategy == Strategy::RollingSummary;
        if rolls && self.summarizer.is_none() {
            return Err(Error::invalid_argument("the strategy rolling-summary needs a summarizer"));
        }
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::caused("a memory store is opened within a tokio runtime", error))?;
        let inner = Arc::new(Inner {
            store: self.store,
            options: self.options,
            tokens: self.tokens,
            summarizer: self.summarizer,
            sessions: Mutex::default(),
            places: Arc::new(Semaphore::new(self.concurrent_summaries.min(Semaphore::MAX_PERMITS))),
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

/// How often due work is looked for.
const DUE_INTERVAL: Duration = Duration::from_secs(1);

/// How many sessions one look finds.
const DUE_MAX: u32 = 100;

/// How long closing waits until what is under way has given its turns back.
const CLOSE_MAX: Duration = Duration::from_secs(2);

impl MemoryStore {
    /// The conversations of `store`, kept as `options` say.
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

    /// Opens the memory of an identity for a guest that may open those of `scope`. Nothing is read or written yet.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::IdentityRequired`] where tenant, user or session is missing, and
    /// [`Error::AccessDenied`] where the guest may not open it, of each of which the platform is told;
    /// [`Error::LimitExceeded`] where a part is too long.
    pub fn open(&self, parts: IdentityParts, scope: &IdentityScope, limits: &Arc<Limits>) -> Result<Memory> {
        self.open_within(parts, scope, limits, &HeldBytes::at_most(limits.instance_bytes))
    }

    /// The same, with the count of what the host holds for the guest, which its handles share.
    ///
    /// # Errors
    /// As [`MemoryStore::open`].
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
            let reason = "the identity is not one that this guest may open";
            self.inner.reject(parts, reason.to_string());
            return Err(Error::AccessDenied(reason.to_string()));
        }
        Ok(Memory::new(self.clone(), identity, limits.clone(), held.clone()))
    }

    /// How conversations are kept.
    pub fn options(&self) -> &MemoryOptions {
        &self.inner.options
    }

    /// Does the work that is due now and that no guest waits for, and says for how many sessions there was some.
    ///
    /// # Errors
    /// [`Error::Closed`], and those of the backend.
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

    /// Ends what is under way and gives its turns back, for this host or another to take up. Later calls, on open
    /// memories too, get [`Error::Closed`]. It returns within two seconds, whatever a summariser does; the store stays
    /// open. Closing again does nothing.
    pub async fn close(&self) {
        if self.inner.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.inner.closing.send_replace(true);
        self.inner.places.close();
        let mut running = std::mem::take(&mut *self.inner.lock_running());
        let ended = async { while running.join_next().await.is_some() {} };
        // What is not done by then is aborted with the set.
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

    /// Runs a summary to its end, also where the caller is dropped.
    pub(crate) async fn summarize(&self, key: RecordKey, begun: Begun, place: OwnedSemaphorePermit) {
        let (done, finished) = tokio::sync::oneshot::channel();
        let memories = self.clone();
        let task = async move {
            memories.inner.run(&key, begun).await;
            drop(place);
            // Nobody may wait any more.
            let _ = done.send(());
        };
        if self.inner.spawn(task) {
            // An error says that the task was aborted.
            let _ = finished.await;
        }
    }

    /// Summarises what waits in one session once there is a place for it, or leaves it for later.
    pub(crate) async fn summarize_in_turn(&self, key: &RecordKey) {
        let places = self.inner.places.clone().acquire_owned();
        let Ok(Ok(place)) = tokio::time::timeout(self.inner.options.summary_timeout, places).await else {
            return;
        };
        if let Some(begun) = self.inner.begin(key).await {
            self.summarize(key.clone(), begun, place).await;
        }
    }

    /// Summarises what waits in one session until nothing is due any more.
    async fn work_off(self, key: RecordKey) {
        while let Some(place) = self.inner.place() {
            let Some(begun) = self.inner.begin(&key).await else { return };
            self.summarize(key.clone(), begun, place).await;
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

    /// A place for a summary; none where too many are under way, or the store is closed.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        if self.closed.load(Ordering::Acquire) || self.summarizer.is_none() {
            return None;
        }
        self.places.clone().try_acquire_owned().ok()
    }

    /// The right to change a session in this host. It is held for a read and a write, and never while a summariser
    /// works.
    pub(crate) async fn turn_of(&self, key: &RecordKey) -> OwnedMutexGuard<()> {
        let session = {
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            match sessions.get(key).and_then(Weak::upgrade) {
                Some(session) => session,
                None => {
                    // As many as are waited for are kept, and at most twice as many as there were.
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

    /// Takes what is due in a session.
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

    /// Asks for a summary, and writes what came of it.
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
            tracing::debug!(target: "larder", %error, "a summary did not come");
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
                // The session was flushed or restored meanwhile: the summary is of what is gone.
                None => Change::Leave(()),
            })
        });
        if let Err(error) = settled.await {
            self.report("write a summary", error);
        }
    }

    /// A summary that is as long as it may be, in time.
    async fn ask(&self, request: SummaryRequest) -> Result<String, SummaryError> {
        let summarizer =
            self.summarizer.clone().ok_or_else(|| SummaryError::new("there is no summarizer"))?;
        // A task of its own: a summariser that panics fails, and nothing else does.
        let mut asked = JoinSet::new();
        asked.spawn(async move { summarizer.summarize(request).await });
        let summary = match tokio::time::timeout(self.options.summary_timeout, asked.join_next()).await {
            Ok(Some(Ok(summary))) => summary?,
            Ok(Some(Err(error))) => return Err(SummaryError::caused("the summarizer panicked", error)),
            Ok(None) => return Err(SummaryError::new("there is no summarizer")),
            Err(_) => return Err(SummaryError::new("the summary did not come in time")),
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

    /// Starts work that closing ends; false where the store is closed already.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let mut running = self.lock_running();
        // Under the lock: what is started before closing takes the set is in it.
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
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("MemoryStore").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

/// Looks for due work, as long as somebody has the memory store. What it finds goes on beside it: a slow
/// summary delays no other.
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
