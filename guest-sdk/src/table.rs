//! A typed table over one namespace, with secondary indexes.

use std::collections::{BTreeSet, HashSet};
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, LimitKind};
use crate::range::Range;
use crate::transaction::{Entry, Iter, Update, View, decode, encode};

/// A record of a [`Table`].
pub trait Record: Serialize + DeserializeOwned {
    /// The names of its indexes. A record that was written before an index was added is not in it:
    /// [`Table::build_index`] puts it there, in a step of a [`MigrationSet`](crate::MigrationSet).
    const INDEXES: &'static [&'static str] = &[];

    /// Its key, unique within the table.
    fn key(&self) -> String;

    /// The values under which `index` finds it: none, one or several.
    fn index_values(&self, _index: &str) -> Vec<String> {
        Vec::new()
    }
}

/// Typed records in one namespace. A record and its index entries are written in the same transaction, so that an index
/// never disagrees with its records.
///
/// ```no_run
/// use larder_guest::{Error, Record, Store, Table};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Task {
///     id: String,
///     labels: Vec<String>,
/// }
///
/// impl Record for Task {
///     const INDEXES: &'static [&'static str] = &["label"];
///
///     fn key(&self) -> String {
///         self.id.clone()
///     }
///
///     fn index_values(&self, _label: &str) -> Vec<String> {
///         self.labels.clone()
///     }
/// }
///
/// fn urgent(store: &Store) -> Result<Vec<Task>, Error> {
///     let tasks = Table::<Task>::new("tasks");
///     store.update(|tx| tasks.put(tx, &Task { id: "1".into(), labels: vec!["urgent".into()] }))?;
///     store.view(|tx| tasks.find(tx, "label", "urgent"))
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Table<R> {
    namespace: String,
    records: PhantomData<fn() -> R>,
}

/// Records fetched in one call to the host.
const FETCH: usize = 64;

impl<R: Record> Table<R> {
    /// The table in `namespace`, which must hold nothing else.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), records: PhantomData }
    }

    /// Puts every record into an index that was added after they were written, and says how many entries it has. All of
    /// it is in one transaction, which the host bounds.
    ///
    /// # Errors
    /// As [`Update::put_many`], [`Error::Decode`] for what is no record, and [`Error::InvalidArgument`] where the records
    /// have no such index.
    pub fn build_index(&self, tx: &Update, index: &str) -> Result<usize, Error> {
        self.check_index(index)?;
        let mut keys = Vec::new();
        for record in self.iterate(tx, "") {
            keys.extend(index_keys_of(&record?, index));
        }
        for keys in keys.chunks(FETCH) {
            let entries = keys.iter().map(|key| Entry { key: key.clone(), value: Vec::new() });
            tx.put_many(&self.namespace, entries)?;
        }
        Ok(keys.len())
    }

    /// The record under `key`.
    ///
    /// # Errors
    /// As [`View::get_value`].
    pub fn get(&self, tx: &View, key: &str) -> Result<Option<R>, Error> {
        tx.get_value(&self.namespace, &row_key(key))
    }

    /// Writes a record, in the place of the one with its key.
    ///
    /// # Errors
    /// As [`Update::put_value`].
    pub fn put(&self, tx: &Update, record: &R) -> Result<(), Error> {
        self.put_many(tx, std::slice::from_ref(record))
    }

    /// Writes several records in few calls to the host. The last one counts where a key stands twice.
    ///
    /// # Errors
    /// As [`Update::put_value`]; the transaction is then to be given up.
    pub fn put_many(&self, tx: &Update, records: &[R]) -> Result<(), Error> {
        for records in records.chunks(FETCH) {
            let keys: Vec<String> = records.iter().map(Record::key).collect();
            // With equal keys in one chunk the second would not see the first.
            if keys.iter().collect::<BTreeSet<_>>().len() < keys.len() {
                records.iter().try_for_each(|record| self.put(tx, record))?;
                continue;
            }
            let before = self.fetch(tx, &keys)?;
            let mut puts = Vec::new();
            let mut deletes = Vec::new();
            for ((record, key), before) in records.iter().zip(&keys).zip(before) {
                let old = before.as_ref().map(index_keys).unwrap_or_default();
                let new = index_keys(record);
                puts.push(Entry { key: row_key(key), value: encode(record)? });
                puts.extend(new.difference(&old).map(|key| Entry { key: key.clone(), value: Vec::new() }));
                deletes.extend(old.difference(&new).cloned());
            }
            tx.put_many(&self.namespace, puts)?;
            tx.delete_many(&self.namespace, deletes)?;
        }
        Ok(())
    }

    /// Deletes the record under `key`; false where there is none.
    ///
    /// # Errors
    /// As [`Update::delete`].
    pub fn delete(&self, tx: &Update, key: &str) -> Result<bool, Error> {
        let Some(record) = self.get(tx, key)? else {
            return Ok(false);
        };
        let mut keys = index_keys(&record);
        keys.insert(row_key(key));
        tx.delete_many(&self.namespace, keys)?;
        Ok(true)
    }

    /// The records whose key begins with `prefix`, in the byte order of their keys, fetched page by page.
    pub fn iterate<'a>(&'a self, tx: &'a View, prefix: &str) -> impl Iterator<Item = Result<R, Error>> + 'a {
        let entries = tx.iterate(&self.namespace, Range::prefix(row_key(prefix)));
        entries.map(|entry| {
            let Entry { key, value } = entry?;
            decode(&self.namespace, &key, &value)
        })
    }

    /// The records that `index` has under `value`, in the byte order of their keys.
    ///
    /// # Errors
    /// As [`View::get_many`], and [`Error::InvalidArgument`] where the records have no such index.
    pub fn find(&self, tx: &View, index: &str, value: &str) -> Result<Vec<R>, Error> {
        self.indexed(tx, index, &self.find_keys(tx, index, value)?)
    }

    /// The records that `index` has under values that begin with `prefix`, in the byte order of these values and then of
    /// the keys; each record once, at the first of its values.
    ///
    /// # Errors
    /// As [`Table::find`].
    pub fn find_prefix(&self, tx: &View, index: &str, prefix: &str) -> Result<Vec<R>, Error> {
        let entries = self.entries(tx, index, values_prefix(index, prefix))?;
        let mut seen = HashSet::new();
        let mut keys = Vec::new();
        for entry in entries {
            let key = record_key(index, &entry?.key).to_string();
            if seen.insert(key.clone()) {
                keys.push(key);
            }
        }
        self.indexed(tx, index, &keys)
    }

    /// The records that an index names, in the order of `keys`.
    fn indexed(&self, tx: &View, index: &str, keys: &[String]) -> Result<Vec<R>, Error> {
        let mut records = Vec::with_capacity(keys.len());
        for keys in keys.chunks(FETCH) {
            for (record, key) in self.fetch(tx, keys)?.into_iter().zip(keys) {
                let missing =
                    || Error::Corrupt(format!("the index {index:?} names {key:?}, which is not there"));
                records.push(record.ok_or_else(missing)?);
            }
        }
        Ok(records)
    }

    /// The keys of the records that `index` has under `value`, in byte order, without fetching the records.
    ///
    /// # Errors
    /// As [`View::get`], and [`Error::InvalidArgument`] where the records have no such index.
    pub fn find_keys(&self, tx: &View, index: &str, value: &str) -> Result<Vec<String>, Error> {
        let entries = self.entries(tx, index, index_prefix(index, value))?;
        entries.map(|entry| Ok(record_key(index, &entry?.key).to_string())).collect()
    }

    /// The entries of an index under a prefix of their keys. An index that no record has would always be empty, which
    /// is a slip and no answer.
    fn entries<'a>(&self, tx: &'a View, index: &str, prefix: String) -> Result<Iter<'a>, Error> {
        self.check_index(index)?;
        Ok(tx.iterate(&self.namespace, Range::prefix(prefix).keys_only()))
    }

    fn check_index(&self, index: &str) -> Result<(), Error> {
        if R::INDEXES.contains(&index) {
            return Ok(());
        }
        let reason = format!("{:?} has no index {index:?}; its indexes are {:?}", self.namespace, R::INDEXES);
        Err(Error::InvalidArgument(reason))
    }

    fn fetch(&self, tx: &View, keys: &[String]) -> Result<Vec<Option<R>>, Error> {
        match tx.get_many(&self.namespace, keys.iter().map(|key| row_key(key))) {
            Ok(values) => {
                let record = |(key, value): (&String, Option<Vec<u8>>)| {
                    value.map(|value| decode(&self.namespace, &row_key(key), &value)).transpose()
                };
                keys.iter().zip(values).map(record).collect()
            }
            // Large records: one by one each fits that this guest could have written.
            Err(Error::LimitExceeded { kind: LimitKind::ResultBytes, .. }) => {
                keys.iter().map(|key| self.get(tx, key)).collect()
            }
            Err(error) => Err(error),
        }
    }
}

/// Where a record is. Records and index entries differ in their first character.
fn row_key(key: &str) -> String {
    format!("r{key}")
}

fn index_keys<R: Record>(record: &R) -> BTreeSet<String> {
    R::INDEXES.iter().flat_map(|index| index_keys_of(record, index)).collect()
}

/// The keys of a record's entries in one index.
fn index_keys_of<R: Record>(record: &R, index: &str) -> BTreeSet<String> {
    let key = record.key();
    let values = record.index_values(index).into_iter();
    values.map(|value| format!("{}{key}", index_prefix(index, &value))).collect()
}

/// What the keys of the entries of one value begin with; the key of the record follows.
fn index_prefix(index: &str, value: &str) -> String {
    format!("{}\0", values_prefix(index, value))
}

/// What the keys of the entries of all values that begin with `prefix` begin with.
fn values_prefix(index: &str, prefix: &str) -> String {
    format!("i{}\0{}", escape(index), escape(prefix))
}

/// The key of the record that an entry of `index` names: what follows the value.
fn record_key<'a>(index: &str, entry: &'a str) -> &'a str {
    let values = values_prefix(index, "");
    entry.strip_prefix(&values).and_then(|rest| rest.split_once('\0')).map_or("", |(_, key)| key)
}

/// Text without NUL, in the same order, and never the same for two texts: a NUL can then end it.
fn escape(text: &str) -> String {
    text.replace('\u{1}', "\u{1}\u{2}").replace('\0', "\u{1}\u{1}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Task {
        id: String,
        labels: Vec<String>,
    }

    impl Record for Task {
        const INDEXES: &'static [&'static str] = &["label", "none"];

        fn key(&self) -> String {
            self.id.clone()
        }

        fn index_values(&self, index: &str) -> Vec<String> {
            if index == "label" { self.labels.clone() } else { Vec::new() }
        }
    }

    #[test]
    fn a_record_has_one_entry_for_each_value() {
        let labels = vec!["b".to_string(), "a".to_string(), "b".to_string()];
        let keys = index_keys(&Task { id: "1".into(), labels });
        assert_eq!(keys.into_iter().collect::<Vec<_>>(), ["ilabel\0a\x001", "ilabel\0b\x001"]);
    }

    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop_oneof![Just('\0'), Just('\u{1}'), Just('\u{2}'), any::<char>()], 0..6)
            .prop_map(|characters| characters.into_iter().collect())
    }

    proptest! {
        #[test]
        fn escaping_keeps_order_and_leaves_no_nul(first in text(), second in text()) {
            prop_assert_eq!(escape(&first).as_bytes().cmp(escape(&second).as_bytes()), first.as_bytes().cmp(second.as_bytes()));
            prop_assert!(!escape(&first).contains('\0'));
        }

        #[test]
        fn entries_of_two_values_never_share_a_prefix(
            first in (text(), text(), text()), second in (text(), text(), text())
        ) {
            let key = format!("{}{}", index_prefix(&first.0, &first.1), first.2);
            let is_under = key.starts_with(&index_prefix(&second.0, &second.1));
            prop_assert_eq!(is_under, (first.0, first.1) == (second.0, second.1));
        }

        #[test]
        fn an_entry_is_under_the_prefixes_of_its_value_and_names_its_record(
            index in text(), value in text(), key in text(), prefix in text()
        ) {
            let entry = format!("{}{key}", index_prefix(&index, &value));
            prop_assert_eq!(record_key(&index, &entry), key.as_str());
            for prefix in value.char_indices().map(|(end, _)| &value[..end]).chain([prefix.as_str()]) {
                let is_under = entry.starts_with(&values_prefix(&index, prefix));
                prop_assert_eq!(is_under, value.starts_with(prefix));
            }
        }
    }
}
