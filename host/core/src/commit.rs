//! Commits: what a transaction asks its backend to write, and the rules that decide it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::{ForwardClock, UnixMillis};
use crate::counter;
use crate::error::{Error, LimitExceeded, LimitKind, Result};
use crate::held::Held;
use crate::name::{RowKey, Value};
use crate::pace;
use crate::read_set::ReadSet;
use crate::row::{Version, is_live};
use crate::share::Share;
pub use crate::stage::Stage;
use crate::stored_cost::StoredCost;

/// A change of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Writes a value.
    Put {
        /// The value.
        value: Value,
        /// The time to live in milliseconds from the commit; `None` for a permanent row.
        ttl_ms: Option<u64>,
    },
    /// Deletes the row.
    Delete,
    /// Adds to the counter that the row holds at commit.
    Increment(i64),
}

impl Mutation {
    /// The time to live that the change gives the row, in milliseconds.
    pub fn ttl_ms(&self) -> Option<u64> {
        match self {
            Self::Put { ttl_ms, .. } => *ttl_ms,
            Self::Delete | Self::Increment(_) => None,
        }
    }

    /// The value of the row after the change, given the live one before it. `None` means that the
    /// row does not exist.
    pub(crate) fn applied_to(&self, stored: Option<Vec<u8>>) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Put { value, .. } => Ok(Some(value.as_bytes().to_vec())),
            Self::Delete => Ok(None),
            Self::Increment(delta) => counter::add(stored.as_deref(), *delta).map(Some),
        }
    }

    /// The size of the new value; for a counter, the largest size.
    pub(crate) fn value_bytes(&self) -> u64 {
        match self {
            Self::Put { value, .. } => value.as_bytes().len() as u64,
            Self::Delete => 0,
            Self::Increment(_) => COUNTER_BYTES_MAX,
        }
    }
}

/// The length of the longest decimal text of a signed 64-bit number.
const COUNTER_BYTES_MAX: u64 = 20;

/// The writes of one transaction, and what they depend on.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// The clock for the moment of the commit. The backend reads it once no other commit can
    /// precede this one.
    pub clock: ForwardClock,
    /// What the transaction read. It must not have changed since the snapshot.
    pub reads: ReadSet,
    /// The versions that rows must have.
    pub conditions: BTreeMap<RowKey, Version>,
    /// The changes, in the best order to write them.
    pub writes: BTreeMap<RowKey, Mutation>,
    /// The maximum growth of the store, with its quota; `None` if growth is not counted.
    pub growth_max: Option<GrowthMax>,
    /// The stage of the commit.
    pub stage: Stage,
    /// The memory that the commit counts for its instance, until the backend drops the commit.
    pub held: Option<Arc<Held>>,
    /// The share that the commit counts against.
    pub share: Share,
}

/// The result of a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The version of the rows written; [`Version::ABSENT`] if there were none.
    pub version: Version,
    /// The growth of the store in bytes. Counted only if [`Commit::growth_max`] is set.
    pub growth: i64,
}

/// The maximum growth of a store with a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrowthMax {
    /// The size of the store in bytes, with the maximum growth by other commits in progress.
    pub used: u64,
    /// The maximum size of the store, in bytes.
    pub quota: u64,
    /// The overhead that the store counts for each row and record.
    pub cost: StoredCost,
}

impl GrowthMax {
    /// Fails if the growth exceeds the quota. A store that already exceeds it may still shrink.
    pub(crate) fn check(self, growth: i64) -> Result<()> {
        let requested = self.used.saturating_add_signed(growth);
        if growth <= 0 || requested <= self.quota {
            return Ok(());
        }
        Err(LimitExceeded { kind: LimitKind::StoreBytes, max: self.quota, requested }.into())
    }
}

/// A stored row at the moment of the commit, live or expired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CurrentRow {
    /// The version of its last write.
    pub version: Version,
    /// When the row expires; `None` for a permanent row.
    pub expires_at: Option<UnixMillis>,
    /// The size of its value, in bytes.
    pub value_bytes: u64,
    /// Its value, if [`Need::Value`] asked for it.
    pub value: Option<Vec<u8>>,
}

/// The part of a current row that [`Commit::plan`] needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Everything except the value.
    Header,
    /// Everything.
    Value,
}

/// The decisions of [`Commit::plan`].
#[derive(Debug, Default)]
pub struct Plan<'a> {
    /// The rows to write, in order.
    pub writes: Vec<(&'a RowKey, RowWrite<'a>)>,
    /// The growth of the store in bytes, if [`Commit::growth_max`] is set.
    pub growth: i64,
    /// The earliest expiry of the rows that the commit depends on. The commit must be made before
    /// this moment.
    pub expires_at: Option<UnixMillis>,
    /// Whether a written row has a time to live that starts at the commit.
    pub begins_ttl: bool,
}

/// The maximum time from a commit's planned moment until it is visible, in milliseconds.
///
/// Times to live count from the planned moment. Building or writing `rows` rows takes time after
/// it, which shortens their visible life. A backend allows this much, and fails with
/// [`Error::Conflict`] after more. The maximum grows with the number of rows, so that a slow
/// machine can commit any number of them.
pub const fn ttl_lead_max_ms(rows: u64) -> u64 {
    const ONE_COMMIT: u64 = 100;
    const EACH_ROW: u64 = 1;
    rows.saturating_mul(EACH_ROW).saturating_add(ONE_COMMIT)
}

/// The outcome for one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowWrite<'a> {
    /// The row exists.
    Put {
        /// Its value.
        value: Cow<'a, [u8]>,
        /// When it expires; `None` for a permanent row.
        expires_at: Option<UnixMillis>,
    },
    /// The row does not exist.
    Delete,
}

impl Commit {
    /// The rows that [`Commit::plan`] will ask for, and how much of each. Empty for most commits.
    ///
    /// It is for engines that read all of them in advance.
    pub fn needs(&self) -> BTreeMap<&RowKey, Need> {
        let mut needs: BTreeMap<&RowKey, Need> =
            self.conditions.keys().map(|row| (row, Need::Header)).collect();
        for (row, mutation) in &self.writes {
            if let Some(need) = self.need(mutation) {
                let known = needs.entry(row).or_insert(need);
                *known = need.max(*known);
            }
        }
        needs
    }

    fn need(&self, mutation: &Mutation) -> Option<Need> {
        match mutation {
            Mutation::Increment(_) => Some(Need::Value),
            _ if self.growth_max.is_some() => Some(Need::Header),
            _ => None,
        }
    }

    /// Decides what the commit writes, at its moment `now`.
    ///
    /// `current` returns a stored row, or `None` if it does not exist. The backend calls this once
    /// no other commit can precede this one, and `current` reads the state of that moment. If an
    /// engine learns the moment of the commit only later, it makes the commit by
    /// [`Plan::expires_at`] or not at all.
    ///
    /// From here on, the commit cannot be withdrawn. A caller that gives up does not know its
    /// outcome.
    ///
    /// # Errors
    /// After an error the backend must write nothing.
    ///
    /// - [`Error::TimedOut`] if the transaction's deadline passed before.
    /// - [`Error::Conflict`] if a row that was read has expired, or a row does not have its
    ///   required version.
    /// - [`Error::InvalidArgument`] if an incremented value is not a counter, or the sum does not
    ///   fit into 64 bits.
    /// - [`Error::LimitExceeded`] if the store would exceed its quota.
    /// - Any error of `current`.
    pub fn plan<'a, F>(&'a self, now: UnixMillis, mut current: F) -> Result<Plan<'a>>
    where
        F: FnMut(&RowKey, Need) -> Result<Option<CurrentRow>>,
    {
        self.stage.start()?;
        if self.reads.has_expired(now) {
            return Err(Error::Conflict);
        }
        let cost = self.growth_max.map(|max| max.cost).unwrap_or_default();
        let mut plan = Plan { expires_at: self.reads.earliest_expiry(), ..Plan::default() };
        for (row, expected) in &self.conditions {
            let found = plan.live(current(row, Need::Header)?, now);
            if found.map_or(Version::ABSENT, |row| row.version) != *expected {
                return Err(Error::Conflict);
            }
        }
        for (row, mutation) in &self.writes {
            let stored = match self.need(mutation) {
                Some(need) => current(row, need)?,
                None => None,
            };
            let before = stored.as_ref().map_or(0, |stored| cost.row(row.bytes(), stored.value_bytes));
            plan.begins_ttl |= mutation.ttl_ms().is_some();
            let write = plan.resolve(mutation, stored, now)?;
            plan.growth += row_bytes(row, &write, cost) as i64 - before as i64;
            plan.writes.push((row, write));
        }
        self.check_growth(plan.growth)?;
        Ok(plan)
    }

    fn check_growth(&self, growth: i64) -> Result<()> {
        self.growth_max.map_or(Ok(()), |max| max.check(growth))
    }

    /// The cost of the commit, as [`pace::cost`] counts it.
    pub fn cost(&self) -> u64 {
        let bytes = self.growth_bound(StoredCost::default());
        pace::cost((self.writes.len() + self.conditions.len()) as u64, bytes)
    }

    /// Whether the commit is large: more than 500 rows, or 1 MiB.
    ///
    /// Other commits should not have to wait for several large ones in a row.
    pub fn is_large(&self) -> bool {
        self.cost() > pace::SMALL_COST_MAX
    }

    /// The maximum growth in bytes of a store with this overhead for each row.
    pub fn growth_bound(&self, cost: StoredCost) -> u64 {
        self.writes
            .iter()
            .filter(|(_, mutation)| **mutation != Mutation::Delete)
            .map(|(row, mutation)| cost.row(row.bytes(), mutation.value_bytes()))
            .sum()
    }
}

impl<'a> Plan<'a> {
    /// Checks that a commit planned for `planned` may become visible at `visible`.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if a row that the commit depends on has expired by then, or if times
    ///   to live began more than [`ttl_lead_max_ms`] before.
    pub fn check_visible(&self, planned: UnixMillis, visible: UnixMillis) -> Result<()> {
        let has_expired = self.expires_at.is_some_and(|expires_at| expires_at <= visible);
        let lead_max = ttl_lead_max_ms(self.writes.len() as u64);
        let is_late = self.begins_ttl && visible.saturating_sub(planned) > lead_max;
        if has_expired || is_late { Err(Error::Conflict) } else { Ok(()) }
    }

    fn resolve(
        &mut self,
        mutation: &'a Mutation,
        stored: Option<CurrentRow>,
        now: UnixMillis,
    ) -> Result<RowWrite<'a>> {
        Ok(match mutation {
            Mutation::Put { value, ttl_ms } => RowWrite::Put {
                value: Cow::Borrowed(value.as_bytes()),
                expires_at: ttl_ms.map(|ttl| expiry(now, ttl)),
            },
            Mutation::Delete => RowWrite::Delete,
            Mutation::Increment(delta) => {
                let live = self.live(stored, now);
                let base = live.as_ref().and_then(|row| row.value.as_deref());
                RowWrite::Put {
                    value: Cow::Owned(counter::add(base, *delta)?),
                    expires_at: live.and_then(|row| row.expires_at),
                }
            }
        })
    }

    /// Returns the row if it is live. The commit then depends on its expiry.
    fn live(&mut self, row: Option<CurrentRow>, now: UnixMillis) -> Option<CurrentRow> {
        let live = row.filter(|row| is_live(row.expires_at, now));
        let expires_at = live.as_ref().and_then(|row| row.expires_at);
        self.expires_at = self.expires_at.into_iter().chain(expires_at).min();
        live
    }
}

/// SQL engines store the expiry as a signed number. A later moment never comes.
fn expiry(now: UnixMillis, ttl_ms: u64) -> UnixMillis {
    now.saturating_add(ttl_ms).min(i64::MAX as u64)
}

fn row_bytes(row: &RowKey, write: &RowWrite<'_>, cost: StoredCost) -> u64 {
    match write {
        RowWrite::Put { value, .. } => cost.row(row.bytes(), value.len() as u64),
        RowWrite::Delete => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::name::{Key, Namespace};

    fn row(key: &str) -> RowKey {
        let limits = Limits::default();
        RowKey { namespace: Namespace::new("n", &limits).unwrap(), key: Key::new(key, &limits).unwrap() }
    }

    fn put(value: &[u8], ttl_ms: Option<u64>) -> Mutation {
        Mutation::Put { value: Value::trusted(value.to_vec()), ttl_ms }
    }

    fn stored(value: &[u8], expires_at: Option<u64>) -> CurrentRow {
        CurrentRow {
            version: Version(7),
            expires_at,
            value_bytes: value.len() as u64,
            value: Some(value.to_vec()),
        }
    }

    #[test]
    fn a_condition_on_an_expired_row_sees_no_row() {
        let conditions = BTreeMap::from([(row("a"), Version::ABSENT)]);
        let commit = Commit { conditions, ..Default::default() };
        commit.plan(100, |_, _| Ok(Some(stored(b"x", Some(100))))).unwrap();
        assert!(matches!(commit.plan(100, |_, _| Ok(Some(stored(b"x", Some(101))))), Err(Error::Conflict)));
    }

    #[test]
    fn a_commit_rests_on_all_that_it_read_and_found_live() {
        let mut reads = ReadSet::default();
        reads.record_expiry(Some(150));
        let conditions = BTreeMap::from([(row("a"), Version(7))]);
        let writes = BTreeMap::from([(row("b"), Mutation::Increment(1)), (row("c"), put(b"x", Some(1)))]);
        let commit = Commit { reads, conditions, writes, ..Default::default() };
        let plan = |now, a, b| {
            let of = |row: &RowKey| if row.key.as_bytes() == b"a" { a } else { b };
            commit.plan(now, |row, _| Ok(Some(stored(b"1", of(row))))).map(|plan| plan.expires_at)
        };
        assert_eq!(plan(100, None, None).unwrap(), Some(150));
        assert_eq!(plan(100, Some(120), Some(130)).unwrap(), Some(120));
        assert_eq!(plan(100, Some(140), Some(130)).unwrap(), Some(130));
        // The commit does not depend on a counter that has expired.
        assert_eq!(plan(100, Some(140), Some(90)).unwrap(), Some(140));
        assert!(matches!(plan(150, None, None), Err(Error::Conflict)));
    }

    #[test]
    fn a_counter_keeps_its_time_to_live_and_an_expired_one_starts_anew() {
        let writes = BTreeMap::from([(row("a"), Mutation::Increment(2))]);
        let commit = Commit { writes, ..Default::default() };
        let value = |stored: CurrentRow| {
            commit.plan(100, |_, _| Ok(Some(stored.clone()))).unwrap().writes.remove(0).1
        };
        let seven = RowWrite::Put { value: Cow::Borrowed(b"7".as_slice()), expires_at: Some(101) };
        assert_eq!(value(stored(b"5", Some(101))), seven);
        let two = RowWrite::Put { value: Cow::Borrowed(b"2".as_slice()), expires_at: None };
        assert_eq!(value(stored(b"5", Some(100))), two);
    }

    #[test]
    fn a_time_to_live_beyond_all_time_never_ends() {
        let writes = BTreeMap::from([(row("a"), put(b"x", Some(u64::MAX)))]);
        let commit = Commit { writes, ..Default::default() };
        let plan = commit.plan(100, |_, _| Ok(None)).unwrap();
        let forever =
            RowWrite::Put { value: Cow::Borrowed(b"x".as_slice()), expires_at: Some(i64::MAX as u64) };
        assert_eq!(plan.writes.first().unwrap().1, forever);
    }

    #[test]
    fn times_to_live_may_begin_100_milliseconds_and_one_for_each_row_before_the_commit_is_visible() {
        assert_eq!((ttl_lead_max_ms(0), ttl_lead_max_ms(10_000)), (100, 10_100));
        assert_eq!(ttl_lead_max_ms(u64::MAX), u64::MAX);
        let commit = |ttl_ms| Commit {
            writes: BTreeMap::from([(row("a"), put(b"x", ttl_ms)), (row("b"), put(b"x", None))]),
            ..Default::default()
        };
        let visible = |commit: &Commit, moment| {
            commit.plan(1_000, |_, _| Ok(None)).unwrap().check_visible(1_000, moment)
        };
        visible(&commit(Some(1)), 1_102).unwrap();
        assert!(matches!(visible(&commit(Some(1)), 1_103), Err(Error::Conflict)));
        visible(&commit(None), 9_000).unwrap();
    }

    #[test]
    fn a_commit_is_not_visible_after_a_row_that_it_rests_on_has_expired() {
        let mut reads = ReadSet::default();
        reads.record_expiry(Some(1_050));
        let commit = Commit { reads, ..Default::default() };
        let plan = commit.plan(1_000, |_, _| Ok(None)).unwrap();
        plan.check_visible(1_000, 1_049).unwrap();
        assert!(matches!(plan.check_visible(1_000, 1_050), Err(Error::Conflict)));
    }

    #[test]
    fn growth_counts_what_is_replaced_and_a_full_store_may_shrink() {
        let growth_max = Some(GrowthMax { used: 10, quota: 10, cost: StoredCost::default() });
        let commit = |mutation| Commit {
            growth_max,
            writes: BTreeMap::from([(row("a"), mutation)]),
            ..Default::default()
        };
        let plan = |commit: Commit| {
            commit.plan(100, |_, _| Ok(Some(stored(b"12345678", None)))).map(|plan| plan.growth)
        };
        assert_eq!(plan(commit(put(b"1234567", None))).unwrap(), -1);
        assert_eq!(plan(commit(Mutation::Delete)).unwrap(), -10);
        let Err(Error::LimitExceeded(exceeded)) = plan(commit(put(b"123456789", None))) else {
            panic!("accepted")
        };
        assert_eq!(exceeded, LimitExceeded { kind: LimitKind::StoreBytes, max: 10, requested: 11 });
    }

    #[test]
    fn growth_counts_what_a_row_takes_in_the_backend() {
        let cost = StoredCost { row_overhead: 100, name_copies: 2, record_overhead: 0 };
        let growth_max = Some(GrowthMax { used: 0, quota: 1_000, cost });
        let writes = BTreeMap::from([
            (row("a"), put(b"123", None)),
            (row("b"), Mutation::Delete),
            (row("c"), put(b"", None)),
        ]);
        let commit = Commit { growth_max, writes, ..Default::default() };
        let plan =
            commit.plan(100, |row, _| Ok((row.key.as_bytes() != b"a").then(|| stored(b"12345678", None))));
        // A new row of 2 bytes of names and 3 of value, a deleted row, and a row that loses its
        // value.
        assert_eq!(plan.unwrap().growth, 107 - 112 - 8);
        assert_eq!(commit.growth_bound(cost), 107 + 104);
        let too_much = Commit { growth_max: Some(GrowthMax { used: 1_000, quota: 1_012, cost }), ..commit };
        assert!(matches!(too_much.plan(100, |_, _| Ok(None)), Err(Error::LimitExceeded(_))));
    }

    #[test]
    fn only_counters_conditions_and_quotas_need_the_current_rows() {
        let writes = BTreeMap::from([
            (row("a"), put(b"x", None)),
            (row("b"), Mutation::Increment(1)),
            (row("c"), Mutation::Delete),
        ]);
        let conditions = BTreeMap::from([(row("b"), Version(1)), (row("d"), Version(1))]);
        let mut commit = Commit { writes, conditions, ..Default::default() };
        let needs: Vec<_> = commit.needs().into_iter().map(|(row, need)| (row.clone(), need)).collect();
        assert_eq!(needs, [(row("b"), Need::Value), (row("d"), Need::Header)]);
        commit.growth_max = Some(GrowthMax { used: 0, quota: 100, cost: StoredCost::default() });
        assert_eq!(commit.needs().len(), 4);
    }

    #[test]
    fn a_store_over_its_quota_may_be_rewritten_without_growth() {
        let max = GrowthMax { used: 11, quota: 10, cost: StoredCost::default() };
        max.check(-1).unwrap();
        max.check(0).unwrap();
        assert!(matches!(max.check(1), Err(Error::LimitExceeded(_))));
        let below = GrowthMax { used: 9, ..max };
        below.check(1).unwrap();
        assert!(matches!(below.check(2), Err(Error::LimitExceeded(_))));
    }

    #[test]
    fn a_commit_that_was_withdrawn_is_not_planned() {
        let commit = Commit { writes: BTreeMap::from([(row("a"), put(b"x", None))]), ..Default::default() };
        assert!(commit.stage.withdraw());
        assert!(matches!(commit.plan(100, |_, _| Ok(None)), Err(Error::TimedOut)));
    }

    #[test]
    fn a_commit_is_large_from_501_rows_or_a_million_bytes_on() {
        let rows = |count: u64| (0..count).map(|number| row(&format!("{number:04}")));
        let writes = |count| rows(count).map(|row| (row, Mutation::Delete)).collect::<BTreeMap<_, _>>();
        let conditions = |count| rows(count).map(|row| (row, Version(1))).collect::<BTreeMap<_, _>>();
        let large = |writes, conditions| Commit { writes, conditions, ..Default::default() }.is_large();
        assert!(!large(writes(500), BTreeMap::new()));
        assert!(large(writes(501), BTreeMap::new()));
        assert!(!large(writes(250), conditions(250)));
        assert!(large(writes(250), conditions(251)));
        // Each 2 KiB of names and value cost as much as a row.
        let of_bytes = |bytes: usize| BTreeMap::from([(row("a"), put(&vec![0; bytes - 2], None))]);
        assert!(!large(of_bytes(500 * 2_048 - 1), BTreeMap::new()));
        assert!(large(of_bytes(500 * 2_048), BTreeMap::new()));
    }

    #[test]
    fn a_quota_counts_names_once_and_no_overhead_by_default() {
        let cost = StoredCost::default();
        assert_eq!((cost.row(3, 4), cost.record(3, 4)), (7, 7));
    }
}
