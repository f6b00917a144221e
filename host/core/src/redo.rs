//! Redos: the outcome of commits as bytes, to apply to another copy of the same store.
//!
//! A redo holds outcomes: rows and records as they are after the commits, not what was requested,
//! read or checked. So applying it decides nothing, and gives the same bytes on every machine.
//!
//! The **position** of a store is the version of its last commit. If a store writes redos, every
//! group of commits that changes anything advances the position. A group that writes only records
//! takes a version that no row ever has. A redo states the positions from which and to which it
//! leads. These suffice to know whether a copy already contains it ([`Group::follows`]), but only
//! within one history. If two copies were both written to, their histories differ, and their
//! positions do not tell them apart. The caller has to prevent this, or distinguish them by other
//! means.
//!
//! A sweep writes no redo. It removes only expired rows, which no read returns. If a commit finds
//! such a row absent, its own redo holds the new row. The expired row stays in the copy until a
//! sweep there removes it.
//!
//! The bytes of consecutive redos, concatenated, are a redo of all of them. They have no checksum:
//! the journal adds one.

use async_trait::async_trait;

use crate::commit::RowWrite;
use crate::error::{Error, Result};
use crate::memory::Identity;
use crate::memory::records::{RecordKey, RecordWrite, StoredRecord};
use crate::migrations::LEDGER_NAMESPACE;
use crate::name::{Key, Namespace, RowKey};
use crate::row::{StoredValue, Version};

/// Durable storage for redos, so that commits survive the loss of the local disk.
#[async_trait]
pub trait Journal: Send + Sync + 'static {
    /// Stores a redo, and returns once it is durable.
    ///
    /// The database calls this with one redo at a time, in the order of the commits. Each redo
    /// starts where the last one ended. Commits that arrive during a call are all in the next redo.
    /// The commits are already made in the local database, and their callers wait for this call. It
    /// must end, because closing the store waits for it.
    ///
    /// # Errors
    /// The callers of these commits, and of all commits that wait behind them, get the error.
    /// Afterwards the database accepts no commit and no read until it is opened again, because its
    /// state was never acknowledged.
    ///
    /// - [`Error::CommitUnknown`] unless it is certain that no copy of the store will ever contain
    ///   the redo.
    /// - Any other error if that is certain.
    async fn append(&self, redo: Redo) -> Result<()>;
}

/// The encoded changes of one or more consecutive groups of commits.
///
/// ```
/// use larder_core::Version;
/// use larder_core::commit::RowWrite;
/// use larder_core::name::{Key, Namespace, RowKey};
/// use larder_core::redo::{RedoWriter, decode};
///
/// let namespace = Namespace::from_stored(b"n".to_vec())?;
/// let row = RowKey { namespace, key: Key::from_stored(b"k".to_vec())? };
/// let mut writer = RedoWriter::new(Version(5));
/// writer.row(&row, &RowWrite::Delete, Version(6));
/// let redo = writer.finish(Version(6)).unwrap();
/// let groups = decode(redo.as_bytes())?;
/// assert!(groups[0].follows(Version(5))?);
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redo {
    before: Version,
    after: Version,
    bytes: Vec<u8>,
}

impl Redo {
    /// The position before the redo.
    pub fn before(&self) -> Version {
        self.before
    }

    /// The position after the redo.
    pub fn after(&self) -> Version {
        self.after
    }

    /// The encoded bytes, for [`decode`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the encoded bytes, for [`decode`].
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Appends the redo that follows this one.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if `next` does not start where this redo ends. This redo is
    ///   then unchanged.
    pub fn push(&mut self, next: Self) -> Result<()> {
        if next.before != self.after {
            return Err(Error::invalid_argument(format!(
                "cannot append a redo that starts at position {} to one that ends at position {}",
                next.before.0, self.after.0
            )));
        }
        self.after = next.after;
        self.bytes.extend_from_slice(&next.bytes);
        Ok(())
    }
}

/// Commits that were made together, and must be applied together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The position of the store before it.
    pub before: Version,
    /// The position of the store after it.
    pub after: Version,
    /// The changes in order. The last change of a row or record counts.
    pub changes: Vec<Change>,
}

impl Group {
    /// Whether a store at `position` has to apply the group.
    ///
    /// False if the store already contains it.
    ///
    /// # Errors
    /// - [`Error::Corrupt`] if the store is neither at the start of the group nor at or past its
    ///   end. A group between them is missing, or their histories differ.
    pub fn follows(&self, position: Version) -> Result<bool> {
        if position >= self.after {
            return Ok(false);
        }
        if position == self.before {
            return Ok(true);
        }
        Err(corrupt(format!(
            "a group leads from position {} to {}, but the store is at {}",
            self.before.0, self.after.0, position.0
        )))
    }
}

/// One change that a commit made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A row; `None` if it was deleted.
    Row(RowKey, Option<StoredValue>),
    /// The record of a conversation; `None` if it was deleted.
    Record(RecordKey, Option<StoredRecord>),
}

/// The first byte of a group: the format of the rest.
const FORMAT: u8 = 1;

const ROW_PUT: u8 = 0;
const ROW_DELETED: u8 = 1;
const RECORD_PUT: u8 = 2;
const RECORD_DELETED: u8 = 3;

/// The bound on positions, versions and expiries, because SQL engines store them as signed numbers.
const NUMBER_END: u64 = 1 << 63;

/// An encoder of the changes of one group of commits.
#[derive(Debug)]
pub struct RedoWriter {
    before: Version,
    changes: Vec<u8>,
}

impl RedoWriter {
    /// Starts a group at this position.
    pub fn new(before: Version) -> Self {
        Self { before, changes: Vec::new() }
    }

    /// Adds the change of a row by a commit with this version.
    pub fn row(&mut self, row: &RowKey, write: &RowWrite<'_>, version: Version) {
        match write {
            RowWrite::Put { value, expires_at } => {
                self.changes.push(ROW_PUT);
                self.row_key(row);
                self.number(version.0);
                self.optional(*expires_at);
                self.bytes(value);
            }
            RowWrite::Delete => {
                self.changes.push(ROW_DELETED);
                self.row_key(row);
            }
        }
    }

    /// Adds a write of a record that succeeded.
    pub fn record(&mut self, write: &RecordWrite) {
        match &write.record {
            Some(record) => {
                let StoredRecord { strategy, bytes, version, due_at, created_at, updated_at } = record;
                self.changes.push(RECORD_PUT);
                self.record_key(&write.key);
                self.bytes(strategy.as_bytes());
                self.number(version.0);
                self.optional(*due_at);
                self.number(*created_at);
                self.number(*updated_at);
                self.bytes(bytes);
            }
            None => {
                self.changes.push(RECORD_DELETED);
                self.record_key(&write.key);
            }
        }
    }

    /// Finishes the group at the position `after`; `None` if it changed nothing.
    pub fn finish(self, after: Version) -> Option<Redo> {
        if after <= self.before {
            return None;
        }
        let mut positions = Vec::with_capacity(2 * NUMBER_BYTES_MAX);
        write_number(&mut positions, self.before.0);
        write_number(&mut positions, after.0);
        let length = positions.len() + self.changes.len();
        let mut bytes = Vec::with_capacity(1 + NUMBER_BYTES_MAX + length);
        bytes.push(FORMAT);
        write_number(&mut bytes, length as u64);
        bytes.extend_from_slice(&positions);
        bytes.extend_from_slice(&self.changes);
        Some(Redo { before: self.before, after, bytes })
    }

    fn row_key(&mut self, row: &RowKey) {
        self.bytes(row.namespace.as_bytes());
        self.bytes(row.key.as_bytes());
    }

    fn record_key(&mut self, key: &RecordKey) {
        let identity = &key.identity;
        for part in [identity.tenant(), identity.user(), identity.session(), identity.run(), &key.kind] {
            self.bytes(part.as_bytes());
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.changes.extend_from_slice(bytes);
    }

    fn optional(&mut self, number: Option<u64>) {
        self.changes.push(u8::from(number.is_some()));
        if let Some(number) = number {
            self.number(number);
        }
    }

    fn number(&mut self, number: u64) {
        write_number(&mut self.changes, number);
    }
}

/// Decodes the groups of a redo, or of several consecutive ones.
///
/// It makes no allocation larger than `bytes`, whatever lengths the bytes claim.
///
/// # Errors
/// - [`Error::Corrupt`] if the bytes are not a redo or end too early, or if a group does not start
///   where the last one ended.
pub fn decode(bytes: &[u8]) -> Result<Vec<Group>> {
    let mut rest = Reader { bytes };
    let mut groups: Vec<Group> = Vec::new();
    while !rest.bytes.is_empty() {
        let group = read_group(&mut rest)?;
        if let Some(last) = groups.last()
            && last.after != group.before
        {
            return Err(corrupt(format!(
                "a group that ends at position {} is followed by one that starts at {}",
                last.after.0, group.before.0
            )));
        }
        groups.push(group);
    }
    if groups.is_empty() { Err(corrupt("it has no bytes")) } else { Ok(groups) }
}

fn read_group(rest: &mut Reader<'_>) -> Result<Group> {
    let format = rest.byte()?;
    if format != FORMAT {
        return Err(corrupt(format!("unknown format {format}; this build reads format {FORMAT}")));
    }
    let mut body = Reader { bytes: rest.bytes()? };
    let (before, after) = (body.bounded_number()?, body.bounded_number()?);
    if after <= before {
        return Err(corrupt(format!("a group leads from position {before} to {after}")));
    }
    let mut changes = Vec::new();
    while !body.bytes.is_empty() {
        changes.push(read_change(&mut body, before, after)?);
    }
    Ok(Group { before: Version(before), after: Version(after), changes })
}

fn read_change(body: &mut Reader<'_>, before: u64, after: u64) -> Result<Change> {
    match body.byte()? {
        ROW_PUT => {
            let row = body.row_key()?;
            let version = body.bounded_number()?;
            if version <= before || version > after {
                return Err(corrupt(format!(
                    "a row has version {version}, but its group leads from position {before} to {after}"
                )));
            }
            let expires_at = body.optional(Reader::bounded_number)?;
            let value = body.bytes()?.to_vec();
            Ok(Change::Row(row, Some(StoredValue { value, version: Version(version), expires_at })))
        }
        ROW_DELETED => Ok(Change::Row(body.row_key()?, None)),
        RECORD_PUT => {
            let key = body.record_key()?;
            let strategy = body.text()?;
            let version = Version(body.bounded_number()?);
            if version == Version::ABSENT {
                return Err(corrupt("a record has no version"));
            }
            let due_at = body.optional(Reader::number)?;
            let (created_at, updated_at) = (body.number()?, body.number()?);
            let bytes = body.bytes()?.to_vec();
            let record = StoredRecord { strategy, bytes, version, due_at, created_at, updated_at };
            Ok(Change::Record(key, Some(record)))
        }
        RECORD_DELETED => Ok(Change::Record(body.record_key()?, None)),
        unknown => Err(corrupt(format!("unknown kind of change {unknown}"))),
    }
}

/// The bytes that are still to be read. Each method takes only bytes that exist.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8> {
        let (first, rest) = self.bytes.split_first().ok_or_else(ends_early)?;
        self.bytes = rest;
        Ok(*first)
    }

    /// Reads a number, which has only one valid encoding: without trailing groups of zeros, and
    /// within 64 bits.
    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let group = u64::from(byte & 0x7f);
            if (group << shift) >> shift != group || (byte == 0 && shift > 0) {
                break;
            }
            number |= group << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(corrupt("a number is not in its canonical encoding"))
    }

    fn bounded_number(&mut self) -> Result<u64> {
        let number = self.number()?;
        if number < NUMBER_END { Ok(number) } else { Err(corrupt("a number is 2^63 or larger")) }
    }

    fn optional(&mut self, read: impl FnOnce(&mut Self) -> Result<u64>) -> Result<Option<u64>> {
        match self.byte()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(corrupt("the flag of an optional number is neither 0 nor 1")),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = usize::try_from(self.number()?).map_err(|_| ends_early())?;
        let (bytes, rest) = self.bytes.split_at_checked(length).ok_or_else(ends_early)?;
        self.bytes = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<String> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| corrupt("a name is not valid UTF-8"))?;
        Ok(text.to_string())
    }

    fn row_key(&mut self) -> Result<RowKey> {
        let namespace = Namespace::from_stored(self.bytes()?.to_vec())?;
        let key = self.bytes()?.to_vec();
        let key = match namespace.as_bytes() == LEDGER_NAMESPACE.as_bytes() {
            true => Key::of_ledger(key),
            false => Key::from_stored(key)?,
        };
        Ok(RowKey { namespace, key })
    }

    fn record_key(&mut self) -> Result<RecordKey> {
        let mut part = || self.bytes().map(<[u8]>::to_vec);
        let identity = Identity::from_stored(part()?, part()?, part()?, part()?)?;
        Ok(RecordKey { identity, kind: self.text()? })
    }
}

const NUMBER_BYTES_MAX: usize = 10;

/// Writes seven bits to a byte, the lowest first. The eighth bit means that another byte follows.
fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn ends_early() -> Error {
    corrupt("it ends too early")
}

fn corrupt(reason: impl std::fmt::Display) -> Error {
    Error::Corrupt(format!("invalid redo: {reason}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::IdentityParts;

    fn row(key: &str) -> RowKey {
        let name = |text: &str| text.as_bytes().to_vec();
        RowKey {
            namespace: Namespace::from_stored(name("n")).unwrap(),
            key: Key::from_stored(name(key)).unwrap(),
        }
    }

    fn record_key(session: &str) -> RecordKey {
        RecordKey::conversation(Identity::unchecked(IdentityParts::session("t", "u", session)))
    }

    fn write(writer: &mut RedoWriter, change: &Change) {
        match change {
            Change::Row(row, Some(stored)) => {
                let value = stored.value.as_slice().into();
                writer.row(row, &RowWrite::Put { value, expires_at: stored.expires_at }, stored.version);
            }
            Change::Row(row, None) => writer.row(row, &RowWrite::Delete, Version(1)),
            Change::Record(key, record) => {
                let (key, record) = (key.clone(), record.clone());
                writer.record(&RecordWrite { key, expected: Version(9), record });
            }
        }
    }

    fn redo(group: &Group) -> Redo {
        let mut writer = RedoWriter::new(group.before);
        for change in &group.changes {
            write(&mut writer, change);
        }
        writer.finish(group.after).unwrap()
    }

    fn changes(before: u64, after: u64) -> impl Strategy<Value = Vec<Change>> {
        let row_change = (
            ".{0,12}",
            proptest::option::of((
                proptest::collection::vec(any::<u8>(), 0..200),
                before + 1..=after,
                proptest::option::of(0..NUMBER_END),
            )),
        )
            .prop_map(|(key, stored)| {
                let stored = stored.map(|(value, version, expires_at)| StoredValue {
                    value,
                    version: Version(version),
                    expires_at,
                });
                Change::Row(row(&key), stored)
            });
        let record_change = (
            ".{1,12}",
            proptest::option::of((
                proptest::collection::vec(any::<u8>(), 0..200),
                1..NUMBER_END,
                any::<Option<u64>>(),
                any::<[u64; 2]>(),
            )),
        )
            .prop_map(|(session, record)| {
                let record = record.map(|(bytes, version, due_at, [created_at, updated_at])| StoredRecord {
                    strategy: "truncation".to_string(),
                    bytes,
                    version: Version(version),
                    due_at,
                    created_at,
                    updated_at,
                });
                Change::Record(record_key(&session), record)
            });
        proptest::collection::vec(prop_oneof![row_change, record_change], 0..12)
    }

    fn groups() -> impl Strategy<Value = Vec<Group>> {
        let steps = proptest::collection::vec(1_u64..1 << 40, 1..5);
        (0_u64..1 << 40, steps).prop_flat_map(|(start, steps)| {
            let mut before = start;
            let groups: Vec<_> = steps
                .into_iter()
                .map(|step| {
                    let (from, to) = (before, before + step);
                    before = to;
                    changes(from, to).prop_map(move |changes| Group {
                        before: Version(from),
                        after: Version(to),
                        changes,
                    })
                })
                .collect();
            groups
        })
    }

    fn joined(groups: &[Group]) -> Redo {
        let (first, others) = groups.split_first().unwrap();
        let mut all = redo(first);
        for group in others {
            all.push(redo(group)).unwrap();
        }
        all
    }

    proptest! {
        #[test]
        fn what_is_written_down_is_read_again(groups in groups()) {
            let redo = joined(&groups);
            prop_assert_eq!(redo.before(), groups.first().unwrap().before);
            prop_assert_eq!(redo.after(), groups.last().unwrap().after);
            prop_assert_eq!(decode(redo.as_bytes()).unwrap(), groups);
        }

        #[test]
        fn a_redo_cut_short_is_corrupt_or_ends_with_a_whole_group(groups in groups(), cut in any::<prop::sample::Index>()) {
            let bytes = joined(&groups).into_bytes();
            let cut = cut.index(bytes.len());
            match decode(&bytes[..cut]) {
                Ok(read) => prop_assert_eq!(&read[..], &groups[..read.len()]),
                Err(error) => prop_assert!(matches!(error, Error::Corrupt(_))),
            }
        }

        #[test]
        fn altered_bytes_are_never_a_panic_and_what_is_read_is_written_the_same(
            groups in groups(),
            alterations in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = joined(&groups).into_bytes();
            for (position, byte) in alterations {
                let position = position.index(bytes.len());
                bytes[position] = byte;
            }
            if let Ok(read) = decode(&bytes) {
                prop_assert_eq!(joined(&read).into_bytes(), bytes);
            }
        }

        #[test]
        fn random_bytes_are_never_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), known in any::<bool>()) {
            if known && let Some(first) = bytes.first_mut() {
                *first = FORMAT;
            }
            if let Ok(read) = decode(&bytes) {
                prop_assert_eq!(joined(&read).into_bytes(), bytes);
            }
        }
    }

    fn group(before: u64, after: u64) -> Group {
        Group { before: Version(before), after: Version(after), changes: vec![Change::Row(row("a"), None)] }
    }

    #[test]
    fn what_is_no_redo_is_corrupt() {
        let refused = |bytes: &[u8]| match decode(bytes) {
            Err(Error::Corrupt(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&[]), "invalid redo: it has no bytes");
        assert_eq!(refused(&[9, 0]), "invalid redo: unknown format 9; this build reads format 1");
        // A length that fits into no memory.
        let mut huge = vec![FORMAT];
        write_number(&mut huge, u64::MAX);
        assert_eq!(refused(&huge), "invalid redo: it ends too early");
        // From 5 to 5.
        assert_eq!(refused(&[FORMAT, 2, 5, 5]), "invalid redo: a group leads from position 5 to 5");
        assert_eq!(refused(&[FORMAT, 3, 5, 6, 4]), "invalid redo: unknown kind of change 4");
        assert_eq!(refused(&[FORMAT, 0x80, 0]), "invalid redo: a number is not in its canonical encoding");
        // A row with a version outside of its group.
        assert_eq!(
            refused(&[FORMAT, 8, 5, 6, ROW_PUT, 0, 0, 7, 0, 0]),
            "invalid redo: a row has version 7, but its group leads from position 5 to 6"
        );
        let mut gap = redo(&group(1, 2)).into_bytes();
        gap.extend(redo(&group(3, 4)).into_bytes());
        assert_eq!(
            refused(&gap),
            "invalid redo: a group that ends at position 2 is followed by one that starts at 3"
        );
    }

    #[test]
    fn a_key_that_is_not_text_is_read_back_in_the_ledger_of_migrations_and_nowhere_else() {
        for (namespace, is_read) in [(LEDGER_NAMESPACE, true), ("n", false)] {
            let namespace = Namespace::from_stored(namespace.into()).unwrap();
            let row = RowKey { namespace, key: Key::of_ledger(b"tasks\0\xff".to_vec()) };
            let mut writer = RedoWriter::new(Version(1));
            writer.row(&row, &RowWrite::Delete, Version(2));
            let redo = writer.finish(Version(2)).unwrap();
            assert_eq!(decode(redo.as_bytes()).is_ok(), is_read);
        }
    }

    #[test]
    fn a_group_is_made_once_and_only_where_it_belongs() {
        let group = group(5, 7);
        assert!(group.follows(Version(5)).unwrap());
        assert!(!group.follows(Version(7)).unwrap() && !group.follows(Version(8)).unwrap());
        for elsewhere in [4, 6] {
            assert!(matches!(group.follows(Version(elsewhere)), Err(Error::Corrupt(_))), "{elsewhere}");
        }
    }

    #[test]
    fn only_what_comes_next_is_put_behind_a_redo() {
        let mut all = redo(&group(1, 2));
        assert!(matches!(all.push(redo(&group(3, 4))), Err(Error::InvalidArgument(_))));
        all.push(redo(&group(2, 3))).unwrap();
        assert_eq!((all.before(), all.after()), (Version(1), Version(3)));
    }

    #[test]
    fn a_group_that_changed_nothing_has_no_redo() {
        assert_eq!(RedoWriter::new(Version(3)).finish(Version(3)), None);
    }
}
