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

/// Has a model make the summaries: one `POST {base}/chat/completions` for each, as OpenAI and those who are compatible
/// with it answer.
///
/// What is sent is the previous summary and, of each turn, what the user said, what was answered and the digest of the
/// trajectory. Whose conversation it is, its artifacts and its times are not sent.
///
/// The conversation goes to the endpoint and nowhere else: redirects are not followed, and the proxies that the
/// environment names (`HTTPS_PROXY` and the like) are not used. Nothing is tried again here; the store does that.
/// Dropping the future ends the request. It is called within a tokio runtime.
///
/// A failure is a [`SummaryError`] over an [`HttpError`], which [`HttpError::of`] finds.
#[derive(Clone, Debug)]
pub struct HttpSummarizer {
    client: Client,
    endpoint: Url,
    options: HttpOptions,
}

impl HttpSummarizer {
    /// Takes the options. Nothing is sent before the first summary.
    ///
    /// # Errors
    /// [`HttpOptionsError`] says which option is wrong and what would be right.
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
        // The text of a refusal is not read: services repeat parts of the key and of the conversation in it.
        if !status.is_success() {
            return Err(HttpError::Status { status: status.as_u16() });
        }
        answer::summary(&self.read(response).await?)
    }

    /// The body, as long as it stays within the bound: what is larger is refused before it is kept.
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
        // The path of a URL can name an account.
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
    // Plain http needs no certificates, and must work where the system has none.
    let builder = if endpoint.scheme() == "http" { builder.tls_certs_only([]) } else { builder };
    builder.build().map_err(|error| HttpOptionsError::Client(error.into()))
}

#[async_trait]
impl Summarizer for HttpSummarizer {
    async fn summarize(&self, request: SummaryRequest) -> Result<String, SummaryError> {
        self.ask(&request).await.map_err(|error| {
            let origin = self.endpoint.origin().ascii_serialization();
            let cause = innermost(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            SummaryError::caused(format!("there is no summary from {origin}: {error}{cause}"), error)
        })
    }
}

/// What is beneath all others: `Connection refused`, for instance.
fn innermost(error: &HttpError) -> Option<&dyn Error> {
    std::iter::successors(error.source(), |error| (*error).source()).last()
}
