//! Holds an update for the number of milliseconds in its argument, then commits it and prints the
//! outcome.

use std::time::Duration;

use larder_guest::raw::tx::Tx;
use larder_guest::raw::types::Error;

fn main() -> Result<(), Error> {
    let millis = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(100);
    let store = larder_test_guests::open()?;
    let tx = larder_test_guests::update_under_way(&store)?;
    println!("holding");
    std::thread::sleep(Duration::from_millis(millis));
    println!("committed: {:?}", Tx::commit(tx).map(|_| ()));
    Ok(())
}
