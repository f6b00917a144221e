//! Splits SQL text into statements.
//!
//! The server reports which statement failed only if each one is sent alone. The rules are those of
//! the server's lexer and, for function bodies, of `psql`. They assume that
//! `standard_conforming_strings` is on, which is the default.
//!
//! Text between statements is not sent. It consists of white space, semicolons and closed comments,
//! as the server defines them. Everything else reaches the server, including an unterminated
//! comment or literal, so that the server can reject it.

use std::ops::Range;

/// A statement of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// Its byte range in the text, without the semicolon.
    pub(crate) range: Range<usize>,
    /// Whether it only returns rows, so that a cursor can run it.
    pub(crate) is_query: bool,
}

/// Returns the statements of a text in order.
pub(crate) fn statements(sql: &str) -> Vec<Statement> {
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

/// The tokens that determine where a statement ends.
enum Token {
    /// A closed comment or white space.
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

    fn next_statement(&mut self) -> Option<Statement> {
        let mut begin = None;
        let mut depth = 0_u32;
        let (mut body, mut kind) = (Body::default(), Kind::default());
        let end = loop {
            let at = self.at;
            let Some(token) = self.next_token() else { break at };
            match token {
                Token::Nothing => continue,
                Token::Semicolon if begin.is_none() => continue,
                Token::Semicolon if depth == 0 && !body.is_open() => break at,
                Token::Open => depth += 1,
                Token::Close => depth = depth.saturating_sub(1),
                Token::Word(word) => {
                    let word = self.sql.get(word).unwrap_or_default();
                    body.word(word, depth);
                    kind.word(word);
                }
                Token::Semicolon | Token::Other => {}
            }
            begin.get_or_insert(at);
        };
        begin.map(|begin| Statement { range: begin..end, is_query: kind.is_query() })
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
                self.line_comment();
                Token::Nothing
            }
            b'/' if self.byte(1) == Some(b'*') => self.comment(),
            b'$' => self.dollar_quoted(),
            byte if byte.is_ascii_whitespace() => self.take(1, Token::Nothing),
            byte if byte.is_ascii_digit() => self.digits(),
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

    /// Moves past the next occurrence of `end`, or to the end of the text.
    fn skip_past(&mut self, end: &str) {
        let found = self.sql.get(self.at..).and_then(|rest| rest.find(end));
        self.at = found.map_or(self.sql.len(), |found| self.at + found + end.len());
    }

    /// Moves to the end of the line. A carriage return ends it too.
    fn line_comment(&mut self) {
        while self.byte(0).is_some_and(|byte| !matches!(byte, b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Consumes a quoted identifier or a literal. A quote inside it is doubled.
    fn quoted(&mut self, quote: u8, has_escapes: bool) -> Token {
        self.at += 1;
        while let Some(byte) = self.byte(0) {
            self.at += if byte == b'\\' && has_escapes { 2 } else { 1 };
            if byte == quote && !self.take_doubled(quote) && !(has_escapes && self.take_continuation()) {
                break;
            }
        }
        // The last byte may be a backslash, and a multi-byte character may follow one.
        self.at = self.sql.ceil_char_boundary(self.at);
        Token::Other
    }

    fn take_doubled(&mut self, quote: u8) -> bool {
        let is_doubled = self.byte(0) == Some(quote);
        self.at += usize::from(is_doubled);
        is_doubled
    }

    /// Continues a literal on a later line, with the escapes of its beginning.
    ///
    /// A literal without escapes needs no special treatment: its continuation is scanned as another
    /// literal.
    fn take_continuation(&mut self) -> bool {
        let end = self.at;
        let mut has_newline = false;
        while let Some(byte) = self.byte(0) {
            match byte {
                b'\'' if has_newline => {
                    self.at += 1;
                    return true;
                }
                b'-' if self.byte(1) == Some(b'-') => self.line_comment(),
                // Postgres 16 and later treat the vertical tab as white space. Earlier versions
                // reject it here.
                b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c' => {
                    has_newline |= matches!(byte, b'\n' | b'\r');
                    self.at += 1;
                }
                _ => break,
            }
        }
        self.at = end;
        false
    }

    /// Consumes a comment. Comments nest. An unterminated one is left for the server to reject.
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
                (None, _) => return Token::Other,
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

    /// Consumes the leading digits of a number. Unlike in a word, a dollar quote may follow them.
    fn digits(&mut self) -> Token {
        while self.byte(0).is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        Token::Other
    }

    /// Consumes a keyword, an identifier, or the prefix of a literal.
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

/// Tracks whether the scanner is inside a function body, between `BEGIN ATOMIC` and its `END`.
#[derive(Default)]
struct Body {
    /// The number of words so far, while they may be the words before a function's name.
    words: usize,
    is_function: bool,
    depth: u32,
}

impl Body {
    /// The words that begin the definition of a function. The word `FUNCTION` or `PROCEDURE`
    /// follows.
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

/// What a statement does, judged by its words.
#[derive(Default)]
struct Kind {
    begins_query: bool,
    has_words: bool,
    /// Whether it may write, or create a table for its result.
    may_write: bool,
}

impl Kind {
    fn word(&mut self, word: &str) {
        let is_one_of = |others: &[&str]| others.iter().any(|other| word.eq_ignore_ascii_case(other));
        if !self.has_words {
            self.begins_query = is_one_of(&["select", "values", "table", "with"]);
            self.has_words = true;
        }
        // INSERT and MERGE contain INTO.
        self.may_write |= is_one_of(&["into", "update", "delete"]);
    }

    fn is_query(&self) -> bool {
        self.begins_query && !self.may_write
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(sql: &str) -> Vec<&str> {
        statements(sql).into_iter().map(|statement| &sql[statement.range]).collect()
    }

    #[test]
    fn a_statement_ends_at_its_semicolon_and_what_stands_between_belongs_to_none() {
        assert_eq!(split(" ;; SELECT 1 ; -- a;\n/* b; /* c; */ ; */SELECT 2;;"), ["SELECT 1 ", "SELECT 2"]);
        assert_eq!(split("SELECT 1"), ["SELECT 1"]);
        for nothing in ["", " \n", ";", "-- a", "--", "/**/", "/* a */", "/* /* */ */", "/* /**/ -- */"] {
            assert_eq!(split(nothing), [""; 0], "{nothing:?}");
        }
    }

    #[test]
    fn a_comment_that_does_not_end_is_left_to_the_server() {
        assert_eq!(
            split("SELECT 1;\n/* files in src/*.sql */\nSELECT 2;"),
            ["SELECT 1", "/* files in src/*.sql */\nSELECT 2;"]
        );
        let banner = "/*//////////\n// part 2 //\n//////////*/\nSELECT 2";
        assert_eq!(split(&format!("SELECT 1;{banner}")), ["SELECT 1", banner]);
        for open in ["/*", "/* a", "/* /* */", "/*/", "/* *", "/* -- */ /* "] {
            assert_eq!(split(open).len(), 1, "{open:?}");
        }
    }

    #[test]
    fn a_carriage_return_ends_a_comment() {
        assert_eq!(
            split("SELECT 1; -- one\rSELECT 2;-- two\r\nSELECT 3"),
            ["SELECT 1", "SELECT 2", "SELECT 3"]
        );
        assert_eq!(split("-- one\rSELECT 1;\r-- two\rSELECT 2\r"), ["SELECT 1", "SELECT 2\r"]);
    }

    #[test]
    fn a_literal_goes_on_with_the_escapes_that_it_began_with() {
        for sql in [
            "SELECT E'one'\n'two\\';three'",
            "SELECT e'one' \t-- two\r --three\n'fo\\'ur;'\x0b\x0c\n 'fi\\';ve'",
            "SELECT E'one''two\\';three'",
            "SELECT E''''\n'\\';two'",
            "SELECT 'one\\'\n'two\\';",
        ] {
            assert_eq!(split(&format!("{};SELECT 2", sql.trim_end_matches(';'))).len(), 2, "{sql:?}");
        }
        // White space without a line break, and block comments, end a literal.
        for sql in ["SELECT E'one' 'two\\'", "SELECT E'one' /* */\n'two\\'", "SELECT E'one'\n/* */ 'two\\'"] {
            assert_eq!(split(&format!("{sql};SELECT 2")), [sql, "SELECT 2"]);
        }
    }

    #[test]
    fn what_only_returns_rows_is_a_query() {
        let is_query =
            |sql: &str| statements(sql).iter().map(|statement| statement.is_query).collect::<Vec<_>>();
        assert_eq!(
            is_query(
                "/* a */ SELECT 1; ((select 1) UNION VALUES (2));TABLE a;WITH a AS (VALUES (1)) TABLE a"
            ),
            [true; 4]
        );
        for sql in [
            "INSERT INTO a SELECT 1",
            "SELECT 1 INTO a",
            "WITH a AS (SELECT 1) INSERT INTO b TABLE a",
            "WITH a AS (DELETE FROM b RETURNING *) SELECT 1",
            "WITH a AS (SELECT 1) UPDATE b SET x = 1",
            "CREATE TABLE a AS SELECT 1",
            "'select'",
            "\"select\" 1",
            "$1",
        ] {
            assert_eq!(is_query(sql), [false], "{sql:?}");
        }
    }

    /// Returns the part of a gap between statements that would be lost. An independent
    /// implementation, character by character.
    fn lost(gap: &str) -> &str {
        let mut rest = gap;
        loop {
            rest = rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c', ';']);
            if rest.starts_with("--") {
                rest = rest.find(['\n', '\r']).map_or("", |end| &rest[end..]);
                continue;
            }
            let mut depth = 0;
            let closed = (0..rest.len()).filter(|at| rest.is_char_boundary(*at)).scan(0, |free, at| {
                let mark = rest.get(at..at + 2).filter(|_| at >= *free);
                match mark {
                    Some("/*") => depth += 1,
                    Some("*/") => depth -= 1,
                    _ if depth > 0 => return Some((at, depth)),
                    _ => return None,
                }
                *free = at + 2;
                Some((at + 2, depth))
            });
            match closed.skip(1).find(|(_, depth)| *depth == 0) {
                Some((end, _)) if rest.starts_with("/*") => rest = &rest[end..],
                _ => return rest,
            }
        }
    }

    #[test]
    fn all_but_blanks_and_closed_comments_reaches_the_server() {
        const PIECES: [&str; 30] = [
            "/*",
            "*/",
            "/",
            "*",
            "--",
            "-",
            "\n",
            "\r",
            " ",
            ";",
            ";",
            "'",
            "'",
            "E'",
            "\\",
            "\"",
            "$$",
            "$a$",
            "$",
            "1",
            "e",
            "U&'",
            "(",
            ")",
            "é",
            "\x0b",
            "\x0c",
            "x",
            "/**/",
            "CREATE FUNCTION begin end",
        ];
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
        };
        for _ in 0..50_000 {
            let text: String = (0..random(16)).map(|_| PIECES[random(PIECES.len())]).collect();
            let mut begin = 0;
            for Statement { range, .. } in statements(&text) {
                assert_eq!(lost(&text[begin..range.start]), "", "before {range:?} of {text:?}");
                assert!(!range.is_empty(), "{text:?}");
                begin = range.end;
            }
            assert_eq!(lost(&text[begin..]), "", "at the end of {text:?}");
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
                assert!(sql.get(statement.range).is_some(), "{end}");
            }
        }
    }
}
