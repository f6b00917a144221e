//! The workloads.

use larder_bench_workload::{BATCH, Digest, Key, Random, SCAN};
use larder_guest::raw::tx::{Mode, Range as RawRange, Tx};
use larder_guest::raw::types;
use larder_guest::{Entry, Error, Range, View};

use crate::bindings::exports::larder::bench::loops::Workload;
use crate::loops::{Loops, absent, present};

/// The parameters of one call of the host.
struct Run {
    count: u64,
    random: Random,
    salt: u64,
}

impl Loops {
    /// Runs a workload, and returns the digest of what it read.
    pub(crate) fn run(&mut self, workload: Workload, count: u64, seed: u64, salt: u64) -> Result<u64, Error> {
        let run = Run { count, random: Random::new(seed), salt };
        let digest = match workload {
            Workload::GetInOneView => self.get_in_one_view(run)?,
            Workload::ViewOfOneGet => self.view_of_one_get(run)?,
            Workload::UpdateGetPut => self.update_get_put(run)?,
            Workload::UpdateHundredPuts => self.update_hundred_puts(run)?,
            Workload::GetMany => self.get_many(run)?,
            Workload::Scan => self.scan(run)?,
            Workload::ScanList => self.scan_list(run)?,
        };
        Ok(digest.sum())
    }

    fn get_in_one_view(&mut self, mut run: Run) -> Result<Digest, Error> {
        let rows = &self.rows;
        self.store.view(|tx| {
            let mut digest = Digest::default();
            for _ in 0..run.count {
                digest.add(&present(tx, rows, run.random.below(rows.count()))?);
            }
            Ok(digest)
        })
    }

    fn view_of_one_get(&mut self, mut run: Run) -> Result<Digest, Error> {
        let mut digest = Digest::default();
        for _ in 0..run.count {
            let index = run.random.below(self.rows.count());
            digest.add(&self.store.view(|tx| present(tx, &self.rows, index))?);
        }
        Ok(digest)
    }

    fn update_get_put(&mut self, mut run: Run) -> Result<Digest, Error> {
        let (store, rows) = (&self.store, &mut self.rows);
        let mut digest = Digest::default();
        for _ in 0..run.count {
            let index = run.random.below(rows.count());
            rows.value(index, run.salt);
            let before = store.update(|tx| {
                let before = present(tx, rows, index)?;
                tx.put(rows.namespace(index), Key::of(index).as_str(), rows.last_value())?;
                Ok::<_, Error>(before)
            })?;
            digest.add(&before);
        }
        Ok(digest)
    }

    fn update_hundred_puts(&mut self, mut run: Run) -> Result<Digest, Error> {
        let (store, rows) = (&self.store, &mut self.rows);
        for _ in 0..run.count {
            let drawn = run.random.clone();
            store.update(|tx| {
                // If the update is run again, it draws the same rows.
                run.random = drawn.clone();
                for _ in 0..BATCH {
                    let index = run.random.below(rows.count());
                    rows.value(index, run.salt);
                    tx.put(rows.namespace(index), Key::of(index).as_str(), rows.last_value())?;
                }
                Ok::<_, Error>(())
            })?;
        }
        Ok(Digest::default())
    }

    fn get_many(&mut self, mut run: Run) -> Result<Digest, Error> {
        let rows = &self.rows;
        self.store.view(|tx| {
            let mut digest = Digest::default();
            for _ in 0..run.count {
                let indices: Vec<u64> = (0..BATCH).map(|_| run.random.below(rows.count())).collect();
                let keys: Vec<Key> = indices.iter().map(|index| Key::of(*index)).collect();
                let found = tx.get_many(rows.first_namespace(), keys.iter().map(Key::as_str))?;
                for (value, index) in found.iter().zip(&indices) {
                    digest.add(value.as_ref().ok_or_else(|| absent(*index))?);
                }
            }
            Ok(digest)
        })
    }

    fn scan(&mut self, mut run: Run) -> Result<Digest, Error> {
        let rows = &self.rows;
        self.store.view(|tx| {
            let mut digest = Digest::default();
            for _ in 0..run.count {
                let entries = entries(tx, rows.first_namespace(), &first_key(&mut run.random))?;
                digest_of(entries.iter().map(|entry| entry.value.as_slice()), &mut digest);
            }
            Ok(digest)
        })
    }

    /// Uses the call of the bindings, as programs in other languages would.
    fn scan_list(&mut self, mut run: Run) -> Result<Digest, Error> {
        let store = larder_guest::raw::store::Store::open(&self.name)?;
        let tx = store.begin(Mode::View)?;
        let mut digest = Digest::default();
        for _ in 0..run.count {
            let entries = raw_entries(&tx, self.rows.first_namespace(), &first_key(&mut run.random))?;
            digest_of(entries.iter().map(|entry| entry.value.as_slice()), &mut digest);
        }
        Tx::commit(tx)?;
        Ok(digest)
    }
}

/// The first key of a scan. It is in the first half of the keys, so that enough rows follow.
fn first_key(random: &mut Random) -> Key {
    Key::at(random.next_number() >> 1)
}

fn entries(tx: &View, namespace: &str, first: &Key) -> Result<Vec<Entry>, Error> {
    tx.iterate(namespace, Range::all().from(first.as_str()).limit(SCAN)).collect()
}

fn raw_entries(tx: &Tx, namespace: &str, first: &Key) -> Result<Vec<types::Entry>, Error> {
    let range = RawRange {
        prefix: String::new(),
        start: Some(first.as_str().to_string()),
        end: None,
        reverse: false,
        limit: Some(SCAN),
        keys_only: false,
    };
    let page = tx.scan_page(namespace, &range, None)?;
    match page.entries.len() == SCAN as usize {
        true => Ok(page.entries),
        false => Err(Error::Other("a page does not hold the whole scan".to_string())),
    }
}

fn digest_of<'a>(values: impl Iterator<Item = &'a [u8]>, digest: &mut Digest) {
    values.for_each(|value| digest.add(value));
}
