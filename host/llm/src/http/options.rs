//! The options of an HTTP summarizer.

use std::time::Duration;

use larder_core::option_setters;
use reqwest::Url;

use super::ApiKey;

/// The options of an [`HttpSummarizer`](crate::HttpSummarizer).
///
/// ```
/// use std::time::Duration;
/// use larder_llm::HttpOptions;
///
/// let options =
///     HttpOptions::new("http://localhost:11434/v1", "llama3.2").timeout(Duration::from_secs(20));
/// assert_eq!(options.response_bytes_max, 1 << 20);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpOptions {
    /// The URL that `/chat/completions` is appended to.
    ///
    /// For example `https://api.openai.com/v1` or `http://localhost:11434/v1`. Over plain HTTP,
    /// anyone on the network path can read the key and the conversation.
    pub base_url: String,
    /// The name of the model at the endpoint.
    pub model: String,
    /// The key; `None` if the endpoint needs none.
    pub key: Option<ApiKey>,
    /// The timeout of a connection attempt. Default: 10 seconds.
    pub connect_timeout: Duration,
    /// The timeout of a whole request, including the answer. Default: 1 minute.
    pub timeout: Duration,
    /// The largest answer, in bytes. Default: 1 MiB.
    pub response_bytes_max: u64,
    /// The name of the field for the token limit. Default: `max_tokens`.
    pub token_field: TokenField,
}

option_setters!(HttpOptions {
    base_url: impl Into<String>,
    model: impl Into<String>,
    key: impl Into<Option<ApiKey>>,
    connect_timeout: Duration,
    timeout: Duration,
    response_bytes_max: u64,
    token_field: TokenField,
});

/// The name of the field for a summary's token limit in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenField {
    /// `max_tokens`, which every endpoint knows except OpenAI's own with reasoning models.
    #[default]
    MaxTokens,
    /// `max_completion_tokens`, for OpenAI's reasoning models. Reasoning tokens count too.
    MaxCompletionTokens,
}

/// The reason why the options of an [`HttpSummarizer`](crate::HttpSummarizer) were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpOptionsError {
    /// The base URL is invalid.
    #[error("the base URL {0}; use one like `https://api.openai.com/v1`")]
    BaseUrl(&'static str),
    /// The model has no name.
    #[error("the model has no name; use one that the endpoint knows, such as `gpt-4o-mini`")]
    Model,
    /// The key is invalid.
    #[error("the key {0}")]
    Key(&'static str),
    /// The value of the key's environment variable is invalid.
    #[error("the environment variable {variable} {reason}")]
    KeyVariable {
        /// The name of the variable.
        variable: String,
        /// What is wrong with its value.
        reason: &'static str,
    },
    /// A timeout or the bound of an answer is zero, so no request could succeed.
    #[error("{0} must be more than zero")]
    Zero(&'static str),
    /// The HTTP client cannot be created, for example because the system has no certificates.
    #[error("cannot create the HTTP client")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl HttpOptions {
    /// Creates options for a model at an endpoint, without a key.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            model: model.into(),
            key: None,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(60),
            response_bytes_max: 1 << 20,
            token_field: TokenField::default(),
        }
    }

    /// The URL that requests are sent to. No error repeats it, because it may contain a password.
    pub(super) fn endpoint(&self) -> Result<Url, HttpOptionsError> {
        let mut url =
            Url::parse(&self.base_url).map_err(|_| HttpOptionsError::BaseUrl("is not a valid URL"))?;
        if let Some(reason) = wrong(&url) {
            return Err(HttpOptionsError::BaseUrl(reason));
        }
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(["chat", "completions"]),
            Err(()) => return Err(HttpOptionsError::BaseUrl("has no path")),
        };
        Ok(url)
    }

    pub(super) fn check(&self) -> Result<(), HttpOptionsError> {
        if self.model.trim().is_empty() {
            return Err(HttpOptionsError::Model);
        }
        let bounds = [
            ("connect_timeout", self.connect_timeout.is_zero()),
            ("timeout", self.timeout.is_zero()),
            ("response_bytes_max", self.response_bytes_max == 0),
        ];
        match bounds.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((name, _)) => Err(HttpOptionsError::Zero(name)),
            None => Ok(()),
        }
    }
}

fn wrong(url: &Url) -> Option<&'static str> {
    let is_http = matches!(url.scheme(), "http" | "https");
    let has_user = !url.username().is_empty() || url.password().is_some();
    if !is_http {
        Some("is neither http nor https")
    } else if has_user {
        Some("has a user or a password (set the key instead)")
    } else if url.query().is_some() {
        Some("has a query")
    } else if url.fragment().is_some() {
        Some("has a fragment")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(base_url: &str) -> Result<String, String> {
        let endpoint = HttpOptions::new(base_url, "m").endpoint();
        endpoint.map(String::from).map_err(|error| error.to_string())
    }

    #[test]
    fn the_path_is_appended_to_any_base() {
        for (base, right) in [
            ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
            ("https://api.openai.com/v1/", "https://api.openai.com/v1/chat/completions"),
            ("http://localhost:11434", "http://localhost:11434/chat/completions"),
            ("http://[::1]:8080/a%20b/v1", "http://[::1]:8080/a%20b/v1/chat/completions"),
        ] {
            assert_eq!(endpoint(base).unwrap(), right);
        }
    }

    #[test]
    fn a_base_that_is_wrong_is_refused_with_what_would_be_right() {
        for (base, reason) in [
            ("", "is not a valid URL"),
            ("api.openai.com/v1", "is not a valid URL"),
            ("https://", "is not a valid URL"),
            ("ftp://host/v1", "is neither http nor https"),
            ("localhost:11434/v1", "is neither http nor https"),
            ("mailto:a@b", "is neither http nor https"),
            ("https://hush@host/v1", "has a user or a password (set the key instead)"),
            ("https://:hush@host/v1", "has a user or a password (set the key instead)"),
            ("https://host/v1?key=hush", "has a query"),
            ("https://host/v1?", "has a query"),
            ("https://host/v1#hush", "has a fragment"),
        ] {
            let right = "use one like `https://api.openai.com/v1`";
            assert_eq!(endpoint(base).unwrap_err(), format!("the base URL {reason}; {right}"), "{base}");
        }
    }

    #[test]
    fn a_bound_of_zero_and_a_model_without_a_name_are_refused() {
        let options = HttpOptions::new("http://host", "m");
        options.check().unwrap();
        let check = |options: HttpOptions| options.check().unwrap_err().to_string();
        let zero = Duration::ZERO;
        assert_eq!(check(options.clone().timeout(zero)), "timeout must be more than zero");
        assert_eq!(check(options.clone().connect_timeout(zero)), "connect_timeout must be more than zero");
        assert_eq!(check(options.clone().response_bytes_max(0)), "response_bytes_max must be more than zero");
        assert!(matches!(options.model(" ").check().unwrap_err(), HttpOptionsError::Model));
    }
}
