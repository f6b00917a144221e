//! Transcripts: lines of text, each with its speaker.

use std::io::BufRead;

use larder_guest::Turn;

/// A message and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    /// The line where the message begins.
    pub(crate) line: usize,
    pub(crate) user: String,
    pub(crate) assistant: String,
}

impl Exchange {
    /// Whether a turn has the same text.
    pub(crate) fn is_said_by(&self, turn: &Turn) -> bool {
        self.user == turn.user_message && self.assistant == turn.assistant_response
    }
}

/// Reads one exchange at a time: those before an error are returned, and memory holds one only.
pub(crate) struct Transcript<R> {
    speeches: Speeches<R>,
}

impl<R: BufRead> Transcript<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { speeches: Speeches { input, line: 0, begun: None } }
    }

    fn read(&mut self) -> Result<Option<Exchange>, String> {
        let Some(message) = self.speeches.read()? else {
            return Ok(None);
        };
        if message.speaker == Speaker::Assistant {
            return Err(format!("line {} answers no message; put a line `user: …` before it", message.line));
        }
        match self.speeches.read()? {
            Some(answer) if answer.speaker == Speaker::Assistant => {
                let Speech { line, text, .. } = message;
                Ok(Some(Exchange { line, user: text, assistant: answer.text }))
            }
            Some(second) => Err(format!(
                "line {} is a second message, and the one at line {} has no answer; put a line `assistant: …` \
                 between them",
                second.line, message.line
            )),
            None => Err(format!(
                "the message at line {} has no answer; add a line `assistant: …` after it",
                message.line
            )),
        }
    }
}

impl<R: BufRead> Iterator for Transcript<R> {
    type Item = Result<Exchange, String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaker {
    User,
    Assistant,
}

/// What one speaker says until the next speaker.
struct Speech {
    line: usize,
    speaker: Speaker,
    text: String,
}

impl Speech {
    /// `None` for a line that continues the speech before it.
    fn begin(text: &str, line: usize) -> Option<Self> {
        let (name, text) = text.split_once(':')?;
        let speaker = match name {
            "user" => Speaker::User,
            "assistant" => Speaker::Assistant,
            _ => return None,
        };
        Some(Self { line, speaker, text: text.trim().to_string() })
    }

    fn go_on(&mut self, text: &str) {
        self.text.push('\n');
        self.text.push_str(text);
    }

    /// Removes blank lines at both ends; those inside are kept.
    fn end(mut self) -> Self {
        self.text = self.text.trim().to_string();
        self
    }
}

struct Speeches<R> {
    input: R,
    line: usize,
    /// Ends at the first line of the next speech.
    begun: Option<Speech>,
}

impl<R: BufRead> Speeches<R> {
    fn read(&mut self) -> Result<Option<Speech>, String> {
        while let Some(text) = self.read_line()? {
            let text = text.trim_end();
            match (Speech::begin(text, self.line), &mut self.begun) {
                (Some(next), begun) => {
                    if let Some(ended) = begun.replace(next) {
                        return Ok(Some(ended.end()));
                    }
                }
                (None, Some(begun)) => begun.go_on(text),
                (None, None) if text.is_empty() => {}
                (None, None) => {
                    return Err(format!("line {} has no speaker; put a line `user: …` before it", self.line));
                }
            }
        }
        Ok(self.begun.take().map(Speech::end))
    }

    fn read_line(&mut self) -> Result<Option<String>, String> {
        let mut bytes = Vec::new();
        self.line += 1;
        let line = self.line;
        let count = self
            .input
            .read_until(b'\n', &mut bytes)
            .map_err(|error| format!("cannot read line {line}: {error}"))?;
        if count == 0 {
            return Ok(None);
        }
        String::from_utf8(bytes).map(Some).map_err(|_| format!("line {line} is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Vec<(usize, String, String)>, String> {
        let parts = |exchange: Exchange| (exchange.line, exchange.user, exchange.assistant);
        Transcript::new(text).map(|exchange| exchange.map(parts)).collect()
    }

    fn exchange(line: usize, user: &str, assistant: &str) -> (usize, String, String) {
        (line, user.to_string(), assistant.to_string())
    }

    #[test]
    fn a_message_and_its_answer_are_an_exchange() {
        let text = b"\nuser: One?\nassistant: 1\r\nuser:Two: three?\n\nassistant:\n";
        assert_eq!(read(text).unwrap(), [exchange(2, "One?", "1"), exchange(4, "Two: three?", "")]);
    }

    #[test]
    fn other_lines_belong_to_the_speaker_before() {
        let text = b"user: It says\n\n  error: no disk\nUser: me\n\nassistant: Wait\nfor it";
        let expected = exchange(1, "It says\n\n  error: no disk\nUser: me", "Wait\nfor it");
        assert_eq!(read(text).unwrap(), [expected]);
    }

    #[test]
    fn an_empty_transcript_has_no_exchange() {
        assert_eq!(read(b"").unwrap(), []);
        assert_eq!(read(b"\n \n").unwrap(), []);
    }

    #[test]
    fn what_is_no_transcript_is_refused_with_its_line() {
        let refused: [(&[u8], &str); 6] = [
            (b"\nhello\n", "line 2 has no speaker; put a line `user: \u{2026}` before it"),
            (b"assistant: 1\n", "line 1 answers no message; put a line `user: \u{2026}` before it"),
            (
                b"user: 1\nassistant: 1\nassistant: 2\n",
                "line 3 answers no message; put a line `user: \u{2026}` before it",
            ),
            (
                b"user: 1\n\nuser: 2\nassistant: 2\n",
                "line 3 is a second message, and the one at line 1 has no answer; put a line `assistant: \u{2026}` \
                 between them",
            ),
            (
                b"user: 1\nmore\n",
                "the message at line 1 has no answer; add a line `assistant: \u{2026}` after it",
            ),
            (b"user: 1\nassistant: \xff\n", "line 2 is not UTF-8"),
        ];
        for (text, expected) in refused {
            assert_eq!(read(text).unwrap_err(), expected);
        }
    }

    #[test]
    fn what_comes_before_a_mistake_is_read() {
        let mut transcript = Transcript::new(b"user: 1\nassistant: 1\nuser: 2\nuser: 3\n".as_slice());
        assert_eq!(transcript.next().unwrap().unwrap().user, "1");
        assert!(transcript.next().unwrap().is_err());
    }

    #[test]
    fn the_sample_is_a_transcript() {
        let exchanges = read(include_bytes!("../sample/transcript.txt")).unwrap();
        assert_eq!(exchanges.len(), 12);
    }
}
