//! Guest migrations: each step that a component declares is applied once and in order, and sets
//! that do not match the ledger are refused.

use super::{Case, Worker};
use crate::bindings::larder::storage::store::Migration;
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("migrations":
    a_declared_set_is_pending_in_its_order,
    a_step_is_applied_once_and_recorded,
    steps_are_begun_in_their_order,
    the_empty_set_has_nothing_to_apply_on_any_store,
    an_appended_step_alone_is_pending,
    what_is_pending_is_asked_without_a_trace,
    a_removed_step_is_refused,
    a_reordered_step_is_refused,
    a_step_put_before_an_applied_one_is_refused,
    an_edited_step_is_refused,
    a_store_that_is_newer_than_the_set_is_refused,
    a_refused_set_applies_nothing,
    a_rolled_back_step_leaves_the_steps_before_it,
    a_dropped_step_leaves_the_steps_before_it,
    a_trapped_step_leaves_the_steps_before_it,
    a_step_that_timed_out_leaves_the_steps_before_it,
    a_step_reads_and_writes_as_any_update,
    a_step_is_invisible_before_its_commit,
    components_append_without_disturbing_each_other,
    one_components_name_may_begin_with_anothers,
    the_same_id_in_two_components_is_two_steps,
    steps_of_two_components_may_overlap,
    the_ledger_is_read_and_never_written,
    a_read_only_store_tells_what_is_pending_and_begins_nothing,
    a_closed_store_answers_closed,
    names_that_can_not_be_are_refused,
    a_checksum_of_another_length_is_refused,
    an_id_declared_twice_is_refused,
    an_id_at_the_bound_of_a_key_passes,
    an_id_past_the_bound_of_a_key_is_refused,
    more_steps_than_the_bound_are_refused,
    the_record_counts_as_a_write_of_its_step,
    the_names_of_the_ledger_do_not_count_for_a_small_bound,
    of_two_steps_at_once_the_second_conflicts,
    a_step_that_conflicts_with_an_update_is_not_recorded,
    what_another_host_applied_is_not_applied_again,
    what_a_newer_release_applied_meanwhile_is_found,
    steps_survive_a_reopening,
    many_instances_of_two_hosts_apply_each_step_once,
    a_set_of_many_steps_is_applied,
    a_component_declares_under_its_own_names_only,
    a_refused_declaration_is_told_to_the_host,
    the_arguments_of_a_declaration_are_judged_before_its_name,
);

pub(crate) const WORKERS: &[Worker] = named!("migrations":
    apply_counting_steps,
    trap_in_a_step,
);

const LEDGER: &str = "__store_migrations__";

/// A step to apply, and its transaction.
struct NextMigration {
    id: String,
    tx: Tx,
}

fn step(id: &str) -> Migration {
    // Any 32 bytes that differ between ids.
    let checksum = (0..32).map(|place| id.as_bytes().get(place).copied().unwrap_or(place as u8)).collect();
    Migration { id: id.to_string(), checksum }
}

fn set(ids: &[&str]) -> Vec<Migration> {
    ids.iter().map(|id| step(id)).collect()
}

fn pending(component: &str, ids: &[&str]) -> Outcome<Vec<String>> {
    let store = main()?;
    retrying(|| Ok(store.pending_migrations(component, &set(ids))?))
}

#[track_caller]
fn expect_pending(component: &str, ids: &[&str], expected: &[&str]) -> Outcome {
    expect_eq(pending(component, ids)?, keys(expected))
}

#[track_caller]
fn begin(store: &Store, component: &str, ids: &[&str]) -> Outcome<NextMigration> {
    let begun = store.begin_migration(component, &set(ids))?;
    let (id, tx) = begun.ok_or_else(|| wrong("expected a pending step, got none"))?;
    Ok(NextMigration { id, tx })
}

/// Applies the pending steps of a set and returns their ids. Each step puts a row with its id.
fn apply(component: &str, ids: &[&str]) -> Outcome<Vec<String>> {
    apply_in(&main()?, component, ids)
}

fn apply_in(store: &Store, component: &str, ids: &[&str]) -> Outcome<Vec<String>> {
    let mut applied = Vec::new();
    while let Some(id) = retrying(|| {
        let Some((id, tx)) = store.begin_migration(component, &set(ids))? else {
            return Ok(None);
        };
        tx.put(NS, &format!("{component}/{id}"), id.as_bytes())?;
        Tx::commit(tx)?;
        Ok(Some(id))
    })? {
        applied.push(id);
    }
    Ok(applied)
}

fn ledger() -> Outcome<Vec<Entry>> {
    read(|tx| Ok(tx.scan(LEDGER, "")?))
}

/// Expects both calls to fail with `migration-mismatch` and a text that contains each of `named`.
#[track_caller]
fn expect_mismatch(component: &str, declared: &[Migration], named: &[&str]) -> Outcome {
    let store = main()?;
    let is_named = |error: &Error| match error {
        Error::MigrationMismatch(text) => named.iter().all(|name| text.contains(name)),
        _ => false,
    };
    let expected = format!("migration-mismatch that contains {named:?}");
    expect_error(store.pending_migrations(component, declared), &expected, is_named)?;
    expect_error(store.begin_migration(component, declared).map(drop), &expected, is_named)
}

fn a_declared_set_is_pending_in_its_order() -> Outcome {
    expect_pending("tasks", &["0002", "0001", "ünder"], &["0002", "0001", "ünder"])
}

fn a_step_is_applied_once_and_recorded() -> Outcome {
    expect_eq(apply("tasks", &["0001_init"])?, keys(&["0001_init"]))?;
    expect_value(get("tasks/0001_init")?, "0001_init")?;
    let recorded = ledger()?;
    expect_keys(&recorded, &["tasks\x000001_init"])?;
    let value =
        recorded.first().map(|entry| String::from_utf8_lossy(&entry.value).into_owned()).unwrap_or_default();
    for field in ["\"ordinal\":1", "\"checksum\":\"", "\"applied_at\":", "\"larder\":\""] {
        expect(value.contains(field), format!("{value} contains {field}"))?;
    }
    let hex: String = step("0001_init").checksum.iter().map(|byte| format!("{byte:02x}")).collect();
    expect(value.contains(&hex), format!("{value} contains the checksum {hex}"))?;
    let before = version("tasks/0001_init")?;
    expect_pending("tasks", &["0001_init"], &[])?;
    expect_eq(apply("tasks", &["0001_init"])?, keys(&[]))?;
    expect_eq(version("tasks/0001_init")?, before)?;
    expect_eq(ledger()?.len(), 1)
}

fn steps_are_begun_in_their_order() -> Outcome {
    expect_eq(apply("tasks", &["c", "a", "b"])?, keys(&["c", "a", "b"]))?;
    expect_pending("tasks", &["c", "a", "b"], &[])
}

fn the_empty_set_has_nothing_to_apply_on_any_store() -> Outcome {
    let none_to_apply = || -> Outcome {
        for _ in 0..3 {
            expect_pending("tasks", &[], &[])?;
            let begun = main()?.begin_migration("tasks", &[])?;
            expect(begun.is_none(), "the empty set begins no step")?;
        }
        Ok(())
    };
    none_to_apply()?;
    apply("tasks", &["a", "b"])?;
    none_to_apply()?;
    expect_eq(ledger()?.len(), 2)
}

fn an_appended_step_alone_is_pending() -> Outcome {
    apply("tasks", &["a"])?;
    expect_pending("tasks", &["a", "b", "c"], &["b", "c"])?;
    expect_eq(apply("tasks", &["a", "b", "c"])?, keys(&["b", "c"]))
}

fn what_is_pending_is_asked_without_a_trace() -> Outcome {
    expect_pending("tasks", &["a"], &["a"])?;
    drop(begin(&main()?, "tasks", &["a"])?);
    expect_entries(&ledger()?, &[])?;
    expect_pending("tasks", &["a"], &["a"])
}

fn a_removed_step_is_refused() -> Outcome {
    apply("tasks", &["a", "b", "c"])?;
    expect_mismatch("tasks", &set(&["b", "c", "d"]), &["\"a\"", "removed"])?;
    expect_mismatch("tasks", &set(&["a", "c", "d"]), &["\"b\"", "removed"])?;
    expect_mismatch("tasks", &set(&["a", "b", "d"]), &["\"c\"", "removed"])
}

fn a_reordered_step_is_refused() -> Outcome {
    apply("tasks", &["a", "b"])?;
    expect_mismatch("tasks", &set(&["b", "a"]), &["\"a\"", "reordered"])?;
    expect_mismatch("tasks", &set(&["b", "a", "c"]), &["\"a\"", "reordered"])
}

fn a_step_put_before_an_applied_one_is_refused() -> Outcome {
    apply("tasks", &["a", "b"])?;
    expect_mismatch("tasks", &set(&["a", "new", "b"]), &["\"b\"", "reordered"])
}

fn an_edited_step_is_refused() -> Outcome {
    apply("tasks", &["a", "b"])?;
    let mut edited = set(&["a", "b", "c"]);
    for step in edited.iter_mut().skip(1).take(1) {
        step.checksum = vec![0xee; 32];
    }
    expect_mismatch("tasks", &edited, &["\"b\"", "edited"])?;
    // A step that is not applied may still change.
    let mut edited = set(&["a", "b", "c"]);
    for step in edited.iter_mut().skip(2) {
        step.checksum = vec![0xee; 32];
    }
    let left = main()?.pending_migrations("tasks", &edited)?;
    expect_eq(left, keys(&["c"]))
}

fn a_store_that_is_newer_than_the_set_is_refused() -> Outcome {
    apply("tasks", &["a", "b"])?;
    expect_mismatch("tasks", &set(&["a"]), &["\"b\"", "newer"])
}

fn a_refused_set_applies_nothing() -> Outcome {
    apply("tasks", &["a", "b"])?;
    let before = ledger()?;
    expect_mismatch("tasks", &set(&["b", "a", "c"]), &["reordered"])?;
    expect_eq(ledger()?, before)?;
    expect_pending("tasks", &["a", "b", "c"], &["c"])
}

/// Expects that only `a` is applied, and that the remaining steps can then be applied.
fn expect_clean_prefix() -> Outcome {
    expect_keys(&ledger()?, &["tasks\0a"])?;
    expect_absent(get("half")?)?;
    expect_pending("tasks", &["a", "b", "c"], &["b", "c"])?;
    expect_eq(apply("tasks", &["a", "b", "c"])?, keys(&["b", "c"]))?;
    expect_keys(&scan("tasks/")?, &["tasks/a", "tasks/b", "tasks/c"])
}

/// Begins `b` after `a` was applied, and makes half of its writes.
fn half_a_step(store: &Store) -> Outcome<Tx> {
    let NextMigration { id, tx } = begin(store, "tasks", &["a", "b", "c"])?;
    expect_eq(id.as_str(), "b")?;
    tx.put(NS, "half", b"never")?;
    Ok(tx)
}

fn a_rolled_back_step_leaves_the_steps_before_it() -> Outcome {
    apply("tasks", &["a"])?;
    Tx::rollback(half_a_step(&main()?)?);
    expect_clean_prefix()
}

fn a_dropped_step_leaves_the_steps_before_it() -> Outcome {
    apply("tasks", &["a"])?;
    drop(half_a_step(&main()?)?);
    expect_clean_prefix()
}

fn a_trapped_step_leaves_the_steps_before_it() -> Outcome {
    apply("tasks", &["a"])?;
    let ended = probe::parallel("migrations::trap_in_a_step", 2);
    expect_eq(ended.iter().filter(|ended| ended.is_err()).count(), 2)?;
    expect_clean_prefix()
}

fn trap_in_a_step(_: u32) -> Outcome {
    let store = main()?;
    let _half = half_a_step(&store)?;
    trap()
}

fn a_step_that_timed_out_leaves_the_steps_before_it() -> Outcome {
    apply("tasks", &["a"])?;
    let tx = half_a_step(&main()?)?;
    probe::advance_clock(limits().transaction_timeout_ms);
    expect_timed_out(Tx::commit(tx))?;
    expect_clean_prefix()
}

fn a_step_reads_and_writes_as_any_update() -> Outcome {
    put_keys(&["old:1", "old:2"])?;
    let store = main()?;
    retrying(|| {
        let NextMigration { tx, .. } = begin(&store, "tasks", &["a"])?;
        for Entry { key, value } in tx.scan(NS, "old:")? {
            tx.delete(NS, &key)?;
            tx.put(NS, &key.replace("old", "new"), &value)?;
        }
        tx.increment(NS, "count", 2)?;
        expect_keys(&tx.scan(NS, "")?, &["count", "new:1", "new:2"])?;
        Ok(Tx::commit(tx)?)
    })?;
    expect_entries(&scan("")?, &[("count", "2"), ("new:1", "old:1"), ("new:2", "old:2")])
}

fn a_step_is_invisible_before_its_commit() -> Outcome {
    let store = main()?;
    let NextMigration { tx, .. } = begin(&store, "tasks", &["a"])?;
    tx.put(NS, "x", b"1")?;
    expect_entries(&ledger()?, &[])?;
    expect_absent(get("x")?)?;
    expect_pending("tasks", &["a"], &["a"])?;
    expect_eq(tx.scan(LEDGER, "tasks\0")?.len(), 1)?;
    Tx::commit(tx)?;
    expect_eq(ledger()?.len(), 1)
}

fn components_append_without_disturbing_each_other() -> Outcome {
    apply("tasks", &["a"])?;
    apply("search", &["x", "y"])?;
    expect_eq(apply("tasks", &["a", "b"])?, keys(&["b"]))?;
    expect_eq(apply("search", &["x", "y", "z"])?, keys(&["z"]))?;
    expect_eq(apply("tasks", &["a", "b", "c"])?, keys(&["c"]))?;
    expect_pending("search", &["x", "y", "z"], &[])?;
    let recorded = ["search\0x", "search\0y", "search\0z", "tasks\0a", "tasks\0b", "tasks\0c"];
    expect_keys(&ledger()?, &recorded)
}

fn one_components_name_may_begin_with_anothers() -> Outcome {
    apply("task", &["a"])?;
    apply("tasks", &["b"])?;
    apply("task s", &["c"])?;
    for (component, id) in [("task", "a"), ("tasks", "b"), ("task s", "c")] {
        expect_pending(component, &[id], &[])?;
    }
    expect_pending("tas", &["a"], &["a"])
}

fn the_same_id_in_two_components_is_two_steps() -> Outcome {
    apply("tasks", &["0001"])?;
    expect_pending("search", &["0001"], &["0001"])?;
    expect_eq(apply("search", &["0001"])?, keys(&["0001"]))
}

fn steps_of_two_components_may_overlap() -> Outcome {
    let store = main()?;
    retrying(|| {
        let first = begin(&store, "tasks", &["a"]);
        let second = begin(&store, "search", &["a"]);
        // If one of them is already committed, an earlier attempt committed it and then conflicted.
        for begun in [first, second] {
            match begun {
                Ok(NextMigration { tx, .. }) => drop(Tx::commit(tx)?),
                Err(Failure::Wrong(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    })?;
    expect_keys(&ledger()?, &["search\0a", "tasks\0a"])
}

fn the_ledger_is_read_and_never_written() -> Outcome {
    apply("tasks", &["a"])?;
    let before = ledger()?;
    let store = main()?;
    let tx = update(&store)?;
    expect_each(write_calls(&tx, LEDGER, "tasks\0a"), expect_access_denied)?;
    let NextMigration { tx: step, .. } = begin(&store, "tasks", &["a", "b"])?;
    expect_each(write_calls(&step, LEDGER, "tasks\0b"), expect_access_denied)?;
    drop((tx, step));
    expect_eq(ledger()?, before)
}

fn a_read_only_store_tells_what_is_pending_and_begins_nothing() -> Outcome {
    apply("tasks", &["a"])?;
    let store = Store::open("read-only")?;
    let left = retrying(|| Ok(store.pending_migrations("tasks", &set(&["a", "b"]))?))?;
    expect_eq(left, keys(&["b"]))?;
    expect_access_denied(store.begin_migration("tasks", &set(&["a", "b"])).map(drop))?;
    expect_eq(count_events("store.access_denied"), 1)
}

fn a_closed_store_answers_closed() -> Outcome {
    let store = main()?;
    store.close();
    // Also if the arguments are invalid, or the set is empty.
    for (component, ids) in [("tasks", &["a"][..]), ("", &["a", "a"]), ("tasks", &[])] {
        expect_closed(store.pending_migrations(component, &set(ids)))?;
        expect_closed(store.begin_migration(component, &set(ids)).map(drop))?;
    }
    let store = main()?;
    let NextMigration { tx, .. } = begin(&store, "tasks", &["a"])?;
    store.close();
    expect_closed(Tx::commit(tx))?;
    expect_entries(&ledger()?, &[])
}

/// Expects the same error from both calls.
#[track_caller]
fn expect_refused(
    component: &str,
    declared: &[Migration],
    expected: fn(Result<(), Error>) -> Outcome,
) -> Outcome {
    let store = main()?;
    expected(store.pending_migrations(component, declared).map(drop))?;
    expected(store.begin_migration(component, declared).map(drop))
}

fn names_that_can_not_be_are_refused() -> Outcome {
    for name in ["", "\0", "a\0b", "a\n", "\u{7f}", "a\u{85}"] {
        expect_refused(name, &set(&["a"]), expect_invalid_argument)?;
        expect_refused(name, &[], expect_invalid_argument)?;
        expect_refused("tasks", &set(&["a", name]), expect_invalid_argument)?;
    }
    expect_eq(apply("täsks: 1/2 \u{1f980}", &["  ", "ß\u{10ffff}"])?, keys(&["  ", "ß\u{10ffff}"]))
}

fn a_checksum_of_another_length_is_refused() -> Outcome {
    for length in [0, 31, 33, 64] {
        let step = Migration { id: "a".to_string(), checksum: vec![1; length] };
        expect_refused("tasks", &[step], expect_invalid_argument)?;
    }
    Ok(())
}

fn an_id_declared_twice_is_refused() -> Outcome {
    expect_refused("tasks", &set(&["a", "b", "a"]), expect_invalid_argument)?;
    expect_entries(&ledger()?, &[])
}

fn an_id_at_the_bound_of_a_key_passes() -> Outcome {
    let id = "i".repeat(limits().key_bytes as usize - "tasks\0".len());
    expect_eq(apply("tasks", &[&id])?, keys(&[&id]))?;
    expect_pending("tasks", &[&id], &[])
}

fn an_id_past_the_bound_of_a_key_is_refused() -> Outcome {
    let max = limits().key_bytes;
    let store = main()?;
    let id = "i".repeat(max as usize - "tasks".len());
    let got = store.pending_migrations("tasks", &set(&[&id]));
    expect_limit(got, LimitKind::KeyBytes, max, max + 1)?;
    let component = "c".repeat(max as usize + 1);
    expect_limit(store.pending_migrations(&component, &[]), LimitKind::KeyBytes, max, max + 1)?;
    expect_limit(store.begin_migration(&component, &[]).map(drop), LimitKind::KeyBytes, max, max + 1)
}

fn more_steps_than_the_bound_are_refused() -> Outcome {
    let max = limits().transaction_mutations;
    let ids: Vec<_> = (0..=max).map(|number| number.to_string()).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    let store = main()?;
    let got = store.begin_migration("tasks", &set(&ids)).map(drop);
    expect_limit(got, LimitKind::TransactionMutations, max, max + 1)?;
    let (_, fewer) = ids.split_last().ok_or_else(|| wrong("expected a limit above 0"))?;
    expect_eq(pending("tasks", fewer)?.len() as u64, max)
}

fn the_record_counts_as_a_write_of_its_step() -> Outcome {
    let max = limits().transaction_mutations;
    let store = main()?;
    let NextMigration { tx, .. } = begin(&store, "tasks", &["a"])?;
    for number in 1..max {
        tx.put(NS, &number.to_string(), b"")?;
    }
    expect_limit(tx.put(NS, "one more", b""), LimitKind::TransactionMutations, max, max + 1)?;
    Tx::commit(tx)?;
    expect_eq(scan("")?.len() as u64, max - 1)
}

fn the_names_of_the_ledger_do_not_count_for_a_small_bound() -> Outcome {
    // Many names of the maximum length, so that the ledger is larger than one page of results.
    let fill = "i".repeat(limits().key_bytes as usize - "tasks\x00000".len());
    let count = limits().transaction_mutations.min(limits().result_bytes / limits().key_bytes + 2).min(24);
    let ids: Vec<_> = (0..count).map(|number| format!("{number:03}{fill}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    expect_eq(apply("tasks", &ids)?.len(), ids.len())?;
    expect_pending("tasks", &ids, &[])
}

fn of_two_steps_at_once_the_second_conflicts() -> Outcome {
    let (store, elsewhere) = (main()?, other()?);
    let first = begin(&store, "tasks", &["a", "b"])?;
    let second = begin(&elsewhere, "tasks", &["a", "b"])?;
    expect_eq((first.id.as_str(), second.id.as_str()), ("a", "a"))?;
    first.tx.put(NS, "by", b"first")?;
    second.tx.put(NS, "by", b"second")?;
    Tx::commit(first.tx)?;
    expect_conflict(Tx::commit(second.tx))?;
    expect_value(get("by")?, "first")?;
    expect_eq(retrying(|| begin(&elsewhere, "tasks", &["a", "b"]))?.id.as_str(), "b")
}

fn a_step_that_conflicts_with_an_update_is_not_recorded() -> Outcome {
    put("x", "1")?;
    let store = main()?;
    let NextMigration { tx, .. } = begin(&store, "tasks", &["a"])?;
    expect_value(tx.get(NS, "x")?, "1")?;
    tx.put(NS, "y", b"1")?;
    put("x", "2")?;
    expect_conflict(Tx::commit(tx))?;
    expect_entries(&ledger()?, &[])?;
    expect_absent(get("y")?)
}

fn what_another_host_applied_is_not_applied_again() -> Outcome {
    let elsewhere = other()?;
    expect_eq(apply_in(&elsewhere, "tasks", &["a", "b"])?, keys(&["a", "b"]))?;
    expect_pending("tasks", &["a", "b", "c"], &["c"])?;
    expect_eq(apply("tasks", &["a", "b", "c"])?, keys(&["c"]))?;
    expect_eq(apply_in(&elsewhere, "tasks", &["a", "b", "c"])?, keys(&[]))
}

fn what_a_newer_release_applied_meanwhile_is_found() -> Outcome {
    expect_pending("tasks", &["a"], &["a"])?;
    apply_in(&other()?, "tasks", &["a", "b"])?;
    expect_mismatch("tasks", &set(&["a"]), &["\"b\"", "newer"])
}

fn steps_survive_a_reopening() -> Outcome {
    apply("tasks", &["a"])?;
    probe::reopen()?;
    expect_pending("tasks", &["a", "b"], &["b"])?;
    expect_eq(apply("tasks", &["a", "b"])?, keys(&["b"]))
}

const COUNTING: &[&str] = &["a", "b", "c", "d", "e"];

fn many_instances_of_two_hosts_apply_each_step_once() -> Outcome {
    in_parallel("migrations::apply_counting_steps", 8)?;
    expect_pending("tasks", COUNTING, &[])?;
    expect_eq(ledger()?.len(), COUNTING.len())?;
    let counts: Vec<_> = COUNTING.iter().map(|id| (*id, "1")).collect();
    expect_entries(&scan("")?, &counts)
}

fn apply_counting_steps(worker: u32) -> Outcome {
    let store = if worker.is_multiple_of(2) { main()? } else { other()? };
    let apply_next = || {
        let Some((id, tx)) = store.begin_migration("tasks", &set(COUNTING))? else {
            return Ok(false);
        };
        tx.increment(NS, &id, 1)?;
        Tx::commit(tx)?;
        Ok(true)
    };
    while retrying_in_a_crowd(apply_next)? {}
    Ok(())
}

fn a_set_of_many_steps_is_applied() -> Outcome {
    let ids: Vec<_> = (0..limits().transaction_mutations.min(40)).map(|number| format!("{number}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    expect_eq(apply("tasks", &ids)?, keys(&ids))?;
    expect_pending("tasks", &ids, &[])
}

/// Expects both calls to fail with `access-denied`.
#[track_caller]
fn expect_refused_name(component: &str, ids: &[&str]) -> Outcome {
    let store = main()?;
    expect_access_denied(store.pending_migrations(component, &set(ids)))?;
    expect_access_denied(store.begin_migration(component, &set(ids)).map(drop))
}

fn a_component_declares_under_its_own_names_only() -> Outcome {
    apply("tasks", &["a"])?;
    probe::bind_migrations(&keys(&["plugin", "library"]))?;
    for name in ["tasks", "plugin2", "plug", "Plugin", "plugin/library"] {
        expect_refused_name(name, &["a", "evil"])?;
        expect_refused_name(name, &[])?;
    }
    expect_eq(apply("plugin", &["a"])?, keys(&["a"]))?;
    expect_eq(apply("library", &["b"])?, keys(&["b"]))?;
    expect_keys(&ledger()?, &["library\0b", "plugin\0a", "tasks\0a"])?;
    probe::bind_migrations(&keys(&["tasks"]))?;
    expect_eq(apply("tasks", &["a", "b"])?, keys(&["b"]))
}

fn a_refused_declaration_is_told_to_the_host() -> Outcome {
    probe::bind_migrations(&keys(&["plugin"]))?;
    let store = main()?;
    for operation in ["pending-migrations", "begin-migration"] {
        probe::events();
        if operation == "pending-migrations" {
            expect_access_denied(store.pending_migrations("tasks", &set(&["a"])))?;
        } else {
            expect_access_denied(store.begin_migration("tasks", &set(&["a"])).map(drop))?;
        }
        let events = probe::events();
        expect_eq(events.len(), 1)?;
        let event = events.first().ok_or_else(|| wrong("expected an event"))?;
        expect_eq(event.name.as_str(), "store.access_denied")?;
        let fields: Vec<_> = event.fields.iter().map(|(_, value)| value.as_str()).take(2).collect();
        expect_eq(fields, vec!["main", operation])?;
        let reason =
            event.fields.iter().find(|(name, _)| name == "reason").map(|(_, reason)| reason.as_str());
        expect(
            reason.is_some_and(|reason| reason.contains("\"tasks\"")),
            format!("{reason:?} contains the component"),
        )?;
    }
    Ok(())
}

fn the_arguments_of_a_declaration_are_judged_before_its_name() -> Outcome {
    probe::bind_migrations(&keys(&["plugin"]))?;
    let store = main()?;
    expect_invalid_argument(store.pending_migrations("", &set(&["a"])))?;
    expect_invalid_argument(store.pending_migrations("tasks", &set(&["a", "a"])))?;
    let max = limits().key_bytes;
    let long = "t".repeat(max as usize + 1);
    expect_limit(store.begin_migration(&long, &[]).map(drop), LimitKind::KeyBytes, max, max + 1)?;
    store.close();
    expect_closed(store.pending_migrations("tasks", &set(&["a"])))
}
