//! The ledger of guest migrations, for the operator of a store: listing and repairs.

use super::declared::Declared;
use super::entry::{self, AppliedMigration};
use super::{LEDGER_NAMESPACE, Migration};
use crate::call::Mode;
use crate::error::{Error, Result};
use crate::handle::Handle;
use crate::limits::Limits;
use crate::name::just_after;
use crate::transaction::Transaction;

/// One row of the ledger, readable or not.
#[derive(Clone, Debug)]
pub struct LedgerEntry {
    /// The key of the row: the component, a NUL, and the step's id.
    ///
    /// The key of an invalid row may be any bytes.
    pub key: Vec<u8>,
    /// The component, with U+FFFD in place of bytes that are not UTF-8.
    pub component: String,
    /// The step's id, with U+FFFD in place of bytes that are not UTF-8.
    pub id: String,
    /// The entry, or [`Error::Corrupt`] if the row is not a valid entry.
    pub applied: Result<AppliedMigration>,
}

impl LedgerEntry {
    /// Parses a row of [`LEDGER_NAMESPACE`].
    pub fn from_row(key: &[u8], value: &[u8]) -> Self {
        let text = String::from_utf8_lossy(key);
        let (component, id) = text.split_once('\0').unwrap_or((&text, ""));
        Self {
            key: key.to_vec(),
            component: component.to_string(),
            id: id.to_string(),
            applied: AppliedMigration::from_row(key, value),
        }
    }

    /// The number of the step in its component, from 1; `None` if invalid.
    pub fn ordinal(&self) -> Option<u64> {
        self.applied.as_ref().ok().map(|applied| applied.ordinal)
    }

    /// The key in hexadecimal digits, as `larder migrations remove --row` takes it.
    pub fn hex_key(&self) -> String {
        hex::encode(&self.key)
    }

    /// The bytes before the NUL, which the rows of one component share.
    fn component_bytes(&self) -> &[u8] {
        self.key.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// Inspects and repairs the ledger of a store, for its operator.
///
/// Each repair is one transaction. A repair changes the ledger only, and not the rows that the
/// steps wrote. Run repairs while no instance of the component runs its migrations. Otherwise they
/// can fail with [`Error::Conflict`] and change nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use larder_core::{HandleOptions, InMemory, Migration, MigrationLedger, Store};
///
/// let store = Store::builder(InMemory::new()).build()?;
/// let ledger = MigrationLedger::new(store.handle(HandleOptions::default()));
/// let step = Migration { id: "0001_init".into(), checksum: vec![0; 32] };
/// assert_eq!(ledger.record("tasks", step, false).await?, 1);
/// assert_eq!(ledger.remove("tasks", None, true).await?.len(), 1);
/// assert_eq!(ledger.entries("tasks").await?[0].id, "0001_init");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct MigrationLedger {
    handle: Handle,
}

impl MigrationLedger {
    /// Opens the ledger of the handle's store. The handle's limits bound each transaction.
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// Returns the steps that a component has applied, in order; invalid rows come last.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the store or the handle is closed.
    /// - [`Error::TimedOut`] if the transaction reaches its timeout.
    /// - [`Error::LimitExceeded`] if a limit of the handle is exceeded.
    /// - Any error of the backend.
    pub async fn entries(&self, component: &str) -> Result<Vec<LedgerEntry>> {
        entries(&mut self.handle.begin(Mode::View)?, component).await
    }

    /// Calls `each` with the steps of one component after the other.
    ///
    /// The components come in the order of their names, their steps in the order of their numbers,
    /// and invalid rows last. All of them are read from one snapshot.
    ///
    /// # Errors
    ///
    /// - Any error of `each`, which ends the iteration.
    /// - [`Error::Closed`] if the store or the handle is closed.
    /// - [`Error::TimedOut`] if the transaction reaches its timeout.
    /// - [`Error::LimitExceeded`] if a limit of the handle is exceeded.
    /// - Any error of the backend.
    pub async fn for_each_component<E: From<Error>>(
        &self,
        mut each: impl FnMut(Vec<LedgerEntry>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut view = self.handle.begin(Mode::View)?;
        let mut component: Vec<LedgerEntry> = Vec::new();
        let mut from = Vec::new();
        loop {
            let page = view.ledger_page(from).await?;
            for (key, value) in page.iter() {
                let entry = LedgerEntry::from_row(key, value);
                let first = component.first();
                if first.is_some_and(|first| first.component_bytes() != entry.component_bytes()) {
                    each(in_order(std::mem::take(&mut component)))?;
                }
                component.push(entry);
            }
            match page.last_key() {
                Some(last) => from = just_after(last),
                None if component.is_empty() => return Ok(()),
                None => return each(in_order(component)),
            }
        }
    }

    /// Removes one invalid row by its [`LedgerEntry::key`] and returns it.
    ///
    /// All other rows stay. With `dry_run`, nothing changes, and the row that would be removed is
    /// returned.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidArgument`] if there is no such row, or if it is a valid entry.
    /// - [`Error::Conflict`] if another transaction changed the row meanwhile.
    /// - [`Error::LimitExceeded`] if a limit of the handle is exceeded.
    /// - [`Error::Closed`] if the store or the handle is closed.
    /// - [`Error::TimedOut`] if the transaction reaches its timeout.
    /// - [`Error::AccessDenied`] if the handle or the backend is read-only.
    /// - [`Error::CommitUnknown`] and other errors of the backend.
    pub async fn remove_invalid(&self, key: &[u8], dry_run: bool) -> Result<LedgerEntry> {
        let mut transaction = self.handle.begin(mode(dry_run))?;
        let Some(entry) = transaction.ledger_row(key).await? else {
            return Err(Error::invalid_argument(format!(
                "{LEDGER_NAMESPACE:?} has no row {:?} ({} in hexadecimal digits)",
                String::from_utf8_lossy(key),
                hex::encode(key)
            )));
        };
        if let Ok(applied) = &entry.applied {
            return Err(Error::invalid_argument(format!(
                "the row of the migration {:?} of {:?} is a valid entry; remove the migration by its component and id",
                applied.id, applied.component
            )));
        }
        if !dry_run {
            transaction.forget_migration(entry.key.clone())?;
            transaction.commit().await?;
        }
        Ok(entry)
    }

    /// Removes a step and those applied after it, so that they can be applied again.
    ///
    /// Returns the removed entries. Without `from`, all rows of the component are removed,
    /// including invalid ones. With `dry_run`, nothing changes, and the entries that would be
    /// removed are returned.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidArgument`] if the component has not applied `from`.
    /// - [`Error::Corrupt`] if `from` is given and a row is invalid or a step is missing.
    /// - [`Error::Conflict`] if another transaction changed the ledger of the component meanwhile.
    /// - [`Error::LimitExceeded`] if a limit of the handle is exceeded.
    /// - [`Error::Closed`] if the store or the handle is closed.
    /// - [`Error::TimedOut`] if the transaction reaches its timeout.
    /// - [`Error::AccessDenied`] if the handle or the backend is read-only.
    /// - [`Error::CommitUnknown`] and other errors of the backend.
    pub async fn remove(
        &self,
        component: &str,
        from: Option<&str>,
        dry_run: bool,
    ) -> Result<Vec<LedgerEntry>> {
        let mut transaction = self.handle.begin(mode(dry_run))?;
        let removed = tail(entries(&mut transaction, component).await?, component, from)?;
        if !dry_run {
            for entry in &removed {
                transaction.forget_migration(entry.key.clone())?;
            }
            transaction.commit().await?;
        }
        Ok(removed)
    }

    /// Records a step as applied, after the existing ones, and returns its number.
    ///
    /// The step itself does not run. With `dry_run`, nothing changes, and the number that the step
    /// would get is returned.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidArgument`] if the step is recorded already, or its name or checksum is
    ///   invalid.
    /// - [`Error::Corrupt`] if a row of the component is invalid or a step is missing.
    /// - [`Error::Conflict`] if another transaction changed the ledger of the component meanwhile.
    /// - [`Error::LimitExceeded`] if the name is too long or a limit of the handle is exceeded.
    /// - [`Error::Closed`] if the store or the handle is closed.
    /// - [`Error::TimedOut`] if the transaction reaches its timeout.
    /// - [`Error::AccessDenied`] if the handle or the backend is read-only.
    /// - [`Error::CommitUnknown`] and other errors of the backend.
    pub async fn record(&self, component: &str, step: Migration, dry_run: bool) -> Result<u64> {
        let declared = Declared::new(component.to_string(), vec![step.clone()], &Limits::default())?;
        let mut transaction = self.handle.begin(mode(dry_run))?;
        let applied = transaction.ledger(declared.component()).await?;
        if applied.iter().any(|applied| applied.id == step.id) {
            return Err(Error::invalid_argument(format!(
                "cannot record the migration {:?} of {component:?}: it is recorded already; remove it first",
                step.id
            )));
        }
        if !dry_run {
            transaction.record_migration(declared.component(), &step, applied.len())?;
            transaction.commit().await?;
        }
        Ok(applied.len() as u64 + 1)
    }
}

fn mode(dry_run: bool) -> Mode {
    if dry_run { Mode::View } else { Mode::Update }
}

async fn entries(transaction: &mut Transaction, component: &str) -> Result<Vec<LedgerEntry>> {
    let rows = transaction.ledger_rows(component).await?;
    Ok(in_order(rows.iter().map(|(key, value)| LedgerEntry::from_row(key, value)).collect()))
}

/// Sorts entries by their numbers; invalid rows come last.
fn in_order(mut entries: Vec<LedgerEntry>) -> Vec<LedgerEntry> {
    entries.sort_by_key(|entry| entry.ordinal().unwrap_or(u64::MAX));
    entries
}

/// The entries from the step `from` on, or all of them.
fn tail(entries: Vec<LedgerEntry>, component: &str, from: Option<&str>) -> Result<Vec<LedgerEntry>> {
    let Some(from) = from else { return Ok(entries) };
    // The order of the steps is known only if every entry is valid and none is missing.
    let applied = entries.iter().map(|entry| entry.applied.clone()).collect::<Result<Vec<_>>>();
    if let Err(Error::Corrupt(reason)) = applied.and_then(|applied| entry::in_order(component, applied)) {
        return Err(Error::Corrupt(format!(
            "cannot tell which migrations of {component:?} follow {from:?}: {reason}"
        )));
    }
    let Some(first) = entries.iter().position(|entry| entry.id == from) else {
        return Err(Error::invalid_argument(format!(
            "the component {component:?} has no migration {from:?} in {LEDGER_NAMESPACE:?}"
        )));
    };
    Ok(entries.into_iter().skip(first).collect())
}
