//! Generates random calls.

use std::collections::HashMap;

use fastrand::Rng;

use crate::history::{COUNTERS, Call, HOT, Id, LEASES, Millis, Range, Row, TASKS, WIDE};

const HOT_ROWS: u32 = 6;
const WIDE_ROWS: u32 = 12;
const WIDE_PREFIXES: [&str; 3] = ["a", "b", "c"];
const COUNTER_ROWS: u32 = 3;
const LEASE_ROWS: u32 = 4;

/// A time to live that no round reaches, so the row behaves as a permanent one.
pub(crate) const FAR: Millis = 3_600_000;

/// A generator of calls.
pub(crate) struct Calls {
    pub(crate) random: Rng,
    /// The last known versions of rows, for conditions. They may be outdated.
    pub(crate) versions: HashMap<Row, u64>,
    values: u64,
    /// Whether rows that expire soon are used.
    leases: bool,
}

impl Calls {
    pub(crate) fn new(seed: u64, leases: bool) -> Self {
        Self { random: Rng::with_seed(seed), versions: HashMap::new(), values: 0, leases }
    }

    /// True once in `times` calls, on average.
    pub(crate) fn one_in(&mut self, times: u32) -> bool {
        self.random.u32(0..times) == 0
    }

    /// The write that marks an update as the last one of its task.
    pub(crate) fn marker(id: Id) -> Call {
        let row = Row(TASKS.to_string(), id.task.to_string());
        Call::Put { row, value: id.to_string(), ttl: None, if_version: None }
    }

    pub(crate) fn read(&mut self) -> Call {
        match self.random.u32(0..20) {
            0..6 => Call::Get(self.row()),
            6..8 if self.leases => Call::Get(self.lease()),
            8..11 => Call::GetVersioned(self.row()),
            11..14 => {
                let (namespace, count) = (self.namespace(), self.random.usize(1..6));
                let keys = (0..count).map(|_| self.key(namespace)).collect();
                Call::GetMany(namespace.to_string(), keys)
            }
            14 if self.leases => Call::Page(LEASES.to_string(), Range::default(), None),
            15 => Call::Page(TASKS.to_string(), Range::default(), None),
            _ => {
                let (namespace, range) = self.range();
                Call::Page(namespace, range, None)
            }
        }
    }

    pub(crate) fn write(&mut self, id: Id) -> Call {
        match self.random.u32(0..20) {
            0..9 => self.put(id, None),
            9..11 => {
                let (row, if_version) = self.row_with_version();
                match self.one_in(4) {
                    true => Call::Delete { row, if_version },
                    false => self.put(id, Some((row, if_version))),
                }
            }
            11..14 => Call::Delete { row: self.row(), if_version: None },
            14..18 => {
                let row = Row(COUNTERS.to_string(), self.key(COUNTERS));
                Call::Increment(row, self.random.i64(-5..=9))
            }
            18 => {
                let (namespace, mut range) = self.range();
                range.keys_only = false;
                Call::DeleteRange(namespace, range)
            }
            _ if self.leases => self.take_lease(id),
            _ => self.put(id, None),
        }
    }

    /// Takes a lease. The transaction must have found it free.
    pub(crate) fn take_lease(&mut self, id: Id) -> Call {
        let ttl = Some(self.random.u64(1..800));
        Call::Put { row: self.lease(), value: self.value(id), ttl, if_version: None }
    }

    fn put(&mut self, id: Id, conditional: Option<(Row, Option<u64>)>) -> Call {
        let (row, if_version) = conditional.unwrap_or_else(|| (self.row(), None));
        let ttl = self.one_in(12).then_some(FAR);
        Call::Put { row, value: self.value(id), ttl, if_version }
    }

    /// A value that no other write has. It is mostly short, and sometimes longer than a page of the
    /// file.
    fn value(&mut self, id: Id) -> String {
        self.values += 1;
        let number = self.values;
        match self.random.u32(0..40) {
            0 => format!("{id}.{number}+{}", self.random.u32(5_000..40_000)),
            1..5 => format!("{id}.{number}+{}", self.random.u32(200..3_000)),
            _ => format!("{id}.{number}"),
        }
    }

    fn row_with_version(&mut self) -> (Row, Option<u64>) {
        let row = self.row();
        let known = self.versions.get(&row).copied().unwrap_or_default();
        (row, Some(known))
    }

    fn namespace(&mut self) -> &'static str {
        if self.random.bool() { HOT } else { WIDE }
    }

    pub(crate) fn row(&mut self) -> Row {
        let namespace = self.namespace();
        Row(namespace.to_string(), self.key(namespace))
    }

    pub(crate) fn lease(&mut self) -> Row {
        Row(LEASES.to_string(), self.key(LEASES))
    }

    fn key(&mut self, namespace: &str) -> String {
        match namespace {
            HOT => format!("h{}", self.random.u32(0..HOT_ROWS)),
            COUNTERS => format!("n{}", self.random.u32(0..COUNTER_ROWS)),
            LEASES => format!("l{}", self.random.u32(0..LEASE_ROWS)),
            _ => {
                let prefix = WIDE_PREFIXES[self.random.usize(0..WIDE_PREFIXES.len())];
                format!("{prefix}{:02}", self.random.u32(0..WIDE_ROWS))
            }
        }
    }

    fn range(&mut self) -> (String, Range) {
        let namespace = [HOT, WIDE, WIDE, WIDE, COUNTERS][self.random.usize(0..5)];
        let mut range = Range {
            reverse: self.one_in(3),
            keys_only: self.one_in(5),
            limit: self.one_in(3).then(|| self.random.u32(1..9)),
            ..Range::default()
        };
        match self.random.u32(0..4) {
            0 => range.start = Some(self.key(namespace)),
            1 => (range.start, range.end) = (Some(self.key(namespace)), Some(self.key(namespace))),
            2 if namespace == WIDE => {
                range.prefix = WIDE_PREFIXES[self.random.usize(0..WIDE_PREFIXES.len())].to_string();
            }
            _ => {}
        }
        (namespace.to_string(), range)
    }
}
