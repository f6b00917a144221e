//! Takes as much memory, output or store space as it can, depending on its first argument. If
//! nothing limits it, it stops after 4 GiB, 64 MiB or 64 MiB.

use std::io::Write;

use larder_guest::raw::tx::{Mode, Tx};
use larder_guest::raw::types::Error;

const MIB: usize = 1 << 20;

fn main() -> Result<(), Error> {
    match std::env::args().nth(1).as_deref() {
        Some("memory") => {
            let kept: Vec<_> = (0..4_095).map(|_| vec![1_u8; MIB]).collect();
            println!("{} MiB", kept.len());
        }
        Some("output") => {
            for _ in 0..64 * MIB / 1_024 {
                let _ = std::io::stdout().write_all(&[b'x'; 1_024]);
            }
        }
        _ => {
            let store = larder_test_guests::open()?;
            for row in 0..64 {
                let tx = store.begin(Mode::Update)?;
                tx.put("n", &row.to_string(), &vec![0; MIB])?;
                Tx::commit(tx)?;
            }
        }
    }
    Ok(())
}
