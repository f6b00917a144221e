//! One session's memory, as its user has it.

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
use crate::memory::rules::{Begun, Context};
use crate::memory::strategy::Strategy;
use crate::memory::turn::Turn;
use crate::memory::update::{Change, delete, update, with_record};

/// A session's memory at one moment, as bytes that are the same on every backend. It holds all turns, those too that
/// wait for a summary, and the health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySnapshot {
    /// How the session was kept. Only a memory of the same strategy restores it.
    pub strategy: Strategy,
    /// The record; empty bytes stand for a session in which nothing was said.
    pub bytes: Vec<u8>,
}

/// What is to be done once a turn is stored.
enum Next {
    Nothing,
    Summarize(Begun),
    /// Others are being summarised.
    Wait,
}

/// One session's memory, as its user has it. Nothing is kept in it between calls.
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

    /// Whose memory it is.
    pub fn identity(&self) -> &Identity {
        &self.key.identity
    }

    /// Adds a turn. It is stored when this returns, whatever becomes of a summary; where one is due and none is under
    /// way, this waits for it: at most [`MemoryOptions::summary_timeout`](crate::MemoryOptions::summary_timeout), and
    /// as long again where too many others are under way. With the strategy `none` nothing is kept.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::LimitExceeded`] where the turn or the session is too large;
    /// [`Error::InvalidArgument`] where an artifact's value is no JSON; [`Error::InvalidSnapshot`] where the session
    /// was kept by another strategy; [`Error::Corrupt`] where what is stored can't be read; [`Error::Conflict`] where
    /// others changed the session all the time; and those of the backend.
    pub async fn add_turn(&self, turn: Turn) -> Result<()> {
        self.check_open()?;
        turn.check(&self.limits)?;
        let inner = self.memories.inner().clone();
        if inner.options.strategy == Strategy::None {
            return Ok(());
        }
        let place = inner.place();
        let has_place = place.is_some();
        // It is in the call, in the record, and in the bytes that are written.
        let held = self.held.hold(turn.memory())?;
        let bytes = turn.bytes() as usize;
        let begun = update(self.memories.inner(), &self.key, Some(&self.held), bytes, move |record| {
            // The work may outlive the caller, and the count must live as long as the work.
            let _held = &held;
            let record = record.get_or_insert_with(|| Record::new(inner.options.strategy));
            let mut effects = inner.rules().add(record, turn.clone());
            let now = inner.now();
            if !has_place {
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
        // The turn no longer counts: the number of concurrent summaries bounds what they work on.
        match (begun, place) {
            (Next::Summarize(begun), Some(place)) => {
                self.memories.summarize(self.key.clone(), begun, place).await;
            }
            (Next::Wait, _) => self.memories.summarize_in_turn(&self.key).await,
            _ => {}
        }
        Ok(())
    }

    /// What a model is given.
    ///
    /// # Errors
    /// As [`Memory::add_turn`].
    pub async fn context(&self) -> Result<Context> {
        self.check_open()?;
        self.with_record(|inner, record| Ok(inner.rules().context(&record))).await
    }

    /// Tokens of what a model is given.
    ///
    /// # Errors
    /// As [`Memory::add_turn`].
    pub async fn estimate_tokens(&self) -> Result<u64> {
        Ok(self.context().await?.tokens)
    }

    /// Forgets the session, also what is on its way to a summary and what can't be read. Nothing to forget is no error.
    ///
    /// # Errors
    /// - [`Error::Closed`].
    /// - [`Error::LimitExceeded`] if the instance has no room for the bytes of the record.
    /// - Those of the backend.
    pub async fn flush(&self) -> Result<()> {
        self.check_open()?;
        delete(self.memories.inner(), &self.key, &self.held).await.map(drop)
    }

    /// How summarising goes.
    ///
    /// # Errors
    /// As [`Memory::add_turn`].
    pub async fn health(&self) -> Result<Health> {
        self.check_open()?;
        self.with_record(|_, record| Ok(record.health)).await
    }

    /// The session at this moment.
    ///
    /// # Errors
    /// As [`Memory::add_turn`].
    pub async fn snapshot(&self) -> Result<MemorySnapshot> {
        self.check_open()?;
        self.with_record(|_, record| snapshot_of(&record)).await
    }

    /// Makes the session what it was. What is on its way to a summary is thrown away.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if the snapshot or one of its turns is too large; [`Error::InvalidSnapshot`] if the
    /// snapshot is of another strategy or its bytes are not a valid snapshot; and as [`Memory::add_turn`]. The session
    /// is then as it was.
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

    /// Closes the memory; later calls get [`Error::Closed`]. What it keeps stays. Closing again does nothing.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Works with the session's record, which is a new one if there is none.
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
        .map_err(|error| Error::caused("the snapshot could not be written down", error))?;
    Ok(MemorySnapshot { strategy: record.strategy, bytes })
}

/// The record that a snapshot holds. Each of its turns is bounded as one that is added.
pub(crate) fn parse_snapshot(
    snapshot: &MemorySnapshot,
    strategy: Strategy,
    memory_bytes: u64,
    turn_bytes: u64,
) -> Result<Record> {
    let other = |found: Strategy| {
        Error::InvalidSnapshot(format!(
            "it was kept by the strategy {}, and this memory is kept by {}",
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
