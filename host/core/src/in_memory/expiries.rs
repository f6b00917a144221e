//! The rows with a time to live, ordered by expiry.

use std::collections::BTreeSet;

use super::stored_row::StoredRow;
use crate::clock::UnixMillis;

/// The current rows with a time to live. A sweep finds the expired ones here without reading any
/// other row.
#[derive(Default)]
pub(super) struct Expiries(BTreeSet<Expiry>);

/// A row with a time to live, ordered by its expiry.
struct Expiry {
    at: UnixMillis,
    row: StoredRow,
}

impl Expiries {
    /// Records that `after` replaced `before`; each may be `None`.
    pub(super) fn replace(&mut self, before: Option<StoredRow>, after: Option<&StoredRow>) {
        if let Some(before) = before.and_then(Expiry::of) {
            self.0.remove(&before);
        }
        if let Some(after) = after.and_then(|row| Expiry::of(row.clone())) {
            self.0.insert(after);
        }
    }

    /// The expired rows, earliest expiry first.
    pub(super) fn expired(&self, now: UnixMillis) -> impl Iterator<Item = &StoredRow> {
        self.0.iter().take_while(move |expiry| expiry.at <= now).map(|expiry| &expiry.row)
    }
}

impl Expiry {
    fn of(row: StoredRow) -> Option<Self> {
        let (_, at) = row.value();
        Some(Self { at: at?, row })
    }
}

impl Ord for Expiry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at).then_with(|| self.row.name().cmp(other.row.name()))
    }
}

impl PartialOrd for Expiry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Expiry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Expiry {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Version;

    fn row(name: &str, expires_at: Option<UnixMillis>) -> StoredRow {
        StoredRow::new(name.as_bytes(), b"value", Version(1), expires_at)
    }

    fn expired(expiries: &Expiries, now: UnixMillis) -> Vec<&str> {
        expiries.expired(now).map(|row| std::str::from_utf8(row.name()).unwrap()).collect()
    }

    #[test]
    fn rows_that_have_expired_come_in_the_order_in_which_they_did() {
        let mut expiries = Expiries::default();
        for (name, at) in [("a", Some(30)), ("b", Some(10)), ("c", None), ("d", Some(10)), ("e", Some(31))] {
            expiries.replace(None, Some(&row(name, at)));
        }
        assert_eq!(expired(&expiries, 9), [""; 0]);
        assert_eq!(expired(&expiries, 10), ["b", "d"]);
        assert_eq!(expired(&expiries, 30), ["b", "d", "a"]);
    }

    #[test]
    fn a_row_that_was_replaced_or_removed_is_not_among_them() {
        let mut expiries = Expiries::default();
        for (name, at) in [("a", 10), ("b", 10), ("c", 10)] {
            expiries.replace(None, Some(&row(name, Some(at))));
        }
        expiries.replace(Some(row("a", Some(10))), Some(&row("a", None)));
        expiries.replace(Some(row("b", Some(10))), Some(&row("b", Some(20))));
        expiries.replace(Some(row("c", Some(10))), None);
        assert_eq!(expired(&expiries, 10), [""; 0]);
        assert_eq!(expired(&expiries, 20), ["b"]);
        expiries.replace(Some(row("b", Some(20))), None);
        assert!(expiries.0.is_empty());
    }

    #[test]
    fn expiries_are_equal_if_their_moments_and_names_are() {
        use std::cmp::Ordering;

        let expiry = |name, at| Expiry::of(row(name, Some(at))).unwrap();
        assert!(expiry("a", 10) == expiry("a", 10));
        assert!(expiry("a", 10) != expiry("a", 11) && expiry("a", 10) != expiry("b", 10));
        assert_eq!(expiry("b", 10).partial_cmp(&expiry("a", 11)), Some(Ordering::Less));
        assert_eq!(expiry("b", 10).partial_cmp(&expiry("a", 10)), Some(Ordering::Greater));
    }
}
