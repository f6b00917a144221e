//! Tracks how long heads have been unchanged.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::key::TenantKey;
use crate::write_id::WriteId;

/// The most heads that are watched. A forgotten head is watched again from the start, which only
/// takes longer.
const MAX_WATCHED: usize = 10_000;

/// The times since when heads have been unchanged, on this process's monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    watched: Mutex<HashMap<TenantKey, Watched>>,
}

#[derive(Debug)]
struct Watched {
    write_id: WriteId,
    since: Instant,
    seen: Instant,
}

impl Watches {
    /// Records a head that was just read. Returns the time since when it has been unchanged.
    pub(crate) fn observe(&self, key: &TenantKey, write_id: WriteId) -> Instant {
        let now = Instant::now();
        let mut watched = self.watched.lock();
        if watched.len() >= MAX_WATCHED && !watched.contains_key(key) {
            let longest_unseen =
                watched.iter().min_by_key(|(_, watched)| watched.seen).map(|(key, _)| key.clone());
            longest_unseen.map(|key| watched.remove(&key));
        }
        let entry = watched.entry(key.clone()).or_insert(Watched { write_id, since: now, seen: now });
        if entry.write_id != write_id {
            *entry = Watched { write_id, since: now, seen: now };
        }
        entry.seen = now;
        entry.since
    }

    /// Stops watching a head.
    pub(crate) fn forget(&self, key: &TenantKey) {
        self.watched.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::key::Slug;

    fn key(number: usize) -> TenantKey {
        TenantKey::org(Slug::new(&format!("o{number}")).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_changes_is_watched_anew() {
        let (watches, first) = (Watches::default(), WriteId::random());
        let start = watches.observe(&key(0), first);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(watches.observe(&key(0), first), start);
        assert_eq!(watches.observe(&key(0), WriteId::random()), start + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_watched_and_the_longest_unseen_is_forgotten() {
        let (watches, id) = (Watches::default(), WriteId::random());
        for number in 0..=MAX_WATCHED {
            tokio::time::advance(Duration::from_millis(1)).await;
            watches.observe(&key(number), id);
        }
        let watched = watches.watched.lock();
        assert_eq!(watched.len(), MAX_WATCHED);
        assert!(!watched.contains_key(&key(0)) && watched.contains_key(&key(1)));
    }
}
