//! One guest and one database.

use anyhow::Result;
use larder_bench_workload::Shape;

use crate::form::USUAL;
use crate::guest::Workload;
use crate::larder_side::OneGuest;
use crate::native_sqlite::OneNative;
use crate::row::{Comparison, Row};
use crate::runner::Runner;
use crate::sqlite_fixture::{Durability, SameRows, SqliteFixture};

/// A workload, compared with a baseline that does the same.
pub(super) struct Pair {
    pub(super) name: &'static str,
    pub(super) workload: Workload,
    pub(super) bound: Option<f64>,
}

impl Pair {
    pub(super) fn new(name: &'static str, workload: Workload, bound: impl Into<Option<f64>>) -> Self {
        Self { name, workload, bound: bound.into() }
    }

    /// The number of gets before the measurement. Each row is read several times on average, so
    /// that both sides cache all of them.
    fn warm_up(&self, shape: Shape) -> u64 {
        let reads =
            matches!(self.workload, Workload::GetInOneView | Workload::ViewOfOneGet | Workload::UpdateGetPut);
        if reads { 4 * shape.rows.min(USUAL.rows) } else { 0 }
    }

    fn writes(&self) -> bool {
        matches!(self.workload, Workload::UpdateGetPut | Workload::UpdateHundredPuts)
    }

    /// Measures the workload on fresh copies of a database.
    pub(super) async fn measure(&self, runner: &mut Runner<'_>, fixture: &SqliteFixture) -> Result<()> {
        let (shape, durability) = (fixture.shape, Durability::Normal);
        let (store, path) = fixture.store("larder", durability).await?;
        let native = fixture.copy("native")?;
        let evidence = match self.writes() {
            true => SameRows::changed(&path, &native)?,
            false => SameRows::unchanged(&path, &native),
        };
        let larder = OneGuest::new(&runner.bench.larder, &store, shape, self.workload).await?;
        let baseline = OneNative::new(&native, durability, shape, self.workload)?;
        let row = Row::against(self.name, larder, ("rusqlite", baseline), self.bound)
            .warm_up(self.warm_up(shape))
            .evidence(evidence);
        let measured = runner.measure(row).await;
        store.close().await;
        measured
    }
}

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    let fixture = SqliteFixture::new(USUAL).await?;
    let pairs = [
        Pair::new("get in one view", Workload::GetInOneView, 0.80),
        Pair::new("view with one get", Workload::ViewOfOneGet, 0.60),
        Pair::new("update: get and put", Workload::UpdateGetPut, 0.85),
        Pair::new("update: 100 puts, random keys", Workload::UpdateHundredPuts, 0.75),
    ];
    for pair in pairs {
        pair.measure(runner, &fixture).await?;
    }
    measure_scan(runner, &fixture, Some((0.70, 1.40))).await
}

/// Measures a scan through the SDK and as the bindings' list, compared with rusqlite into a `Vec`.
pub(super) async fn measure_scan(
    runner: &mut Runner<'_>,
    fixture: &SqliteFixture,
    bounds: Option<(f64, f64)>,
) -> Result<()> {
    let (shape, durability) = (fixture.shape, Durability::Normal);
    let (store, path) = fixture.store("larder", durability).await?;
    let native = fixture.copy("native")?;
    let program = &runner.bench.larder;
    let through_sdk = OneGuest::new(program, &store, shape, Workload::Scan).await?;
    let list = OneGuest::new(program, &store, shape, Workload::ScanList).await?;
    let baseline = OneNative::new(&native, durability, shape, Workload::Scan)?;
    let (sdk_bound, list_bound) = bounds.unzip();
    let row = Row::named("scan of 10,000 rows")
        .side("larder, through the SDK", through_sdk)
        .side("larder, as a WIT list", list)
        .side("rusqlite", baseline)
        .goal("through the SDK", Comparison::Ratio { of: 0, to: 2 }, sdk_bound)
        .goal("as a WIT list", Comparison::Ratio { of: 1, to: 2 }, list_bound)
        .evidence(SameRows::unchanged(&path, &native));
    let measured = runner.measure(row).await;
    store.close().await;
    measured
}
