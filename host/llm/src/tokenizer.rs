//! Tokens as a model counts them.

use bpe_openai::Tokenizer;
use larder_core::TokenEstimator;

/// Counts tokens as OpenAI's models do, with a vocabulary that is part of the program.
///
/// A turn is a guest's text and is counted while the guest waits, so the time must be linear in its bytes whatever they
/// are. `bpe-openai` is so for every text that was tried, with 0.8 microseconds a byte at worst. `tiktoken-rs`, which counts
/// the same, panics from 1 MiB of spaces before a letter on, where its regular expression runs out of stack: that decided.
///
/// | 256 KiB, `o200k_base`, release, one core | `bpe-openai` 0.3.2 | `tiktoken-rs` 0.12.1 |
/// | --- | --- | --- |
/// | one letter | 2.4 ms | 59 ms |
/// | spaces | 1.5 ms | 88 ms |
/// | dashes | 207 ms | 75 ms |
/// | random letters | 28 ms | 76 ms |
/// | random visible ASCII | 27 ms | 31 ms |
/// | words | 8.5 ms | 6.4 ms |
#[derive(Clone, Copy)]
pub struct ModelTokens {
    tokenizer: &'static Tokenizer,
    vocabulary: &'static str,
}

impl ModelTokens {
    /// `o200k_base`: the vocabulary of GPT-4o and of what followed. The first call reads it, in some 60 ms.
    pub fn o200k() -> Self {
        Self { tokenizer: bpe_openai::o200k_base(), vocabulary: "o200k_base" }
    }

    /// `cl100k_base`: the vocabulary of GPT-4 and GPT-3.5. The first call reads it, in some 20 ms.
    pub fn cl100k() -> Self {
        Self { tokenizer: bpe_openai::cl100k_base(), vocabulary: "cl100k_base" }
    }
}

impl std::fmt::Debug for ModelTokens {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("ModelTokens").field(&self.vocabulary).finish()
    }
}

impl TokenEstimator for ModelTokens {
    fn tokens(&self, text: &str) -> u64 {
        self.tokenizer.count(text) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of `tiktoken-rs`.
    #[test]
    fn texts_have_the_tokens_that_the_vocabularies_give_them() {
        let (new, old) = (ModelTokens::o200k(), ModelTokens::cl100k());
        for (text, tokens) in [
            ("", [0, 0]),
            ("a", [1, 1]),
            ("hello world", [2, 2]),
            ("Ann likes tea, and her dog is called Rex.", [11, 11]),
            ("漢字とかな", [4, 6]),
            ("don't 12345", [4, 5]),
            ("  two\n\n\nlines  ", [5, 5]),
            // What stands for the end of a text in a model is text like any other.
            ("<|endoftext|>", [7, 7]),
        ] {
            assert_eq!([new.tokens(text), old.tokens(text)], tokens, "{text}");
        }
        assert_eq!(format!("{new:?} {old:?}"), r#"ModelTokens("o200k_base") ModelTokens("cl100k_base")"#);
    }

    #[test]
    fn hostile_texts_are_counted_to_their_end() {
        let count = |text: &str| [ModelTokens::o200k().tokens(text), ModelTokens::cl100k().tokens(text)];
        let bytes = 256 << 10;
        assert_eq!(count(&"a".repeat(bytes)), [32_768, 32_768]);
        assert_eq!(count(&" ".repeat(bytes)), [2_048, 2_048]);
        assert_eq!(count(&"\n".repeat(bytes)), [16_384, 8_192]);
        assert_eq!(count(&"漢A".repeat(bytes / 4)), [131_072, 196_608]);
        assert_eq!(count(&"-".repeat(bytes)), [4_096, 4_096]);
        assert_eq!(count(&letters(bytes)), [135_529, 141_246]);
        // Where a regular expression that goes back runs out of stack.
        assert_eq!(count(&(" ".repeat(4 << 20) + "x")), [32_770, 32_770]);
    }

    /// Letters that look random, and are always the same.
    fn letters(bytes: usize) -> String {
        let mut state = 7_u32;
        let letter = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b'a' + (state >> 24) as u8 % 26)
        };
        std::iter::repeat_with(letter).take(bytes).collect()
    }
}
