//! Leaks open transactions until one is refused, and prints their number and the error.

use larder_guest::raw::types::Error;

fn main() -> Result<(), Error> {
    let store = larder_test_guests::open()?;
    for count in 0..100_000 {
        match larder_test_guests::update_under_way(&store) {
            Ok(tx) => std::mem::forget(tx),
            Err(error) => {
                println!("{count}: {error:?}");
                return Ok(());
            }
        }
    }
    println!("never refused");
    Ok(())
}
