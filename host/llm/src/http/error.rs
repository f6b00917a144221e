//! Errors of an endpoint.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use larder_core::SummaryError;

/// The cause of an error.
type Source = Box<dyn Error + Send + Sync>;

/// The reason why an endpoint returned no summary.
///
/// No message contains the key, the conversation, or text from the endpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The request could not be encoded as JSON.
    #[error("the request could not be encoded as JSON")]
    Request(#[source] Source),
    /// There is no connection to the endpoint.
    ///
    /// The connection was refused, the host name is unknown, or the certificate is not trusted.
    #[error("the endpoint cannot be reached")]
    Unreachable(#[source] Source),
    /// The answer was not complete within the timeout.
    #[error("the endpoint did not answer within {limit:?}")]
    Timeout {
        /// The timeout that was exceeded: that of the connection or of the whole request.
        limit: Duration,
    },
    /// The connection ended early, or the answer was not HTTP.
    #[error("the connection to the endpoint broke")]
    Broken(#[source] Source),
    /// The endpoint answered with a status other than 2xx.
    #[error("the endpoint answered with status {status}{}", hint(*.status))]
    Status {
        /// The status.
        status: u16,
    },
    /// The answer is larger than
    /// [`HttpOptions::response_bytes_max`](crate::HttpOptions::response_bytes_max).
    #[error("the answer of the endpoint is larger than {max} bytes")]
    TooLarge {
        /// The bound, in bytes.
        max: u64,
    },
    /// The answer is not valid JSON.
    #[error("the answer of the endpoint is not valid JSON: line {line}, column {column}")]
    NotJson {
        /// The line of the first error.
        line: usize,
        /// The column of the first error.
        column: usize,
    },
    /// The answer is JSON but not a chat completion.
    #[error(
        "the answer of the endpoint is not a chat completion: unexpected type at line {line}, column {column}"
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
    #[error("the model returned an empty summary")]
    Empty,
    /// The model reached its token limit, so the summary is cut.
    #[error("the summary was cut at the token limit; raise the token budget of the conversation")]
    Cut,
    /// A content filter of the endpoint withheld a part of the summary.
    #[error("the content filter of the endpoint withheld the summary")]
    Filtered,
}

impl HttpError {
    /// Returns the cause of a summarizer's error; `None` if it is not an `HttpError`.
    pub fn of(error: &SummaryError) -> Option<&Self> {
        // `SummaryError` holds its cause in an `Arc`, so the source is the `Arc` and not yet the
        // error.
        let cause = error.source()?.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
        cause.downcast_ref()
    }
}

/// The likely cause of a status.
fn hint(status: u16) -> &'static str {
    match status {
        300..=399 => " (redirects are not followed; use the final base URL)",
        401 | 403 => " (check the key)",
        404 => " (check the base URL and the model)",
        _ => "",
    }
}
