//! A guest's handle on the conversation of one session.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::by_size::by_size;
use crate::error::{Error, LimitKind, Result};
use crate::held::HeldBytes;
use crate::limits::{Limits, check_bound};
use crate::memory::health::Health;
use crate::memory::identity::Identity;
use crate::memory::memory_store::{Inner, MemoryStore};
use crate::memory::record::{Record, memory_of};
use crate::memory::records::RecordKey;
use crate::memory::rules::{Begun, ContextPatch};
use crate::memory::strategy::Strategy;
use crate::memory::turn::Turn;
use crate::memory::update::{Change, delete, update, with_record};

/// A copy of a session at one moment, portable between backends.
///
/// The same calls give the same bytes on every backend. The copy holds all turns, including those
/// that wait for a summary, and the health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySnapshot {
    /// How the session was kept. Only a conversation of the same strategy can restore it.
    pub strategy: Strategy,
    /// The record. Empty bytes stand for a session without turns.
    pub bytes: Vec<u8>,
}

/// The work that follows once a turn is stored.
enum Next {
    Nothing,
    Summarize(Begun),
    /// Too many summaries are running: wait for a permit.
    Wait,
}

/// A guest's handle on the conversation of one session.
///
/// Opened by [`MemoryStore::open`]. The handle caches nothing between calls.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use std::sync::Arc;
/// use larder_core::{
///     IdentityParts, IdentityScope, InMemory, MemoryOptions, MemoryStore, Store, Strategy, Turn,
/// };
///
/// let store = Store::builder(InMemory::new()).build()?;
/// let options = MemoryOptions::new(Strategy::Truncation);
/// let memories = MemoryStore::builder(&store, options).build()?;
/// let parts = IdentityParts::session("acme", "ann", "monday");
/// let memory = memories.open(parts, &IdentityScope::Any, &Arc::default())?;
/// memory.add_turn(Turn { user_message: "hello".into(), ..Turn::default() }).await?;
/// let snapshot = memory.snapshot().await?;
/// memory.flush().await?;
/// assert!(memory.llm_context().await?.recent_turns.is_empty());
/// memory.restore(snapshot).await?;
/// assert_eq!(memory.llm_context().await?.recent_turns[0].user_message, "hello");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Memory {
    memories: MemoryStore,
    key: RecordKey,
    limits: Arc<Limits>,
    held: HeldBytes,
    closed: AtomicBool,
}

impl Memory {
    pub(crate) fn new(
        memories: MemoryStore,
        identity: Identity,
        limits: Arc<Limits>,
        held: HeldBytes,
    ) -> Self {
        let key = RecordKey::conversation(identity);
        Self { memories, key, limits, held, closed: AtomicBool::new(false) }
    }

    /// The identity of the session.
    pub fn identity(&self) -> &Identity {
        &self.key.identity
    }

    /// Adds a turn, which is stored when this returns, whether or not a summary succeeds.
    ///
    /// If a summary is due and none is running for this session, this waits for it: at most
    /// [`MemoryOptions::summary_timeout`](crate::MemoryOptions::summary_timeout), and as long again
    /// if too many summaries of other sessions are running. With [`Strategy::None`] nothing is
    /// kept.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the handle, the store or the memory store is closed.
    /// - [`Error::LimitExceeded`] if the turn or the session is too large, the store's quota is
    ///   full, or the record does not fit in the instance's memory bound.
    /// - [`Error::InvalidArgument`] if the value of an artifact is not valid JSON.
    /// - [`Error::InvalidSnapshot`] if the session was kept by another strategy.
    /// - [`Error::Corrupt`] if the stored record cannot be read.
    /// - [`Error::Conflict`] if other callers kept changing the session for ten seconds.
    /// - [`Error::CommitUnknown`] and other errors of the backend.
    pub async fn add_turn(&self, turn: Turn) -> Result<()> {
        self.check_open()?;
        turn.check(&self.limits)?;
        let inner = self.memories.inner().clone();
        if inner.options.strategy == Strategy::None {
            return Ok(());
        }
        let permit = inner.summary_permit();
        let has_permit = permit.is_some();
        // Released only once the record is written: [`Turn::memory`] counts every copy until then.
        let held = self.held.hold(turn.memory())?;
        let bytes = turn.bytes() as usize;
        let begun = update(self.memories.inner(), &self.key, Some(&self.held), bytes, move |record| {
            // The work may outlive the caller, and the count must live as long as the work.
            let _held = &held;
            let record = record.get_or_insert_with(|| Record::new(inner.options.strategy));
            let mut effects = inner.rules().add(record, turn.clone());
            let now = inner.now();
            if !has_permit {
                let is_due = record.due_at().is_some_and(|due_at| due_at <= now);
                let next = if is_due { Next::Wait } else { Next::Nothing };
                return Ok(Change::Write(next, effects));
            }
            let next = match inner.rules().begin(record, now, fastrand::u64(..)) {
                Some((begun, more)) => {
                    effects.extend(more);
                    Next::Summarize(begun)
                }
                None => Next::Nothing,
            };
            Ok(Change::Write(next, effects))
        })
        .await?;
        // From here the turn is not counted. The limit on concurrent summaries bounds their memory.
        match (begun, permit) {
            (Next::Summarize(begun), Some(permit)) => {
                self.memories.summarize(self.key.clone(), begun, permit).await;
            }
            (Next::Wait, _) => self.memories.summarize_in_turn(&self.key).await,
            _ => {}
        }
        Ok(())
    }

    /// Returns the context for a model: the summary and the newest turns.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the handle, the store or the memory store is closed.
    /// - [`Error::LimitExceeded`] if the record does not fit in the instance's memory bound.
    /// - [`Error::InvalidSnapshot`] if the session was kept by another strategy.
    /// - [`Error::Corrupt`] if the stored record cannot be read.
    /// - Any error of the backend.
    pub async fn llm_context(&self) -> Result<ContextPatch> {
        self.check_open()?;
        self.with_record(|inner, record| Ok(inner.rules().llm_context(&record))).await
    }

    /// Returns the tokens of [`Memory::llm_context`].
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the handle, the store or the memory store is closed.
    /// - [`Error::LimitExceeded`] if the record does not fit in the instance's memory bound.
    /// - [`Error::InvalidSnapshot`] if the session was kept by another strategy.
    /// - [`Error::Corrupt`] if the stored record cannot be read.
    /// - Any error of the backend.
    pub async fn estimate_tokens(&self) -> Result<u64> {
        Ok(self.llm_context().await?.tokens)
    }

    /// Deletes the session's record, even if it cannot be read.
    ///
    /// A summary that is still running is discarded. Does nothing if there is no record.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the handle, the store or the memory store is closed.
    /// - [`Error::LimitExceeded`] if the record does not fit in the instance's memory bound.
    /// - [`Error::Conflict`] if other callers kept changing the session for ten seconds.
    /// - [`Error::CommitUnknown`] and other errors of the backend.
    pub async fn flush(&self) -> Result<()> {
        self.check_open()?;
        delete(self.memories.inner(), &self.key, &self.held).await.map(drop)
    }

    /// Returns the health of summarising in this session.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the handle, the store or the memory store is closed.
    /// - [`Error::LimitExceeded`] if the record does not fit in the instance's memory bound.
    /// - [`Error::InvalidSnapshot`] if the session was kept by another strategy.
    /// - [`Error::Corrupt`] if the stored record cannot be read.
    /// - Any error of the backend.
    pub async fn health(&self) -> Result<Health> {
        self.check_open()?;
        self.with_record(|_, record| Ok(record.health)).await
    }

    /// Returns a copy of the session at this moment.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the handle, the store or the memory store is closed.
    /// - [`Error::LimitExceeded`] if the record does not fit in the instance's memory bound.
    /// - [`Error::InvalidSnapshot`] if the session was kept by another strategy.
    /// - [`Error::Corrupt`] if the stored record cannot be read.
    /// - Any error of the backend.
    pub async fn snapshot(&self) -> Result<MemorySnapshot> {
        self.check_open()?;
        self.with_record(|_, record| snapshot_of(&record)).await
    }

    /// Replaces the session with a snapshot.
    ///
    /// A summary that is still running is discarded. On an error the session is unchanged, unless
    /// the error is [`Error::CommitUnknown`].
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the handle, the store or the memory store is closed.
    /// - [`Error::LimitExceeded`] if the snapshot or one of its turns is too large, the store's
    ///   quota is full, or the record does not fit in the instance's memory bound.
    /// - [`Error::InvalidSnapshot`] if the snapshot or the session is of another strategy, or the
    ///   bytes are not a valid snapshot.
    /// - [`Error::Corrupt`] if the stored record cannot be read.
    /// - [`Error::Conflict`] if other callers kept changing the session for ten seconds.
    /// - [`Error::CommitUnknown`] and other errors of the backend.
    pub async fn restore(&self, snapshot: MemorySnapshot) -> Result<()> {
        self.check_open()?;
        let inner = self.memories.inner().clone();
        let (strategy, memory_bytes) = (inner.options.strategy, inner.options.memory_bytes);
        let (turn_bytes, bytes) = (self.limits.turn_bytes, snapshot.bytes.len());
        check_bound(LimitKind::MemoryBytes, memory_bytes, bytes as u64)?;
        let held = self.held.hold(memory_of(&snapshot.bytes))?;
        let parse = move || (parse_snapshot(&snapshot, strategy, memory_bytes, turn_bytes), held);
        let (restored, held) = by_size(bytes, parse).await?;
        let restored = restored?;
        if strategy == Strategy::None {
            return Ok(());
        }
        update(self.memories.inner(), &self.key, Some(&self.held), bytes, move |record| {
            // The work may outlive the caller, and the count must live as long as the work.
            let _held = &held;
            let mut restored = restored.clone();
            if restored.health.is_behind() {
                restored.retry_at = Some(inner.rules().recovery_at(inner.now()));
            }
            let effects = inner.rules().fit(&mut restored);
            *record = Some(restored);
            Ok(Change::Write((), effects))
        })
        .await
    }

    /// Closes the handle; later calls get [`Error::Closed`].
    ///
    /// The session's record stays. Closing again does nothing.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Calls `work` with the session's record, or with a new one if there is none.
    async fn with_record<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, Record) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.memories.inner();
        let strategy = inner.options.strategy;
        if strategy == Strategy::None {
            return work(inner, Record::new(strategy));
        }
        with_record(inner, &self.key, &self.held, move |inner, record| {
            work(inner, record.unwrap_or_else(|| Record::new(strategy)))
        })
        .await
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.memories.check_open()
    }
}

/// The snapshot of a record.
pub(crate) fn snapshot_of(record: &Record) -> Result<MemorySnapshot> {
    let bytes = record
        .at_rest()
        .to_bytes()
        .map_err(|error| Error::caused("the snapshot could not be encoded as JSON", error))?;
    Ok(MemorySnapshot { strategy: record.strategy, bytes })
}

/// The record in a snapshot. Each of its turns is bounded by `turn_bytes`, as in `add_turn`.
pub(crate) fn parse_snapshot(
    snapshot: &MemorySnapshot,
    strategy: Strategy,
    memory_bytes: u64,
    turn_bytes: u64,
) -> Result<Record> {
    let other = |found: Strategy| {
        Error::InvalidSnapshot(format!(
            "its strategy is {}, but this conversation is kept by {}",
            found.name(),
            strategy.name()
        ))
    };
    if snapshot.strategy != strategy {
        return Err(other(snapshot.strategy));
    }
    check_bound(LimitKind::MemoryBytes, memory_bytes, snapshot.bytes.len() as u64)?;
    if snapshot.bytes.is_empty() {
        return Ok(Record::new(strategy));
    }
    let record = Record::parse(&snapshot.bytes).map_err(Error::InvalidSnapshot)?;
    record.all_turns().try_for_each(|turn| check_bound(LimitKind::TurnBytes, turn_bytes, turn.bytes()))?;
    record.check_snapshot().map_err(Error::InvalidSnapshot)?;
    if record.strategy == strategy { Ok(record) } else { Err(other(record.strategy)) }
}
