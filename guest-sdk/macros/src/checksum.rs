//! The checksum of Rust tokens.
//!
//! Stores keep checksums permanently, so the input of the hash and its order must never change. The
//! input does not depend on anything that a compiler may change, such as the way it prints tokens
//! or groups them invisibly.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use sha2::{Digest, Sha256};

/// The start of every input. A different way to hash would use a different start.
const FORMAT: &[u8] = b"larder migration tokens 1\0";

/// SHA-256 of the tokens: identifiers, literals as written, punctuation, and nesting. White space,
/// comments and documentation have no effect.
pub(crate) fn of(tokens: TokenStream) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(FORMAT);
    feed(&mut hash, tokens);
    hash.finalize().into()
}

fn feed(hash: &mut Sha256, tokens: TokenStream) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                // A documentation comment becomes `#[doc = …]` or `#![doc = …]`.
                let inner =
                    tokens.next_if(|next| matches!(next, TokenTree::Punct(next) if next.as_char() == '!'));
                if tokens.next_if(is_documentation).is_some() {
                    continue;
                }
                feed_text(hash, b'P', "#");
                if inner.is_some() {
                    feed_text(hash, b'P', "!");
                }
            }
            // The spacing of punctuation is ignored, because compilers have disagreed about it.
            TokenTree::Punct(punct) => feed_text(hash, b'P', punct.as_char().encode_utf8(&mut [0; 4])),
            TokenTree::Ident(ident) => feed_text(hash, b'I', &ident.to_string()),
            TokenTree::Literal(literal) => feed_text(hash, b'L', &literal.to_string()),
            TokenTree::Group(group) => feed_group(hash, &group),
        }
    }
}

fn feed_group(hash: &mut Sha256, group: &Group) {
    let (open, close) = match group.delimiter() {
        Delimiter::Parenthesis => ("(", ")"),
        Delimiter::Brace => ("{", "}"),
        Delimiter::Bracket => ("[", "]"),
        // A compiler adds these groups if a macro passes its arguments on. They are not in the
        // source.
        Delimiter::None => return feed(hash, group.stream()),
    };
    feed_text(hash, b'G', open);
    feed(hash, group.stream());
    feed_text(hash, b'G', close);
}

/// Feeds a text with its length before it, so that different token sequences give different bytes.
fn feed_text(hash: &mut Sha256, kind: u8, text: &str) {
    hash.update([kind]);
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
}

fn is_documentation(token: &TokenTree) -> bool {
    let TokenTree::Group(group) = token else { return false };
    let mut inside = group.stream().into_iter();
    let is_doc = matches!(inside.next(), Some(TokenTree::Ident(name)) if name == "doc");
    let is_assigned = matches!(inside.next(), Some(TokenTree::Punct(punct)) if punct.as_char() == '=');
    group.delimiter() == Delimiter::Bracket && is_doc && is_assigned
}

#[cfg(test)]
mod tests {
    use proc_macro2::Group;

    use super::*;

    fn hash(source: &str) -> [u8; 32] {
        of(source.parse().unwrap())
    }

    #[test]
    fn formatting_and_comments_change_nothing() {
        let plain = hash(r#"|tx| { tx.put("a", "b", "1")?; Ok(()) }"#);
        let formatted = r#"
            | tx | {
                // Why it is done.
                tx . put ( "a" , "b" , /* one */ "1" ) ? ;
                /// What it is for.
                /** And more. */
                Ok( ( ) )
            }"#;
        assert_eq!(hash(formatted), plain);
        assert_eq!(hash("x=-1"), hash("x = - 1"));
    }

    #[test]
    fn every_token_counts() {
        let bodies = [
            "|tx| { tx.put(1) }",
            "|tx| { tx.put(2) }",
            "|tx| { tx.put(1u8) }",
            "|tx| { tx.put('1') }",
            "|tx| { tx.put(\"1\") }",
            "|tx| { tx.put(r\"1\") }",
            "|tx| { tx.put(1,) }",
            "|tx| { tx.put[1] }",
            "|tx| { tx.put{1} }",
            "|tx| { tx.put(1); }",
            "|tx| { (tx.put(1)) }",
            "|tx| { tx.get(1) }",
            "|xt| { xt.put(1) }",
            "|tx| { #[inline] tx.put(1) }",
            "|tx| { #![inline] tx.put(1) }",
            "|tx| { #[doc(hidden)] tx.put(1) }",
            "move |tx| { tx.put(1) }",
        ];
        let hashes: std::collections::HashSet<_> = bodies.iter().map(|body| hash(body)).collect();
        assert_eq!(hashes.len(), bodies.len());
    }

    #[test]
    fn neighbours_do_not_run_together() {
        assert_ne!(hash("ab c"), hash("a bc"));
        assert_ne!(hash("(a) b"), hash("(a b)"));
        assert_ne!(hash("a"), hash("\"a\""));
    }

    #[test]
    fn groups_that_only_the_compiler_sees_change_nothing() {
        let tokens: TokenStream = "a + b".parse().unwrap();
        let grouped = TokenTree::from(Group::new(Delimiter::None, tokens.clone()));
        assert_eq!(of(grouped.into()), of(tokens));
    }

    /// If this checksum changes, every store reports that its migrations were edited.
    #[test]
    fn the_checksum_of_a_step_is_what_it_was_in_every_release() {
        let digest: String = hash(r#"|tx| { tx.put("tasks", "schema", b"1")?; Ok(()) }"#)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(digest, "0237c4286d9e8e97deedfb3c709dfbc112179017085e4a0342e1b36f5c8224a3");
    }
}
