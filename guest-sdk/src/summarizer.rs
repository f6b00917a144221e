//! Making summaries for a host.

use crate::bindings::summarizer_plugin::exports::larder::storage::summarizer as exported;
use crate::memory::{Identity, Turn};
use crate::raw::memory as raw;

/// The input of one summary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SummaryRequest {
    /// The identity to which the session belongs.
    pub identity: Identity,
    /// The summary of the earlier turns; empty if there are none.
    pub previous_summary: String,
    /// The turns that followed the previous summary, in order.
    pub turns: Vec<Turn>,
    /// The largest number of tokens that the host accepts; `None` if there is no limit.
    ///
    /// By default, the host counts one token more than the bytes divided by four, rounded down.
    pub max_tokens: Option<u64>,
}

/// Makes summaries for a host.
///
/// A component exports an implementation with
/// [`export_summarizer!`](crate::export_summarizer).
pub trait Summarizer {
    /// Returns one text that replaces the previous summary and the turns that followed it.
    ///
    /// The host discards a summary that arrives after its deadline or is longer than
    /// [`SummaryRequest::max_tokens`].
    ///
    /// # Errors
    /// Returns a text that says why the summary failed. The host requests it again, with these
    /// turns and those that were added since.
    fn summarize(request: SummaryRequest) -> Result<String, String>;
}

impl<T: Summarizer> exported::Guest for T {
    fn summarize(
        identity: raw::Identity,
        previous_summary: String,
        turns: Vec<raw::Turn>,
        max_tokens: Option<u64>,
    ) -> Result<String, String> {
        let turns = turns.into_iter().map(Turn::from).collect();
        T::summarize(SummaryRequest { identity: identity.into(), previous_summary, turns, max_tokens })
    }
}

/// Exports a [`Summarizer`] from a component.
///
/// The component is a library of the crate type `cdylib`, built for `wasm32-wasip2`. The macro
/// takes the name of a type. Call it once in a component. On other targets, such as that of unit
/// tests, it exports nothing, because a linker may reject the names of a component's exports.
///
/// ```no_run
/// use larder_guest::{SummaryRequest, Summarizer, export_summarizer};
///
/// struct CountTurns;
///
/// impl Summarizer for CountTurns {
///     fn summarize(request: SummaryRequest) -> Result<String, String> {
///         let before: usize = request.previous_summary.parse().unwrap_or(0);
///         Ok((before + request.turns.len()).to_string())
///     }
/// }
///
/// export_summarizer!(CountTurns);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_summarizer {
    ($summarizer:ident) => {
        const _: fn($crate::SummaryRequest) -> Result<String, String> =
            <$summarizer as $crate::Summarizer>::summarize;
        #[cfg(target_family = "wasm")]
        $crate::__summarizer_plugin::export_raw_summarizer!(
            $summarizer with_types_in $crate::__summarizer_plugin
        );
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Summarizer for Echo {
        fn summarize(request: SummaryRequest) -> Result<String, String> {
            Err(format!("{request:?}"))
        }
    }

    #[test]
    fn what_the_host_asks_reaches_the_summarizer() {
        let request = SummaryRequest {
            identity: Identity::session("t", "u", "s"),
            previous_summary: "before".to_string(),
            turns: vec![Turn::new("first", "one"), Turn::new("second", "two")],
            max_tokens: Some(5),
        };
        let SummaryRequest { identity, previous_summary, turns, max_tokens } = request.clone();
        let turns = turns.into_iter().map(Into::into).collect();
        let outcome =
            <Echo as exported::Guest>::summarize(identity.into(), previous_summary, turns, max_tokens);
        assert_eq!(outcome, Err(format!("{request:?}")));
    }
}
