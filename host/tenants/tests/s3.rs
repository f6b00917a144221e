//! Runs the scenarios on a real S3 server with conditional writes.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use larder_tenants::faults::{Fault, FaultyStore, Operation, Rule};
use larder_tenants::{Remote, RemoteOptions, TenantsDsn};
use support::seaweed::Seaweed;
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_holds_on_a_real_s3_server() {
    let server = Seaweed::start();
    let store = server.store();
    server.wait_until_ready(&store).await;
    scenarios::all(|| server.store(), "on-s3").await;
    a_part_is_sent_again_alone(&server).await;
}

async fn a_part_is_sent_again_alone(server: &Seaweed) {
    let store = FaultyStore::with_parts(server.store_with_parts());
    let options = RemoteOptions::default().multipart(Some(Arc::new(store.clone())));
    let remote = Remote::new(Arc::new(store.clone()), path("pre/fix"), options).unwrap();
    let (files, content) = (Files::new(), random_bytes(41 << 20, 3));
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    store.add(Rule::next(Operation::Part, "", Fault::LoseAnswer).after(2));
    store.add(Rule::next(Operation::Complete, "", Fault::LoseAnswer));
    publish(&lease, &files, &content).await;
    assert_eq!((store.calls(Operation::Part), store.calls(Operation::Multipart)), (7, 1));
    assert!(current(&remote).await == content);
    store.add(Rule::next(Operation::Part, "", Fault::Fail).after(3).times(100));
    let file = files.write("database", database(random_bytes(41 << 20, 4)));
    lease.publish(&file, lease.log_end().await.unwrap()).await.unwrap_err();
    assert_eq!((store.calls(Operation::Abort), store.unfinished_uploads()), (1, 0));
    store.clear();
    lease.renew().await.unwrap();
    lease.publish(&file, lease.log_end().await.unwrap()).await.unwrap();
    assert!(current(&remote).await == random_bytes(41 << 20, 4));
}

#[test]
fn credentials_are_not_in_what_is_printed_of_a_name() {
    let dsn = TenantsDsn::parse("tenants+s3://tenants/prefix?endpoint=http://127.0.0.1:1&region=us-east-1")
        .unwrap();
    let printed = format!("{dsn:?}");
    assert!(printed.contains("127.0.0.1:1") && !printed.to_lowercase().contains("secret"));
    dsn.open_store().unwrap();
}
