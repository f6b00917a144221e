//! Read-modify-write of a session's record, by compare-and-swap.
//!
//! If another caller wrote the record first, the change is made again from the new record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::by_size::by_size;
use crate::error::{Error, LimitExceeded, LimitKind, Result};
use crate::event::Event;
use crate::held::{Held, HeldBytes};
use crate::memory::memory_store::Inner;
use crate::memory::record::{Record, memory_of};
use crate::memory::records::{RecordKey, RecordWrite, StoredRecord};
use crate::memory::rules::Effect;
use crate::memory::strategy::Strategy;
use crate::row::Version;

/// The result of a change, and the value that the caller gets once it is stored.
pub(crate) enum Change<T> {
    /// The record is not written.
    Leave(T),
    /// The record is written, then the events are emitted.
    Write(T, Vec<Effect>),
}

/// How long a change is retried. Only a hostile caller keeps a session changing for that long.
const CHANGE_MAX: Duration = Duration::from_secs(10);

/// How often a change with an unknown outcome is made again.
const UNKNOWN_MAX: usize = 2;

/// Changes the record of a session. `change` is called again if another caller wrote the record
/// meanwhile. `bytes` is the size of what it works with beside the record. The memory is counted in
/// `held`, which is `None` for the host's own work.
pub(crate) async fn update<T, C>(
    inner: &Arc<Inner>,
    key: &RecordKey,
    held: Option<&HeldBytes>,
    bytes: usize,
    change: C,
) -> Result<T>
where
    T: Send + 'static,
    C: FnMut(&mut Option<Record>) -> Result<Change<T>> + Send + 'static,
{
    let rewrite = Rewrite { inner: inner.clone(), key: key.clone(), bytes, change };
    change_stored(inner, key, held, rewrite).await
}

/// Deletes the record of a session, even if it cannot be read. Returns whether there was one.
pub(crate) async fn delete(inner: &Inner, key: &RecordKey, held: &HeldBytes) -> Result<bool> {
    change_stored(inner, key, Some(held), Removal).await
}

/// Calls `work` with the record of a session, or with `None` if there is none. The memory is
/// counted in `held`.
pub(crate) async fn with_record<T: Send + 'static>(
    inner: &Arc<Inner>,
    key: &RecordKey,
    held: &HeldBytes,
    work: impl FnOnce(&Inner, Option<Record>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let Some(stored) = inner.store.backend().load_record(key).await? else { return work(inner, None) };
    let held = held.hold(memory_of(&stored.bytes))?;
    let (inner, key) = (inner.clone(), key.clone());
    by_size(stored.bytes.len(), move || {
        let outcome = work(&inner, Some(read(&inner, &key, &stored)?));
        drop(held);
        outcome
    })
    .await?
}

fn read(inner: &Inner, key: &RecordKey, stored: &StoredRecord) -> Result<Record> {
    let record = Record::parse(&stored.bytes).map_err(|reason| {
        let identity = key.identity.parts();
        inner.store.emit(Event::MemoryRecordCorrupt { identity, reason: reason.clone() });
        Error::Corrupt(format!("the conversation of this session: {reason}"))
    })?;
    let declared = inner.options.strategy;
    if record.strategy == declared {
        return Ok(record);
    }
    Err(Error::InvalidSnapshot(format!(
        "this session was kept by the strategy {}, but the host declares {}; flush the session or declare its strategy",
        record.strategy.name(),
        declared.name()
    )))
}

/// Encodes a record and refuses one that is too large. With truncation, the oldest turns are
/// dropped to make room.
fn encode(record: &mut Record, max: u64) -> Result<Vec<u8>> {
    let write = |record: &Record| {
        record
            .to_bytes()
            .map_err(|error| Error::caused("the conversation could not be encoded as JSON", error))
    };
    let bytes = write(record)?;
    let excess = (bytes.len() as u64).saturating_sub(max);
    if excess == 0 {
        return Ok(bytes);
    }
    if record.strategy == Strategy::Truncation {
        drop_oldest(record, excess)?;
    }
    let bytes = write(record)?;
    let requested = bytes.len() as u64;
    if requested <= max {
        return Ok(bytes);
    }
    Err(LimitExceeded { kind: LimitKind::MemoryBytes, max, requested }.into())
}

fn drop_oldest(record: &mut Record, excess: u64) -> Result<()> {
    let (mut dropped, mut count) = (0, 0);
    while dropped < excess && count + 1 < record.turns.len() {
        let Some(turn) = record.turns.get(count) else { break };
        let bytes = serde_json::to_vec(turn)
            .map_err(|error| Error::caused("the conversation could not be encoded as JSON", error))?;
        // Plus one for the comma after it.
        dropped += bytes.len() as u64 + 1;
        count += 1;
    }
    record.turns.drain(..count);
    Ok(())
}

/// The new content of a record.
struct Next {
    strategy: Strategy,
    bytes: Vec<u8>,
    due_at: Option<u64>,
}

/// One attempt. `write` is `None` to write nothing, and `Some(None)` to delete the record.
struct Step<T> {
    outcome: T,
    effects: Vec<Effect>,
    write: Option<Option<Next>>,
}

/// A step, and the arguments that it was made from.
struct Decided<D, T> {
    decide: D,
    stored: Option<StoredRecord>,
    held: Option<Held>,
    step: Step<T>,
}

/// Decides how to change a record, again each time that another caller wrote the record first.
trait Decide: Sized {
    type Outcome;

    /// The most memory that an attempt with this record needs, in bytes.
    fn memory(&self, stored: &StoredRecord) -> u64;

    /// Returns the next step and its arguments. `held` lives as long as the work, even if the
    /// caller is dropped.
    fn step(
        self,
        stored: Option<StoredRecord>,
        held: Option<Held>,
    ) -> impl Future<Output = Result<Decided<Self, Self::Outcome>>> + Send;
}

struct Rewrite<C> {
    inner: Arc<Inner>,
    key: RecordKey,
    bytes: usize,
    change: C,
}

impl<T, C> Decide for Rewrite<C>
where
    T: Send + 'static,
    C: FnMut(&mut Option<Record>) -> Result<Change<T>> + Send + 'static,
{
    type Outcome = T;

    fn memory(&self, stored: &StoredRecord) -> u64 {
        memory_of(&stored.bytes)
    }

    async fn step(mut self, stored: Option<StoredRecord>, held: Option<Held>) -> Result<Decided<Self, T>> {
        let bytes = self.bytes + stored.as_ref().map_or(0, |stored| stored.bytes.len());
        by_size(bytes, move || {
            let step = self.rewrite(stored.as_ref())?;
            Ok(Decided { decide: self, stored, held, step })
        })
        .await?
    }
}

impl<C> Rewrite<C> {
    fn rewrite<T>(&mut self, stored: Option<&StoredRecord>) -> Result<Step<T>>
    where
        C: FnMut(&mut Option<Record>) -> Result<Change<T>>,
    {
        let mut record = stored.map(|stored| read(&self.inner, &self.key, stored)).transpose()?;
        Ok(match ((self.change)(&mut record)?, record) {
            (Change::Write(outcome, effects), Some(mut record)) => {
                let bytes = encode(&mut record, self.inner.options.memory_bytes)?;
                let due_at = record.due_at();
                let next = Next { strategy: record.strategy, bytes, due_at };
                Step { outcome, effects, write: Some(Some(next)) }
            }
            (Change::Leave(outcome) | Change::Write(outcome, _), _) => {
                Step { outcome, effects: Vec::new(), write: None }
            }
        })
    }
}

struct Removal;

impl Decide for Removal {
    type Outcome = bool;

    /// The record is not parsed.
    fn memory(&self, stored: &StoredRecord) -> u64 {
        stored.bytes.len() as u64
    }

    async fn step(self, stored: Option<StoredRecord>, held: Option<Held>) -> Result<Decided<Self, bool>> {
        let write = stored.as_ref().map(|_| None);
        let step = Step { outcome: stored.is_some(), effects: Vec::new(), write };
        Ok(Decided { decide: self, stored, held, step })
    }
}

/// A write whose outcome is unknown.
struct Unknown<T> {
    version: Version,
    expected: Version,
    outcome: T,
    effects: Vec<Effect>,
    error: Error,
}

async fn change_stored<D: Decide>(
    inner: &Inner,
    key: &RecordKey,
    counts: Option<&HeldBytes>,
    mut decide: D,
) -> Result<D::Outcome> {
    let give_up = Instant::now() + CHANGE_MAX;
    let Ok(_turn) = tokio::time::timeout(CHANGE_MAX, inner.turn_of(key)).await else {
        return Err(Error::Conflict);
    };
    let mut unknown: Vec<Unknown<D::Outcome>> = Vec::new();
    let mut backoff = Backoff::after_conflicts();
    loop {
        let stored = match inner.store.backend().load_record(key).await {
            Ok(stored) => stored,
            Err(error) => return Err(unknown.pop().map_or(error, |unknown| unknown.error)),
        };
        let bytes = stored.as_ref().map_or(0, |stored| decide.memory(stored));
        let counted = counts.map(|counts| counts.hold(bytes)).transpose()?;
        let current = stored.as_ref().map_or(Version::ABSENT, |stored| stored.version);
        if let Some(made) = unknown.iter().position(|unknown| unknown.version == current) {
            let made = unknown.swap_remove(made);
            if inner.store.backend().confirm_record(key, current).await.is_err() {
                return Err(made.error);
            }
            inner.emit(&key.identity, made.effects);
            return Ok(made.outcome);
        }
        // Another caller wrote after that write, or instead of it, so its outcome stays unknown.
        if let Some(last) = unknown.pop_if(|last| last.expected != current) {
            return Err(last.error);
        }
        let decided = decide.step(stored, counted).await?;
        decide = decided.decide;
        let (stored, _held) = (decided.stored, decided.held);
        let Step { outcome, effects, write } = decided.step;
        let Some(next) = write else { return Ok(outcome) };
        let (write, growth) = record_write(key, stored, next, inner.now());
        let version = write.record.as_ref().map_or(Version::ABSENT, |record| record.version);
        match inner.store.write_record(write, growth).await {
            Ok(()) => {
                inner.emit(&key.identity, effects);
                return Ok(outcome);
            }
            Err(Error::Conflict) if Instant::now() < give_up => backoff.wait().await,
            Err(error @ Error::CommitUnknown { .. }) if unknown.len() < UNKNOWN_MAX => {
                unknown.push(Unknown { version, expected: current, outcome, effects, error });
            }
            Err(error) => return Err(error),
        }
    }
}

/// The write that replaces `stored` by `next`, and by how many bytes the store grows.
fn record_write(
    key: &RecordKey,
    stored: Option<StoredRecord>,
    next: Option<Next>,
    now: u64,
) -> (RecordWrite, i64) {
    let record = next.map(|Next { strategy, bytes, due_at }| StoredRecord {
        strategy: strategy.name().to_string(),
        bytes,
        version: StoredRecord::draw_version(),
        due_at,
        created_at: stored.as_ref().map_or(now, |stored| stored.created_at),
        updated_at: now,
    });
    let growth = RecordWrite::growth(key, stored.as_ref(), record.as_ref());
    let expected = stored.map_or(Version::ABSENT, |stored| stored.version);
    (RecordWrite { key: key.clone(), expected, record }, growth)
}
