//! Removes expired rows.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::inspect::done;
use crate::output::output;
use crate::store::{StoreArgument, closing};

/// Remove the rows of a store whose time to live is over
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
        done(printed.with_context(|| format!("{rows} expired {noun} were removed")))
    }
}
