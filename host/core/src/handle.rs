//! A handle: a store with one user's limits and rights.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::call::Mode;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::held::HeldBytes;
use crate::limits::Limits;
use crate::migrations::MigrationScope;
use crate::open_transactions::OpenTransactions;
use crate::option_setters;
use crate::share::Share;
use crate::store::Store;
use crate::transaction::Transaction;

/// The limits and rights of a [`Handle`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct HandleOptions {
    /// The user's name for the store.
    pub name: String,
    /// Whether to refuse updates.
    pub read_only: bool,
    /// The limits of its transactions.
    pub limits: Arc<Limits>,
    /// The counter of open transactions.
    ///
    /// Handles with clones of one counter share its bound. The default is a new counter with the
    /// bound of the default limits.
    pub open_transactions: OpenTransactions,
    /// The counter of the host's memory for its transactions.
    ///
    /// Handles with clones of one counter share its bound. The default is a new counter with the
    /// bound of `limits`.
    pub held: Option<HeldBytes>,
    /// The components whose migrations the user may declare. The default is none.
    pub migrations: MigrationScope,
    /// The share that its transactions count against. The default is a new share.
    pub share: Share,
}

option_setters!(HandleOptions {
    name: impl Into<String>,
    read_only: bool,
    limits: impl Into<Arc<Limits>>,
    open_transactions: OpenTransactions,
    held: impl Into<Option<HeldBytes>>,
    migrations: MigrationScope,
    share: Share,
});

/// A store with one user's limits and rights.
///
/// Dropping a handle leaves its transactions open. [`Handle::close`] ends them.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use larder_core::{Error, HandleOptions, InMemory, Mode, Store};
///
/// let store = Store::builder(InMemory::new()).build()?;
/// let handle = store.handle(HandleOptions::default().read_only(true));
/// assert!(matches!(handle.begin(Mode::Update), Err(Error::AccessDenied(_))));
/// let mut view = handle.begin(Mode::View)?;
/// assert_eq!(view.get("fruit".into(), "apple".into()).await?, None);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Handle {
    store: Store,
    id: u64,
    pub(crate) options: HandleOptions,
    held: HeldBytes,
    closed: AtomicBool,
}

impl Store {
    /// Creates a handle for one user of the store.
    pub fn handle(&self, options: HandleOptions) -> Handle {
        Handle::new(self.clone(), self.next_id(), options)
    }
}

impl Handle {
    fn new(store: Store, id: u64, options: HandleOptions) -> Self {
        let held = options.held.clone();
        let held = held.unwrap_or_else(|| HeldBytes::at_most(options.limits.instance_bytes));
        Self { store, id, options, held, closed: AtomicBool::new(false) }
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::AccessDenied`] for an update through a read-only handle. The handle also reports
    ///   an event.
    /// - [`Error::LimitExceeded`] if too many transactions are open.
    pub fn begin(&self, mode: Mode) -> Result<Transaction> {
        self.check_open()?;
        if self.options.read_only && mode == Mode::Update {
            let reason = format!("the store {:?} is granted read-only", self.options.name);
            return Err(self.deny("begin", reason));
        }
        let permit = self.options.open_transactions.permit()?;
        let Self { store, id, options, held, .. } = self;
        let limits = options.limits.clone();
        let open = store.begin(limits.transaction_timeout, *id, options.share.clone(), permit);
        Ok(Transaction::new(open, limits, mode, held.nothing()))
    }

    /// Checks that the backend can be reached.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::Unavailable`] if the backend cannot be reached.
    /// - [`Error::Corrupt`] or [`Error::Other`] if the backend fails in another way.
    pub async fn ping(&self) -> Result<()> {
        self.check_open()?;
        self.store.ping().await
    }

    /// Closes the handle and rolls back its open transactions.
    ///
    /// Later calls on them fail with [`Error::Closed`]. Closing again does nothing.
    pub fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.store.end_transactions(|transaction| transaction.handle == self.id, &Error::Closed);
        }
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.store.check_open()
    }

    pub(crate) fn deny(&self, operation: &'static str, reason: String) -> Error {
        self.store.emit(Event::AccessDenied {
            store: self.options.name.clone(),
            operation,
            reason: reason.clone(),
        });
        Error::AccessDenied(reason)
    }
}
