//! Limits of one guest.

use std::time::Duration;

use crate::error::{Error, LimitExceeded, LimitKind, Result};
use crate::option_setters;

/// The limits of one guest. Sizes are in bytes.
///
/// Every length and count that a guest sends is checked against a limit before memory is spent on
/// it.
///
/// ```
/// let limits = larder_core::Limits::default().value_bytes(64 << 10);
/// limits.validate().unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// A namespace's name. At most [`Limits::NAMESPACE_BYTES_MAX`].
    pub namespace_bytes: u64,
    /// A key, a prefix, or a bound of a range. At most [`Limits::KEY_BYTES_MAX`].
    pub key_bytes: u64,
    /// One value. At most [`Limits::VALUE_BYTES_MAX`].
    pub value_bytes: u64,
    /// The result of one call, plus [`Limits::LIST_ENTRY_BYTES`] for each entry of a list.
    ///
    /// Must be at least the count of one entry with the longest key and the largest value, so that
    /// a page always holds an entry.
    pub result_bytes: u64,
    /// The staged writes, conditions and read set of one transaction.
    ///
    /// Counted are the names and the value of each staged write, the names of each condition and,
    /// in an update, the names of each row and range that it read. Each of these counts
    /// [`Limits::ENTRY_OVERHEAD`] more. Must be at least the count of one row.
    pub transaction_bytes: u64,
    /// Rows for which one transaction stages writes, or which one `get_many` reads.
    pub transaction_mutations: u64,
    /// Open transactions of one instance.
    pub open_transactions: u64,
    /// Open store handles of one instance.
    pub open_stores: u64,
    /// A part of an identity. At most [`Limits::IDENTITY_BYTES_MAX`].
    pub identity_bytes: u64,
    /// One turn of a conversation: its texts, plus 16 bytes for each element of a list.
    pub turn_bytes: u64,
    /// Open conversations of one instance.
    pub open_memories: u64,
    /// The host's memory for one instance, over all its transactions and calls.
    ///
    /// Must be at least `transaction_bytes` + [`Limits::RESULT_COPIES`] × `result_bytes`. See
    /// [`HeldBytes`](crate::HeldBytes).
    pub instance_bytes: u64,
    /// The age at which a transaction is rolled back. At most [`Limits::TRANSACTION_TIMEOUT_MAX`].
    pub transaction_timeout: Duration,
}

option_setters!(Limits {
    namespace_bytes: u64,
    key_bytes: u64,
    value_bytes: u64,
    result_bytes: u64,
    transaction_bytes: u64,
    transaction_mutations: u64,
    open_transactions: u64,
    open_stores: u64,
    identity_bytes: u64,
    turn_bytes: u64,
    open_memories: u64,
    instance_bytes: u64,
    transaction_timeout: Duration,
});

impl Limits {
    /// The longest namespace that every backend can store.
    ///
    /// With the longest key it must fit into one B-tree entry of Postgres, which holds 2,704 bytes.
    pub const NAMESPACE_BYTES_MAX: u64 = 255;
    /// The longest key that every backend can store.
    pub const KEY_BYTES_MAX: u64 = 2_048;
    /// The largest value that every backend can store.
    pub const VALUE_BYTES_MAX: u64 = 64 << 20;
    /// The longest part of an identity that every backend can store.
    ///
    /// Postgres is the strictest: all four parts must fit into one B-tree entry of 2,704 bytes.
    pub const IDENTITY_BYTES_MAX: u64 = 512;
    /// The bytes that each list entry counts beside its key and value.
    ///
    /// They count for [`Limits::result_bytes`], because passing an entry to a guest costs memory
    /// and a call. An entry of a packed page counts only its header, 8 bytes.
    pub const LIST_ENTRY_BYTES: u64 = 256;
    /// The bytes that each staged write, condition and recorded read counts.
    ///
    /// They count beside its names and its value, and are the most that it takes in the host's
    /// memory: its share of a B-tree with half-empty nodes, and the rounding of each allocation.
    /// The WIT states this number for `transaction-bytes`.
    pub const ENTRY_OVERHEAD: u64 = 256;
    /// The factor by which a result counts for [`Limits::instance_bytes`] while its call runs.
    ///
    /// That many copies of it exist at once: the backend's, the transaction's, and the guest's.
    pub const RESULT_COPIES: u64 = 3;
    /// The largest [`Limits::transaction_timeout`].
    ///
    /// The longer a snapshot lives, the more old data it keeps an engine from cleaning up.
    pub const TRANSACTION_TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

    /// Checks that the limits are consistent, and that every backend can store what they allow.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if a limit is too large or too small. The text names the limit
    ///   and its bound.
    pub fn validate(&self) -> Result<()> {
        at_most("namespace_bytes", self.namespace_bytes, Self::NAMESPACE_BYTES_MAX)?;
        at_most("key_bytes", self.key_bytes, Self::KEY_BYTES_MAX)?;
        at_most("identity_bytes", self.identity_bytes, Self::IDENTITY_BYTES_MAX)?;
        at_most("value_bytes", self.value_bytes, Self::VALUE_BYTES_MAX)?;
        if self.transaction_timeout > Self::TRANSACTION_TIMEOUT_MAX {
            let max = Self::TRANSACTION_TIMEOUT_MAX.as_secs();
            return Err(Error::invalid_argument(format!(
                "the limit transaction_timeout can be at most {max} s"
            )));
        }
        let entry = self.key_bytes + self.value_bytes;
        at_least("result_bytes", self.result_bytes, entry + Self::LIST_ENTRY_BYTES)?;
        let row = self.namespace_bytes + entry + Self::ENTRY_OVERHEAD;
        at_least("transaction_bytes", self.transaction_bytes, row)?;
        let results = self.result_bytes.saturating_mul(Self::RESULT_COPIES);
        at_least("instance_bytes", self.instance_bytes, self.transaction_bytes.saturating_add(results))
    }

    /// Checks an amount that a guest requests.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if the amount exceeds the limit.
    pub fn check(&self, kind: LimitKind, requested: u64) -> Result<()> {
        check_bound(kind, self.max(kind), requested)
    }

    /// The limit of one kind.
    ///
    /// `u64::MAX` for the whole store and for a session's record, which other options bound.
    pub const fn max(&self, kind: LimitKind) -> u64 {
        match kind {
            LimitKind::NamespaceBytes => self.namespace_bytes,
            LimitKind::KeyBytes => self.key_bytes,
            LimitKind::ValueBytes => self.value_bytes,
            LimitKind::ResultBytes => self.result_bytes,
            LimitKind::TransactionBytes => self.transaction_bytes,
            LimitKind::TransactionMutations => self.transaction_mutations,
            LimitKind::OpenTransactions => self.open_transactions,
            LimitKind::OpenStores => self.open_stores,
            LimitKind::IdentityBytes => self.identity_bytes,
            LimitKind::TurnBytes => self.turn_bytes,
            LimitKind::OpenMemories => self.open_memories,
            LimitKind::InstanceBytes => self.instance_bytes,
            LimitKind::StoreBytes | LimitKind::MemoryBytes => u64::MAX,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            namespace_bytes: Self::NAMESPACE_BYTES_MAX,
            key_bytes: Self::KEY_BYTES_MAX,
            value_bytes: 1 << 20,
            result_bytes: 4 << 20,
            transaction_bytes: 4 << 20,
            transaction_mutations: 10_000,
            open_transactions: 16,
            open_stores: 64,
            identity_bytes: Self::IDENTITY_BYTES_MAX,
            turn_bytes: 256 << 10,
            open_memories: 64,
            instance_bytes: 64 << 20,
            transaction_timeout: Duration::from_secs(5),
        }
    }
}

/// Checks an amount against a bound.
pub(crate) fn check_bound(kind: LimitKind, max: u64, requested: u64) -> Result<()> {
    if requested <= max { Ok(()) } else { Err(LimitExceeded { kind, max, requested }.into()) }
}

fn at_most(name: &str, value: u64, max: u64) -> Result<()> {
    if value <= max {
        return Ok(());
    }
    Err(Error::invalid_argument(format!("the limit {name} is {value}, and can be at most {max}")))
}

fn at_least(name: &str, value: u64, min: u64) -> Result<()> {
    if value >= min {
        return Ok(());
    }
    Err(Error::invalid_argument(format!("the limit {name} is {value}, and must be at least {min}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limits_are_valid() {
        Limits::default().validate().unwrap();
    }

    #[test]
    fn a_result_that_holds_no_entry_is_refused() {
        let limits = Limits::default().result_bytes(10);
        let Err(Error::InvalidArgument(reason)) = limits.validate() else { panic!("accepted") };
        assert_eq!(reason, "the limit result_bytes is 10, and must be at least 1050880");
    }

    #[test]
    fn a_key_longer_than_a_backend_holds_is_refused() {
        let limits = Limits::default().key_bytes(2_049);
        assert!(matches!(limits.validate(), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn an_instance_that_holds_no_full_transaction_and_a_result_is_refused() {
        let limits = Limits::default().instance_bytes(16 << 20);
        limits.validate().unwrap();
        let limits = limits.clone().instance_bytes(limits.instance_bytes - 1);
        let Err(Error::InvalidArgument(reason)) = limits.validate() else { panic!("accepted") };
        assert_eq!(reason, "the limit instance_bytes is 16777215, and must be at least 16777216");
        let limits = Limits::default().result_bytes(u64::MAX);
        assert!(matches!(limits.validate(), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn an_endless_transaction_is_refused() {
        let limits = Limits::default().transaction_timeout(Duration::MAX);
        assert!(matches!(limits.validate(), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn an_amount_at_the_bound_passes_and_one_more_says_both_numbers() {
        let limits = Limits::default().open_stores(3);
        limits.check(LimitKind::OpenStores, 3).unwrap();
        let Err(Error::LimitExceeded(exceeded)) = limits.check(LimitKind::OpenStores, 4) else {
            panic!("accepted")
        };
        assert_eq!(exceeded, LimitExceeded { kind: LimitKind::OpenStores, max: 3, requested: 4 });
    }

    /// Limits of which no other bound is in the way.
    fn wide() -> Limits {
        let (result_bytes, transaction_bytes, instance_bytes) = (1 << 40, 1 << 40, 1 << 43);
        Limits::default()
            .result_bytes(result_bytes)
            .transaction_bytes(transaction_bytes)
            .instance_bytes(instance_bytes)
    }

    fn names(limits: &Limits, name: &str) -> bool {
        match limits.validate() {
            Ok(()) => false,
            Err(Error::InvalidArgument(reason)) => reason.starts_with(&format!("the limit {name} ")),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn each_limit_is_valid_at_its_bound_and_not_one_beyond_it() {
        type Set = fn(&mut Limits, u64);
        let largest: [(&str, u64, Set); 4] = [
            ("namespace_bytes", Limits::NAMESPACE_BYTES_MAX, |limits, to| limits.namespace_bytes = to),
            ("key_bytes", Limits::KEY_BYTES_MAX, |limits, to| limits.key_bytes = to),
            ("identity_bytes", Limits::IDENTITY_BYTES_MAX, |limits, to| limits.identity_bytes = to),
            ("value_bytes", Limits::VALUE_BYTES_MAX, |limits, to| limits.value_bytes = to),
        ];
        for (name, max, set) in largest {
            let mut limits = wide();
            set(&mut limits, max);
            limits.validate().unwrap();
            set(&mut limits, max + 1);
            assert!(names(&limits, name), "{name}");
        }
        let mut limits = wide().transaction_timeout(Limits::TRANSACTION_TIMEOUT_MAX);
        limits.validate().unwrap();
        limits.transaction_timeout += Duration::from_nanos(1);
        assert!(names(&limits, "transaction_timeout"));
        // One entry of a list, and one row that is written.
        let (names_bytes, value) = (Limits::NAMESPACE_BYTES_MAX, 1 << 20);
        let entry = Limits::KEY_BYTES_MAX + value;
        let mut limits = wide().result_bytes(entry + 256);
        limits.validate().unwrap();
        limits.result_bytes -= 1;
        assert!(names(&limits, "result_bytes"));
        let mut limits = wide().transaction_bytes(names_bytes + entry + 256);
        limits.validate().unwrap();
        limits.transaction_bytes -= 1;
        assert!(names(&limits, "transaction_bytes"));
    }

    #[test]
    fn the_default_limits_are_those_that_the_documents_state() {
        let limits = Limits {
            namespace_bytes: 255,
            key_bytes: 2_048,
            value_bytes: 1_048_576,
            result_bytes: 4_194_304,
            transaction_bytes: 4_194_304,
            transaction_mutations: 10_000,
            open_transactions: 16,
            open_stores: 64,
            identity_bytes: 512,
            turn_bytes: 262_144,
            open_memories: 64,
            instance_bytes: 67_108_864,
            transaction_timeout: Duration::from_secs(5),
        };
        assert_eq!(Limits::default(), limits);
    }
}
