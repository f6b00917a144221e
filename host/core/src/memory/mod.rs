//! Conversations: turns, summaries and their durable records.
//!
//! Each session has one [record](records::StoredRecord) in the backend. Every call reads the
//! record, applies a rule to it, and writes it with a compare-and-swap on its version. Nothing is
//! cached between calls. Turns that a summarizer is working on are part of the record, so they
//! survive the end of this host and another host can resume them. A host writes a claim to the
//! record before it calls a summarizer. It may write the summary only while the claim is still
//! there.

mod health;
mod identity;
mod memory_store;
pub mod operator;
mod record;
pub mod records;
mod rules;
mod session;
mod strategy;
mod summarizer;
mod tokens;
mod turn;
mod update;

pub use health::Health;
pub use identity::{Identity, IdentityParts, IdentityScope};
pub use memory_store::{MemoryStore, MemoryStoreBuilder};
pub use rules::ContextPatch;
pub use session::{Memory, MemorySnapshot};
pub use strategy::{MemoryOptions, Strategy};
pub use summarizer::{EchoSummarizer, Summarizer, SummaryError, SummaryRequest};
pub use tokens::{ByteTokens, TokenEstimator};
pub use turn::{TrajectoryDigest, Turn};
