//! Making summaries for a host.

use crate::bindings::summarizer_plugin::exports::larder::storage::summarizer as exported;
use crate::memory::{Identity, Turn};
use crate::raw::memory as raw;

/// What is to be summarised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SummaryRequest {
    /// Whose session it is.
    pub identity: Identity,
    /// What stands for the turns before; empty where there were none.
    pub previous_summary: String,
    /// The turns that followed it, in order.
    pub turns: Vec<Turn>,
    /// The tokens of a summary that the host takes. By default a token stands for every four bytes begun.
    pub max_tokens: Option<u64>,
}

/// Makes summaries for a host, as the export of a component; see
/// [`export_summarizer!`](crate::export_summarizer).
pub trait Summarizer {
    /// One text that stands for the previous summary and the turns that followed it. The host throws away one that comes
    /// after its deadline or is longer than [`SummaryRequest::max_tokens`].
    ///
    /// # Errors
    /// What went wrong. The host asks again, with these turns and those that came in the meantime.
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

/// Exports a [`Summarizer`] from a component: a library of the crate type `cdylib`, built for `wasm32-wasip2`. It takes
/// the name of a type, and stands once in a component. Built for another target, such as that of unit tests, it exports
/// nothing: a linker may not take the names of a component's exports.
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
