//! The API key of an endpoint.

use std::ffi::OsString;
use std::fmt;

use reqwest::header::HeaderValue;

use super::HttpOptionsError;

/// The API key of an endpoint, which neither `Debug` nor an error shows.
///
/// ```
/// let key = larder_llm::ApiKey::new("sk-secret")?;
/// assert_eq!(format!("{key:?}"), "ApiKey(..)");
/// # Ok::<(), larder_llm::HttpOptionsError>(())
/// ```
#[derive(Clone)]
pub struct ApiKey {
    /// The whole header, marked as sensitive.
    bearer: HeaderValue,
}

impl ApiKey {
    /// Checks a key.
    ///
    /// # Errors
    ///
    /// [`HttpOptionsError::Key`] if the key is empty, or has characters other than visible ASCII,
    /// such as a trailing line break.
    pub fn new(key: impl AsRef<str>) -> Result<Self, HttpOptionsError> {
        Self::checked(key.as_ref()).map_err(HttpOptionsError::Key)
    }

    /// Reads a key from an environment variable; `None` if the variable is not set.
    ///
    /// A local endpoint needs no key.
    ///
    /// # Errors
    ///
    /// [`HttpOptionsError::KeyVariable`] if the value is empty, is not valid Unicode, or has
    /// characters other than visible ASCII.
    pub fn from_env(variable: &str) -> Result<Option<Self>, HttpOptionsError> {
        std::env::var_os(variable).map(|value| Self::from_variable(variable, value)).transpose()
    }

    fn from_variable(variable: &str, value: OsString) -> Result<Self, HttpOptionsError> {
        let value = value.into_string().map_err(|_| "is not valid Unicode");
        value
            .and_then(|key| Self::checked(&key))
            .map_err(|reason| HttpOptionsError::KeyVariable { variable: variable.to_string(), reason })
    }

    /// The error continues a sentence that starts with the source of the key.
    fn checked(key: &str) -> Result<Self, &'static str> {
        const WRONG: &str = "has characters other than visible ASCII, such as a space or a line break";
        if key.is_empty() {
            return Err("is empty; set a key, or leave the key out");
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(WRONG);
        }
        let mut bearer = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| WRONG)?;
        bearer.set_sensitive(true);
        Ok(Self { bearer })
    }

    /// The value of the `Authorization` header.
    pub(super) fn bearer(&self) -> HeaderValue {
        self.bearer.clone()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ApiKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(value: impl Into<OsString>) -> String {
        ApiKey::from_variable("SOME_KEY", value.into()).unwrap_err().to_string()
    }

    #[test]
    fn a_key_is_a_sensitive_header() {
        let bearer = ApiKey::new("sk-1_2.3").unwrap().bearer();
        assert_eq!((bearer.to_str().unwrap(), bearer.is_sensitive()), ("Bearer sk-1_2.3", true));
    }

    #[test]
    fn a_variable_that_holds_no_key_is_named_and_its_text_is_not() {
        assert_eq!(reason(""), "the environment variable SOME_KEY is empty; set a key, or leave the key out");
        for wrong in ["hush\n", "hush\r\nX-Evil: 1", "hu sh", "hush\0", "hush\u{7f}", "hüsh"] {
            assert_eq!(
                reason(wrong),
                "the environment variable SOME_KEY has characters other than visible ASCII, such as a space or a line break"
            );
            let error = ApiKey::new(wrong).unwrap_err();
            assert!(matches!(error, HttpOptionsError::Key(_)), "{error}");
            assert!(!format!("{error} {error:?}").contains("sh\n"), "{error:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_no_unicode_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        assert_eq!(
            reason(OsString::from_vec(vec![b's', 0xff])),
            "the environment variable SOME_KEY is not valid Unicode"
        );
    }

    #[test]
    fn a_variable_that_is_absent_is_no_key() {
        assert!(ApiKey::from_env("LARDER_LLM_NO_SUCH_VARIABLE").unwrap().is_none());
        let key = ApiKey::from_env("CARGO_PKG_NAME").unwrap().expect("cargo sets it for tests");
        assert_eq!(key.bearer().to_str().unwrap(), "Bearer larder-llm");
    }
}
