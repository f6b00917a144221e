//! Summarizes conversations without a model: one line for each turn, with the question of the user.
//! The same conversation always has the same summary, so it suits tests, and hosts that must not
//! send a conversation elsewhere.

mod summary;

use larder_guest::{Summarizer, SummaryRequest, export_summarizer};

struct KeywordSummarizer;

impl Summarizer for KeywordSummarizer {
    fn summarize(request: SummaryRequest) -> Result<String, String> {
        Ok(summary::summarize(&request))
    }
}

export_summarizer!(KeywordSummarizer);
