//! How much of a session's transcript is in its memory.

use larder_guest::{Error, Identity, Store, Turn};
use serde::{Deserialize, Serialize};

use crate::transcript::Exchange;

const NAMESPACE: &str = "assistant";

/// What of a transcript was added. The memory itself can't tell: a summary hides how many turns it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// The turns that were added.
    pub(crate) turns: u64,
    /// The time of the last of them.
    newest_ms: u64,
}

impl Progress {
    /// What was written of a session; nothing was added where nothing was written.
    pub(crate) fn load(store: &Store, identity: &Identity) -> Result<Self, Error> {
        Ok(store.view(|tx| tx.get_value(NAMESPACE, &key(identity)))?.unwrap_or_default())
    }

    pub(crate) fn save(&self, store: &Store, identity: &Identity) -> Result<(), Error> {
        store.update(|tx| tx.put_value(NAMESPACE, &key(identity), self))
    }

    pub(crate) fn forget(store: &Store, identity: &Identity) -> Result<(), Error> {
        store.update(|tx| tx.delete(NAMESPACE, &key(identity)))
    }

    /// The turn of an exchange. It is later than every turn that was counted, whatever the clock says: that tells it
    /// from an earlier one that says the same.
    pub(crate) fn turn(&self, exchange: Exchange) -> Turn {
        let mut turn = Turn::new(exchange.user, exchange.assistant);
        turn.timestamp_ms = turn.timestamp_ms.max(self.newest_ms.saturating_add(1));
        turn
    }

    /// Whether `newest`, the newest turn that the memory has, is this exchange: added by a run that was killed before
    /// it could count it.
    pub(crate) fn has_missed(&self, newest: &Turn, exchange: &Exchange) -> bool {
        newest.timestamp_ms > self.newest_ms && exchange.is_said_by(newest)
    }

    /// Counts a turn that the memory has.
    pub(crate) fn count(&mut self, timestamp_ms: u64) {
        self.turns += 1;
        self.newest_ms = timestamp_ms;
    }
}

/// The lengths keep apart what would be one text otherwise: `a`, `bc` and `ab`, `c`.
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
        assert!(!progress.has_missed(&added, &exchange("Next one.")), "the same words are not the same turn");
        assert_eq!(progress.turns, 2);
    }

    #[test]
    fn turns_are_in_order_though_the_clock_goes_back() {
        let mut progress = Progress::default();
        progress.count(u64::MAX - 1);
        assert_eq!(progress.turn(exchange("Now?")).timestamp_ms, u64::MAX);
    }
}
