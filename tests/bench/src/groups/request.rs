//! The work of a platform for each request: a new instance that makes one update.

use anyhow::Result;
use async_trait::async_trait;
use larder_bench_workload::{Digest, Random, Shape};
use larder_host::Store;

use crate::form::USUAL;
use crate::guest::{Program, Workload};
use crate::native_sqlite::Native;
use crate::row::{Comparison, Row, Side, Work};
use crate::runner::Runner;
use crate::sqlite_fixture::{Durability, SameRows, SqliteFixture};

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    let fixture = SqliteFixture::new(USUAL).await?;
    let (shape, durability) = (fixture.shape, Durability::Normal);
    let (store, path) = fixture.store("larder", durability).await?;
    let native = fixture.copy("native")?;
    let program = Program::larder_pooling()?;
    let evidence = SameRows::changed(&path, &native)?;
    let requests = Requests { program: program.clone(), store: store.clone(), shape };
    let native = NativeRequests(Native::open(&native, durability, shape)?);
    let bare = Bare { program, store: store.clone() };
    let row = Row::named("a request: instance, get, put")
        .side("larder", requests)
        .side("rusqlite, get and put", native)
        .side_at_own_pace("bare instance", bare)
        .goal("on top of rusqlite", Comparison::OnTop { of: 0, over: 1 }, 45.0)
        .goal("on top, to a bare instance", Comparison::OnTopRatio { of: 0, over: 1, to: 2 }, 2.0)
        .warm_up(4 * USUAL.rows)
        .evidence(evidence);
    let measured = runner.measure(row).await;
    store.close().await;
    measured
}

/// The seed of one of several requests.
fn seed(work: Work, number: u64) -> u64 {
    work.seed.wrapping_mul(1 << 32).wrapping_add(number)
}

fn sum(sums: impl Iterator<Item = u64>) -> u64 {
    sums.fold(0, u64::wrapping_add)
}

struct Requests {
    program: Program,
    store: Store,
    shape: Shape,
}

#[async_trait]
impl Side for Requests {
    async fn read_rows(&mut self, gets: Work) -> Result<()> {
        let mut guest = self.program.instance(&self.store).await?;
        guest.open(self.shape).await?;
        guest.run(Workload::GetInOneView, gets).await.map(drop)
    }

    async fn run(&mut self, work: Work) -> Result<u64> {
        let mut sums = 0_u64;
        for number in 0..work.count {
            let mut guest = self.program.instance(&self.store).await?;
            let read = guest.request(self.shape, seed(work, number), work.salt).await?;
            sums = sums.wrapping_add(read);
        }
        Ok(sums)
    }
}

struct NativeRequests(Native);

#[async_trait]
impl Side for NativeRequests {
    async fn read_rows(&mut self, gets: Work) -> Result<()> {
        self.0.run(Workload::GetInOneView, gets).map(drop)
    }

    async fn run(&mut self, work: Work) -> Result<u64> {
        let Self(native) = self;
        let read = (0..work.count).map(|number| {
            let index = Random::new(seed(work, number)).below(native.rows());
            let mut digest = Digest::default();
            digest.add(&native.get_and_put(index, work.salt)?);
            Ok(digest.sum())
        });
        Ok(sum(read.collect::<Result<Vec<_>>>()?.into_iter()))
    }
}

/// An instance of the same component that does nothing.
struct Bare {
    program: Program,
    store: Store,
}

#[async_trait]
impl Side for Bare {
    async fn run(&mut self, work: Work) -> Result<u64> {
        for _ in 0..work.count {
            self.program.instance(&self.store).await?.nothing().await?;
        }
        Ok(work.count)
    }
}
