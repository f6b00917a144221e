//! Opening a store and running transactions on it.

use crate::error::Error;
use crate::raw;
use crate::raw::tx::Mode;
use crate::retry::{Attempt, RetryPolicy, run};
use crate::transaction::{Update, View};

/// A store that the host granted to this component.
///
/// Dropping it leaves its open transactions open; [`Store::close`] rolls them back.
///
/// ```no_run
/// use larder_guest::{Error, Store};
///
/// fn main() -> Result<(), Error> {
///     let store = Store::open("default")?;
///     store.update(|tx| tx.put("fruit", "apple", "red"))?;
///     assert_eq!(store.view(|tx| tx.get("fruit", "apple"))?, Some(b"red".to_vec()));
///     Ok(())
/// }
/// ```
pub struct Store {
    raw: raw::store::Store,
    policy: RetryPolicy,
}

impl Store {
    /// Opens the store that the host granted under `name`.
    ///
    /// # Errors
    /// - [`Error::NoSuchStore`] if the host granted no store of this name.
    /// - [`Error::InvalidArgument`] if the name is longer than 255 bytes.
    /// - [`Error::LimitExceeded`] if too many stores are open.
    /// - [`Error::IdentityRequired`] or [`Error::AccessDenied`] if it is a tenant's store and the
    ///   host bound no identity, or another one, to this component.
    /// - [`Error::Closed`] if the host has closed the store.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
    pub fn open(name: &str) -> Result<Self, Error> {
        Ok(Self { raw: raw::store::Store::open(name)?, policy: RetryPolicy::default() })
    }

    /// Sets how transactions are run again after conflicts.
    pub fn with_retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Runs `body` in a transaction that reads one snapshot.
    ///
    /// `body` may run several times, because some backends detect late that a snapshot is not
    /// serializable.
    ///
    /// # Errors
    /// - The error of `body`, unchanged.
    /// - [`Error::Closed`] if the store is closed.
    /// - [`Error::LimitExceeded`] if too many transactions are open.
    /// - [`Error::Conflict`] if every run of the retry policy conflicted.
    /// - [`Error::TimedOut`] if a run exceeded the host's timeout for transactions.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
    pub fn view<T, E: From<Error>>(&self, mut body: impl FnMut(&View) -> Result<T, E>) -> Result<T, E> {
        self.run(|| {
            let view = View::new(self.begin(Mode::View)?);
            Ok(match body(&view) {
                Ok(value) => view.finish(value),
                Err(error) => view.fail(error),
            })
        })
    }

    /// Runs `body` in a transaction that reads and writes, and commits it.
    ///
    /// If another transaction committed first, the writes are discarded and `body` runs again. So
    /// `body` must have no effects other than reading and writing the store.
    ///
    /// ```no_run
    /// # use larder_guest::{Error, Store};
    /// # fn example(store: &Store) -> Result<(), Error> {
    /// let moved = store.update(|tx| {
    ///     let Some(task) = tx.get("open", "task:1")? else { return Ok(false) };
    ///     tx.delete("open", "task:1")?;
    ///     tx.put("done", "task:1", task)?;
    ///     Ok::<_, Error>(true)
    /// })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// - The error of `body`, unchanged. The transaction is rolled back.
    /// - [`Error::Closed`] if the store is closed.
    /// - [`Error::AccessDenied`] if the store is granted read-only.
    /// - [`Error::LimitExceeded`] if too many transactions are open or the store is full.
    /// - [`Error::Conflict`] if every run of the retry policy conflicted.
    /// - [`Error::TimedOut`] if a run exceeded the host's timeout for transactions.
    /// - [`Error::InvalidArgument`] if `body` incremented a row that is not a counter, or a sum is
    ///   out of range.
    /// - [`Error::CommitUnknown`] if the outcome of the commit is unknown. `body` does not run
    ///   again, because the commit may have happened.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
    pub fn update<T, E: From<Error>>(&self, mut body: impl FnMut(&Update) -> Result<T, E>) -> Result<T, E> {
        self.run(|| {
            let update = Update::new(self.begin(Mode::Update)?);
            Ok(match body(&update) {
                Ok(value) => update.into_view().finish(value),
                Err(error) => update.into_view().fail(error),
            })
        })
    }

    /// Checks that the backend can be reached.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store is closed.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
    pub fn ping(&self) -> Result<(), Error> {
        Ok(self.raw.ping()?)
    }

    /// Rolls back the open transactions of this handle.
    ///
    /// Later calls fail with [`Error::Closed`].
    pub fn close(&self) {
        self.raw.close();
    }

    fn begin(&self, mode: Mode) -> Result<raw::tx::Tx, Error> {
        Ok(self.raw.begin(mode)?)
    }

    fn run<T, E: From<Error>>(
        &self,
        mut attempt: impl FnMut() -> Result<Attempt<T, E>, Error>,
    ) -> Result<T, E> {
        self.retry(|| attempt().unwrap_or_else(|error| Attempt::Done(Err(error.into()))))
    }

    /// Runs an attempt at most as often as the retry policy allows.
    pub(crate) fn retry<T, E: From<Error>>(&self, attempt: impl FnMut() -> Attempt<T, E>) -> Result<T, E> {
        run(&self.policy, std::thread::sleep, attempt)
    }

    pub(crate) fn raw(&self) -> &raw::store::Store {
        &self.raw
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Store").field("policy", &self.policy).finish_non_exhaustive()
    }
}
