//! Opens a database of larder in a program that another user of SQLite is linked into.
//!
//! The argument is the outcome that is expected, `opened` or `refused`.

use std::process::ExitCode;

use larder_core::Error;
use larder_sqlite::{Sqlite, SqliteOptions, UnsafeSqlite, rusqlite};

#[tokio::main]
async fn main() -> ExitCode {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let outcome = match Sqlite::open(folder.path().join("a.db"), SqliteOptions::default()).await {
        Ok(_) => "opened",
        Err(Error::Other { cause: Some(cause), .. }) if cause.is::<UnsafeSqlite>() => "refused",
        Err(_) => "failed",
    };
    println!("larder beside SQLite {}: {outcome}", rusqlite::version());
    let expected = std::env::args().nth(1);
    if expected.as_deref() == Some(outcome) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
