//! The contract between larder's semantics and the engines that store rows.
//!
//! The semantics are implemented once, above this contract. Each engine implements [`Backend`] and
//! [`Snapshot`].
//!
//! # The contract
//!
//! A backend stores rows. A row has a [`RowKey`], a value, the [`Version`] of its last write and,
//! optionally, the time at which it expires. A backend takes **snapshots** and makes **commits**.
//!
//! - A snapshot is one committed state. All of its reads see the same state, however long it lives.
//!   It returns only rows that are live at its moment (see [`is_live`]), in the byte order of their
//!   keys. It holds nothing that a commit of another transaction would wait for. Dropping it
//!   releases all that it holds.
//! - Each snapshot and each commit has a moment. Moments come from a clock that never goes back:
//!   the clock of the call ([`SnapshotOptions::clock`], [`Commit::clock`]) or, if several hosts
//!   share a server, the server's clock plus [`ForwardClock::moved_millis`]. A commit takes its
//!   moment when no other commit can precede it any more. The moment of a view's snapshot is no
//!   earlier than those of the commits that it shows, and no later than those of the commits that
//!   follow. Within a process this always holds. Between processes it holds only as far as their
//!   clocks agree, and not while another process is making a commit.
//! - A commit is atomic. After it, every later snapshot shows all of its writes. After an error,
//!   none does, except perhaps after [`Error::CommitUnknown`]. A commit succeeds only if the
//!   transaction could have run alone at that moment. If a row or range of [`Commit::reads`] has
//!   changed since the snapshot, it fails with [`Error::Conflict`]. An engine that tracks reads
//!   itself may ignore [`Commit::reads`], and may report conflicts earlier, on a read.
//! - [`Commit::plan`] alone decides what a commit writes. Conditions, counters, times to live and
//!   the quota are rules of this crate.
//! - The version of a commit is larger than every version that its rows ever had, below 2⁶³, and
//!   never reused within the store.
//! - A commit that has begun runs to its end, even if its future is dropped.
//! - A backend also stores records of conversations. A record has a [`RecordKey`], bytes, and a
//!   [`Version`] that this crate draws. A write of a record is atomic. It succeeds only if the
//!   record is at [`RecordWrite::expected`], and otherwise fails with [`Error::Conflict`]. It is as
//!   durable as a commit, and runs to its end as a commit does.
//! - A backend classifies errors by codes and types, never by texts. [`Error::Unavailable`] means
//!   that the engine cannot be reached, and [`Error::Corrupt`] that stored bytes failed a check. A
//!   backend never unwraps data that it read from its engine.
//! - After [`Backend::close`], every call fails with [`Error::Closed`]. Closing again does nothing.

use std::sync::Arc;

use async_trait::async_trait;

use crate::clock::{ForwardClock, UnixMillis};
use crate::commit::{Commit, Committed};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::memory::records::{RecordKey, RecordWrite, StoredRecord};
#[cfg(doc)]
use crate::name::RowKey;
use crate::open_snapshots::OpenSnapshots;
use crate::option_setters;
use crate::row::Version;
#[cfg(doc)]
use crate::row::is_live;
use crate::snapshot::{Snapshot, SnapshotOptions};
use crate::stored_cost::StoredCost;

/// Options of [`Backend::sweep`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SweepOptions {
    /// The clock for the moment at which rows must have expired.
    pub clock: ForwardClock,
    /// The maximum number of rows.
    pub max_rows: u32,
    /// The size of namespaces, keys and values at which the sweep stops.
    ///
    /// An engine respects it as far as it knows the sizes in advance.
    pub max_bytes: u64,
    /// Whether the store is about to close.
    ///
    /// The sweep then removes nothing if it would have to wait for another process, or to read rows
    /// that have not expired.
    pub is_closing: bool,
}

option_setters!(SweepOptions { clock: ForwardClock, max_rows: u32, max_bytes: u64, is_closing: bool });

impl SweepOptions {
    /// Creates options that remove up to a number of rows and a size, from a store that stays open.
    pub fn new(clock: ForwardClock, max_rows: u32, max_bytes: u64) -> Self {
        Self { clock, max_rows, max_bytes, is_closing: false }
    }

    /// Whether this result reached a bound, so that more rows may have expired.
    pub fn is_reached_by(&self, swept: &Swept) -> bool {
        swept.rows >= u64::from(self.max_rows) || swept.bytes >= self.max_bytes
    }
}

/// The result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The number of removed rows.
    pub rows: u64,
    /// The size of the removed rows in bytes, as [`Backend::stored_cost`] counts them.
    pub bytes: u64,
}

/// An engine that stores rows.
///
/// The [module](self) documentation has the contract. [`InMemory`](crate::InMemory) is the backend
/// of this crate.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use larder_core::{InMemory, Store};
///
/// // Any backend makes a store.
/// let store = Store::builder(InMemory::new()).build()?;
/// store.ping().await?;
/// # Ok(()) }
/// ```
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Attaches the open snapshots of a store that was opened on this backend.
    ///
    /// Several stores may be opened on one backend. If a snapshot can pin resources that other
    /// calls need ([`Snapshot::pins`]), the backend reclaims them through `snapshots`.
    fn attach(&self, snapshots: OpenSnapshots) {
        let _ = snapshots;
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// - [`Error::TimedOut`] if the engine is not available by [`SnapshotOptions::deadline`].
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>>;

    /// Makes the commit of a transaction that read nothing.
    ///
    /// # Errors
    /// - Any error of [`Commit::plan`], such as [`Error::Conflict`] or [`Error::TimedOut`].
    /// - [`Error::AccessDenied`] if the backend was opened for reading only.
    /// - [`Error::CommitUnknown`] if the outcome is unknown.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed>;

    /// The overhead that a quota counts for each row and record. It never changes.
    fn stored_cost(&self) -> StoredCost {
        StoredCost::default()
    }

    /// The size of all rows and records in bytes, as [`Backend::stored_cost`] counts them. Expired
    /// rows count too.
    ///
    /// # Errors
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn stored_bytes(&self) -> Result<u64>;

    /// Counts [`Backend::stored_bytes`] in one state while commits continue.
    ///
    /// # Errors
    /// - [`Error::TimedOut`] if the count was ended because its snapshot kept too much old data. A
    ///   later one may succeed.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn recount(&self) -> Result<u64> {
        self.stored_bytes().await
    }

    /// Removes expired rows, up to the bounds of the options. It changes no version.
    ///
    /// # Errors
    /// - [`Error::AccessDenied`] if the backend was opened for reading only.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn sweep(&self, options: SweepOptions) -> Result<Swept>;

    /// Loads a record; `None` if it does not exist.
    ///
    /// # Errors
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>>;

    /// Writes or deletes one record.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if the record is not at [`RecordWrite::expected`].
    /// - [`Error::AccessDenied`] if the backend was opened for reading only.
    /// - [`Error::CommitUnknown`] if the outcome is unknown.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()>;

    /// Confirms that the record durably is at this version.
    ///
    /// Durably means that it survives whatever an acknowledged commit survives. [`Version::ABSENT`]
    /// means that the record does not exist.
    ///
    /// Loading the record is not enough. A server may show a commit whose outcome it left open,
    /// before its standby has it.
    ///
    /// # Errors
    /// - Any error means that this is unknown.
    async fn confirm_record(&self, key: &RecordKey, version: Version) -> Result<()> {
        let _ = (key, version);
        Ok(())
    }

    /// Lists the first keys of records after `after`, in their order, up to `max`. `after` itself
    /// need not exist.
    ///
    /// # Errors
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>>;

    /// Lists the keys of due records, the longest due first, up to `max`.
    ///
    /// A record is due if its [`StoredRecord::due_at`] is `now` or earlier.
    ///
    /// # Errors
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn due_records(&self, now: UnixMillis, max: u32) -> Result<Vec<RecordKey>>;

    /// Checks that the engine can be reached.
    ///
    /// # Errors
    /// - [`Error::Unavailable`] if it cannot be reached.
    /// - [`Error::Closed`], [`Error::Corrupt`] or [`Error::Other`], as the contract defines them.
    async fn ping(&self) -> Result<()>;

    /// Closes connections and files. Closing again does nothing.
    async fn close(&self);
}
