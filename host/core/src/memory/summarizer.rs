//! Who makes a summary.

use async_trait::async_trait;

use crate::error::Cause;
use crate::memory::identity::Identity;
use crate::memory::turn::Turn;

/// What is to be summarised.
#[derive(Clone, Debug)]
pub struct SummaryRequest {
    /// Whose conversation it is.
    pub identity: Identity,
    /// The summary of all that came before; empty at the beginning.
    pub previous_summary: String,
    /// The turns that followed, the oldest first.
    pub turns: Vec<Turn>,
    /// How many tokens the new summary may have; none for no bound. A longer one is not taken.
    pub max_tokens: Option<u64>,
}

/// Why there is no summary.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct SummaryError {
    reason: String,
    #[source]
    cause: Option<Cause>,
}

impl SummaryError {
    /// A failure with nothing beneath it.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), cause: None }
    }

    /// A failure over what caused it.
    pub fn caused(reason: impl Into<String>, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { reason: reason.into(), cause: Some(std::sync::Arc::new(cause)) }
    }
}

/// Makes one text of a summary and the turns that followed it. It may take long and may fail: larder has a deadline for
/// it, asks again, and keeps the turns meanwhile. Dropping the future ends the work.
#[async_trait]
pub trait Summarizer: Send + Sync + 'static {
    /// The new summary, which stands for the previous one and the turns together.
    async fn summarize(&self, request: SummaryRequest) -> Result<String, SummaryError>;
}

/// Makes a summary that is the text itself, for tests: a line for each turn, after the previous summary.
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
