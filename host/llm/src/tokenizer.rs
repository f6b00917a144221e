//! Token counts of OpenAI's models.

use bpe_openai::Tokenizer;
use larder_core::TokenEstimator;

/// A token estimator with the vocabularies of OpenAI's models.
///
/// The vocabulary is part of the program. Turns are texts of guests and are counted while the guest
/// waits, so the time must be linear in their bytes, even for hostile texts. `bpe-openai` was
/// linear for every text tried, with 0.8 µs per byte at worst. `tiktoken-rs` counts the same, but
/// its regular expression runs out of stack: it panics on 1 MiB or more of spaces before a letter.
/// Therefore larder uses `bpe-openai`.
///
/// | 256 KiB, `o200k_base`, release, one core | `bpe-openai` 0.3.2 | `tiktoken-rs` 0.12.1 |
/// | --- | --- | --- |
/// | one letter | 2.4 ms | 59 ms |
/// | spaces | 1.5 ms | 88 ms |
/// | dashes | 207 ms | 75 ms |
/// | random letters | 28 ms | 76 ms |
/// | random visible ASCII | 27 ms | 31 ms |
/// | words | 8.5 ms | 6.4 ms |
///
/// ```
/// use larder_core::TokenEstimator;
/// use larder_llm::ModelTokens;
///
/// assert_eq!(ModelTokens::o200k().tokens("hello world"), 2);
/// ```
#[derive(Clone, Copy)]
pub struct ModelTokens {
    tokenizer: &'static Tokenizer,
    vocabulary: &'static str,
}

impl ModelTokens {
    /// Uses `o200k_base`, the vocabulary of GPT-4o and later models.
    ///
    /// The first call loads it, which takes about 60 ms.
    pub fn o200k() -> Self {
        Self { tokenizer: bpe_openai::o200k_base(), vocabulary: "o200k_base" }
    }

    /// Uses `cl100k_base`, the vocabulary of GPT-4 and GPT-3.5.
    ///
    /// The first call loads it, which takes about 20 ms.
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

    /// The expected numbers are those of `tiktoken-rs`.
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
            // A model's special token is ordinary text here.
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
        // A backtracking regular expression runs out of stack here.
        assert_eq!(count(&(" ".repeat(4 << 20) + "x")), [32_770, 32_770]);
    }

    /// Pseudo-random letters, the same in every run.
    fn letters(bytes: usize) -> String {
        let mut state = 7_u32;
        let letter = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b'a' + (state >> 24) as u8 % 26)
        };
        std::iter::repeat_with(letter).take(bytes).collect()
    }
}
