//! A disk that fails: limits of this process under which writing a file, or opening one, gives an error.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Has writes beyond the limit give an error instead of ending the process.
pub(crate) fn prepare() {
    // SAFETY: no handler is installed; the signal is ignored.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.expect("the signal can be ignored");
}

/// What fails until it is dropped.
pub(crate) struct Fault(Resource);

impl Fault {
    /// No file may be longer than so many bytes. A write across the bound is torn.
    pub(crate) fn full_at(bytes: u64) -> Self {
        Self::limit(Resource::RLIMIT_FSIZE, bytes)
    }

    /// No further file can be opened.
    pub(crate) fn no_more_files() -> Self {
        Self::limit(Resource::RLIMIT_NOFILE, 0)
    }

    fn limit(resource: Resource, soft: u64) -> Self {
        let (_, hard) = getrlimit(resource).expect("limits can be read");
        setrlimit(resource, soft, hard).expect("limits can be lowered");
        Self(resource)
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let (_, hard) = getrlimit(self.0).expect("limits can be read");
        setrlimit(self.0, hard, hard).expect("limits can be raised again");
    }
}
