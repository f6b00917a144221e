//! The growth of the cost with the number of rows and of namespaces.

use anyhow::Result;
use larder_bench_workload::Shape;

use super::sqlite::{Pair, measure_scan};
use crate::form::USUAL;
use crate::guest::Workload;
use crate::runner::Runner;
use crate::sqlite_fixture::SqliteFixture;

pub(super) async fn measure_rows(runner: &mut Runner<'_>) -> Result<()> {
    let fixture = SqliteFixture::new(Shape { rows: 1_000_000, ..USUAL }).await?;
    let pairs = [
        Pair::new("get in one view", Workload::GetInOneView, None),
        Pair::new("view with one get", Workload::ViewOfOneGet, None),
        Pair::new("update: get and put", Workload::UpdateGetPut, None),
        Pair::new("update: 100 puts, random keys", Workload::UpdateHundredPuts, None),
    ];
    for pair in pairs {
        pair.measure(runner, &fixture).await?;
    }
    measure_scan(runner, &fixture, None).await
}

pub(super) async fn measure_namespaces(runner: &mut Runner<'_>) -> Result<()> {
    let fixture = SqliteFixture::new(Shape { namespaces: 1_000, ..USUAL }).await?;
    let pairs = [
        Pair::new("get in one view", Workload::GetInOneView, None),
        Pair::new("view with one get", Workload::ViewOfOneGet, None),
        Pair::new("update: get and put", Workload::UpdateGetPut, None),
    ];
    for pair in pairs {
        pair.measure(runner, &fixture).await?;
    }
    Ok(())
}
