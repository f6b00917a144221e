//! The statements of a store, with the schema of its tables filled in.
//!
//! The search path of a session can change while a store is open, for example by `CREATE SCHEMA` or
//! `ALTER ROLE`. An unqualified name could then refer to other tables, so every name is qualified.

use std::sync::Once;

use crate::commit::ROW_WAIT_MILLIS;
use crate::commit_alone::{PUT, REPLACE};
use crate::commit_puts::{OnePass, PUT_ALL};
use crate::commit_transaction::{CURRENT, LOCK_WRITTEN, SHARE_READ, STRETCHES, WRITE};
use crate::first_read::{CHECK, GET};
use crate::maintenance::{COUNT, SWEEP};
use crate::moment::Read;
use crate::namespace_lock;
use crate::records::{DELETE, DUE, INSERT, LIST, LOAD, TOUCH, UPDATE};
use crate::search_path::{literal, quoted};
use crate::snapshot::{
    GET_MANY, GET_MANY_COUNTED, NEXT_NAMESPACE, SCAN, SCAN_REVERSE, SCAN_REVERSE_TO, SCAN_TO,
};
use crate::versions::{ADVANCE, FOLLOW, IS_BEHIND};

/// The placeholder for the schema in the template of a statement.
const SCHEMA: &str = "{schema}";

/// The placeholder for the version sequence.
const SEQUENCE: &str = "{sequence}";

/// The placeholder for the lock table of a namespace.
const LOCK: &str = "{lock}";

/// The placeholder for the row-lock timeout in milliseconds.
const ROW_WAIT: &str = "{row_wait}";

/// The names that fill the placeholders.
struct Names {
    schema: String,
    /// The qualified name of the sequence, as a string literal.
    sequence: String,
}

impl Names {
    fn fill(&self, template: &str) -> String {
        let parts: Vec<_> = template.split(SEQUENCE).map(|part| part.replace(SCHEMA, &self.schema)).collect();
        parts.join(&self.sequence)
    }

    /// Fills the template once for each lock table. Also sets the row-lock timeout, because these
    /// statements run outside a transaction that could set it.
    fn fill_locks(&self, template: &str) -> Vec<String> {
        let template = template.replace(ROW_WAIT, &ROW_WAIT_MILLIS.to_string());
        let filled = |number| template.replace(LOCK, &format!("{}{number}", namespace_lock::TABLE));
        (0..namespace_lock::COUNT).map(|number| self.fill(&filled(number))).collect()
    }

    fn fill_both(&self, template: Read<&str>) -> Read {
        Read { first: self.fill(template.first), next: self.fill(template.next) }
    }
}

macro_rules! queries {
    ($($fill:ident { $($name:ident: $type:ty = $template:expr),* $(,)? })*) => {
        /// The statements of a store. They are built when it is opened.
        pub(crate) struct Queries {
            /// The schema of the tables, as a quoted identifier.
            pub(crate) schema: String,
            /// Statistics on commits in one pass, which decide whether to attempt more.
            pub(crate) one_pass: OnePass,
            /// Whether larder has already warned that it cannot move the version sequence up to the
            /// clock.
            pub(crate) not_following: Once,
            $($(pub(crate) $name: $type,)*)*
        }

        impl Queries {
            pub(crate) fn of(schema: &str) -> Self {
                let schema = quoted(schema);
                let sequence = literal(&format!("{schema}.larder_commit_sequence"));
                let names = Names { sequence, schema: schema.clone() };
                Self {
                    schema,
                    one_pass: OnePass::default(),
                    not_following: Once::new(),
                    $($($name: names.$fill($template),)*)*
                }
            }
        }
    };
}

queries! {
    fill {
        lock_written: String = LOCK_WRITTEN,
        share_read: String = SHARE_READ,
        current: String = CURRENT,
        stretches: String = STRETCHES,
        write: String = WRITE,
        put_all: String = PUT_ALL,
        advance: String = ADVANCE,
        is_behind: String = IS_BEHIND,
        follow: String = FOLLOW,
        check: String = CHECK,
        count: String = COUNT,
        sweep: String = SWEEP,
        load_record: String = LOAD,
        insert_record: String = INSERT,
        update_record: String = UPDATE,
        delete_record: String = DELETE,
        touch_record: String = TOUCH,
        list_records: String = LIST,
        due_records: String = DUE,
    }
    fill_locks {
        put: Vec<String> = PUT,
        replace: Vec<String> = REPLACE,
    }
    fill_both {
        get: Read = GET,
        get_many: Read = GET_MANY,
        get_many_counted: Read = GET_MANY_COUNTED,
        next_namespace: Read = NEXT_NAMESPACE,
        scan: Read = SCAN,
        scan_to: Read = SCAN_TO,
        scan_reverse: Read = SCAN_REVERSE,
        scan_reverse_to: Read = SCAN_REVERSE_TO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_and_the_sequence_stand_with_their_schema() {
        let queries = Queries::of("a\"b'c\\{sequence}");
        assert_eq!(queries.put.len(), namespace_lock::COUNT);
        let put = &queries.put[7];
        assert!(put.contains("INSERT INTO \"a\"\"b'c\\{sequence}\".larder_entries AS entries"));
        assert!(put.contains("nextval(E'\"a\"\"b''c\\\\{sequence}\".larder_commit_sequence')"));
        assert!(put.contains("FROM \"a\"\"b'c\\{sequence}\".larder_namespace_lock_7 FOR KEY SHARE"));
        let all = [
            &queries.lock_written,
            &queries.share_read,
            &queries.current,
            &queries.stretches,
            &queries.write,
            &queries.put_all,
            &queries.advance,
            &queries.is_behind,
            &queries.follow,
            put,
            &queries.replace[15],
            &queries.check,
            &queries.count,
            &queries.sweep,
            &queries.load_record,
            &queries.insert_record,
            &queries.update_record,
            &queries.delete_record,
            &queries.touch_record,
            &queries.list_records,
            &queries.due_records,
        ];
        let reads = [
            &queries.get,
            &queries.get_many,
            &queries.get_many_counted,
            &queries.next_namespace,
            &queries.scan,
            &queries.scan_to,
            &queries.scan_reverse,
            &queries.scan_reverse_to,
        ];
        for sql in all.into_iter().chain(reads.into_iter().flat_map(|read| [&read.first, &read.next])) {
            let names = sql.match_indices("larder_").map(|(at, _)| at);
            for at in names {
                assert!(sql[..at].ends_with("\"."), "{sql}");
            }
            assert!([SCHEMA, LOCK, ROW_WAIT].iter().all(|name| !sql.contains(name)), "{sql}");
        }
    }
}
