//! larder's side of rows with one guest.

use anyhow::Result;
use async_trait::async_trait;
use larder_bench_workload::Shape;
use larder_host::Store;

use crate::guest::{Guest, Program, Workload};
use crate::row::{Side, Work};

/// One guest with an open store.
pub(crate) struct OneGuest {
    guest: Guest,
    workload: Workload,
}

impl OneGuest {
    pub(crate) async fn new(
        program: &Program,
        store: &Store,
        shape: Shape,
        workload: Workload,
    ) -> Result<Self> {
        let mut guest = program.instance(store).await?;
        guest.open(shape).await?;
        Ok(Self { guest, workload })
    }
}

#[async_trait]
impl Side for OneGuest {
    async fn read_rows(&mut self, gets: Work) -> Result<()> {
        self.guest.run(Workload::GetInOneView, gets).await.map(drop)
    }

    async fn run(&mut self, work: Work) -> Result<u64> {
        self.guest.run(self.workload, work).await
    }
}
