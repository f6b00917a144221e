//! What `larder-guest` computes at compile time. Guests use it through `larder_guest::migration!`.

mod checksum;

use proc_macro2::{Literal, TokenStream};

/// SHA-256 of Rust tokens, as an array of 32 bytes.
#[proc_macro]
pub fn checksum(tokens: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let digest = checksum::of(tokens.into());
    let text = format!("[{}]", digest.map(|byte| Literal::u8_suffixed(byte).to_string()).join(", "));
    // Thirty-two literals in brackets are Rust.
    text.parse::<TokenStream>().unwrap_or_default().into()
}
