//! The scenarios on a real S3 server with conditional writes.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod support;

use larder_tenants::TenantsDsn;
use support::seaweed::Seaweed;

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_holds_on_a_real_s3_server() {
    let server = Seaweed::start();
    let store = server.store();
    server.wait_until_ready(&store).await;
    support::scenarios::all(|| server.store(), "on-s3").await;
}

#[test]
fn credentials_are_not_in_what_is_printed_of_a_name() {
    let dsn = TenantsDsn::parse("tenants+s3://tenants/prefix?endpoint=http://127.0.0.1:1&region=us-east-1")
        .unwrap();
    let printed = format!("{dsn:?}");
    assert!(printed.contains("127.0.0.1:1") && !printed.to_lowercase().contains("secret"));
    dsn.open_store().unwrap();
}
