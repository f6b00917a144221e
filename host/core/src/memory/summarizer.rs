//! Summarizers, which make the summaries of conversations.

use async_trait::async_trait;

use crate::error::Cause;
use crate::memory::identity::Identity;
use crate::memory::turn::Turn;

/// The input of a summary.
#[derive(Clone, Debug)]
pub struct SummaryRequest {
    /// The identity of the session.
    pub identity: Identity,
    /// The summary of all earlier turns; empty if there is none.
    pub previous_summary: String,
    /// The turns that followed, oldest first.
    pub turns: Vec<Turn>,
    /// The most tokens that the new summary may have; `None` for no bound.
    ///
    /// A longer summary counts as a failure.
    pub max_tokens: Option<u64>,
}

/// The reason why a summary failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct SummaryError {
    reason: String,
    #[source]
    cause: Option<Cause>,
}

impl SummaryError {
    /// Creates an error without a cause.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), cause: None }
    }

    /// Creates an error with a cause.
    pub fn caused(reason: impl Into<String>, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { reason: reason.into(), cause: Some(std::sync::Arc::new(cause)) }
    }
}

/// Combines a summary and the turns that followed it into a new summary.
///
/// A summary may take long and may fail. larder applies a timeout, retries, and keeps the turns
/// meanwhile. Dropping the future must end the work.
#[async_trait]
pub trait Summarizer: Send + Sync + 'static {
    /// Returns the new summary, which replaces the previous one and the turns.
    ///
    /// # Errors
    ///
    /// A [`SummaryError`] if there is no summary. The host retries it later.
    async fn summarize(&self, request: SummaryRequest) -> Result<String, SummaryError>;
}

/// A summarizer for tests that returns its input, one line for each turn.
///
/// The previous summary comes first.
#[derive(Clone, Copy, Debug, Default)]
pub struct EchoSummarizer;

#[async_trait]
impl Summarizer for EchoSummarizer {
    async fn summarize(&self, request: SummaryRequest) -> Result<String, SummaryError> {
        let lines =
            request.turns.iter().map(|turn| format!("U:{} A:{}", turn.user_message, turn.assistant_response));
        let previous = Some(request.previous_summary).filter(|previous| !previous.is_empty());
        Ok(previous.into_iter().chain(lines).collect::<Vec<_>>().join("\n"))
    }
}
