//! `larder schema`: prints and applies schema migrations without opening the store.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand};
use larder_host::larder_schema::{LOCK_WAIT, MigrationError, Status, Step};
use larder_host::{Error, drivers};

use crate::inspect::done;
use crate::output::output;
use crate::progress::waiting;
use crate::store::{not_opened, shown};
use crate::text::escape;

/// Print or apply the schema migrations of a store
///
/// Opening a store for writing also applies them. Use this command to apply them before a rollout,
/// or with a different role of the database.
#[derive(Args)]
pub(crate) struct Schema {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the applied and the pending schema migrations
    Status(StoreArgument),
    /// Apply the pending schema migrations
    Up(Up),
}

#[derive(Args)]
struct StoreArgument {
    /// Data-source name of the store; see `larder --help`
    #[arg(long, value_name = "DSN")]
    store: String,
}

#[derive(Args)]
struct Up {
    #[command(flatten)]
    store: StoreArgument,
    /// Print the pending schema migrations without applying them
    #[arg(long)]
    dry_run: bool,
}

impl Schema {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        let (Command::Status(store) | Command::Up(Up { store, .. })) = &self.command;
        let dsn = &store.store;
        let Some(migrator) = drivers().migrator(dsn).map_err(|error| not_opened(dsn, error))? else {
            let sentence = "the store is deleted when its process ends; it has no schema to migrate";
            writeln!(output(), "{sentence}")?;
            return Ok(ExitCode::SUCCESS);
        };
        let unread = |error| explain(format!("cannot read the schema of the store {:?}", shown(dsn)), error);
        match &self.command {
            Command::Status(_) => done(print_status(&migrator.status().await.map_err(unread)?)),
            Command::Up(Up { dry_run: true, .. }) => {
                let status = migrator.status().await.map_err(unread)?;
                done(print_steps("would apply", &status.pending, &status))
            }
            Command::Up(_) => {
                let applied = said_to_wait(dsn, migrator.up()).await;
                let applied = applied
                    .map_err(|error| explain(format!("cannot migrate the store {:?}", shown(dsn)), error))?;
                let status = migrator.status().await.map_err(unread)?;
                let printed = print_steps("applied", &applied, &status);
                done(printed.context("the schema is up to date, but the output was not written"))
            }
        }
    }
}

/// The time after which a waiting migration is reported. Most migrations are done before.
const QUIET: Duration = Duration::from_secs(2);

/// Waits for a migration. After [`QUIET`] it reports why the migration may be waiting.
async fn said_to_wait<T>(dsn: &str, up: impl Future<Output = T>) -> T {
    tokio::pin!(up);
    if let Ok(done) = tokio::time::timeout(QUIET, &mut up).await {
        return done;
    }
    let sentence = format!(
        "the store {:?} is still being migrated; if another process holds the lock, this waits up to {} s",
        shown(dsn),
        LOCK_WAIT.as_secs()
    );
    tracing::warn!("{sentence}");
    waiting(sentence, up).await
}

fn explain(what: String, error: MigrationError<Error>) -> anyhow::Error {
    match error {
        MigrationError::Database(error @ Error::NotFound { .. }) => {
            anyhow!("{what}: {:#}; check the path", anyhow!(error))
        }
        error => anyhow!(error).context(what),
    }
}

fn print_status(status: &Status) -> Result<()> {
    let applied =
        status.applied.iter().map(|step| (step.number, escape(&step.name), "applied", time(step.applied_at)));
    let pending =
        status.pending.iter().map(|step| (step.number(), escape(step.name()), "pending", "-".to_string()));
    let rows: Vec<_> = applied.chain(pending).collect();
    let width = rows.iter().map(|(_, name, ..)| name.chars().count()).max().unwrap_or_default().max(4);
    let mut output = output();
    writeln!(output, "number  {:<width$}  state    applied at", "name")?;
    for (number, name, state, applied_at) in rows {
        writeln!(output, "{number:04}    {name:<width$}  {state}  {applied_at}")?;
    }
    Ok(())
}

fn print_steps(what: &str, steps: &[Step], status: &Status) -> Result<()> {
    let mut output = output();
    for step in steps {
        writeln!(output, "{what} {:04}_{}", step.number(), step.name())?;
    }
    if steps.is_empty() {
        let newest = status.applied.last().map_or(0, |step| step.number);
        writeln!(output, "the schema is up to date, at step {newest:04}")?;
    }
    Ok(())
}

fn time(unix_millis: u64) -> String {
    // The last millisecond of the year 9999, the latest time that RFC 3339 can represent.
    const LAST: u64 = 253_402_300_799_999;
    let time = UNIX_EPOCH + Duration::from_millis(unix_millis.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}
