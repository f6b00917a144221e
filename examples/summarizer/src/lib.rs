//! Makes summaries for a host without a model: what the user asked, a line for each turn. The same conversation always
//! has the same summary, so it suits tests, and hosts that may not send a conversation anywhere.

mod summary;

use larder_guest::{Summarizer, SummaryRequest, export_summarizer};

struct KeywordSummarizer;

impl Summarizer for KeywordSummarizer {
    fn summarize(request: SummaryRequest) -> Result<String, String> {
        Ok(summary::summarize(&request))
    }
}

export_summarizer!(KeywordSummarizer);
