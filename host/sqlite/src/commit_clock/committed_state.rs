//! A state that a commit left, shared by the snapshots that stand on it.

use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};

use super::version_block::VersionBlock;
use crate::readers::Reader;
use crate::state_number::StateNumber;

/// The state that a commit left.
pub(crate) struct CommittedState {
    pub(crate) number: StateNumber,
    pub(super) versions: VersionBlock,
    /// A connection whose read transaction sees this state. It is set before the state is
    /// superseded, if snapshots need it, and is dropped with the last of them.
    pin: OnceLock<Mutex<Reader>>,
}

impl CommittedState {
    pub(super) fn new(number: StateNumber, versions: VersionBlock) -> Arc<Self> {
        Arc::new(Self { number, versions, pin: OnceLock::new() })
    }

    /// Keeps a connection that sees this state. The first one stays.
    pub(super) fn set_pin(&self, reader: Reader) {
        drop(self.pin.set(Mutex::new(reader)));
    }

    /// Locks the connection that was opened for this state. Its transaction may have ended.
    pub(crate) fn pin(&self) -> Option<MutexGuard<'_, Reader>> {
        self.pin.get().map(Mutex::lock)
    }

    /// Whether a connection was opened for this state.
    pub(crate) fn has_pin(&self) -> bool {
        self.pin.get().is_some()
    }

    /// Whether the connection still sees this state. A failed read ends its transaction for all
    /// snapshots that share it.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pin().is_some_and(|pin| pin.is_in_transaction())
    }
}
