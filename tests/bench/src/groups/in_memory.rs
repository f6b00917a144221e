//! In-memory rows, compared with those of `wasmtime-wasi-keyvalue`.
//!
//! That crate has only host functions, so a guest calls them: the same loops, in a component that
//! imports `wasi:keyvalue`.

use anyhow::Result;
use async_trait::async_trait;
use larder_bench_workload::{Key, Rows};
use larder_host::{InMemory, Store};

use crate::form::USUAL;
use crate::guest::{Guest, Program, StoreName, Workload};
use crate::row::{Comparison, Row, Side, Work};
use crate::runner::Runner;

const PEER: &str = "wasmtime-wasi-keyvalue";

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    let keyvalue = Program::keyvalue()?;
    let store = Store::builder(InMemory::new()).name("bench").build()?;
    let larder = || async {
        let mut guest = runner.bench.larder.instance(&store).await?;
        guest.open(USUAL).await.map(|()| guest)
    };
    let mut filler = larder().await?;
    filler.fill(0, USUAL.rows).await?;
    drop(filler);
    let gets =
        Row::against("get in one view", Gets(larder().await?), (PEER, Gets(peer(&keyvalue).await?)), 1.10);
    // The two differ by a factor of a thousand, so each makes as many operations as fit.
    let opens = Row::named("open, and one get")
        .side_at_own_pace("larder", Opens(larder().await?, StoreName::Granted))
        .side_at_own_pace(PEER, Opens(peer(&keyvalue).await?, StoreName::Bucket))
        .goal("ratio", Comparison::Ratio { of: 0, to: 1 }, 0.001);
    runner.measure(gets).await?;
    runner.measure(opens).await?;
    store.close().await;
    Ok(())
}

/// Starts a guest whose bucket holds the same rows.
async fn peer(program: &Program) -> Result<Guest> {
    let mut rows = Rows::new(USUAL);
    let entries =
        (0..USUAL.rows).map(|index| (Key::of(index).as_str().to_string(), rows.value(index, 0).to_vec()));
    let mut guest = program.instance_with_bucket(entries).await?;
    guest.open_bucket(USUAL).await?;
    Ok(guest)
}

struct Gets(Guest);

#[async_trait]
impl Side for Gets {
    async fn run(&mut self, work: Work) -> Result<u64> {
        self.0.run(Workload::GetInOneView, work).await
    }
}

struct Opens(Guest, StoreName);

#[async_trait]
impl Side for Opens {
    async fn run(&mut self, work: Work) -> Result<u64> {
        self.0.open_and_get(self.1, work).await
    }
}
