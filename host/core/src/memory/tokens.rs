//! How many tokens a text has.

use crate::memory::turn::Turn;

/// Estimates how many tokens a model makes of a text. It is called on the path of the guest's call: it must be quick,
/// also for hostile texts.
pub trait TokenEstimator: Send + Sync + 'static {
    /// Tokens of a text.
    fn tokens(&self, text: &str) -> u64;
}

/// A token for every four bytes begun: `bytes / 4 + 1`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByteTokens;

impl TokenEstimator for ByteTokens {
    fn tokens(&self, text: &str) -> u64 {
        text.len() as u64 / 4 + 1
    }
}

/// Tokens of a turn: of what the user said and what was answered. The rest is not given to a model.
pub(crate) fn turn_tokens(tokens: &dyn TokenEstimator, turn: &Turn) -> u64 {
    tokens.tokens(&turn.user_message) + tokens.tokens(&turn.assistant_response)
}

/// Tokens of a summary: none where there is no summary.
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
