//! The release of SQLite that the program links, and whether it is safe to use.
//!
//! Releases from 3.7.0 to 3.51.2 can corrupt a database in WAL mode: while two connections make
//! checkpoints, a third one that restarts the log can make SQLite skip a part of it. The fix is
//! also in 3.44.6 and 3.50.7. Cargo may link an older release, as a program has one SQLite and
//! other crates may ask for it, so larder checks the one that is linked.

use larder_core::{Error, Result};

/// The linked SQLite can corrupt a database in WAL mode, so larder opened nothing.
///
/// It is the cause of the [`Error::Other`] with which opening a database fails.
///
/// ```
/// use larder_core::Error;
/// use larder_sqlite::UnsafeSqlite;
///
/// /// The number of the linked release, such as 3_046_000, if larder refused it.
/// fn refused_release(error: &Error) -> Option<i32> {
///     let Error::Other { cause: Some(cause), .. } = error else { return None };
///     cause.downcast_ref::<UnsafeSqlite>().map(|refused| refused.version_number)
/// }
///
/// let refused = Error::caused("refused", UnsafeSqlite { version_number: 3_046_000 });
/// assert_eq!(refused_release(&refused), Some(3_046_000));
/// assert_eq!(refused_release(&Error::Closed), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this program links SQLite {}.{}.{}, which can corrupt a database in WAL mode; require \
     libsqlite3-sys 0.37 or newer, whose bundled SQLite is safe, or set \
     LIBSQLITE3_SYS_USE_PKG_CONFIG=1 to link the SQLite of the system if that is 3.51.3 or newer",
    .version_number / 1_000_000, .version_number / 1_000 % 1_000, .version_number % 1_000
)]
pub struct UnsafeSqlite {
    /// The number of the release: 1,000,000 × major + 1,000 × minor + patch.
    pub version_number: i32,
}

/// Checks the SQLite that this program links. To be called before a file is opened.
pub(crate) fn check_linked() -> Result<()> {
    check(rusqlite::version_number())
}

fn check(version_number: i32) -> Result<()> {
    match version_number {
        3_044_006..3_045_000 | 3_050_007..3_051_000 | 3_051_003.. => Ok(()),
        _ => Err(Error::caused(
            "the SQLite of this host can corrupt a database; the host must link 3.51.3 or newer",
            UnsafeSqlite { version_number },
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_with_the_fix_are_accepted() {
        for number in [3_044_006, 3_050_007, 3_051_003, 3_052_000, 3_053_001, 4_000_000] {
            assert!(check(number).is_ok(), "{number}");
        }
        assert!(check_linked().is_ok());
    }

    #[test]
    fn releases_that_can_corrupt_a_log_are_refused() {
        for number in [3_007_000, 3_044_005, 3_045_000, 3_046_000, 3_050_006, 3_051_000, 3_051_002] {
            let Err(Error::Other { cause: Some(cause), .. }) = check(number) else {
                panic!("{number} is accepted")
            };
            let refused = UnsafeSqlite { version_number: number };
            assert_eq!(cause.downcast_ref(), Some(&refused));
        }
    }

    #[test]
    fn the_refusal_names_the_release_and_what_to_do() {
        let text = UnsafeSqlite { version_number: 3_050_002 }.to_string();
        assert!(text.starts_with("this program links SQLite 3.50.2, which"), "{text}");
        assert!(text.contains("libsqlite3-sys 0.37 or newer"), "{text}");
    }
}
