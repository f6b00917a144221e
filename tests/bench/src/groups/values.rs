//! Larger values.

use anyhow::Result;
use larder_bench_workload::Shape;

use super::sqlite::Pair;
use crate::guest::Workload;
use crate::runner::Runner;
use crate::sqlite_fixture::SqliteFixture;

/// Bytes of a value, and the names of its rows in the report.
const SIZES: [(u32, &str, &str); 4] = [
    (2_000, "2 kB: get in one view", "2 kB: update of get and put"),
    (20_000, "20 kB: get in one view", "20 kB: update of get and put"),
    (200_000, "200 kB: get in one view", "200 kB: update of get and put"),
    (1 << 20, "1 MiB: get in one view", "1 MiB: update of get and put"),
];

/// The total size of the values of one database.
const DATABASE_BYTES: u64 = 100 << 20;

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    for (value_bytes, get, update) in SIZES {
        let rows = (DATABASE_BYTES / u64::from(value_bytes)).max(1);
        let fixture = SqliteFixture::new(Shape { rows, namespaces: 1, value_bytes }).await?;
        Pair::new(get, Workload::GetInOneView, None).measure(runner, &fixture).await?;
        Pair::new(update, Workload::UpdateGetPut, None).measure(runner, &fixture).await?;
    }
    Ok(())
}
