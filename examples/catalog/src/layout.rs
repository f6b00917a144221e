//! The layout of the catalog's rows, and the migrations to it from the layouts of earlier releases.

use larder_guest::{Error, MigrationSet, Store, Table, migration};

use crate::package::Package;

pub(crate) fn packages() -> Table<Package> {
    Table::new("packages")
}

/// Opens the store and applies the pending migrations.
pub(crate) fn open() -> Result<Store, Box<dyn std::error::Error>> {
    let store = Store::open("default")?;
    store.migrate(&migrations()?)?;
    Ok(store)
}

fn migrations() -> Result<MigrationSet, Error> {
    let mut set = MigrationSet::new("catalog");
    // The first release wrote packages and the index from a package to those that depend on it. It
    // had no migrations, so this step has nothing to do.
    set.add(migration!("0001_packages", |_| Ok(())))?;
    set.add(migration!("0002_index_by_architecture", |tx| {
        packages().build_index(tx, "architecture")?;
        Ok(())
    }))?;
    Ok(set)
}
