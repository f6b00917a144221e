//! Simulates a failing disk, by process limits under which writing or opening a file fails.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Makes writes beyond the limit return an error instead of ending the process.
pub(crate) fn prepare() {
    // SAFETY: no handler is installed; the signal is ignored.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.expect("cannot ignore SIGXFSZ");
}

/// A fault that lasts until it is dropped.
pub(crate) struct Fault(Resource);

impl Fault {
    /// No file may exceed `bytes`. A write across that length is torn.
    pub(crate) fn full_at(bytes: u64) -> Self {
        Self::limit(Resource::RLIMIT_FSIZE, bytes)
    }

    /// No further file can be opened.
    pub(crate) fn no_more_files() -> Self {
        Self::limit(Resource::RLIMIT_NOFILE, 0)
    }

    fn limit(resource: Resource, soft: u64) -> Self {
        let (_, hard) = getrlimit(resource).expect("cannot read a limit");
        setrlimit(resource, soft, hard).expect("cannot lower a limit");
        Self(resource)
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let (_, hard) = getrlimit(self.0).expect("cannot read a limit");
        setrlimit(self.0, hard, hard).expect("cannot restore a limit");
    }
}
