//! Access to every conversation in a store, for its operator.
//!
//! It includes sessions of every strategy, and sessions that cannot be read.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
//! use larder_core::memory::operator::{MemoryOperator, SessionFilter};
//! use larder_core::{InMemory, Store};
//!
//! let store = Store::builder(InMemory::new()).build()?;
//! let operator = MemoryOperator::new(&store);
//! assert!(operator.list(&SessionFilter::all(), None).await?.sessions.is_empty());
//! # Ok(()) }
//! ```

use crate::clock::UnixMillis;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::memory::health::Health;
use crate::memory::identity::{Identity, IdentityParts};
use crate::memory::record::Record;
use crate::memory::records::{RecordKey, RecordWrite, StoredRecord};
use crate::memory::session::{MemorySnapshot, parse_snapshot, snapshot_of};
use crate::memory::strategy::MemoryOptions;
use crate::memory::tokens::{ByteTokens, TokenEstimator, summary_tokens, turn_tokens};
use crate::memory::turn::Turn;
use crate::row::Version;
use crate::slice::give_way;
use crate::store::Store;

/// Selects sessions by tenant, user and session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    tenant: Option<String>,
    user: Option<String>,
    session: Option<String>,
}

impl SessionFilter {
    /// Selects every session of the store.
    pub fn all() -> Self {
        Self::default()
    }

    /// Selects the sessions of a tenant.
    pub fn tenant(tenant: impl Into<String>) -> Self {
        Self { tenant: Some(tenant.into()), ..Self::default() }
    }

    /// Selects the sessions of a user.
    pub fn user(tenant: impl Into<String>, user: impl Into<String>) -> Self {
        Self { user: Some(user.into()), ..Self::tenant(tenant) }
    }

    /// Selects one session with all its runs.
    pub fn session(tenant: impl Into<String>, user: impl Into<String>, session: impl Into<String>) -> Self {
        Self { session: Some(session.into()), ..Self::user(tenant, user) }
    }

    fn matches(&self, identity: &Identity) -> bool {
        let is = |asked: &Option<String>, part: &str| asked.as_ref().is_none_or(|asked| asked == part);
        is(&self.tenant, identity.tenant())
            && is(&self.user, identity.user())
            && is(&self.session, identity.session())
    }

    /// A key before every match, and after all keys before those. This holds because no stored
    /// tenant, user or session is empty.
    fn before(&self) -> RecordKey {
        let part = |asked: &Option<String>| asked.clone().unwrap_or_default();
        let parts = IdentityParts {
            tenant: part(&self.tenant),
            user: part(&self.user),
            session: part(&self.session),
            run: String::new(),
        };
        RecordKey { identity: Identity::unchecked(parts), kind: String::new() }
    }
}

/// An entry in a list of sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOverview {
    /// The identity of the session.
    pub identity: IdentityParts,
    /// The strategy's name, as it is stored.
    pub strategy: String,
    /// The counts of the session, or the reason why it cannot be read.
    pub content: Result<SessionCounts, String>,
    /// The size of the record, in bytes.
    pub bytes: u64,
    /// When the record was created, in milliseconds since 1970.
    pub created_at: UnixMillis,
    /// When the record was last written, in milliseconds since 1970.
    pub updated_at: UnixMillis,
}

/// The counts of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionCounts {
    /// The health of summarising.
    pub health: Health,
    /// The number of turns that are kept in full.
    pub turns: usize,
    /// The number of these turns that wait for a summary.
    pub waiting: usize,
    /// The tokens of the summary and of all turns, counted by [`ByteTokens`].
    pub tokens: u64,
}

/// The whole content of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionContent {
    /// The entry in a list of sessions.
    pub overview: SessionOverview,
    /// The summary, even while it is not shown; empty if the session is unreadable.
    pub summary: String,
    /// Turns that wait for a summary, oldest first.
    pub waiting: Vec<Turn>,
    /// The newest turns, oldest first.
    pub recent: Vec<Turn>,
}

/// One page of a list of sessions, in the order of their identities.
#[derive(Clone, Debug, Default)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<SessionOverview>,
    /// The argument `after` of the next page; `None` at the end.
    pub next: Option<RecordKey>,
}

/// The most sessions of a page.
const PAGE_SESSIONS: u32 = 100;

/// Lists, exports, imports and deletes the conversations of a store.
///
/// The [module](self) has an example.
#[derive(Clone, Debug)]
pub struct MemoryOperator {
    store: Store,
}

impl MemoryOperator {
    /// Creates an operator for the conversations in `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// Returns one page of the sessions that match.
    ///
    /// A session that is created or deleted meanwhile may be on a page or not.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the store is closed.
    /// - Any error of the backend.
    pub async fn list(&self, filter: &SessionFilter, after: Option<RecordKey>) -> Result<SessionPage> {
        let mut page = SessionPage::default();
        let (keys, next) = self.keys(filter, after).await?;
        for key in keys {
            if let Some(stored) = self.load(&key).await? {
                page.sessions.push(overview(&key, &stored));
            }
        }
        page.next = next;
        Ok(page)
    }

    /// Returns the content of a session; `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// - [`Error::IdentityRequired`] if tenant, user or session is empty.
    /// - [`Error::LimitExceeded`] if a part of the identity is too long.
    /// - [`Error::Closed`] if the store is closed.
    /// - Any error of the backend.
    pub async fn show(&self, identity: IdentityParts) -> Result<Option<SessionContent>> {
        let key = key(identity)?;
        let Some(stored) = self.load(&key).await? else { return Ok(None) };
        let overview = overview(&key, &stored);
        let record = Record::parse(&stored.bytes).ok().map(|record| record.at_rest());
        let waiting = record.iter().flat_map(waiting).cloned().collect();
        let (summary, recent) = record.map(|record| (record.summary, record.turns)).unwrap_or_default();
        Ok(Some(SessionContent { overview, summary, waiting, recent }))
    }

    /// Returns a snapshot of a session; `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// - [`Error::IdentityRequired`] if tenant, user or session is empty.
    /// - [`Error::LimitExceeded`] if a part of the identity is too long.
    /// - [`Error::Corrupt`] if the session cannot be read.
    /// - [`Error::Closed`] if the store is closed.
    /// - Any error of the backend.
    pub async fn export(&self, identity: IdentityParts) -> Result<Option<MemorySnapshot>> {
        self.load(&key(identity)?).await?.as_ref().map(snapshot_in).transpose()
    }

    /// Creates a session from a snapshot, or replaces one if `replace` is true.
    ///
    /// The snapshot may have [`MemoryOptions::MEMORY_BYTES_MAX`] bytes. The `turn_bytes` of a guest
    /// does not bound its turns.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidSnapshot`] if the bytes are not a valid snapshot.
    /// - [`Error::Conflict`] if the session exists and `replace` is false, or if another caller
    ///   wrote it meanwhile.
    /// - [`Error::IdentityRequired`] if tenant, user or session is empty.
    /// - [`Error::LimitExceeded`] if a part of the identity or the snapshot is too large, or the
    ///   store's quota is full.
    /// - [`Error::Closed`] if the store is closed.
    /// - [`Error::CommitUnknown`] and other errors of the backend.
    pub async fn import(
        &self,
        identity: IdentityParts,
        snapshot: &MemorySnapshot,
        replace: bool,
    ) -> Result<()> {
        let key = key(identity)?;
        let stored = if replace { self.load(&key).await? } else { None };
        self.make_of(key, snapshot, stored).await
    }

    /// Creates or replaces a session if its present content is as expected.
    ///
    /// `is_expected` is called with the session's snapshot, or with `None` if it does not exist.
    /// The bounds are those of [`MemoryOperator::import`].
    ///
    /// # Errors
    ///
    /// - [`Error::Conflict`] if `is_expected` returns false, or if another caller wrote the session
    ///   meanwhile.
    /// - [`Error::Corrupt`] if the session exists and cannot be read.
    /// - [`Error::InvalidSnapshot`] if the bytes are not a valid snapshot.
    /// - [`Error::IdentityRequired`] if tenant, user or session is empty.
    /// - [`Error::LimitExceeded`] if a part of the identity or the snapshot is too large, or the
    ///   store's quota is full.
    /// - [`Error::Closed`] if the store is closed.
    /// - [`Error::CommitUnknown`] and other errors of the backend.
    pub async fn import_if(
        &self,
        identity: IdentityParts,
        snapshot: &MemorySnapshot,
        is_expected: impl FnOnce(Option<&MemorySnapshot>) -> bool,
    ) -> Result<()> {
        let key = key(identity)?;
        let stored = self.load(&key).await?;
        let found = stored.as_ref().map(snapshot_in).transpose()?;
        if !is_expected(found.as_ref()) {
            return Err(Error::Conflict);
        }
        self.make_of(key, snapshot, stored).await
    }

    async fn make_of(
        &self,
        key: RecordKey,
        snapshot: &MemorySnapshot,
        stored: Option<StoredRecord>,
    ) -> Result<()> {
        // Each guest has its own bound on a turn, so none applies here.
        let record = parse_snapshot(snapshot, snapshot.strategy, MemoryOptions::MEMORY_BYTES_MAX, u64::MAX)?;
        let bytes = snapshot_of(&record)?.bytes;
        let now = self.store.clock().now();
        let imported = StoredRecord {
            strategy: record.strategy.name().to_string(),
            bytes,
            version: StoredRecord::draw_version(),
            due_at: record.due_at(),
            created_at: now,
            updated_at: now,
        };
        self.write(key, stored, Some(imported)).await
    }

    /// Deletes the sessions that match, one at a time, and calls `removed` for each.
    ///
    /// If a deletion fails, the earlier ones stay.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the store is closed.
    /// - [`Error::CommitUnknown`] and other errors of the backend.
    pub async fn forget(
        &self,
        filter: &SessionFilter,
        mut removed: impl FnMut(SessionOverview),
    ) -> Result<()> {
        let mut after = None;
        loop {
            let (keys, next) = self.keys(filter, after).await?;
            for key in keys {
                if let Some(overview) = self.delete(&key).await? {
                    removed(overview);
                }
            }
            if next.is_none() {
                return Ok(());
            }
            after = next;
        }
    }

    async fn delete(&self, key: &RecordKey) -> Result<Option<SessionOverview>> {
        loop {
            let Some(stored) = self.load(key).await? else { return Ok(None) };
            let overview = overview(key, &stored);
            match self.write(key.clone(), Some(stored), None).await {
                Ok(()) => return Ok(Some(overview)),
                // Another caller wrote the session meanwhile. Report what is really deleted.
                Err(Error::Conflict) => give_way().await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn keys(
        &self,
        filter: &SessionFilter,
        after: Option<RecordKey>,
    ) -> Result<(Vec<RecordKey>, Option<RecordKey>)> {
        self.store.check_open()?;
        let after = after.unwrap_or_else(|| filter.before());
        let mut keys = self.store.backend().list_records(Some(&after), PAGE_SESSIONS).await?;
        let found = keys.len();
        keys.retain(|key| filter.matches(&key.identity));
        // Matching keys are contiguous, so the first other key ends the list.
        let is_full = found == PAGE_SESSIONS as usize && keys.len() == found;
        let next = if is_full { keys.last().cloned() } else { None };
        Ok((keys, next))
    }

    async fn load(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        self.store.check_open()?;
        self.store.backend().load_record(key).await
    }

    async fn write(
        &self,
        key: RecordKey,
        old: Option<StoredRecord>,
        new: Option<StoredRecord>,
    ) -> Result<()> {
        let growth = RecordWrite::growth(&key, old.as_ref(), new.as_ref());
        let expected = old.map_or(Version::ABSENT, |old| old.version);
        self.store.write_record(RecordWrite { key, expected, record: new }, growth).await
    }
}

fn snapshot_in(stored: &StoredRecord) -> Result<MemorySnapshot> {
    let record = Record::parse(&stored.bytes)
        .map_err(|reason| Error::Corrupt(format!("the conversation of this session: {reason}")))?;
    snapshot_of(&record)
}

fn key(parts: IdentityParts) -> Result<RecordKey> {
    Ok(RecordKey::conversation(Identity::new(parts, &Limits::default())?))
}

fn waiting(record: &Record) -> impl Iterator<Item = &Turn> {
    record.backlog.iter().flatten().chain(&record.pending)
}

fn overview(key: &RecordKey, stored: &StoredRecord) -> SessionOverview {
    SessionOverview {
        identity: key.identity.parts(),
        strategy: stored.strategy.clone(),
        content: Record::parse(&stored.bytes).map(|record| counts(&record.at_rest())),
        bytes: stored.bytes.len() as u64,
        created_at: stored.created_at,
        updated_at: stored.updated_at,
    }
}

fn counts(record: &Record) -> SessionCounts {
    let tokens: &dyn TokenEstimator = &ByteTokens;
    let turns = record.all_turns().map(|turn| turn_tokens(tokens, turn)).sum::<u64>();
    SessionCounts {
        health: record.health,
        turns: record.all_turns().count(),
        waiting: waiting(record).count(),
        tokens: turns + summary_tokens(tokens, &record.summary),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::in_memory::InMemory;
    use crate::memory::{IdentityScope, MemoryStore, Strategy};

    fn store() -> Store {
        Store::builder(InMemory::new()).build().unwrap()
    }

    async fn talk(store: &Store, tenant: &str, user: &str, session: &str) {
        let memories = MemoryStore::builder(store, MemoryOptions::new(Strategy::Truncation)).build().unwrap();
        let parts = IdentityParts::session(tenant, user, session);
        let memory = memories.open(parts, &IdentityScope::Any, &Arc::default()).unwrap();
        memory.add_turn(Turn { user_message: session.into(), ..Turn::default() }).await.unwrap();
    }

    async fn listed(store: &Store, filter: &SessionFilter) -> Vec<String> {
        let operator = MemoryOperator::new(store);
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = operator.list(filter, after).await.unwrap();
            found.extend(page.sessions.into_iter().map(|session| {
                let IdentityParts { tenant, user, session, .. } = session.identity;
                format!("{tenant}/{user}/{session}")
            }));
            after = page.next;
            if after.is_none() {
                return found;
            }
        }
    }

    #[tokio::test]
    async fn sessions_are_listed_by_tenant_and_user_over_pages() {
        let store = store();
        for number in 0..250 {
            talk(&store, "b", "u", &format!("{number:03}")).await;
        }
        for (tenant, user) in [("a", "u"), ("b", "t"), ("b", "v"), ("bb", "u"), ("c", "u")] {
            talk(&store, tenant, user, "s").await;
        }
        assert_eq!(listed(&store, &SessionFilter::all()).await.len(), 255);
        assert_eq!(listed(&store, &SessionFilter::tenant("b")).await.len(), 252);
        let of_user = listed(&store, &SessionFilter::user("b", "u")).await;
        assert_eq!((of_user.len(), of_user[0].as_str(), of_user[249].as_str()), (250, "b/u/000", "b/u/249"));
        assert_eq!(listed(&store, &SessionFilter::session("b", "u", "007")).await, ["b/u/007"]);
        assert_eq!(listed(&store, &SessionFilter::tenant("")).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn forgetting_a_user_says_what_it_removed_and_leaves_the_others() {
        let store = store();
        for (user, session) in [("ann", "1"), ("ann", "2"), ("bob", "1")] {
            talk(&store, "acme", user, session).await;
        }
        let mut removed = Vec::new();
        let filter = SessionFilter::user("acme", "ann");
        MemoryOperator::new(&store)
            .forget(&filter, |session| {
                removed.push((session.identity.session, session.content.unwrap().turns))
            })
            .await
            .unwrap();
        assert_eq!(removed, [("1".to_string(), 1), ("2".to_string(), 1)]);
        assert_eq!(listed(&store, &SessionFilter::all()).await, ["acme/bob/1"]);
    }

    #[tokio::test]
    async fn an_export_is_imported_elsewhere_and_replaces_only_when_told() {
        let (from, to) = (store(), store());
        talk(&from, "acme", "ann", "monday").await;
        let parts = IdentityParts::session("acme", "ann", "monday");
        let snapshot = MemoryOperator::new(&from).export(parts.clone()).await.unwrap().unwrap();
        let operator = MemoryOperator::new(&to);
        assert_eq!(operator.export(parts.clone()).await.unwrap(), None);
        operator.import(parts.clone(), &snapshot, false).await.unwrap();
        assert_eq!(operator.export(parts.clone()).await.unwrap().unwrap(), snapshot);
        let again = operator.import(parts.clone(), &snapshot, false).await;
        assert!(matches!(again, Err(Error::Conflict)));
        operator.import(parts.clone(), &snapshot, true).await.unwrap();
        let shown = operator.show(parts).await.unwrap().unwrap();
        assert_eq!(shown.recent[0].user_message, "monday");
        assert_eq!(shown.overview.content.unwrap().tokens, 3);
    }
}
