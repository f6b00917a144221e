//! Opens stores that were never granted, and prints each outcome.

use larder_guest::raw::store::Store;

fn main() {
    for name in
        ["", "../default", "default\0", "DEFAULT", "default ", "sqlite:other.db", "__store_migrations__"]
    {
        println!("{name:?}: {:?}", Store::open(name).map(|_| ()));
    }
    let long = "x".repeat(1 << 20);
    println!("1 MiB: {:?}", Store::open(&long).map(|_| ()));
}
