//! The procedural macros of `larder-guest`. Guests use them through `larder_guest::migration!`.

mod checksum;

use proc_macro2::{Literal, TokenStream};

/// Expands to the SHA-256 of Rust tokens, as an array of 32 bytes.
#[proc_macro]
pub fn checksum(tokens: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let digest = checksum::of(tokens.into());
    let text = format!("[{}]", digest.map(|byte| Literal::u8_suffixed(byte).to_string()).join(", "));
    // Parsing cannot fail: the text is an array of 32 literals.
    text.parse::<TokenStream>().unwrap_or_default().into()
}
