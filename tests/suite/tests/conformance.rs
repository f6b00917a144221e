//! Runs the conformance suite on every backend. Each case is a test, for example
//! `sqlite::tx::a_lost_update_is_a_conflict`. The group `self_check` tests the suite itself: cases
//! that are wrong on purpose and backends with a defect must fail.
#![allow(clippy::expect_used, reason = "tests")]

#[path = "../../../host/tenants/tests/support/seaweed.rs"]
#[allow(dead_code, clippy::panic, clippy::unwrap_used, reason = "tests, each of which uses a part of it")]
mod seaweed;
mod support;
#[path = "support/tenants_test_beds.rs"]
mod tenants_test_beds;

use std::sync::Arc;

use larder_host::drivers;
use larder_suite::{InMemoryTestBed, SqliteTestBed, Suite, TestBed};
use larder_tenants::Durability;
use libtest_mimic::Trial;
use support::broken::{BrokenTestBed, Defect};
use support::{harness, postgres_server};
use tenants_test_beds::{LazyTenants, Objects, SharedStorage};
use tokio::runtime::Runtime;

/// Defects of backends, and for each a case that must catch it.
const CAUGHT: &[(Defect, &str)] = &[
    (Defect::ForgetsReads, "tx::a_lost_update_is_a_conflict"),
    (Defect::ForgetsReads, "tx::a_lost_update_is_found_through_every_read"),
    (Defect::ForgetsReads, "tx::write_skew_is_a_conflict"),
    (Defect::ForgetsReads, "tx::write_skew_over_ranges_is_a_conflict"),
    (Defect::ForgetsReads, "tx::a_phantom_insert_is_a_conflict"),
    (Defect::ForgetsReads, "two_hosts::a_row_changed_by_the_other_host_is_a_conflict"),
    (Defect::ForgetsConditions, "cas::put_at_a_wrong_version_is_a_conflict"),
    (Defect::ForgetsConditions, "cas::of_many_puts_if_absent_exactly_one_wins"),
    (Defect::ShowsExpiredRows, "ttl::an_expired_row_is_gone_for_every_read"),
    (Defect::MovingSnapshot, "tx::a_view_shows_one_snapshot"),
    (Defect::MovingSnapshot, "page::pages_of_one_view_show_one_snapshot"),
    (Defect::LosesLastRow, "scan::entries_come_in_order_with_their_values"),
    (Defect::TearsCommits, "basic::put_many_puts_every_entry"),
    (Defect::IgnoresReverse, "page::reverse_goes_from_the_last_key_to_the_first"),
    (Defect::KeepsDeletedRows, "basic::a_deleted_row_is_gone"),
    (
        Defect::ForgetsRecordVersions,
        "memory::rolling_summary::of_128_writers_of_one_session_none_loses_a_turn",
    ),
    (Defect::MixesRuns, "identity::truncation::what_differs_in_one_part_is_another_memory"),
    (Defect::HostsApart, "memory::truncation::two_handles_on_one_session_see_the_same"),
    (Defect::HostsApart, "two_hosts::a_commit_of_one_host_is_seen_by_the_other"),
    (
        Defect::RemembersRows,
        "two_hosts::what_was_read_before_is_read_anew_once_the_other_host_has_changed_it",
    ),
];

/// How often a case may miss a defect before the self-check fails.
const ATTEMPTS: u32 = 5;

const TENANTS: [(&str, Objects, Durability); 5] = [
    ("tenants", Objects::Memory, Durability::Local),
    ("tenants_object", Objects::Memory, Durability::Object),
    ("tenants_folder", Objects::Folder, Durability::Object),
    ("tenants_s3", Objects::S3, Durability::Local),
    ("tenants_s3_object", Objects::S3, Durability::Object),
];

fn main() {
    let arguments = harness::arguments();
    let runtime = harness::runtime();
    let suite = runtime.block_on(Suite::load()).expect("cannot load the suite");
    let mut trials = self_check(&runtime, &suite);
    trials.extend(cases(&runtime, &suite, "in_memory", Ok(Arc::new(InMemoryTestBed))));
    for (backend, options) in [("sqlite", ""), ("sqlite_uncached", "cache_bytes=0")] {
        let test_bed =
            SqliteTestBed { options: options.to_string(), ..SqliteTestBed::in_temporary_folder(drivers()) };
        trials.extend(cases(&runtime, &suite, backend, Ok(Arc::new(test_bed))));
    }
    let storage = Arc::new(SharedStorage::default());
    for (backend, objects, durability) in TENANTS {
        let test_bed = LazyTenants::new(objects, durability, &storage);
        trials.extend(cases(&runtime, &suite, backend, Ok(test_bed)));
    }
    let (server, postgres) = postgres_server::test_bed(&arguments);
    trials.extend(cases(&runtime, &suite, "postgres", postgres));
    harness::run(&arguments, trials, || {
        drop(server);
        storage.remove();
    });
}

/// All cases on one backend. If the test bed is an error, every case fails with it.
fn cases(
    runtime: &Arc<Runtime>,
    suite: &Suite,
    backend: &str,
    test_bed: Result<Arc<dyn TestBed>, String>,
) -> Vec<Trial> {
    let trial = |name: &String| {
        let (suite, case, test_bed) = (suite.clone(), name.clone(), test_bed.clone());
        harness::trial(runtime, format!("{backend}::{name}"), || async move {
            suite.run(&case, test_bed?.as_ref()).await
        })
    };
    suite.cases().iter().map(trial).collect()
}

fn self_check(runtime: &Arc<Runtime>, suite: &Suite) -> Vec<Trial> {
    let planted = suite.planted().iter().map(|name| {
        let (suite, case) = (suite.clone(), name.clone());
        harness::trial(runtime, format!("self_check::{name}_is_seen_failing"), || async move {
            match suite.run(&case, &InMemoryTestBed).await {
                Ok(()) => Err(format!("{case} is wrong on purpose, but passed")),
                Err(_) => Ok(()),
            }
        })
    });
    let caught = CAUGHT.iter().map(|(defect, case)| {
        let suite = suite.clone();
        harness::trial(runtime, format!("self_check::{defect:?}_is_caught_by_{case}"), move || async move {
            suite.run(case, &InMemoryTestBed).await?;
            // Some defects are races, which a case hits in most runs, but not in all.
            for _ in 0..ATTEMPTS {
                if suite.run(case, &BrokenTestBed(*defect)).await.is_err() {
                    return Ok(());
                }
            }
            Err(format!("{case} passed {ATTEMPTS} times on a backend with the defect {defect:?}"))
        })
    });
    let count = suite.cases().len();
    let enough = harness::trial(runtime, "self_check::the_suite_lists_its_cases_once", {
        let mut names = suite.cases().to_vec();
        move || async move {
            names.sort();
            names.dedup();
            if names.len() == count && count >= 90 { Ok(()) } else { Err(format!("{count} cases")) }
        }
    });
    planted.chain(caught).chain([enough]).collect()
}
