//! The standard input and output with which the process was started.
//!
//! Rust's own streams treat a stream that cannot be read or written as empty, and replace a closed
//! stream with `/dev/null`. A value to be read from there would be stored as an empty one, and
//! output would be lost without an error.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

/// Returns standard input, unbuffered.
pub(crate) fn input() -> io::Result<File> {
    open(0, io::stdin().as_fd())
}

/// Returns standard output, unbuffered.
pub(crate) fn output() -> io::Result<&'static File> {
    static OUTPUT: OnceLock<Option<File>> = OnceLock::new();
    let output = OUTPUT.get_or_init(|| open(1, io::stdout().as_fd()).ok());
    output.as_ref().ok_or_else(closed)
}

fn open(number: u8, stream: BorrowedFd<'_>) -> io::Result<File> {
    if at_start::was_closed(number) {
        return Err(closed());
    }
    Ok(stream.try_clone_to_owned()?.into())
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the stream is closed")
}

/// Records which streams were closed before Rust's runtime opened them.
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod at_start {
    use std::ffi::c_int;
    use std::sync::atomic::{AtomicU8, Ordering};

    /// One bit per stream.
    static CLOSED: AtomicU8 = AtomicU8::new(0);

    const F_GETFD: c_int = 1;

    unsafe extern "C" {
        fn fcntl(descriptor: c_int, command: c_int, ...) -> c_int;
    }

    /// The system calls this function before Rust's runtime starts.
    #[used]
    // SAFETY: the section contains pointers to functions of this type.
    #[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
    #[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
    static LOOK: extern "C" fn() = look;

    extern "C" fn look() {
        for number in 0..2 {
            // SAFETY: this command takes no argument, and fails only if the descriptor is not open.
            if unsafe { fcntl(number, F_GETFD) } == -1 {
                CLOSED.fetch_or(1 << number, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn was_closed(number: u8) -> bool {
        CLOSED.load(Ordering::Relaxed) & (1 << number) != 0
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
mod at_start {
    pub(super) fn was_closed(_: u8) -> bool {
        false
    }
}
