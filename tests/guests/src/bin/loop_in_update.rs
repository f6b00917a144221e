//! Reads and writes in an update, prints a line, and then loops without end.

use larder_guest::raw::types::Error;

fn main() -> Result<(), Error> {
    let store = larder_test_guests::open()?;
    let _tx = larder_test_guests::update_under_way(&store)?;
    println!("looping");
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}
