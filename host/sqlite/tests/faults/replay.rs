//! A replay while calls fail.

use std::sync::Arc;

use async_trait::async_trait;
use larder_core::Result;
use larder_core::backend::Backend;
use larder_core::commit::Commit;
use larder_core::redo::{Journal, Redo};
use larder_sqlite::{Sqlite, SqliteOptions};
use parking_lot::Mutex;

use crate::common::{dump, open_positioned, put, record_write, row};
use crate::model::is_unknown;
use crate::work::kill;
use larder_sqlite_vfs::{Counts, Disk, Fault};

/// The redos of a few groups: those that a copy holds already, and those that it lacks.
pub struct Redos {
    first: Vec<u8>,
    rest: Vec<u8>,
}

/// A journal that keeps every redo in memory.
#[derive(Default)]
pub struct Kept(Mutex<Vec<Vec<u8>>>);

impl Kept {
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().concat()
    }
}

#[async_trait]
impl Journal for Kept {
    async fn append(&self, redo: Redo) -> Result<()> {
        self.0.lock().push(redo.into_bytes());
        Ok(())
    }
}

pub async fn redos() -> Redos {
    let folder = tempfile::tempdir().unwrap();
    let kept = Arc::new(Kept::default());
    let path = folder.path().join("store.db");
    let database = Sqlite::open_journaled(&path, SqliteOptions::default(), kept.clone()).await.unwrap();
    for group in 0..4_usize {
        let keys: Vec<String> = (0..150).map(|number| format!("{:03}", (number * 7 + group) % 300)).collect();
        let value = vec![u8::try_from(group).unwrap(); 200];
        let writes = keys.iter().map(|key| (row(key), put(&value, None))).collect();
        let commit = Commit { clock: crate::common::clock_at(1), writes, ..Commit::default() };
        database.commit(Arc::new(commit)).await.unwrap();
        let version = group as u64 + 1;
        database.write_record(record_write("s", version - 1, Some((version, &value)))).await.unwrap();
    }
    database.finish().await.unwrap();
    let redos = std::mem::take(&mut *kept.0.lock());
    Redos { first: redos[..2].concat(), rest: redos[2..].concat() }
}

/// Replays while calls fail. Whatever the outcome, all groups must be replayed or none.
pub async fn run(redos: &Redos, fault: Option<Fault>) -> (usize, Counts) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let opened = open_positioned(&path).await;
    opened.replay(&redos.first).await.unwrap();
    opened.finish().await.unwrap();
    let before = dump(&path);
    let disk = Disk::watch(folder.path());
    let database = open_positioned(&path).await;

    disk.arm(fault);
    let outcome = database.replay(&redos.rest).await;
    let made = disk.disarm();
    let again = database.replay(&redos.rest).await;
    assert_eq!(again.is_err(), is_unknown(&outcome), "{outcome:?}, then {again:?}");
    let killed = kill(folder.path());
    database.close().await;
    let after_kill = dump(&killed.path().join("store.db"));
    let database = open_positioned(&path).await;
    database.replay(&redos.rest).await.unwrap();
    database.finish().await.unwrap();
    let after = dump(&path);
    assert_eq!((before.rows.len(), after.rows.len()), (150, 279));
    assert!(after_kill == after || is_unknown(&outcome) && after_kill == before);
    made
}
