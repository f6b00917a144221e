//! Language models for larder's conversations.
//!
//! [`HttpSummarizer`] lets a model make the summaries. `ModelTokens` counts tokens as a model does.
//!
#![cfg_attr(feature = "http", doc = "```no_run")]
#![cfg_attr(not(feature = "http"), doc = "```ignore")]
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use larder_core::Summarizer;
//! use larder_llm::{ApiKey, HttpOptions, HttpSummarizer};
//!
//! let options = HttpOptions::new("https://api.openai.com/v1", "gpt-4o-mini")
//!     .key(ApiKey::from_env("OPENAI_API_KEY")?);
//! let summarizer: Box<dyn Summarizer> = Box::new(HttpSummarizer::new(options)?);
//! # Ok(()) }
//! ```
//!
//! # Features
//!
//! - `http`, on by default, is the summarizer.
//! - `tokenizer` is `ModelTokens`. It adds the vocabularies in use to the program.

#[cfg(feature = "http")]
mod http;
#[cfg(feature = "tokenizer")]
mod tokenizer;

#[cfg(feature = "http")]
pub use http::{ApiKey, HttpError, HttpOptions, HttpOptionsError, HttpSummarizer, TokenField};
#[cfg(feature = "tokenizer")]
pub use tokenizer::ModelTokens;

/// The program of the README, as a test.
#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../README.md")]
struct Readme;
