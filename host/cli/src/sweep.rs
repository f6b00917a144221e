//! `larder sweep`: removes expired rows.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::inspect::done;
use crate::output::output;
use crate::store::{StoreArgument, closing};

/// Remove the expired rows of a store
#[derive(Args)]
pub(crate) struct Sweep {
    #[command(flatten)]
    store: StoreArgument,
}

impl Sweep {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        let store = self.store.open().await?;
        let sweeping = store.clone();
        let swept =
            closing(store, move || async move { sweeping.sweep().await.context("cannot sweep the store") });
        let rows = swept.await?;
        let noun = if rows == 1 { "row" } else { "rows" };
        let printed = writeln!(output(), "removed {rows} expired {noun}");
        done(
            printed.with_context(|| {
                format!("{rows} expired {noun} were removed, but the output was not written")
            }),
        )
    }
}
