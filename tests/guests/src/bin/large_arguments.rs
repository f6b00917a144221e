//! Passes arguments over every limit, and prints each outcome.

use larder_guest::raw::tx::{Mode, Range};
use larder_guest::raw::types::Error;

fn main() -> Result<(), Error> {
    let store = larder_test_guests::open()?;
    let tx = store.begin(Mode::Update)?;
    let long = "x".repeat(100_000);
    println!("value: {:?}", tx.put("n", "key", &vec![0; 8 << 20]));
    println!("key: {:?}", tx.put("n", &long, b""));
    println!("namespace: {:?}", tx.get(&long, "key"));
    println!("prefix: {:?}", tx.scan("n", &long));
    println!("keys: {:?}", tx.get_many("n", &vec![String::new(); 100_000]));
    println!("deletes: {:?}", tx.delete_many("n", &vec![String::new(); 100_000]));
    let range = Range {
        prefix: String::new(),
        start: Some(long.clone()),
        end: None,
        reverse: false,
        limit: None,
        keys_only: false,
    };
    println!("start: {:?}", tx.scan_page("n", &range, None).map(|_| ()));
    let range = Range { start: None, ..range };
    println!("after: {:?}", tx.scan_page("n", &range, Some(&long)).map(|_| ()));
    println!("still usable: {:?}", tx.get("n", "key"));
    Ok(())
}
