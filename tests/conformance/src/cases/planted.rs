//! Cases that are wrong on purpose. If one of them passes, the runner cannot be trusted.

use super::{Case, Worker};
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("planted":
    a_row_that_was_never_put_is_there,
    a_deleted_row_stays,
    a_scan_comes_in_descending_order,
    both_of_two_contradicting_updates_commit,
    a_failing_worker_is_no_failure,
    a_trap_is_no_failure,
);

pub(crate) const WORKERS: &[Worker] = named!("planted": fail_in_one_of_four);

fn a_row_that_was_never_put_is_there() -> Outcome {
    expect_value(get("never put")?, "value")
}

fn a_deleted_row_stays() -> Outcome {
    put("a", "1")?;
    write(|tx| Ok(tx.delete(NS, "a")?))?;
    expect_value(get("a")?, "1")
}

fn a_scan_comes_in_descending_order() -> Outcome {
    put_keys(&["a", "b", "c"])?;
    expect_keys(&scan("")?, &["c", "b", "a"])
}

fn both_of_two_contradicting_updates_commit() -> Outcome {
    let store = main()?;
    let (first, second) = (update(&store)?, update(&store)?);
    for tx in [&first, &second] {
        tx.put_with(NS, "seat", b"taken", if_version(0))?;
    }
    Tx::commit(first)?;
    Tx::commit(second)?;
    Ok(())
}

fn a_failing_worker_is_no_failure() -> Outcome {
    in_parallel("planted::fail_in_one_of_four", 4)
}

fn fail_in_one_of_four(worker: u32) -> Outcome {
    expect(worker != 2, "worker 2 does not fail")
}

fn a_trap_is_no_failure() -> Outcome {
    put("a", "1")?;
    trap()
}
