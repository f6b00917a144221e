//! How the catalog's rows came to their layout. A store that an earlier release wrote is brought up to date when it is
//! opened.

use larder_guest::{Error, MigrationSet, Store, Table, migration};

use crate::package::Package;

pub(crate) fn packages() -> Table<Package> {
    Table::new("packages")
}

/// Opens the store and brings it to the newest layout.
pub(crate) fn open() -> Result<Store, Box<dyn std::error::Error>> {
    let store = Store::open("default")?;
    store.migrate(&migrations()?)?;
    Ok(store)
}

fn migrations() -> Result<MigrationSet, Error> {
    let mut set = MigrationSet::new("catalog");
    // What the first release wrote: packages, and the index from a package to those that depend on it. There were no
    // migrations then, and nothing is to be done.
    set.add(migration!("0001_packages", |_| Ok(())))?;
    set.add(migration!("0002_index_by_architecture", |tx| {
        packages().build_index(tx, "architecture")?;
        Ok(())
    }))?;
    Ok(set)
}
