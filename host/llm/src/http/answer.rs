//! The answer of an endpoint.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::error::Category;

use super::HttpError;

#[derive(serde::Deserialize)]
struct Answer {
    #[serde(default)]
    choices: FirstChoice,
}

/// The first choice of a list. The others are skipped and not kept, because a list of a million
/// empty choices would take far more memory than its bytes.
#[derive(Default)]
struct FirstChoice(Option<Choice>);

#[derive(serde::Deserialize)]
struct Choice {
    message: Option<Message>,
    finish_reason: Option<String>,
}

#[derive(serde::Deserialize)]
struct Message {
    content: Option<String>,
}

impl<'de> Deserialize<'de> for FirstChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;
        impl<'de> Visitor<'de> for First {
            type Value = FirstChoice;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of choices")
            }

            fn visit_unit<E>(self) -> Result<FirstChoice, E> {
                Ok(FirstChoice(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut choices: A) -> Result<FirstChoice, A::Error> {
                let first = choices.next_element()?;
                while choices.next_element::<IgnoredAny>()?.is_some() {}
                Ok(FirstChoice(first))
            }
        }
        deserializer.deserialize_any(First)
    }
}

/// Extracts the summary from an answer.
pub(super) fn summary(body: &[u8]) -> Result<String, HttpError> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| broken(&error))?;
    let choice = answer.choices.0.ok_or(HttpError::NoChoices)?;
    match choice.finish_reason.as_deref() {
        Some("length") => return Err(HttpError::Cut),
        Some("content_filter") => return Err(HttpError::Filtered),
        _ => {}
    }
    let content = choice.message.and_then(|message| message.content).unwrap_or_default();
    match content.trim() {
        "" => Err(HttpError::Empty),
        summary => Ok(summary.to_string()),
    }
}

/// Keeps only the position of the parser's error, because its text repeats parts of the answer.
fn broken(error: &serde_json::Error) -> HttpError {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        Category::Data => HttpError::NotCompletion { line, column },
        Category::Io | Category::Syntax | Category::Eof => HttpError::NotJson { line, column },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(body: &str) -> String {
        summary(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_first_choice_is_taken_and_trimmed() {
        let body = r#"{"id": 7, "choices": [{"finish_reason": null, "message": {"role": "assistant",
            "content": "\n  Ann likes tea. \t", "refusal": null}}, {"message": "another"}, 3], "usage": {}}"#;
        assert_eq!(summary(body.as_bytes()).unwrap(), "Ann likes tea.");
    }

    #[test]
    fn what_is_no_json_is_told_by_its_position() {
        for (body, line, column) in
            [("", 1, 0), ("<html>secret", 1, 1), ("{\n\"choices\": [", 2, 12), ("{} x", 1, 4)]
        {
            let error = summary(body.as_bytes()).unwrap_err();
            let HttpError::NotJson { line: found, column: at } = error else { panic!("{body:?}: {error:?}") };
            assert_eq!((found, at), (line, column), "{body:?}");
        }
        assert!(matches!(summary(b"\xff{}").unwrap_err(), HttpError::NotJson { .. }));
        let nested = format!("{{\"x\": {}", "[".repeat(100_000));
        assert!(matches!(summary(nested.as_bytes()).unwrap_err(), HttpError::NotJson { .. }));
    }

    #[test]
    fn json_of_another_shape_is_no_completion_and_its_text_is_not_repeated() {
        for body in [
            r#""hush""#,
            r#"{"choices": "hush"}"#,
            r#"{"choices": ["hush"]}"#,
            r#"{"choices": [{"message": {"content": ["hush"]}}]}"#,
            r#"{"choices": [{"message": {"content": 7}}]}"#,
        ] {
            let error = summary(body.as_bytes()).unwrap_err();
            assert!(matches!(error, HttpError::NotCompletion { line: 1, .. }), "{body}: {error:?}");
            assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
        }
    }

    #[test]
    fn an_answer_without_a_whole_summary_is_an_error() {
        for body in ["{}", r#"{"choices": []}"#, r#"{"choices": null}"#, r#"{"error": {"message": "hush"}}"#]
        {
            assert_eq!(failure(body), "the answer of the endpoint has no choices", "{body}");
        }
        for choice in [
            "{}",
            r#"{"message": {}}"#,
            r#"{"message": {"content": null}}"#,
            r#"{"message": {"content": " \n"}}"#,
        ] {
            assert_eq!(
                failure(&format!(r#"{{"choices": [{choice}]}}"#)),
                "the model returned an empty summary",
                "{choice}"
            );
        }
        let finished = |reason: &str| {
            summary(
                format!(
                    r#"{{"choices": [{{"message": {{"content": "Ann"}}, "finish_reason": "{reason}"}}]}}"#
                )
                .as_bytes(),
            )
        };
        assert_eq!(finished("stop").unwrap(), "Ann");
        assert!(matches!(finished("length").unwrap_err(), HttpError::Cut));
        assert!(matches!(finished("content_filter").unwrap_err(), HttpError::Filtered));
    }
}
