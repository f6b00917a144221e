//! Leaks store handles until one is refused, and prints their number and the error.

use larder_guest::raw::types::Error;

fn main() -> Result<(), Error> {
    for count in 0..100_000 {
        match larder_test_guests::open() {
            Ok(store) => std::mem::forget(store),
            Err(error) => {
                println!("{count}: {error:?}");
                return Ok(());
            }
        }
    }
    println!("never refused");
    Ok(())
}
