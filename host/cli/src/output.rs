//! Standard output and standard error. A closed pipe or a full device is an error, never a panic.
//!
//! Stored text never reaches a terminal with control characters. Most text is escaped by the code
//! that prints it. This module escapes the rest: JSON, and any text that was printed without
//! escaping.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};

use anyhow::Result;

use crate::standard;
use crate::text::{escape_for_terminal, is_acted_on};

/// An error of writing standard output.
#[derive(Debug)]
pub(crate) struct OutputError(pub(crate) io::Error);

impl OutputError {
    /// Whether the reader has closed its end of the pipe, as `head` does once it has its lines.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

impl fmt::Display for OutputError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot write standard output: {}", self.0)
    }
}

impl std::error::Error for OutputError {}

/// Standard output, to be written with `write!` and `writeln!`.
pub(crate) struct Output(());

/// Returns standard output.
pub(crate) fn output() -> Output {
    Output(())
}

impl Output {
    /// Writes the text of `write!` and `writeln!`, which may be JSON.
    pub(crate) fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> Result<(), OutputError> {
        let text = text.as_str().map_or_else(|| Cow::Owned(text.to_string()), Cow::Borrowed);
        let written =
            standard::output().and_then(|mut output| output.write_all(escape_as_json(&text).as_bytes()));
        written.map_err(OutputError)
    }

    /// Writes the bytes of a value unchanged, without a newline after it. On a terminal, it writes
    /// the value as escaped text.
    pub(crate) fn write_value(&mut self, value: &[u8]) -> Result<(), OutputError> {
        let written = standard::output().and_then(|mut output| match output.is_terminal() {
            true => output.write_all(escape_for_terminal(value).as_bytes()),
            false => output.write_all(value),
        });
        written.map_err(OutputError)
    }
}

/// Escapes control characters as in a JSON string. JSON contains such characters only within
/// strings.
fn escape_as_json(text: &str) -> Cow<'_, str> {
    let needs_escape = |character: char| is_acted_on(character) && character != '\n' && character != '\t';
    if !text.contains(needs_escape) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match needs_escape(character) {
            true => escaped.push_str(&format!("\\u{:04x}", u32::from(character))),
            false => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

/// Writes a sentence to standard error. If that fails, only the exit code reports the failure.
pub(crate) fn complain(sentence: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "larder: {sentence}");
}

/// Treats a closed pipe as success: the reader closed it because it needs no more output.
pub(crate) fn heard(printed: Result<()>) -> Result<()> {
    match printed {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        printed => printed,
    }
}

/// Whether the error is that the reader of standard output has closed the pipe.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    // Other errors, such as those of a database connection, can contain a broken pipe too. Only
    // this type is about standard output.
    error.downcast_ref::<OutputError>().is_some_and(OutputError::is_closed_pipe)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn json_with_characters_that_a_terminal_acts_on_means_the_same_text() {
        let text = "a\u{9b}2J\u{7f}\u{202e}b\u{2066}\u{200f}\u{61c}é😀\n\u{1b}[0m";
        let json = serde_json::Value::from(text).to_string();
        let escaped = escape_as_json(&json);
        assert!(!escaped.contains(is_acted_on), "{escaped:?}");
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        assert!(matches!(escape_as_json("plain\ttext é\n"), Cow::Borrowed(_)));
    }

    fn failed(kind: io::ErrorKind) -> Result<()> {
        Err(OutputError(kind.into())).context("the row was written")
    }

    #[test]
    fn only_a_closed_pipe_of_standard_output_counts_as_heard() {
        heard(failed(io::ErrorKind::BrokenPipe)).unwrap();
        heard(failed(io::ErrorKind::StorageFull)).unwrap_err();
        heard(Err(io::Error::from(io::ErrorKind::BrokenPipe).into())).unwrap_err();
    }
}
