//! The summary: text in, text out.

use larder_guest::SummaryRequest;

/// Prefix of the line of a turn.
const ASKED: &str = "- user asked: ";

/// Characters kept of a question.
const QUESTION_CHARACTERS: usize = 120;

/// Bytes of a token, by the default estimate of the host.
const TOKEN_BYTES: u64 = 4;

/// Joins the lines of the previous summary and a line for each new turn, as many of the newest as
/// fit.
pub(crate) fn summarize(request: &SummaryRequest) -> String {
    let kept = request.previous_summary.lines().flat_map(units);
    let asked = request.turns.iter().filter_map(|turn| line(&turn.user_message));
    let lines: Vec<String> = kept.chain(asked).collect();
    match request.max_tokens {
        None => lines.join("\n"),
        Some(tokens) => {
            newest(&lines, usize::try_from(tokens.saturating_mul(TOKEN_BYTES)).unwrap_or(usize::MAX))
        }
    }
}

/// Splits a line of the previous summary into parts that can be dropped separately. A question is
/// one part. Any other line, which another summarizer may have written, is split into its
/// sentences.
fn units(line: &str) -> Vec<String> {
    let mut rest = line.trim();
    if rest.starts_with(ASKED) {
        return vec![rest.to_string()];
    }
    let mut units = Vec::new();
    while !rest.is_empty() {
        let (sentence, after) = split_sentence(rest);
        units.push(sentence.to_string());
        rest = after.trim_start();
    }
    units
}

/// The line of a turn; `None` if the message is blank.
fn line(message: &str) -> Option<String> {
    let first = message.lines().map(str::trim).find(|line| !line.is_empty())?;
    let (sentence, _) = split_sentence(first);
    Some(format!("{ASKED}{}", cut_characters(sentence, QUESTION_CHARACTERS)))
}

/// Splits after the first sentence. A sentence ends after `.`, `!` or `?` if a space follows: not
/// within `3.5`.
fn split_sentence(text: &str) -> (&str, &str) {
    let mut characters = text.char_indices().peekable();
    while let Some((_, character)) = characters.next() {
        match characters.peek() {
            Some((at, next)) if ".!?".contains(character) && next.is_whitespace() => {
                return text.split_at(*at);
            }
            _ => {}
        }
    }
    (text, "")
}

fn cut_characters(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// Joins the newest lines that fit in `bytes`. If the newest line alone does not fit, it is cut:
/// the host rejects a summary that is too long, and an empty one would lose everything.
fn newest(lines: &[String], bytes: usize) -> String {
    let mut left = bytes;
    let mut first = lines.len();
    for line in lines.iter().rev() {
        // Every line but the last has a line end.
        let taken = line.len() + usize::from(first < lines.len());
        let Some(rest) = left.checked_sub(taken) else { break };
        left = rest;
        first -= 1;
    }
    match lines.get(first..) {
        Some(fitting) if !fitting.is_empty() => fitting.join("\n"),
        _ => lines.last().map(|line| cut_bytes(line, bytes).to_string()).unwrap_or_default(),
    }
}

fn cut_bytes(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use larder_guest::Turn;

    use super::*;

    fn request(previous: &str, messages: &[&str], max_tokens: Option<u64>) -> SummaryRequest {
        SummaryRequest {
            previous_summary: previous.to_string(),
            turns: messages.iter().map(|message| Turn::new(*message, "an answer")).collect(),
            max_tokens,
            ..SummaryRequest::default()
        }
    }

    fn summary(previous: &str, messages: &[&str], max_tokens: Option<u64>) -> String {
        summarize(&request(previous, messages, max_tokens))
    }

    #[test]
    fn each_turn_has_a_line_with_the_first_sentence_of_its_message() {
        let messages = ["Is 3.5 supported? I have 3.4.", "\n  thanks  \nbye"];
        assert_eq!(summary("", &messages, None), "- user asked: Is 3.5 supported?\n- user asked: thanks");
    }

    #[test]
    fn the_previous_summary_stays_before_the_new_lines() {
        let first = summary("", &["One? More."], None);
        assert_eq!(summary(&first, &["Two."], None), "- user asked: One?\n- user asked: Two.");
    }

    #[test]
    fn prose_of_another_summarizer_is_kept_by_its_sentences() {
        assert_eq!(
            summary("Ann has a laptop. It is  broken!\n\nShe waits", &["So?"], None),
            "Ann has a laptop.\nIt is  broken!\nShe waits\n- user asked: So?"
        );
    }

    #[test]
    fn a_long_sentence_is_cut_by_characters() {
        let cut = summary("", &["ä".repeat(121).as_str()], None);
        assert_eq!(cut, format!("- user asked: {}…", "ä".repeat(119)));
        let whole = "ä".repeat(120);
        assert_eq!(summary("", &[whole.as_str()], None), format!("- user asked: {whole}"));
    }

    #[test]
    fn a_message_that_says_nothing_has_no_line() {
        assert_eq!(summary("", &["", " \n\t"], None), "");
        assert_eq!(summary("", &[], Some(0)), "");
    }

    #[test]
    fn the_oldest_lines_are_dropped_where_the_tokens_do_not_hold_all() {
        let messages = ["aa", "bb", "cc"];
        // Each line has 16 bytes, and one more for its line end.
        assert_eq!(summary("", &messages, Some(13)).lines().count(), 3);
        assert_eq!(summary("", &messages, Some(12)), "- user asked: bb\n- user asked: cc");
        assert_eq!(summary("Before.", &messages, Some(8)), "- user asked: cc");
    }

    #[test]
    fn a_line_that_does_not_fit_alone_is_cut_within_its_tokens() {
        assert_eq!(summary("", &["old", "ää"], Some(4)), "- user asked: ä");
        assert_eq!(summary("", &["old", "new"], Some(0)), "");
    }

    #[test]
    fn no_bound_is_ever_exceeded_and_the_same_request_has_the_same_summary() {
        let messages = ["First. Second.", "größer als zuvor?", "…", "x! y"];
        for tokens in 0..40 {
            let request = request("Something before. And more.", &messages, Some(tokens));
            let summary = summarize(&request);
            assert!(summary.len() as u64 <= tokens * TOKEN_BYTES, "{tokens}: {summary:?}");
            assert_eq!(summarize(&request), summary);
        }
        assert_eq!(summary("A.", &messages, Some(u64::MAX)), summary("A.", &messages, None));
    }
}
