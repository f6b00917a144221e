//! Reads and writes in an update, and then exits with a failure.

use larder_guest::raw::types::Error;

fn main() -> Result<(), Error> {
    let store = larder_test_guests::open()?;
    let _tx = larder_test_guests::update_under_way(&store)?;
    std::process::exit(1)
}
