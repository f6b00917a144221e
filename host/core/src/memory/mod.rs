//! Conversations, kept so that nothing is lost.
//!
//! A session's memory is one [record](records::StoredRecord) in the backend. Every call reads it, applies a rule to
//! it, and writes it on the condition that nobody else has; nothing is kept between calls. What is on its way to a
//! summary is part of the record, so that it survives the end of this host, and another may take it up: whoever asks a
//! summariser first writes that it does, and its summary is taken only as long as that stands.

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
pub use rules::Context;
pub use session::{Memory, MemorySnapshot};
pub use strategy::{MemoryOptions, Strategy};
pub use summarizer::{EchoSummarizer, Summarizer, SummaryError, SummaryRequest};
pub use tokens::{ByteTokens, TokenEstimator};
pub use turn::{TrajectoryDigest, Turn};
