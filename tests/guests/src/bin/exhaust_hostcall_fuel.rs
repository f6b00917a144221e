//! Passes an argument that is larger than the host lifts from a guest. The call must trap, and must
//! not cost the host that memory.

use larder_guest::raw::tx::Mode;
use larder_guest::raw::types::Error;

fn main() -> Result<(), Error> {
    let store = larder_test_guests::open()?;
    let tx = store.begin(Mode::Update)?;
    println!("sending");
    println!("answered: {:?}", tx.put("n", "key", &vec![0; 256 << 20]));
    Ok(())
}
