//! What the command line prints. A closed pipe and a full device are errors here, and never panics.

use std::fmt;
use std::io::{self, Write};

use anyhow::Result;

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
pub(crate) struct Output(io::Stdout);

/// Standard output.
pub(crate) fn output() -> Output {
    Output(io::stdout())
}

impl Output {
    /// Writes what `write!` and `writeln!` format.
    pub(crate) fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> Result<(), OutputError> {
        self.0.lock().write_fmt(text).map_err(OutputError)
    }

    /// Writes all of these bytes, also those of a line that does not end.
    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        let mut output = self.0.lock();
        output.write_all(bytes).and_then(|()| output.flush()).map_err(OutputError)
    }
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
