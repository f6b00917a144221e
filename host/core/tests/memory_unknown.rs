//! Tests of writes to a conversation whose outcome is unknown.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::sync::Arc;

use async_trait::async_trait;
use larder_core::backend::{Backend, SweepOptions, Swept};
use larder_core::commit::{Commit, Committed};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::snapshot::{Snapshot, SnapshotOptions};
use larder_core::stored_cost::StoredCost;
use larder_core::{
    Error, IdentityParts, IdentityScope, InMemory, Memory, MemoryOptions, MemoryStore, Result, Store,
    Strategy, Turn, Version,
};
use parking_lot::Mutex;

/// The outcome of the next write.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// The write is made, and the answer is lost.
    Made,
    /// The write is not made, and the answer is lost.
    NotMade,
    /// The write is made, the answer is lost, and another caller writes after it.
    MadeAndFollowed,
}

/// An in-memory backend behind a connection that breaks.
struct Breaks {
    rows: InMemory,
    fates: Arc<Mutex<Vec<Fate>>>,
}

#[async_trait]
impl Backend for Breaks {
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        self.rows.snapshot(options).await
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        self.rows.commit(commit).await
    }

    fn stored_cost(&self) -> StoredCost {
        self.rows.stored_cost()
    }

    async fn stored_bytes(&self) -> Result<u64> {
        self.rows.stored_bytes().await
    }

    async fn sweep(&self, options: SweepOptions) -> Result<Swept> {
        self.rows.sweep(options).await
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        self.rows.load_record(key).await
    }

    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()> {
        let fate = self.fates.lock().pop();
        let Some(fate) = fate else { return self.rows.write_record(write).await };
        if fate != Fate::NotMade {
            self.rows.write_record(write.clone()).await?;
        }
        if fate == Fate::MadeAndFollowed {
            let made = write.record.clone().unwrap();
            let followed = StoredRecord { version: Version(made.version.0 ^ 1), ..made.clone() };
            let follow =
                RecordWrite { key: write.key.clone(), expected: made.version, record: Some(followed) };
            self.rows.write_record(Arc::new(follow)).await?;
        }
        Err(Error::CommitUnknown { reason: "the connection was lost".to_string(), cause: None })
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>> {
        self.rows.list_records(after, max).await
    }

    async fn due_records(&self, now: u64, max: u32) -> Result<Vec<RecordKey>> {
        self.rows.due_records(now, max).await
    }

    async fn ping(&self) -> Result<()> {
        self.rows.ping().await
    }

    async fn close(&self) {
        self.rows.close().await;
    }
}

/// A conversation with one turn, and the outcomes of its next writes, the last one first.
async fn memory() -> (Memory, Arc<Mutex<Vec<Fate>>>) {
    let fates = Arc::new(Mutex::new(Vec::new()));
    let store = Store::builder(Breaks { rows: InMemory::new(), fates: fates.clone() }).build().unwrap();
    let memories = MemoryStore::builder(&store, MemoryOptions::new(Strategy::Truncation)).build().unwrap();
    let parts = IdentityParts::session("acme", "ann", "monday");
    let memory = memories.open(parts, &IdentityScope::Any, &Arc::default()).unwrap();
    memory.add_turn(turn("a")).await.unwrap();
    (memory, fates)
}

fn turn(text: &str) -> Turn {
    Turn { user_message: text.into(), ..Turn::default() }
}

async fn said(memory: &Memory) -> Vec<String> {
    memory.llm_context().await.unwrap().recent_turns.into_iter().map(|turn| turn.user_message).collect()
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_recognised_and_made_once() {
    for fates in [
        vec![Fate::Made],
        vec![Fate::NotMade],
        vec![Fate::NotMade, Fate::NotMade],
        vec![Fate::Made, Fate::NotMade],
    ] {
        let (memory, coming) = memory().await;
        coming.lock().clone_from(&fates);
        memory.add_turn(turn("b")).await.unwrap();
        assert_eq!(said(&memory).await, ["a", "b"], "{fates:?}");
    }
}

#[tokio::test]
async fn a_delete_whose_answer_is_lost_is_made() {
    for fate in [Fate::Made, Fate::NotMade] {
        let (memory, coming) = memory().await;
        coming.lock().push(fate);
        memory.flush().await.unwrap();
        assert_eq!(said(&memory).await, Vec::<String>::new(), "{fate:?}");
    }
}

#[tokio::test]
async fn what_others_have_written_over_stays_unknown() {
    let (memory, coming) = memory().await;
    coming.lock().push(Fate::MadeAndFollowed);
    let outcome = memory.add_turn(turn("b")).await;
    assert!(matches!(outcome, Err(Error::CommitUnknown { .. })), "{outcome:?}");
    assert_eq!(said(&memory).await, ["a", "b"]);
}

#[tokio::test]
async fn answers_that_are_lost_again_and_again_are_given_up() {
    let (memory, coming) = memory().await;
    *coming.lock() = vec![Fate::NotMade; 10];
    let outcome = memory.add_turn(turn("b")).await;
    assert!(matches!(outcome, Err(Error::CommitUnknown { .. })), "{outcome:?}");
    assert_eq!(said(&memory).await, ["a"]);
}
