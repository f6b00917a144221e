//! Why an endpoint gave no summary.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use larder_core::SummaryError;

/// Something beneath an error.
type Source = Box<dyn Error + Send + Sync>;

/// Why an endpoint gave no summary. No text of it holds the key, the conversation or what the endpoint wrote.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The request can't be written as JSON.
    #[error("the request can't be written")]
    Request(#[source] Source),
    /// There is no connection: it was refused, the name is unknown, or the certificate is not trusted.
    #[error("the endpoint can't be reached")]
    Unreachable(#[source] Source),
    /// The answer was not complete in time.
    #[error("the endpoint did not answer within {limit:?}")]
    Timeout {
        /// The time that passed: that for a connection, or that for the whole request.
        limit: Duration,
    },
    /// The connection ended, or what came over it is no HTTP.
    #[error("the connection to the endpoint broke")]
    Broken(#[source] Source),
    /// A status other than 2xx.
    #[error("the endpoint answered with status {status}{}", hint(*.status))]
    Status {
        /// The status.
        status: u16,
    },
    /// More bytes than [`HttpOptions::response_bytes_max`](crate::HttpOptions::response_bytes_max).
    #[error("the answer of the endpoint is larger than {max} bytes")]
    TooLarge {
        /// The bound.
        max: u64,
    },
    /// The answer is no JSON.
    #[error("the answer of the endpoint is no JSON from line {line}, column {column}")]
    NotJson {
        /// The line of the first error.
        line: usize,
        /// The column of the first error.
        column: usize,
    },
    /// The answer is JSON, and is no chat completion.
    #[error(
        "the answer of the endpoint is no chat completion: line {line}, column {column} has another type"
    )]
    NotCompletion {
        /// The line of the first error.
        line: usize,
        /// The column of the first error.
        column: usize,
    },
    /// The answer has no choices.
    #[error("the answer of the endpoint has no choices")]
    NoChoices,
    /// The summary is empty.
    #[error("the model wrote nothing")]
    Empty,
    /// The model was stopped at its bound of tokens: the summary has no end.
    #[error("the summary was cut at the bound of tokens; a larger one would be right")]
    Cut,
    /// A filter of the endpoint took out a part of the summary.
    #[error("the content filter of the endpoint withheld the summary")]
    Filtered,
}

impl HttpError {
    /// The error beneath that of a [`Summarizer`](larder_core::Summarizer); none where it is of another one.
    pub fn of(error: &SummaryError) -> Option<&Self> {
        // `SummaryError` shares its cause, so what is beneath it is the `Arc`, and not yet the error.
        let cause = error.source()?.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
        cause.downcast_ref()
    }
}

/// What is likely wrong.
fn hint(status: u16) -> &'static str {
    match status {
        300..=399 => " (redirects are not followed: the base URL must be the right one)",
        401 | 403 => " (is the key right?)",
        404 => " (are the base URL and the model right?)",
        _ => "",
    }
}
