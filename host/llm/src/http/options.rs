//! How an endpoint is asked.

use std::time::Duration;

use reqwest::Url;

use super::ApiKey;

/// How an endpoint is asked.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// The URL that `/chat/completions` is appended to, such as `https://api.openai.com/v1` or
    /// `http://localhost:11434/v1`. Over http everyone on the way can read the key and the conversation.
    pub base_url: String,
    /// The model, by its name at the endpoint.
    pub model: String,
    /// The key; none where the endpoint needs none.
    pub key: Option<ApiKey>,
    /// How long it may take to connect. 10 seconds.
    pub connect_timeout: Duration,
    /// How long a whole request may take, from its beginning to the last byte of the answer. One minute.
    pub timeout: Duration,
    /// The bytes that an answer may have. 1 MiB.
    pub response_bytes_max: u64,
    /// How the bound of tokens is sent.
    pub token_field: TokenField,
}

/// How the bound of a summary's tokens is named in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenField {
    /// `max_tokens`, which all endpoints know, but for OpenAI's own with its reasoning models.
    #[default]
    MaxTokens,
    /// `max_completion_tokens`, as OpenAI's reasoning models want it. What they think counts too.
    MaxCompletionTokens,
}

/// What is wrong with the options of an [`HttpSummarizer`](crate::HttpSummarizer).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpOptionsError {
    /// The base URL.
    #[error("the base URL {0}; right is one such as `https://api.openai.com/v1`")]
    BaseUrl(&'static str),
    /// The model.
    #[error("the model has no name; right is one that the endpoint knows, such as `gpt-4o-mini`")]
    Model,
    /// The key.
    #[error("the key {0}")]
    Key(&'static str),
    /// The variable that the key is taken from.
    #[error("the variable {variable} {reason}")]
    KeyVariable {
        /// Its name.
        variable: String,
        /// What is wrong with its value.
        reason: &'static str,
    },
    /// A bound that is zero: nothing could ever be answered.
    #[error("{0} can't be zero")]
    Zero(&'static str),
    /// There is no HTTP client: no certificates of the system, for instance.
    #[error("there is no HTTP client")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl HttpOptions {
    /// A model at an endpoint, with no key, and bounds that suit most.
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

    /// Where requests are sent. No error repeats the URL: there may be a password in it.
    pub(super) fn endpoint(&self) -> Result<Url, HttpOptionsError> {
        let mut url = Url::parse(&self.base_url).map_err(|_| HttpOptionsError::BaseUrl("is no URL"))?;
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
        Some("has a user or a password: a key is an option of its own")
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
            ("", "is no URL"),
            ("api.openai.com/v1", "is no URL"),
            ("https://", "is no URL"),
            ("ftp://host/v1", "is neither http nor https"),
            ("localhost:11434/v1", "is neither http nor https"),
            ("mailto:a@b", "is neither http nor https"),
            ("https://hush@host/v1", "has a user or a password: a key is an option of its own"),
            ("https://:hush@host/v1", "has a user or a password: a key is an option of its own"),
            ("https://host/v1?key=hush", "has a query"),
            ("https://host/v1?", "has a query"),
            ("https://host/v1#hush", "has a fragment"),
        ] {
            let right = "right is one such as `https://api.openai.com/v1`";
            assert_eq!(endpoint(base).unwrap_err(), format!("the base URL {reason}; {right}"), "{base}");
        }
    }

    #[test]
    fn a_bound_of_zero_and_a_model_without_a_name_are_refused() {
        let options = HttpOptions::new("http://host", "m");
        options.check().unwrap();
        let check = |options: HttpOptions| options.check().unwrap_err().to_string();
        let zero = Duration::ZERO;
        assert_eq!(check(HttpOptions { timeout: zero, ..options.clone() }), "timeout can't be zero");
        assert_eq!(
            check(HttpOptions { connect_timeout: zero, ..options.clone() }),
            "connect_timeout can't be zero"
        );
        assert_eq!(
            check(HttpOptions { response_bytes_max: 0, ..options.clone() }),
            "response_bytes_max can't be zero"
        );
        assert!(matches!(
            HttpOptions { model: " ".into(), ..options }.check().unwrap_err(),
            HttpOptionsError::Model
        ));
    }
}
