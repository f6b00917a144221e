//! `larder migrations`: prints and repairs the record of applied guest migrations.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use larder_host::Error;
use larder_host::larder_core::migrations::LedgerEntry;
use larder_host::larder_core::{Migration, MigrationLedger};

use crate::inspect::done;
use crate::output::output;
use crate::store::{StoreArgument, closing, operator};
use crate::text::{escape, time};

/// Print or repair the record of applied guest migrations
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Migrations {
    #[command(subcommand)]
    repair: Option<Repair>,
    /// `None` only if a subcommand is given; it has a store of its own.
    #[command(flatten)]
    store: Option<StoreArgument>,
    /// Print only the migrations of this component [default: every component]
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Repair {
    /// Remove steps from the record, so that the component applies them again
    ///
    /// The component's rows stay unchanged.
    Remove(Remove),
    /// Record a step as applied without running it
    ///
    /// The step is recorded after the last applied step of the component.
    Record(Record),
}

#[derive(Args)]
struct Remove {
    #[command(flatten)]
    store: StoreArgument,
    /// Component whose steps to remove
    #[arg(long, value_name = "NAME", required_unless_present = "row")]
    component: Option<String>,
    /// First step to remove, with all later steps [default: every step]
    #[arg(long, value_name = "MIGRATION")]
    from: Option<String>,
    /// Key of one invalid row to remove, as `larder migrations` prints it
    #[arg(long, value_name = "HEX", value_parser = parse_row, conflicts_with_all = ["component", "from"])]
    row: Option<Hex>,
    /// Print the steps to remove without removing them
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct Record {
    #[command(flatten)]
    store: StoreArgument,
    /// Component of the step
    #[arg(long, value_name = "NAME")]
    component: String,
    /// Id of the step
    #[arg(long, value_name = "MIGRATION")]
    id: String,
    /// SHA-256 of the step as 64 hexadecimal digits
    ///
    /// `larder migrations --json` prints the checksums of applied steps.
    #[arg(long, value_name = "HEX", value_parser = parse_checksum)]
    checksum: Hex,
    /// Print the step without recording it
    #[arg(long)]
    dry_run: bool,
}

/// Bytes that are given as hexadecimal digits.
#[derive(Clone)]
struct Hex(Vec<u8>);

fn parse_checksum(text: &str) -> Result<Hex, String> {
    let checksum = hex::decode(text).ok().filter(|bytes| bytes.len() == 32);
    checksum.map(Hex).ok_or_else(|| "expected 64 hexadecimal digits".to_string())
}

fn parse_row(text: &str) -> Result<Hex, String> {
    hex::decode(text).map(Hex).map_err(|_| "expected an even number of hexadecimal digits".to_string())
}

impl Migrations {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        match self.repair {
            Some(Repair::Remove(remove)) => remove.execute().await,
            Some(Repair::Record(record)) => record.execute().await,
            None => self.list().await,
        }
    }

    async fn list(self) -> Result<ExitCode> {
        let Some(store) = &self.store else { bail!("name the store with --store DSN") };
        let store = store.look().await?;
        let handle = operator(&store);
        done(closing(store, move || async move { self.print(MigrationLedger::new(handle)).await }).await)
    }

    async fn print(&self, ledger: MigrationLedger) -> Result<()> {
        if !self.json {
            writeln!(output(), "COMPONENT\tNUMBER\tMIGRATION\tAPPLIED\tLARDER\tCHECKSUM")?;
        }
        match &self.component {
            Some(component) => self.print_component(ledger.entries(component).await?),
            None => ledger.for_each_component(|steps| self.print_component(steps)).await,
        }
    }

    fn print_component(&self, steps: Vec<LedgerEntry>) -> Result<()> {
        let mut output = output();
        for step in steps {
            match self.json {
                true => writeln!(output, "{}", json_line(step))?,
                false => writeln!(output, "{}", table_line(&step))?,
            }
        }
        Ok(())
    }
}

fn json_line(step: LedgerEntry) -> serde_json::Value {
    let row = step.hex_key();
    match step.applied {
        Ok(applied) => serde_json::json!({
            "component": applied.component, "number": applied.ordinal, "migration": applied.id,
            "applied_at": time(applied.applied_at), "larder": applied.larder, "checksum": applied.checksum,
        }),
        Err(error) => serde_json::json!({
            "component": step.component, "migration": step.id, "row": row, "error": error.to_string(),
        }),
    }
}

fn table_line(step: &LedgerEntry) -> String {
    let (component, id) = (escape(&step.component), escape(&step.id));
    match &step.applied {
        Ok(applied) => {
            let checksum = applied.checksum.get(..12).unwrap_or(&applied.checksum);
            let (ordinal, larder) = (applied.ordinal, &applied.larder);
            format!("{component}\t{ordinal}\t{id}\t{}\t{larder}\t{checksum}", time(applied.applied_at))
        }
        Err(error) => format!("{component}\t?\t{id}\t{}", escape(&error.to_string())),
    }
}

impl Remove {
    async fn execute(self) -> Result<ExitCode> {
        let Self { store, component, from, row, dry_run } = self;
        let store = store.open_for(dry_run).await?;
        let ledger = MigrationLedger::new(operator(&store));
        let named = component.clone();
        let removed = closing(store, move || async move {
            if let Some(row) = row {
                return Ok(vec![ledger.remove_invalid(&row.0, dry_run).await.map_err(explain)?]);
            }
            ledger.remove(&named.unwrap_or_default(), from.as_deref(), dry_run).await.map_err(explain)
        });
        let removed = removed.await?;
        if removed.is_empty() {
            let component = component.unwrap_or_default();
            bail!("there is nothing to remove: the store has no record of a migration of {component:?}");
        }
        let lines = removed.iter().map(|step| {
            let number = step.ordinal().map_or_else(|| "?".to_string(), |ordinal| ordinal.to_string());
            format!("{}\t{number}\t{}", escape(&step.component), escape(&step.id))
        });
        print_repair(dry_run, "remove", "removed", lines)
    }
}

impl Record {
    async fn execute(self) -> Result<ExitCode> {
        let store = self.store.open_for(self.dry_run).await?;
        let ledger = MigrationLedger::new(operator(&store));
        let step = Migration { id: self.id.clone(), checksum: self.checksum.0.clone() };
        let component = self.component.clone();
        let recorded = closing(store, move || async move {
            ledger.record(&component, step, self.dry_run).await.map_err(explain)
        });
        let number = recorded.await?;
        let line = format!("{}\t{number}\t{}", escape(&self.component), escape(&self.id));
        print_repair(self.dry_run, "record", "recorded", [line].into_iter())
    }
}

/// Replaces a conflict with an error that says what happened and what to do.
fn explain(error: Error) -> anyhow::Error {
    match error {
        Error::Conflict => anyhow::anyhow!(
            "cannot change the record of migrations: a component applied a step meanwhile; run the command again"
        ),
        error => error.into(),
    }
}

/// Prints the changes that were made, or that a dry run would make. The repair is already
/// committed, even if printing fails.
fn print_repair(
    dry_run: bool,
    would: &str,
    did: &str,
    mut lines: impl Iterator<Item = String>,
) -> Result<ExitCode> {
    let mut output = output();
    let written = lines.try_for_each(|line| match dry_run {
        true => writeln!(output, "would {would} {line}"),
        false => writeln!(output, "{did} {line}"),
    });
    let written = written.map_err(anyhow::Error::from);
    done(match dry_run {
        true => written,
        false => written.with_context(|| format!("the steps are {did}, but the output was not written")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_64_hexadecimal_digits() {
        assert_eq!(parse_checksum(&"0aF9".repeat(16)).ok().unwrap().0, [0x0a, 0xf9].repeat(16));
        for wrong in
            ["", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"ä".repeat(32), &"+0".repeat(32)]
        {
            assert!(parse_checksum(wrong).is_err(), "{wrong:?}");
        }
    }
}
