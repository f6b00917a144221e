//! Reads a quarantined database, compares it with the live tenant, and applies it.
//!
//! Rows that were sent before the database went into quarantine are left out, because the live
//! tenant had them and may have deleted or changed them since. A row that was deleted in the
//! quarantined database cannot be told from one that was added to the live tenant later. So rows
//! that only the live tenant has stay.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use std::{fs, io};

use larder_core::backend::Backend;
use larder_core::chunk::{ChunkRow, ScanOptions};
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::memory::operator::{MemoryOperator, SessionFilter};
use larder_core::migrations::LedgerEntry;
use larder_core::name::{KeyRange, Namespace, RowKey, just_after};
use larder_core::row::{StoredValue, is_live};
use larder_core::snapshot::{Snapshot, SnapshotOptions};
use larder_core::{
    Error, Handle, HandleOptions, IdentityParts, Limits, MemorySnapshot, MigrationLedger, Mode, PutOptions,
    Share, Store, Version,
};
use larder_sqlite::{Sqlite, SqliteOptions, Synchronous};
use sha2::{Digest, Sha256};

use crate::blocking::blocking;
use crate::error::{Result, TenantError};
use crate::local::cache::{CacheFolder, with_suffix};
use crate::local::quarantine::Quarantined;
use crate::local::tenants::Tenants;

/// A quarantined database that is open for reading.
///
/// It is a copy, so the files in quarantine do not change. Dropping this value removes the copy.
pub struct QuarantinedStore {
    /// The record of the quarantined database.
    pub quarantined: Quarantined,
    store: Store,
    backend: Arc<dyn Backend>,
    clock: ForwardClock,
}

/// A row of a [`QuarantinedStore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedRow {
    /// The row's namespace.
    pub namespace: String,
    /// The key of the row.
    pub key: String,
    /// The value of the row.
    pub value: Vec<u8>,
    /// The version of the commit that wrote the row.
    pub version: Version,
    /// When the row expires, in milliseconds since 1970. `None` for a permanent row.
    pub expires_at: Option<UnixMillis>,
}

/// How to handle rows and conversations that differ in the live tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReapplyPolicy {
    /// Keep them. Only add what the live tenant lacks.
    OnlyMissing,
    /// Replace them.
    Overwrite,
}

/// Which rows of a quarantined database to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReapplyRows {
    /// Rows that were written after the position that object storage has.
    ///
    /// If the live tenant lacks or differs in an older row, it has deleted or changed that row
    /// since.
    Unsent,
    /// All rows.
    All,
}

/// A row that a plan writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRow {
    /// The row's namespace.
    pub namespace: String,
    /// The key of the row.
    pub key: String,
    /// The version of the live row that is replaced. [`Version::ABSENT`] if there is none.
    pub live: Version,
}

/// A conversation that a plan writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSession {
    /// The identity whose conversation it is.
    pub identity: IdentityParts,
    /// A hash of the live conversation that is replaced. `None` if there is none.
    live: Option<[u8; 32]>,
}

impl PlannedSession {
    /// Whether the live tenant lacks the conversation.
    pub fn is_missing(&self) -> bool {
        self.live.is_none()
    }
}

/// The effects of applying a quarantined database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReapplyPlan {
    /// Rows to write.
    pub rows: Vec<PlannedRow>,
    /// Conversations to write.
    pub sessions: Vec<PlannedSession>,
    /// The number of rows that are left out because they were sent before.
    pub sent_rows: u64,
    /// The number of rows that have the same value in the live tenant.
    pub equal_rows: u64,
    /// The number of rows that differ, and that the policy keeps.
    pub kept_rows: u64,
    /// The number of conversations that are the same in the live tenant.
    pub equal_sessions: u64,
    /// The number of conversations that differ, and that the policy keeps.
    pub kept_sessions: u64,
    /// Components whose guest migrations differ between the two databases. Rows of different
    /// layouts must not be mixed.
    pub other_layouts: Vec<String>,
}

/// The result of [`QuarantinedStore::apply`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reapplied {
    /// The number of rows that were written.
    pub rows: u64,
    /// The number of conversations that were written.
    pub sessions: u64,
    /// Rows that changed in the live tenant after the plan was made. They were not written.
    pub changed_rows: Vec<PlannedRow>,
    /// Conversations that changed in the live tenant after the plan was made. They were not
    /// written.
    pub changed_sessions: Vec<PlannedSession>,
}

/// The most rows of a plan. Each takes a few hundred bytes of memory.
const PLANNED_ROWS_MAX: usize = 1_000_000;

/// The most rows and bytes that one read returns.
const PAGE_ROWS: usize = 200;
const PAGE_BYTES: u64 = 1 << 20;

/// The rows and bytes after which a transaction commits.
const COMMIT_ROWS: usize = 500;
const COMMIT_BYTES: usize = 4 << 20;

const DATABASE: &str = "database.db";

impl CacheFolder {
    /// Opens a quarantined database for reading, with the system clock for times to live.
    ///
    /// # Errors
    /// - [`TenantError::InvalidArgument`] if no quarantined database has this name.
    /// - [`TenantError::Corrupt`] if the database is damaged.
    /// - [`TenantError::File`] if it cannot be copied.
    /// - [`TenantError::Database`] if the copy cannot be opened.
    pub async fn open_quarantined(&self, name: &str) -> Result<QuarantinedStore> {
        self.open_quarantined_at(name, ForwardClock::default()).await
    }

    async fn open_quarantined_at(&self, name: &str, clock: ForwardClock) -> Result<QuarantinedStore> {
        let quarantined = self.in_quarantine(name)?;
        let what = format!("{name} can't be copied");
        let copied = move |error| TenantError::file(what.clone(), error);
        let folder = tempfile::Builder::new().prefix("quarantined-").tempdir_in(self.temporary_folder());
        let folder = folder.map_err(&copied)?;
        let (database, copy) = (quarantined.database.clone(), folder.path().join(DATABASE));
        blocking(move || copy_database(&database, &copy).map_err(copied)).await?;
        let failed = |error| TenantError::database(&quarantined.tenant, error);
        Sqlite::verify(folder.path().join(DATABASE)).await.map_err(failed)?;
        let options = SqliteOptions::default().create(false).synchronous(Synchronous::Off);
        let database = Sqlite::open_temporary(folder, DATABASE, options).await.map_err(failed)?;
        let backend: Arc<dyn Backend> = Arc::new(database);
        let store = Store::builder_shared(backend.clone()).sweep_interval(None).build().map_err(failed)?;
        Ok(QuarantinedStore { quarantined, store, backend, clock })
    }
}

/// Copies a database with its write-ahead log. SQLite rebuilds the WAL-index.
fn copy_database(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    match fs::copy(with_suffix(from, "-wal"), with_suffix(to, "-wal")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Tenants {
    /// Opens a database in this host's quarantine for reading.
    ///
    /// Times to live use the clock of the host.
    ///
    /// # Errors
    /// - [`TenantError::InvalidArgument`] if no quarantined database has this name.
    /// - [`TenantError::Corrupt`] if the database is damaged.
    /// - [`TenantError::File`] if it cannot be copied.
    /// - [`TenantError::Database`] if the copy cannot be opened.
    pub async fn open_quarantined(&self, name: &str) -> Result<QuarantinedStore> {
        let clock = ForwardClock::new(self.remote().options().clock.clone());
        self.cache().open_quarantined_at(name, clock).await
    }
}

impl QuarantinedStore {
    /// Calls `each` with every row that has not expired, ordered by namespace and key.
    ///
    /// Rows in larder's reserved namespaces are left out.
    ///
    /// # Errors
    /// - [`TenantError::Corrupt`] if a row is damaged.
    /// - [`TenantError::Database`] if a row cannot be read.
    /// - The first error of `each`.
    pub async fn for_each_row<E: From<TenantError>>(
        &self,
        mut each: impl AsyncFnMut(QuarantinedRow) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |error| E::from(self.failed(error));
        let mut snapshot = self.snapshot().await.map_err(failed)?;
        let mut namespace = snapshot.next_namespace(None).await.map_err(failed)?;
        while let Some(own) = namespace {
            if !own.is_reserved() {
                let mut range = KeyRange::new(own.clone(), Vec::new(), None);
                loop {
                    let chunk = snapshot.scan(&range, PAGE).await.map_err(failed)?;
                    for row in chunk.rows() {
                        each(quarantined_row(&own, row).map_err(failed)?).await?;
                    }
                    match chunk.last_key() {
                        Some(last) if !chunk.exhausted => range = range.narrowed_from(&just_after(last)),
                        _ => break,
                    }
                }
            }
            namespace = snapshot.next_namespace(Some(&own)).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Calls `each` with every conversation, ordered by identity.
    ///
    /// # Errors
    /// - [`TenantError::Corrupt`] if a conversation is damaged.
    /// - [`TenantError::Database`] if a conversation cannot be read.
    /// - The first error of `each`.
    pub async fn for_each_session<E: From<TenantError>>(
        &self,
        mut each: impl AsyncFnMut(IdentityParts, MemorySnapshot) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |error| E::from(self.failed(error));
        let operator = MemoryOperator::new(&self.store);
        let mut after = None;
        loop {
            let page = operator.list(&SessionFilter::all(), after).await.map_err(failed)?;
            for session in page.sessions {
                let identity = session.identity;
                if let Some(snapshot) = operator.export(identity.clone()).await.map_err(failed)? {
                    each(identity, snapshot).await?;
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Compares this database with the live tenant, and changes nothing.
    ///
    /// # Errors
    /// - [`TenantError::InvalidArgument`] if the plan would write more than a million rows.
    /// - [`TenantError::Corrupt`] if either database is damaged.
    /// - [`TenantError::Database`] if either database cannot be read.
    pub async fn plan(&self, live: &Store, policy: ReapplyPolicy, rows: ReapplyRows) -> Result<ReapplyPlan> {
        let sent = self.quarantined.sent_position.filter(|_| rows == ReapplyRows::Unsent);
        let handle = operator(live);
        let mut plan = ReapplyPlan::default();
        self.for_each_row(async |row| {
            if sent.is_some_and(|sent| row.version <= Version(sent)) {
                plan.sent_rows += 1;
                return Ok(());
            }
            let mut view = handle.begin(Mode::View).map_err(|error| self.failed(error))?;
            let found = view.get_versioned(row.namespace.clone(), row.key.clone()).await;
            let version = match found.map_err(|error| self.failed(error))? {
                None => Version::ABSENT,
                Some((value, _)) if value == row.value => {
                    plan.equal_rows += 1;
                    return Ok(());
                }
                Some(_) if policy == ReapplyPolicy::OnlyMissing => {
                    plan.kept_rows += 1;
                    return Ok(());
                }
                Some((_, version)) => version,
            };
            if plan.rows.len() >= PLANNED_ROWS_MAX {
                return Err(TenantError::invalid_argument(format!(
                    "a plan can't write more than {PLANNED_ROWS_MAX} rows; export the rows, and write them in parts"
                )));
            }
            plan.rows.push(PlannedRow { namespace: row.namespace, key: row.key, live: version });
            Ok(())
        })
        .await?;
        let sessions = MemoryOperator::new(live);
        self.for_each_session(async |identity, snapshot| {
            let found = sessions.export(identity.clone()).await.map_err(|error| self.failed(error))?;
            match found {
                Some(found) if found == snapshot => plan.equal_sessions += 1,
                Some(_) if policy == ReapplyPolicy::OnlyMissing => plan.kept_sessions += 1,
                found => plan.sessions.push(PlannedSession { identity, live: found.as_ref().map(hash) }),
            }
            Ok::<_, TenantError>(())
        })
        .await?;
        plan.other_layouts = self.other_layouts(live).await?;
        Ok(plan)
    }

    /// Components whose applied migration steps differ between this database and the live tenant.
    async fn other_layouts(&self, live: &Store) -> Result<Vec<String>> {
        let (own, live) = (self.layouts(&self.store).await?, self.layouts(live).await?);
        let differ = own.iter().filter(|layout| !live.contains(layout));
        let others = live.iter().filter(|layout| !own.contains(layout));
        let mut names: Vec<_> = differ.chain(others).map(|(component, _)| component.clone()).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// All components, each with the keys and checksums of the steps in its ledger.
    async fn layouts(&self, store: &Store) -> Result<Vec<Layout>> {
        let ledger = MigrationLedger::new(operator(store));
        let mut layouts = Vec::new();
        let collected = ledger.for_each_component(|steps| {
            let component = steps.first().map(|step| step.component.clone()).unwrap_or_default();
            let checksum =
                |step: &LedgerEntry| step.applied.as_ref().ok().map(|applied| applied.checksum.clone());
            layouts.push((component, steps.iter().map(|step| (step.key.clone(), checksum(step))).collect()));
            Ok::<_, Error>(())
        });
        collected.await.map_err(|error| self.failed(error))?;
        Ok(layouts)
    }

    /// Writes the rows and conversations of a plan.
    ///
    /// What has changed in the live tenant since the plan was made is not written. A row keeps its
    /// expiry time. If this fails or the process ends, part of the plan is done, and a new plan has
    /// the rest.
    ///
    /// # Errors
    /// The error comes with what was done before it.
    ///
    /// - [`TenantError::Corrupt`] if either database is damaged.
    /// - [`TenantError::Database`] if either database cannot be read, or a commit fails. Its cause
    ///   may be [`Error::LimitExceeded`] if the commit exceeds a quota.
    pub async fn apply(
        &self,
        live: &Store,
        plan: &ReapplyPlan,
    ) -> std::result::Result<Reapplied, (Reapplied, TenantError)> {
        let mut done = Reapplied::default();
        match self.apply_into(live, plan, &mut done).await {
            Ok(()) => Ok(done),
            Err(error) => Err((done, error)),
        }
    }

    async fn apply_into(&self, live: &Store, plan: &ReapplyPlan, done: &mut Reapplied) -> Result<()> {
        let handle = operator(live);
        let mut snapshot = self.snapshot().await.map_err(|error| self.failed(error))?;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for planned in &plan.rows {
            let row = self.stored(snapshot.as_mut(), planned).await.map_err(|error| self.failed(error))?;
            let Some(row) = row.filter(|row| is_live(row.expires_at, self.clock.now())) else { continue };
            bytes += row.value.len();
            batch.push((planned, row));
            if batch.len() >= COMMIT_ROWS || bytes >= COMMIT_BYTES {
                self.write(&handle, std::mem::take(&mut batch), done).await?;
                bytes = 0;
            }
        }
        self.write(&handle, batch, done).await?;
        let (own, live) = (MemoryOperator::new(&self.store), MemoryOperator::new(live));
        for planned in &plan.sessions {
            let identity = planned.identity.clone();
            let snapshot = own.export(identity.clone()).await.map_err(|error| self.failed(error))?;
            let Some(snapshot) = snapshot else { continue };
            let is_as_planned = |found: Option<&MemorySnapshot>| found.map(hash) == planned.live;
            match live.import_if(identity, &snapshot, is_as_planned).await {
                Ok(()) => done.sessions += 1,
                Err(Error::Conflict) => done.changed_sessions.push(planned.clone()),
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    /// Writes rows in one transaction. If one of them has changed since, writes them one by one.
    async fn write(
        &self,
        handle: &Handle,
        batch: Vec<(&PlannedRow, StoredValue)>,
        done: &mut Reapplied,
    ) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        match self.commit(handle, &batch).await {
            Ok(()) => done.rows += batch.len() as u64,
            Err(Error::Conflict) => {
                for row in batch {
                    match self.commit(handle, std::slice::from_ref(&row)).await {
                        Ok(()) => done.rows += 1,
                        Err(Error::Conflict) => done.changed_rows.push(row.0.clone()),
                        Err(error) => return Err(self.failed(error)),
                    }
                }
            }
            Err(error) => return Err(self.failed(error)),
        }
        Ok(())
    }

    async fn commit(
        &self,
        handle: &Handle,
        rows: &[(&PlannedRow, StoredValue)],
    ) -> std::result::Result<(), Error> {
        let mut update = handle.begin(Mode::Update)?;
        let now = self.clock.now();
        for (planned, row) in rows {
            let ttl_ms = row.expires_at.map(|expires_at| expires_at.saturating_sub(now).max(1));
            let options = PutOptions::default().ttl_ms(ttl_ms).if_version(planned.live);
            let PlannedRow { namespace, key, .. } = (*planned).clone();
            update.put_with(namespace, key, row.value.clone(), options)?;
        }
        update.commit().await.map(drop)
    }

    async fn stored(
        &self,
        snapshot: &mut dyn Snapshot,
        planned: &PlannedRow,
    ) -> std::result::Result<Option<StoredValue>, Error> {
        let namespace = Namespace::from_stored(planned.namespace.clone().into_bytes())?;
        let key = larder_core::name::Key::from_stored(planned.key.clone().into_bytes())?;
        snapshot.get(&RowKey { namespace, key }).await
    }

    async fn snapshot(&self) -> std::result::Result<Box<dyn Snapshot>, Error> {
        let deadline = Instant::now() + DEADLINE;
        let (clock, share) = (self.clock.clone(), Share::host());
        self.backend.snapshot(SnapshotOptions::new(Mode::View, clock, deadline, share)).await
    }

    fn failed(&self, error: Error) -> TenantError {
        TenantError::database(&self.quarantined.tenant, error)
    }
}

/// A component, with the keys and checksums of its steps.
type Layout = (String, Vec<(Vec<u8>, Option<String>)>);

/// How long reading all rows may take.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

const PAGE: ScanOptions = ScanOptions::new(PAGE_ROWS, PAGE_BYTES);

fn quarantined_row(namespace: &Namespace, row: ChunkRow<'_>) -> std::result::Result<QuarantinedRow, Error> {
    let key = std::str::from_utf8(row.key).map_err(|_| Error::Corrupt("a key is not UTF-8".to_string()))?;
    Ok(QuarantinedRow {
        namespace: namespace.to_string(),
        key: key.to_string(),
        value: row.value.to_vec(),
        version: row.version,
        expires_at: row.expires_at,
    })
}

fn hash(snapshot: &MemorySnapshot) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(snapshot.strategy.name());
    hash.update([0]);
    hash.update(&snapshot.bytes);
    hash.finalize().into()
}

/// A handle without the limits of a guest.
fn operator(store: &Store) -> Handle {
    let limits = Limits::default()
        .value_bytes(Limits::VALUE_BYTES_MAX)
        .result_bytes(Limits::VALUE_BYTES_MAX * 2)
        .transaction_bytes(Limits::VALUE_BYTES_MAX * 2)
        .instance_bytes(Limits::VALUE_BYTES_MAX * 16);
    store.handle(HandleOptions::default().limits(limits))
}
