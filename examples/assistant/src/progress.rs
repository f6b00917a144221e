//! The number of turns of a transcript that the memory of its session already has.

use larder_guest::{Error, Identity, Store, Turn};
use serde::{Deserialize, Serialize};

use crate::transcript::Exchange;

const NAMESPACE: &str = "assistant";

/// How much of a transcript was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Turns that were added.
    pub(crate) turns: u64,
    /// Time of the last of them.
    newest_ms: u64,
}

impl Progress {
    /// Loads the progress of a session, which is zero if none was stored.
    pub(crate) fn load(store: &Store, identity: &Identity) -> Result<Self, Error> {
        Ok(store.view(|tx| tx.get_value(NAMESPACE, &key(identity)))?.unwrap_or_default())
    }

    pub(crate) fn save(&self, store: &Store, identity: &Identity) -> Result<(), Error> {
        store.update(|tx| tx.put_value(NAMESPACE, &key(identity), self))
    }

    pub(crate) fn forget(store: &Store, identity: &Identity) -> Result<(), Error> {
        store.update(|tx| tx.delete(NAMESPACE, &key(identity)))
    }

    /// Makes the turn of an exchange. It is later than every counted turn, whatever the clock says,
    /// so that it differs from an earlier turn with the same text.
    pub(crate) fn turn(&self, exchange: Exchange) -> Turn {
        let mut turn = Turn::new(exchange.user, exchange.assistant);
        turn.timestamp_ms = turn.timestamp_ms.max(self.newest_ms.saturating_add(1));
        turn
    }

    /// Whether `newest`, the newest turn in the memory, is this exchange: a run added it and was
    /// killed before it could count it.
    pub(crate) fn has_missed(&self, newest: &Turn, exchange: &Exchange) -> bool {
        newest.timestamp_ms > self.newest_ms && exchange.is_said_by(newest)
    }

    /// Counts a turn that the memory has.
    pub(crate) fn count(&mut self, timestamp_ms: u64) {
        self.turns += 1;
        self.newest_ms = timestamp_ms;
    }
}

/// Prefixes each part with its length, so that `a`, `bc` and `ab`, `c` give different keys.
fn key(identity: &Identity) -> String {
    let Identity { tenant, user, session, run } = identity;
    let part = |part: &String| format!("{}:{part}", part.len());
    [tenant, user, session, run].map(part).join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(user: &str) -> Exchange {
        Exchange { line: 1, user: user.to_string(), assistant: "Done.".to_string() }
    }

    #[test]
    fn no_two_sessions_share_a_key() {
        let keys =
            [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("a,1:b", "", "c"), ("", "a,1:b", "c")];
        let mut keys =
            keys.map(|(tenant, user, session)| key(&Identity::session(tenant, user, session))).to_vec();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 5);
        assert_eq!(key(&Identity::session("acme", "ann", "ö")), "4:acme,3:ann,2:ö,0:");
    }

    #[test]
    fn a_turn_that_was_added_and_not_counted_is_found() {
        let mut progress = Progress::default();
        progress.count(progress.turn(exchange("Next one.")).timestamp_ms);
        let added = progress.turn(exchange("Next one."));
        assert!(progress.has_missed(&added, &exchange("Next one.")));
        assert!(!progress.has_missed(&added, &exchange("Another.")));
        progress.count(added.timestamp_ms);
        assert!(
            !progress.has_missed(&added, &exchange("Next one.")),
            "a counted turn is not counted again for a repeat of its text"
        );
        assert_eq!(progress.turns, 2);
    }

    #[test]
    fn turns_are_in_order_though_the_clock_goes_back() {
        let mut progress = Progress::default();
        progress.count(u64::MAX - 1);
        assert_eq!(progress.turn(exchange("Now?")).timestamp_ms, u64::MAX);
    }
}
