//! Rate limiting of events, so that a guest cannot fill the log.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;

use crate::event::{Event, EventSink, TracingEvents};

/// The number of sources that are distinguished at once. Beyond it, the events of a kind count as
/// one source, because a guest can choose names.
const SOURCES_MAX: usize = 1_024;

/// A sink that limits the rate of events of each kind and source.
///
/// It passes on the first event of an interval at once. Further events within the interval are
/// counted, and the last of them is passed on with the count at the end of the interval.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use larder_core::{Event, EventChannel, EventSink, RatedEvents, TracingEvents};
///
/// let rated = RatedEvents::new(Duration::from_secs(1), Arc::new(TracingEvents));
/// for _ in 0..1_000 {
///     let (store, operation, reason) = ("notes".to_string(), "begin", "read-only".to_string());
///     rated.emit(Event::AccessDenied { store, operation, reason });
/// }
/// ```
///
/// The tokio runtime that an event comes from ends the interval. Outside a runtime, the next event
/// does.
pub struct RatedEvents {
    shared: Arc<Shared>,
}

struct Shared {
    interval: Duration,
    next: Arc<dyn EventSink>,
    windows: Mutex<HashMap<Key, Window>>,
}

type Key = (&'static str, String);

/// The current interval of one kind and source.
struct Window {
    until: Instant,
    held: Option<Held>,
}

/// The last event that was not passed on, and the number of such events.
struct Held {
    event: Event,
    times: u64,
}

impl RatedEvents {
    /// Creates a sink that passes events on to `next`, at the rate of `interval`.
    pub fn new(interval: Duration, next: Arc<dyn EventSink>) -> Self {
        Self { shared: Arc::new(Shared { interval, next, windows: Mutex::default() }) }
    }
}

/// Writes to `tracing`, at most one line per second for each kind and source.
impl Default for RatedEvents {
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Arc::new(TracingEvents))
    }
}

impl std::fmt::Debug for RatedEvents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RatedEvents").field("interval", &self.shared.interval).finish_non_exhaustive()
    }
}

impl EventSink for RatedEvents {
    fn emit(&self, event: Event) {
        self.emit_repeated(event, 1);
    }

    fn emit_repeated(&self, event: Event, times: u64) {
        let now = Instant::now();
        let (key, due) = self.shared.note(event, times, now);
        let Some(Held { event, times }) = due else { return };
        self.shared.next.emit_repeated(event, times);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(self.shared.clone().follow(key));
        }
    }
}

impl Shared {
    /// Counts an event, and returns the event to pass on now, if any.
    fn note(&self, event: Event, times: u64, now: Instant) -> (Key, Option<Held>) {
        let mut windows = self.lock();
        let mut key = (event.name(), event.source());
        if windows.len() >= SOURCES_MAX && !windows.contains_key(&key) {
            windows.retain(|_, window| window.until > now || window.held.is_some());
            if windows.len() >= SOURCES_MAX {
                key.1.clear();
            }
        }
        let until = now + self.interval;
        let due = match windows.entry(key.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(Window { until, held: None });
                Some(Held { event, times })
            }
            Entry::Occupied(mut occupied) => {
                let window = occupied.get_mut();
                let before = window.held.take().map_or(0, |held| held.times);
                let held = Held { event, times: before.saturating_add(times) };
                match now < window.until {
                    true => {
                        window.held = Some(held);
                        None
                    }
                    false => {
                        window.until = until;
                        Some(held)
                    }
                }
            }
        };
        (key, due)
    }

    /// Passes on the held event of each interval, until an interval has none.
    async fn follow(self: Arc<Self>, key: Key) {
        loop {
            tokio::time::sleep(self.interval).await;
            let Some(Held { event, times }) = self.end_interval(&key) else { return };
            self.next.emit_repeated(event, times);
        }
    }

    fn end_interval(&self, key: &Key) -> Option<Held> {
        let mut windows = self.lock();
        let window = windows.get_mut(key)?;
        match window.held.take() {
            Some(held) => {
                window.until = Instant::now() + self.interval;
                Some(held)
            }
            None => {
                windows.remove(key);
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Window>> {
        self.windows.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps the source and the count of each event.
    #[derive(Default)]
    struct Kept(Mutex<Vec<(String, u64)>>);

    impl EventSink for Kept {
        fn emit(&self, event: Event) {
            self.emit_repeated(event, 1);
        }

        fn emit_repeated(&self, event: Event, times: u64) {
            self.0.lock().push((event.source(), times));
        }
    }

    fn denied(store: &str) -> Event {
        Event::AccessDenied { store: store.to_string(), operation: "open", reason: "not granted".to_string() }
    }

    fn rated() -> (RatedEvents, Arc<Kept>) {
        let kept = Arc::new(Kept::default());
        (RatedEvents::new(Duration::from_millis(100), kept.clone()), kept)
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_one_event_at_once_and_one_with_the_count_for_each_interval() {
        let (rated, kept) = rated();
        for _ in 0..1_000 {
            rated.emit(denied("a"));
        }
        rated.emit(denied("b"));
        assert_eq!(*kept.0.lock(), [("a".to_string(), 1), ("b".to_string(), 1)]);
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(kept.0.lock().split_off(2), [("a".to_string(), 999)]);
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(rated.shared.lock().len(), 0);
        rated.emit(denied("a"));
        assert_eq!(kept.0.lock().split_off(2), [("a".to_string(), 1)]);
    }

    #[test]
    fn outside_of_a_runtime_the_next_event_has_the_count() {
        let kept = Arc::new(Kept::default());
        let rated = RatedEvents::new(Duration::from_millis(1), kept.clone());
        let now = Instant::now();
        let times = |after| {
            let now = now + Duration::from_micros(after);
            rated.shared.note(denied("a"), 1, now).1.map(|held| held.times)
        };
        assert_eq!([0, 500, 999, 1_000, 1_500].map(times), [Some(1), None, None, Some(3), None]);
    }

    #[test]
    fn names_that_a_guest_makes_up_take_no_more_room_than_a_bound() {
        let (rated, kept) = rated();
        for number in 0..5 * SOURCES_MAX {
            rated.emit(denied(&number.to_string()));
        }
        assert_eq!(rated.shared.lock().len(), SOURCES_MAX + 1);
        assert_eq!(kept.0.lock().len(), SOURCES_MAX + 1);
    }
}
