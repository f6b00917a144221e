//! The position of an error in a step's file.

use std::fmt;
use std::ops::Range;

/// The statement of a step that failed, and its line.
///
/// ```
/// use larder_schema::StepPosition;
///
/// let sql = "CREATE TABLE a (x);\n\nINSERT INTO b\n    VALUES (1)";
/// let position = StepPosition::new(sql, 21..sql.len(), None);
/// assert_eq!(position.line(), 3);
/// assert_eq!(position.statement(), "INSERT INTO b VALUES (1)");
/// assert_eq!(position.to_string(), "line 3, at \"INSERT INTO b VALUES (1)\"");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPosition {
    line: usize,
    statement: String,
}

impl StepPosition {
    /// The number of characters of a statement that are kept.
    const STATEMENT_MAX: usize = 80;

    /// Creates the position of a statement, given by its byte range in the step's text.
    ///
    /// `error` is the byte of the text at which the database reports the error, if it reports one.
    pub fn new(sql: &str, statement: Range<usize>, error: Option<usize>) -> Self {
        let before = sql.as_bytes().get(..error.unwrap_or(statement.start)).unwrap_or(sql.as_bytes());
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Self { line, statement: shortened(sql.get(statement).unwrap_or_default()) }
    }

    /// The line of the error in the file, counted from 1.
    ///
    /// It is the line of the statement if the database reports no position.
    pub fn line(&self) -> usize {
        self.line
    }

    /// The beginning of the statement, on one line.
    pub fn statement(&self) -> &str {
        &self.statement
    }
}

impl fmt::Display for StepPosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}, at {:?}", self.line, self.statement)
    }
}

/// The beginning of a text, with each run of white space replaced by one space.
fn shortened(text: &str) -> String {
    let mut shortened = String::new();
    // Bounds the work: a word may be a literal of many megabytes.
    let mut characters = text.chars().take(4 * StepPosition::STATEMENT_MAX).peekable();
    let mut count = 0;
    while let Some(character) = characters.next() {
        if count == StepPosition::STATEMENT_MAX {
            shortened.push('…');
            return shortened;
        }
        if !character.is_whitespace() {
            shortened.push(character);
        } else if characters.peek().is_some_and(|next| !next.is_whitespace()) {
            shortened.push(' ');
        } else {
            continue;
        }
        count += 1;
    }
    shortened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_that_of_the_error_and_else_that_of_the_statement() {
        let sql = "one;\ntwo\nthree";
        assert_eq!(StepPosition::new(sql, 0..4, None).line(), 1);
        assert_eq!(StepPosition::new(sql, 5..14, None).line(), 2);
        assert_eq!(StepPosition::new(sql, 5..14, Some(9)).line(), 3);
    }

    #[test]
    fn a_position_beyond_the_text_or_within_a_character_is_no_panic() {
        for (statement, error) in [(99_usize, None), (1, None), (0, Some(99)), (0, Some(1))] {
            assert_eq!(StepPosition::new("é", statement..statement + 1, error).line(), 1);
        }
    }

    #[test]
    fn a_statement_is_shortened_and_on_one_line() {
        let sql = format!("SELECT  '\n\n{}'", "é".repeat(1_000_000));
        let position = StepPosition::new(&sql, 0..sql.len(), None);
        assert_eq!(position.statement(), format!("SELECT ' {}…", "é".repeat(71)));
    }
}
