//! Runs one attack without end. Its arguments are the name of the attack and the number of the
//! attacker.

use larder_guest::raw::types::Error;
use larder_test_guests::attacks::{Attacker, find};

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let number = arguments.next().and_then(|text| text.parse().ok()).unwrap_or_default();
    let step = find(&name).ok_or_else(|| Error::Other(format!("unknown attack {name:?}")))?;
    Attacker::new(&name, number)?.run(step);
    Ok(())
}
