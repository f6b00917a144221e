//! Token estimates.

use crate::memory::turn::Turn;

/// Estimates the number of tokens that a model makes of a text.
///
/// Guests' calls invoke it, so it must be fast, even for hostile texts.
pub trait TokenEstimator: Send + Sync + 'static {
    /// Returns the tokens of a text.
    fn tokens(&self, text: &str) -> u64;
}

/// Counts one token more than the bytes divided by four, rounded down.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByteTokens;

impl TokenEstimator for ByteTokens {
    fn tokens(&self, text: &str) -> u64 {
        text.len() as u64 / 4 + 1
    }
}

/// The tokens of a turn's message and response. The rest of the turn does not count.
pub(crate) fn turn_tokens(tokens: &dyn TokenEstimator, turn: &Turn) -> u64 {
    tokens.tokens(&turn.user_message) + tokens.tokens(&turn.assistant_response)
}

/// The tokens of a summary: 0 if it is empty.
pub(crate) fn summary_tokens(tokens: &dyn TokenEstimator, summary: &str) -> u64 {
    if summary.is_empty() { 0 } else { tokens.tokens(summary) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_rule_counts_bytes_and_not_characters() {
        assert_eq!(["", "abc", "abcd", "ääää"].map(|text| ByteTokens.tokens(text)), [1, 1, 2, 3]);
        let turn =
            Turn { user_message: "abcd".into(), artifacts_hidden: vec!["x".repeat(99)], ..Turn::default() };
        assert_eq!(turn_tokens(&ByteTokens, &turn), 3);
        assert_eq!([summary_tokens(&ByteTokens, ""), summary_tokens(&ByteTokens, "a")], [0, 1]);
    }
}
