//! Typed tables in a namespace, with secondary indexes.

use std::collections::{BTreeSet, HashSet};
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, LimitKind};
use crate::range::Range;
use crate::transaction::{Entry, Iter, Update, View, decode, encode};

/// A record of a [`Table`].
pub trait Record: Serialize + DeserializeOwned {
    /// The names of the table's indexes.
    ///
    /// A new index lacks the records that were written before it was added.
    /// [`Table::build_index`] adds them, in a step of a [`MigrationSet`](crate::MigrationSet).
    const INDEXES: &'static [&'static str] = &[];

    /// The record's key, unique within the table.
    fn key(&self) -> String;

    /// The values under which `index` finds the record: none, one or several.
    fn index_values(&self, _index: &str) -> Vec<String> {
        Vec::new()
    }
}

/// A table of typed records in one namespace.
///
/// A record and its index entries are written in the same transaction, so an index always agrees
/// with the records.
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

/// The number of records to fetch in one call to the host.
const FETCH: usize = 64;

impl<R: Record> Table<R> {
    /// The table in `namespace`, which must contain nothing else.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), records: PhantomData }
    }

    /// Adds every record to a new index and returns the number of the index's entries.
    ///
    /// All of this is done in the one transaction, whose size the host limits.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the records have no such index.
    /// - [`Error::Decode`] if a stored value is not a record of this type.
    /// - [`Error::LimitExceeded`] if the entries are more than a transaction may read or write.
    /// - [`Error::AccessDenied`] if the table's namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if a
    ///   read fails.
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

    /// Returns the record with the key `key`, or `None` if it does not exist.
    ///
    /// # Errors
    /// - [`Error::Decode`] if the stored value is not a record of this type.
    /// - [`Error::LimitExceeded`] if the key is too long, the record is too large for one call, or
    ///   the transaction has read too much.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if a
    ///   read fails.
    pub fn get(&self, tx: &View, key: &str) -> Result<Option<R>, Error> {
        tx.get_value(&self.namespace, &row_key(key))
    }

    /// Writes a record. It replaces the record with the same key.
    ///
    /// # Errors
    /// - [`Error::Encode`] if the record cannot be represented in JSON.
    /// - [`Error::Decode`] if the replaced value is not a record of this type.
    /// - [`Error::LimitExceeded`] if the key or the record is too large, or the transaction reads
    ///   or writes too much.
    /// - [`Error::AccessDenied`] if the table's namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if a
    ///   read fails.
    pub fn put(&self, tx: &Update, record: &R) -> Result<(), Error> {
        self.put_many(tx, std::slice::from_ref(record))
    }

    /// Writes several records in few calls to the host.
    ///
    /// If a key occurs twice, the last record wins. If the call fails, some of the records may be
    /// staged: roll back the transaction.
    ///
    /// # Errors
    /// - [`Error::Encode`] if a record cannot be represented in JSON.
    /// - [`Error::Decode`] if a replaced value is not a record of this type.
    /// - [`Error::LimitExceeded`] if a key or a record is too large, or the transaction reads or
    ///   writes too much.
    /// - [`Error::AccessDenied`] if the table's namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if a
    ///   read fails.
    pub fn put_many(&self, tx: &Update, records: &[R]) -> Result<(), Error> {
        for records in records.chunks(FETCH) {
            let keys: Vec<String> = records.iter().map(Record::key).collect();
            // If two keys of a chunk are equal, the second record must replace the index entries of
            // the first one.
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

    /// Deletes the record with the key `key`. Returns `false` if it does not exist.
    ///
    /// # Errors
    /// - [`Error::Decode`] if the stored value is not a record of this type.
    /// - [`Error::LimitExceeded`] if the key is too long, or the transaction reads or writes too
    ///   much.
    /// - [`Error::AccessDenied`] if the table's namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if a
    ///   read fails.
    pub fn delete(&self, tx: &Update, key: &str) -> Result<bool, Error> {
        let Some(record) = self.get(tx, key)? else {
            return Ok(false);
        };
        let mut keys = index_keys(&record);
        keys.insert(row_key(key));
        tx.delete_many(&self.namespace, keys)?;
        Ok(true)
    }

    /// Iterates over the records whose key begins with `prefix`.
    ///
    /// They are in the byte order of their keys, and fetched page by page. Each item can be an
    /// error: those of [`View::iterate`], and [`Error::Decode`] if a stored value is not a record
    /// of this type.
    pub fn iterate<'a>(&'a self, tx: &'a View, prefix: &str) -> impl Iterator<Item = Result<R, Error>> + 'a {
        let entries = tx.iterate(&self.namespace, Range::prefix(row_key(prefix)));
        entries.map(|entry| {
            let Entry { key, value } = entry?;
            decode(&self.namespace, &key, &value)
        })
    }

    /// Returns the records that `index` lists under `value`, in the byte order of their keys.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the records have no such index.
    /// - [`Error::Decode`] if a stored value is not a record of this type.
    /// - [`Error::Corrupt`] if the index names a record that does not exist.
    /// - [`Error::LimitExceeded`] if a name is too long, or the transaction has read too much.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if a
    ///   read fails.
    pub fn find(&self, tx: &View, index: &str, value: &str) -> Result<Vec<R>, Error> {
        self.indexed(tx, index, &self.find_keys(tx, index, value)?)
    }

    /// Returns the records that `index` lists under values that begin with `prefix`.
    ///
    /// They are in the byte order of these values, then of the keys. Each record occurs once, at
    /// the first of its values.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the records have no such index.
    /// - [`Error::Decode`] if a stored value is not a record of this type.
    /// - [`Error::Corrupt`] if the index names a record that does not exist.
    /// - [`Error::LimitExceeded`] if a name is too long, or the transaction has read too much.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if a
    ///   read fails.
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

    /// The records with the keys that an index lists, in the order of `keys`.
    fn indexed(&self, tx: &View, index: &str, keys: &[String]) -> Result<Vec<R>, Error> {
        let mut records = Vec::with_capacity(keys.len());
        for keys in keys.chunks(FETCH) {
            for (record, key) in self.fetch(tx, keys)?.into_iter().zip(keys) {
                let missing = || {
                    Error::Corrupt(format!(
                        "the index {index:?} lists the record {key:?}, which does not exist"
                    ))
                };
                records.push(record.ok_or_else(missing)?);
            }
        }
        Ok(records)
    }

    /// Returns the keys of the records that `index` lists under `value`, in byte order.
    ///
    /// It does not fetch the records.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the records have no such index.
    /// - [`Error::LimitExceeded`] if a name is too long, or the transaction has read too much.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if a
    ///   read fails.
    pub fn find_keys(&self, tx: &View, index: &str, value: &str) -> Result<Vec<String>, Error> {
        let entries = self.entries(tx, index, index_prefix(index, value))?;
        entries.map(|entry| Ok(record_key(index, &entry?.key).to_string())).collect()
    }

    /// The entries of an index under a prefix of their keys. An unknown index is an error, because
    /// a misspelt name would otherwise give an empty result.
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
            // The records are too large for one call. Each record that this guest could have
            // written fits in a call of its own.
            Err(Error::LimitExceeded { kind: LimitKind::ResultBytes, .. }) => {
                keys.iter().map(|key| self.get(tx, key)).collect()
            }
            Err(error) => Err(error),
        }
    }
}

/// The row's key of a record. Records and index entries differ in their first character.
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

/// The prefix of the index entries of one value. The key of the record follows.
fn index_prefix(index: &str, value: &str) -> String {
    format!("{}\0", values_prefix(index, value))
}

/// The prefix of the index entries of all values that begin with `prefix`.
fn values_prefix(index: &str, prefix: &str) -> String {
    format!("i{}\0{}", escape(index), escape(prefix))
}

/// The key of the record that an entry of `index` lists. It follows the value.
fn record_key<'a>(index: &str, entry: &'a str) -> &'a str {
    let values = values_prefix(index, "");
    entry.strip_prefix(&values).and_then(|rest| rest.split_once('\0')).map_or("", |(_, key)| key)
}

/// Escapes a text so that it has no NUL, and a NUL can terminate it. The escaping keeps the order,
/// and no two texts are escaped to the same one.
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
