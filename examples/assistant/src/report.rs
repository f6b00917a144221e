//! The context of a model as text.

use larder_guest::{ContextPatch, Health, Strategy};

/// Characters shown of a line.
const LINE_CHARACTERS: usize = 90;

/// Formats the context, each part shortened to a line.
pub(crate) fn report(context: &ContextPatch, health: Health) -> String {
    let over_budget = if context.over_budget { ", over the budget" } else { "" };
    let first = format!(
        "  {}, {}, {} tokens{over_budget}",
        strategy_name(context.strategy),
        health_name(health),
        context.tokens
    );
    let summary = context.summary.lines().map(|line| format!("  | {}", shorten(line)));
    let turns = context.recent_turns.iter().flat_map(|turn| {
        let (user, assistant) = (shorten(&turn.user_message), shorten(&turn.assistant_response));
        [format!("  user: {user}"), format!("  assistant: {assistant}")]
    });
    let lines: Vec<String> = std::iter::once(first).chain(summary).chain(turns).collect();
    lines.join("\n") + "\n"
}

fn strategy_name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::None => "none",
        Strategy::Truncation => "truncation",
        Strategy::RollingSummary => "rolling-summary",
    }
}

fn health_name(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Retry => "retry",
        Health::Degraded => "degraded",
        Health::Recovering => "recovering",
    }
}

fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= LINE_CHARACTERS {
        return line;
    }
    let kept: String = line.chars().take(LINE_CHARACTERS - 1).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use larder_guest::Turn;

    use super::*;

    #[test]
    fn a_report_has_a_line_for_each_part() {
        let context = ContextPatch {
            strategy: Strategy::RollingSummary,
            summary: "first\nsecond".to_string(),
            recent_turns: vec![Turn::new("And\n\nnow?", "x".repeat(91))],
            tokens: 7,
            over_budget: true,
        };
        let expected = format!(
            "  rolling-summary, retry, 7 tokens, over the budget\n  | first\n  | second\n  user: And now?\n  assistant: {}…\n",
            "x".repeat(89)
        );
        assert_eq!(report(&context, Health::Retry), expected);
    }

    #[test]
    fn an_empty_context_is_one_line() {
        let context = ContextPatch {
            strategy: Strategy::None,
            summary: String::new(),
            recent_turns: Vec::new(),
            tokens: 0,
            over_budget: false,
        };
        assert_eq!(report(&context, Health::Healthy), "  none, healthy, 0 tokens\n");
    }
}
