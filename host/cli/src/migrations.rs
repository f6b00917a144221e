//! What guests declared and a store has applied.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use larder_host::Mode;
use larder_host::larder_core::migrations::LEDGER_NAMESPACE;
use larder_host::larder_core::{AppliedMigration, Range, Transaction};

use crate::inspect::done;
use crate::store::{StoreArgument, operator};
use crate::text::{escape, time};

/// Print the migrations of components that a store has applied
#[derive(Args)]
pub(crate) struct Migrations {
    #[command(flatten)]
    store: StoreArgument,
    /// Only those of this component
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
}

impl Migrations {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        let store = self.store.open().await?;
        let printed = self.print(operator(&store).begin(Mode::View)?).await;
        store.close().await;
        done(printed)
    }

    /// The ledger has the components one after the other, and each one's steps in the order of their ids.
    async fn print(&self, mut view: Transaction) -> Result<()> {
        if !self.json {
            writeln!(std::io::stdout(), "COMPONENT\tNUMBER\tMIGRATION\tAPPLIED\tLARDER\tCHECKSUM")?;
        }
        let prefix = self.component.as_ref().map_or_else(String::new, |component| format!("{component}\0"));
        let range = Range { prefix, ..Range::default() };
        let mut component: Vec<AppliedMigration> = Vec::new();
        let mut after = None;
        loop {
            let page = view.scan_page(LEDGER_NAMESPACE.to_string(), range.clone(), after).await?;
            for entry in page.entries {
                let step = AppliedMigration::from_row(entry.key.as_bytes(), &entry.value)?;
                if component.first().is_some_and(|first| first.component != step.component) {
                    self.print_component(std::mem::take(&mut component))?;
                }
                component.push(step);
            }
            after = page.next;
            if after.is_none() {
                return self.print_component(component);
            }
        }
    }

    fn print_component(&self, mut steps: Vec<AppliedMigration>) -> Result<()> {
        steps.sort_by_key(|step| step.ordinal);
        let mut output = std::io::stdout().lock();
        for step in steps {
            let AppliedMigration { component, id, ordinal, checksum, applied_at, larder } = step;
            let applied_at = time(applied_at);
            if self.json {
                let step = serde_json::json!({
                    "component": component, "number": ordinal, "migration": id, "applied_at": applied_at,
                    "larder": larder, "checksum": checksum,
                });
                writeln!(output, "{step}")?;
            } else {
                let (component, id) = (escape(&component), escape(&id));
                let checksum = checksum.get(..12).unwrap_or(&checksum);
                writeln!(output, "{component}\t{ordinal}\t{id}\t{applied_at}\t{larder}\t{checksum}")?;
            }
        }
        Ok(())
    }
}
