//! Summaries from an OpenAI-compatible endpoint.

mod answer;
mod error;
mod key;
mod options;
mod prompt;

use std::error::Error;

use async_trait::async_trait;
use larder_core::{Summarizer, SummaryError, SummaryRequest};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};

pub use error::HttpError;
pub use key::ApiKey;
pub use options::{HttpOptions, HttpOptionsError, TokenField};

/// A summarizer that calls the chat completions API of an OpenAI-compatible endpoint.
///
/// Each summary is one `POST {base}/chat/completions`. It sends the previous summary and, of each
/// turn, the user's message, the response and the trajectory digest. It does not send the identity,
/// artifacts or timestamps.
///
/// The conversation goes to the endpoint only. Redirects are not followed, and proxies from the
/// environment (such as `HTTPS_PROXY`) are not used. Requests are not retried here: the store
/// retries them. Dropping the future cancels the request. Use it within a tokio runtime.
///
/// A failure is a [`SummaryError`] whose cause is an [`HttpError`]; see [`HttpError::of`].
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use larder_llm::{HttpOptions, HttpSummarizer};
///
/// let options = HttpOptions::new("http://localhost:11434/v1", "llama3.2");
/// let summarizer = HttpSummarizer::new(options)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct HttpSummarizer {
    client: Client,
    endpoint: Url,
    options: HttpOptions,
}

impl HttpSummarizer {
    /// Creates a summarizer. Nothing is sent before the first summary.
    ///
    /// # Errors
    ///
    /// - [`HttpOptionsError::BaseUrl`] if the base URL is invalid.
    /// - [`HttpOptionsError::Model`] if the model has no name.
    /// - [`HttpOptionsError::Zero`] if a timeout or the bound of an answer is zero.
    /// - [`HttpOptionsError::Client`] if the HTTP client cannot be created.
    pub fn new(options: HttpOptions) -> Result<Self, HttpOptionsError> {
        let endpoint = options.endpoint()?;
        options.check()?;
        let client = client(&endpoint, &options)?;
        Ok(Self { client, endpoint, options })
    }

    async fn ask(&self, request: &SummaryRequest) -> Result<String, HttpError> {
        let body = prompt::body(&self.options, request).map_err(|error| HttpError::Request(error.into()))?;
        let mut post =
            self.client.post(self.endpoint.clone()).header(CONTENT_TYPE, "application/json").body(body);
        if let Some(key) = &self.options.key {
            post = post.header(AUTHORIZATION, key.bearer());
        }
        let response = post.send().await.map_err(|error| self.failure(error))?;
        let status = response.status();
        // The body of an error status is not read, because services repeat parts of the key and of
        // the conversation in it.
        if !status.is_success() {
            return Err(HttpError::Status { status: status.as_u16() });
        }
        answer::summary(&self.read(response).await?)
    }

    /// Reads the body. A body over the bound is refused before it is kept.
    async fn read(&self, mut response: Response) -> Result<Vec<u8>, HttpError> {
        let max = self.options.response_bytes_max;
        let too_large = HttpError::TooLarge { max };
        if response.content_length().is_some_and(|length| length > max) {
            return Err(too_large);
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failure(error))? {
            if (body.len() as u64).saturating_add(chunk.len() as u64) > max {
                return Err(too_large);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn failure(&self, error: reqwest::Error) -> HttpError {
        let limit = if error.is_connect() { self.options.connect_timeout } else { self.options.timeout };
        // The path of a URL can name an account, so leave the URL out.
        match error.without_url() {
            error if error.is_timeout() => HttpError::Timeout { limit },
            error if error.is_connect() => HttpError::Unreachable(error.into()),
            error => HttpError::Broken(error.into()),
        }
    }
}

fn client(endpoint: &Url, options: &HttpOptions) -> Result<Client, HttpOptionsError> {
    let builder = Client::builder()
        .connect_timeout(options.connect_timeout)
        .timeout(options.timeout)
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")));
    // Plain HTTP needs no certificates, and must work on systems without any.
    let builder = if endpoint.scheme() == "http" { builder.tls_certs_only([]) } else { builder };
    builder.build().map_err(|error| HttpOptionsError::Client(error.into()))
}

#[async_trait]
impl Summarizer for HttpSummarizer {
    async fn summarize(&self, request: SummaryRequest) -> Result<String, SummaryError> {
        self.ask(&request).await.map_err(|error| {
            let origin = self.endpoint.origin().ascii_serialization();
            let cause = innermost(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            SummaryError::caused(format!("cannot get a summary from {origin}: {error}{cause}"), error)
        })
    }
}

/// The innermost cause, such as `Connection refused`.
fn innermost(error: &HttpError) -> Option<&dyn Error> {
    std::iter::successors(error.source(), |error| (*error).source()).last()
}
