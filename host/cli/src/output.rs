//! What the command line prints. A closed pipe and a full device are errors here, and never panics.
//!
//! Nothing that is stored reaches a terminal as a character that the terminal acts on. Most text is escaped where it is
//! printed; what JSON leaves as it is, and any text that was forgotten, is escaped here.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};

use anyhow::Result;

use crate::standard;
use crate::text::{escape_for_terminal, is_acted_on};

/// Standard output cannot be written.
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

/// Standard output, written with `write!` and `writeln!`.
pub(crate) struct Output(());

/// Standard output.
pub(crate) fn output() -> Output {
    Output(())
}

impl Output {
    /// Writes what `write!` and `writeln!` format, which may be JSON.
    pub(crate) fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> Result<(), OutputError> {
        let text = text.as_str().map_or_else(|| Cow::Owned(text.to_string()), Cow::Borrowed);
        let written =
            standard::output().and_then(|mut output| output.write_all(escape_as_json(&text).as_bytes()));
        written.map_err(OutputError)
    }

    /// Writes a value as it is, also one whose last line does not end. On a terminal, it is readable text.
    pub(crate) fn write_value(&mut self, value: &[u8]) -> Result<(), OutputError> {
        let written = standard::output().and_then(|mut output| match output.is_terminal() {
            true => output.write_all(escape_for_terminal(value).as_bytes()),
            false => output.write_all(value),
        });
        written.map_err(OutputError)
    }
}

/// The text with what a terminal acts on written as JSON writes it within a string. Nowhere else does JSON have it.
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

/// Writes a sentence to standard error. If that cannot be written either, the exit code has to say enough.
pub(crate) fn complain(sentence: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "larder: {sentence}");
}

/// Treats a closed pipe as success: a reader that closes it has what it wants.
pub(crate) fn heard(printed: Result<()>) -> Result<()> {
    match printed {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        printed => printed,
    }
}

/// Whether an error only says that nobody reads standard output any more.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    // Other errors hold broken pipes too, as of a connection to a database: only this type is output.
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
