//! Where the statements of a text begin and end.
//!
//! The server tells which statement failed only if it is sent alone. The rules are those of `psql`, under the server's default
//! of `standard_conforming_strings`.

use std::ops::Range;

/// The statements of a text in their order, without the semicolons and what stands between them.
pub(crate) fn statements(sql: &str) -> Vec<Range<usize>> {
    let mut scanner = Scanner::new(sql);
    let mut statements = Vec::new();
    while let Some(statement) = scanner.next_statement() {
        statements.push(statement);
    }
    statements
}

struct Scanner<'a> {
    sql: &'a str,
    bytes: &'a [u8],
    at: usize,
}

/// What counts for where a statement ends.
enum Token {
    /// A comment or white space.
    Nothing,
    Semicolon,
    Open,
    Close,
    Word(Range<usize>),
    Other,
}

impl<'a> Scanner<'a> {
    fn new(sql: &'a str) -> Self {
        Self { sql, bytes: sql.as_bytes(), at: 0 }
    }

    fn next_statement(&mut self) -> Option<Range<usize>> {
        let mut begin = None;
        let mut depth = 0_u32;
        let mut body = Body::default();
        loop {
            let at = self.at;
            let Some(token) = self.next_token() else { return begin.map(|begin| begin..self.sql.len()) };
            match token {
                Token::Nothing => continue,
                Token::Semicolon if begin.is_none() => continue,
                Token::Semicolon if depth == 0 && !body.is_open() => return begin.map(|begin| begin..at),
                Token::Open => depth += 1,
                Token::Close => depth = depth.saturating_sub(1),
                Token::Word(word) => body.word(self.sql.get(word).unwrap_or_default(), depth),
                Token::Semicolon | Token::Other => {}
            }
            begin.get_or_insert(at);
        }
    }

    fn next_token(&mut self) -> Option<Token> {
        let byte = self.byte(0)?;
        Some(match byte {
            b';' => self.take(1, Token::Semicolon),
            b'(' => self.take(1, Token::Open),
            b')' => self.take(1, Token::Close),
            b'\'' => self.quoted(b'\'', false),
            b'"' => self.quoted(b'"', false),
            b'-' if self.byte(1) == Some(b'-') => {
                self.skip_past("\n");
                Token::Nothing
            }
            b'/' if self.byte(1) == Some(b'*') => self.comment(),
            b'$' => self.dollar_quoted(),
            byte if byte.is_ascii_whitespace() => self.take(1, Token::Nothing),
            byte if is_in_word(byte) => self.word(),
            _ => self.take(1, Token::Other),
        })
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.bytes.get(self.at + offset).copied()
    }

    fn take(&mut self, length: usize, token: Token) -> Token {
        self.at += length;
        token
    }

    /// Moves behind the next occurrence of a text, or to the end.
    fn skip_past(&mut self, end: &str) {
        let found = self.sql.get(self.at..).and_then(|rest| rest.find(end));
        self.at = found.map_or(self.sql.len(), |found| self.at + found + end.len());
    }

    /// A quote within is doubled: what stands before and behind it counts as two that touch.
    fn quoted(&mut self, quote: u8, has_escapes: bool) -> Token {
        self.at += 1;
        while let Some(byte) = self.byte(0) {
            self.at += if byte == b'\\' && has_escapes { 2 } else { 1 };
            if byte == quote {
                break;
            }
        }
        // An escape may be the last byte, and a character of several bytes may follow it.
        self.at = self.sql.ceil_char_boundary(self.at);
        Token::Other
    }

    /// Comments can stand in comments.
    fn comment(&mut self) -> Token {
        let mut depth = 0_u32;
        loop {
            match (self.byte(0), self.byte(1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Token::Nothing;
                    }
                }
                (Some(_), _) => self.at += 1,
                (None, _) => return Token::Nothing,
            }
        }
    }

    fn dollar_quoted(&mut self) -> Token {
        let tag = self.bytes.get(self.at + 1..).unwrap_or_default().iter();
        let length = tag.take_while(|byte| is_in_word(**byte) && **byte != b'$').count();
        let is_tag =
            !self.byte(1).is_some_and(|first| first.is_ascii_digit()) && self.byte(1 + length) == Some(b'$');
        let begin = self.at;
        self.at += 1;
        if is_tag {
            self.at += length + 1;
            let delimiter = self.sql.get(begin..self.at).unwrap_or_default();
            self.skip_past(delimiter);
        }
        Token::Other
    }

    /// A key word, a name, a number, or the prefix of a literal.
    fn word(&mut self) -> Token {
        let begin = self.at;
        while self.byte(0).is_some_and(is_in_word) {
            self.at += 1;
        }
        match self.bytes.get(begin..self.at) {
            Some(b"e" | b"E") if self.byte(0) == Some(b'\'') => self.quoted(b'\'', true),
            _ => Token::Word(begin..self.at),
        }
    }
}

fn is_in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || !byte.is_ascii()
}

/// Whether a statement is within the body of a function, between `BEGIN ATOMIC` and its `END`.
#[derive(Default)]
struct Body {
    /// How many words there were, as far as they can be those before a function's name.
    words: usize,
    is_function: bool,
    depth: u32,
}

impl Body {
    /// The words that begin the definition of a function; its kind comes at last.
    const BEGINS: [&str; 3] = ["create", "or", "replace"];

    fn is_open(&self) -> bool {
        self.depth > 0
    }

    fn word(&mut self, word: &str, parentheses: u32) {
        let is = |other: &str| word.eq_ignore_ascii_case(other);
        if let Some(expected) = Self::BEGINS.get(self.words).copied().or((self.words == 3).then_some("")) {
            self.is_function = matches!(self.words, 1 | 3) && (is("function") || is("procedure"));
            self.words = if is(expected) { self.words + 1 } else { usize::MAX };
        }
        if !self.is_function || parentheses > 0 {
            return;
        }
        if is("begin") || self.depth > 0 && is("case") {
            self.depth += 1;
        } else if is("end") {
            self.depth = self.depth.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(sql: &str) -> Vec<&str> {
        statements(sql).into_iter().map(|range| &sql[range]).collect()
    }

    #[test]
    fn a_statement_ends_at_its_semicolon_and_what_stands_between_belongs_to_none() {
        assert_eq!(split(" ;; SELECT 1 ; -- a;\n/* b; /* c; */ ; */SELECT 2;;"), ["SELECT 1 ", "SELECT 2"]);
        assert_eq!(split("SELECT 1"), ["SELECT 1"]);
        for nothing in ["", " \n", ";", "-- a", "/* a", "/* /* */"] {
            assert_eq!(split(nothing), [""; 0], "{nothing:?}");
        }
    }

    #[test]
    fn a_semicolon_within_a_statement_does_not_end_it() {
        for sql in [
            "SELECT 'a;b''c;', E'd\\';e\\\\', U&'f;', \"g;\"\"h;\", N'i;'",
            "SELECT $$a;$b$$, $b$ c; $$; $B$; $b$, $größe$;$größe$",
            "SELECT 1 -- a;\n + 2 /* b; */",
            "CREATE RULE r AS ON INSERT TO t DO ALSO (DELETE FROM u; DELETE FROM v)",
            "CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 END; END",
            "create procedure p(begin int) begin atomic insert into t values (1); end",
        ] {
            assert_eq!(split(&format!("{sql};SELECT 2")), [sql, "SELECT 2"]);
        }
    }

    #[test]
    fn what_only_looks_like_more_of_a_statement_is_none() {
        assert_eq!(split("SELECT a$1;SELECT $1$;b$1$"), ["SELECT a$1", "SELECT $1$", "b$1$"]);
        assert_eq!(split("SELECT 'a\\';SELECT 2"), ["SELECT 'a\\'", "SELECT 2"]);
        assert_eq!(split("SELECT type'a\\';SELECT 2"), ["SELECT type'a\\'", "SELECT 2"]);
        assert_eq!(split("CREATE TABLE begin (x int);SELECT 2"), ["CREATE TABLE begin (x int)", "SELECT 2"]);
        assert_eq!(split("SELECT 1);SELECT 2"), ["SELECT 1)", "SELECT 2"]);
        assert_eq!(split("BEGIN;SELECT 2"), ["BEGIN", "SELECT 2"]);
        assert_eq!(split("CREATE TABLE function(x int);SELECT 2").len(), 2);
    }

    #[test]
    fn a_text_that_is_cut_off_anywhere_is_split_without_a_panic() {
        let sql =
            "SELECT E'é\\é', $é$ é $é$, \"é\" /* é /* */ */; CREATE FUNCTION é() BEGIN ATOMIC SELECT 1; END;";
        for end in (0..sql.len()).filter(|end| sql.is_char_boundary(*end)) {
            for statement in statements(&sql[..end]) {
                assert!(sql.get(statement).is_some(), "{end}");
            }
        }
    }
}
