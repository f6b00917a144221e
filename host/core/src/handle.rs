//! A store as one user has it: with that user's limits and rights.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::backend::Mode;
use crate::error::{Error, LimitExceeded, LimitKind, Result};
use crate::event::Event;
use crate::limits::Limits;
use crate::migrations::{self, Declared, Migration, MigrationScope, NextMigration};
use crate::share::Share;
use crate::store::Store;
use crate::transaction::Transaction;

/// What a handle may do.
#[derive(Clone, Debug, Default)]
pub struct HandleOptions {
    /// The name under which its user knows the store.
    pub name: String,
    /// Updates are refused.
    pub read_only: bool,
    /// The bounds of its transactions.
    pub limits: Arc<Limits>,
    /// Counts the transactions that are open; handles that share it share the bound. Default: one of its own,
    /// with the bound of the default limits.
    pub open_transactions: OpenTransactions,
    /// Which components' migrations its user may declare. Default: none.
    pub migrations: MigrationScope,
    /// On whose behalf its transactions are run. Default: a share of its own.
    pub share: Share,
}

/// Counts open transactions against a bound. Clones share the count.
#[derive(Clone, Debug)]
pub struct OpenTransactions {
    count: Arc<AtomicU64>,
    max: u64,
}

impl OpenTransactions {
    /// At most so many.
    pub fn at_most(max: u64) -> Self {
        Self { count: Arc::default(), max }
    }

    fn permit(&self) -> Result<Permit> {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        let permit = Permit { count: self.count.clone() };
        if before < self.max {
            return Ok(permit);
        }
        let requested = before.saturating_add(1);
        Err(LimitExceeded { kind: LimitKind::OpenTransactions, max: self.max, requested }.into())
    }
}

impl Default for OpenTransactions {
    fn default() -> Self {
        Self::at_most(Limits::default().open_transactions)
    }
}

/// The right to one open transaction; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Permit {
    count: Arc<AtomicU64>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A store as one user has it. Dropping it leaves its transactions open; [`Handle::close`] ends them.
#[derive(Debug)]
pub struct Handle {
    store: Store,
    id: u64,
    options: HandleOptions,
    closed: AtomicBool,
}

impl Handle {
    pub(crate) fn new(store: Store, id: u64, options: HandleOptions) -> Self {
        Self { store, id, options, closed: AtomicBool::new(false) }
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::AccessDenied`] for an update of a store that may only be read, of which the
    /// platform is told; [`Error::LimitExceeded`] where too many are open.
    pub fn begin(&self, mode: Mode) -> Result<Transaction> {
        self.check_open()?;
        if self.options.read_only && mode == Mode::Update {
            let reason = format!("the store {:?} is granted read-only", self.options.name);
            return Err(self.deny("begin", reason));
        }
        let permit = self.options.open_transactions.permit()?;
        let Self { store, id, options, .. } = self;
        Ok(store.begin(mode, options.limits.clone(), *id, options.share.clone(), permit))
    }

    /// Holds the set of steps that a component declares against what was applied, and gives the ids that are still to
    /// apply, in the set's order. The empty set has nothing to apply on any store.
    ///
    /// # Errors
    /// [`Error::MigrationMismatch`] where what was applied is not the beginning of the set: a step was reordered,
    /// removed or edited, or the store is newer. [`Error::InvalidArgument`] for a set with empty or repeated ids, or
    /// checksums that are no SHA-256; [`Error::AccessDenied`] if [`HandleOptions::migrations`] does not permit the
    /// component, of which the platform is told; and as a view that reads.
    pub async fn pending_migrations(
        &self,
        component: String,
        declared: Vec<Migration>,
    ) -> Result<Vec<String>> {
        let declared = self.declare("pending-migrations", component, declared)?;
        migrations::pending(|mode| self.begin(mode), &declared).await
    }

    /// Begins the first step of the set that is not yet applied, or gives none where all are. The transaction's commit
    /// also records the step; where another host has applied a step of this component meanwhile, it gives
    /// [`Error::Conflict`].
    ///
    /// # Errors
    /// As [`Handle::pending_migrations`], and [`Error::AccessDenied`] for a store that may only be read.
    pub async fn begin_migration(
        &self,
        component: String,
        declared: Vec<Migration>,
    ) -> Result<Option<NextMigration>> {
        let declared = self.declare("begin-migration", component, declared)?;
        migrations::begin_next(|mode| self.begin(mode), &declared).await
    }

    /// Whether the backend can be reached.
    ///
    /// # Errors
    /// [`Error::Closed`], and those of the backend.
    pub async fn ping(&self) -> Result<()> {
        self.check_open()?;
        self.store.ping().await
    }

    /// Rolls back the open transactions of this handle; later calls on it and on them get [`Error::Closed`].
    /// Closing again does nothing.
    pub fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.store.end_transactions(|slot| slot.handle == self.id, &Error::Closed);
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.store.check_open()
    }

    /// Checks what the user declares, and whether the user may declare it.
    fn declare(&self, operation: &'static str, component: String, steps: Vec<Migration>) -> Result<Declared> {
        self.check_open()?;
        let declared = Declared::new(component, steps, &self.options.limits)?;
        if self.options.migrations.permits(declared.component()) {
            return Ok(declared);
        }
        let reason = format!(
            "cannot declare migrations of the component {:?}: the host did not bind this name to the instance",
            declared.component()
        );
        Err(self.deny(operation, reason))
    }

    fn deny(&self, operation: &'static str, reason: String) -> Error {
        self.store.emit(Event::AccessDenied {
            store: self.options.name.clone(),
            operation,
            reason: reason.clone(),
        });
        Error::AccessDenied(reason)
    }
}
