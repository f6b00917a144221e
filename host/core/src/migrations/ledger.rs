//! The ledger, for the operator of a store: what components have applied, and repairs.

use super::declared::Declared;
use super::entry::{self, AppliedMigration};
use super::{LEDGER_NAMESPACE, Migration};
use crate::backend::Mode;
use crate::error::{Error, Result};
use crate::handle::Handle;
use crate::limits::Limits;
use crate::name::just_after;
use crate::transaction::Transaction;

/// One row of the ledger, readable or not.
#[derive(Clone, Debug)]
pub struct LedgerEntry {
    /// The key of the row: the component, a NUL, and the step's id. That of an invalid row may be any bytes.
    pub key: Vec<u8>,
    /// The component; U+FFFD stands in it for what is not UTF-8.
    pub component: String,
    /// The step's id; U+FFFD stands in it for what is not UTF-8.
    pub id: String,
    /// What is recorded, or [`Error::Corrupt`] if the row is not a valid entry.
    pub applied: Result<AppliedMigration>,
}

impl LedgerEntry {
    /// Takes a row of [`LEDGER_NAMESPACE`].
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

    /// Its place among the steps of its component, from 1; `None` if the row is not a valid entry.
    pub fn ordinal(&self) -> Option<u64> {
        self.applied.as_ref().ok().map(|applied| applied.ordinal)
    }

    /// The key in hexadecimal digits, as `larder migrations remove --row` takes it.
    pub fn hex_key(&self) -> String {
        entry::hex(&self.key)
    }

    /// The bytes before the NUL, which rows of one component have in common.
    fn component_bytes(&self) -> &[u8] {
        self.key.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// Inspects and repairs the ledger of a store, for its operator. Each repair is one transaction.
///
/// Repairs change the ledger and none of the rows that the steps wrote. Apply them while no instance of the component
/// runs its migrations; otherwise they give [`Error::Conflict`] and change nothing.
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
    /// The ledger of the handle's store. The handle's limits bound each transaction.
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// What the component has applied, in its order. Rows that are not valid entries come last.
    ///
    /// # Errors
    /// Those of a view that reads.
    pub async fn entries(&self, component: &str) -> Result<Vec<LedgerEntry>> {
        entries(&mut self.handle.begin(Mode::View)?, component).await
    }

    /// Gives what each component has applied, one component at a time, in the order of their names. Steps are in their
    /// order; rows that are not valid entries come last. All of it is one state of the store.
    ///
    /// # Errors
    /// Those of a view that reads, and those of `each`, which end it.
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

    /// Removes one row that is not a valid entry, by [`LedgerEntry::key`], and gives what was removed. All other rows stay.
    /// With `dry_run` it changes nothing and gives what it would remove.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such row, or if it is a valid entry; and those of an update.
    pub async fn remove_invalid(&self, key: &[u8], dry_run: bool) -> Result<LedgerEntry> {
        let mut transaction = self.handle.begin(mode(dry_run))?;
        let Some(entry) = transaction.ledger_row(key).await? else {
            return Err(Error::invalid_argument(format!(
                "{LEDGER_NAMESPACE:?} has no row {:?}, {} in hexadecimal digits",
                String::from_utf8_lossy(key),
                entry::hex(key)
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

    /// Removes the step `from` and the steps applied after it, so that they can be applied again, and gives what was
    /// removed. Without `from` it removes all rows of the component, those too that are not valid entries. With
    /// `dry_run` it changes nothing and gives what it would remove.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the component has not applied `from`; [`Error::Corrupt`] if `from` is given and a
    /// row is not a valid entry, or a step is missing; and those of an update.
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

    /// Records a step as applied, after those that are, and gives its number. The step itself does not run. With
    /// `dry_run` it changes nothing and gives the number that the step would have.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the step is recorded already, or its name or checksum is invalid;
    /// [`Error::Corrupt`] if a row of the component is not a valid entry, or a step is missing; and those of an update.
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

/// Rows that are not valid entries come last.
fn in_order(mut entries: Vec<LedgerEntry>) -> Vec<LedgerEntry> {
    entries.sort_by_key(|entry| entry.ordinal().unwrap_or(u64::MAX));
    entries
}

/// The entries from a step on.
fn tail(entries: Vec<LedgerEntry>, component: &str, from: Option<&str>) -> Result<Vec<LedgerEntry>> {
    let Some(from) = from else { return Ok(entries) };
    // Without every entry in its place, nobody knows which steps follow `from`.
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
