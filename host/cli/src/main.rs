//! The command line of larder.
#![deny(clippy::print_stdout, clippy::print_stderr, reason = "they panic if nobody reads: see `output`")]

mod conformance;
mod inspect;
mod memory;
mod migrate;
mod migrations;
mod output;
mod progress;
mod run;
mod run_bounds;
mod run_identity;
mod run_memory;
mod run_tenants;
mod signals;
mod standard;
mod store;
mod sweep;
mod tenants;
mod text;

use std::io::Write;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

use crate::output::{OutputError, complain, is_closed_pipe};

/// Storage for WebAssembly components: run them, look into their stores, test a backend.
///
/// A store is named by a data-source name:
///   memory:                            in memory, gone at the end
///   sqlite:PATH[?durability=full]      a SQLite file
///   sqlite::memory:                    a private SQLite database
///   postgres://USER@HOST/DATABASE      a Postgres database, also as `host=… dbname=…`
///   tenants+file:///FOLDER?tenant=KEY  a tenant's database, in a folder
///   tenants+s3://BUCKET/PREFIX?…       the same in S3; options: scope, tenant, endpoint, region, durability, …
///
/// A signal ends `run`, `conformance`, and every command on tenants, after the stores are closed; a second signal ends it
/// at once.
///
/// Exit codes: 0 if the command succeeded, 1 if it failed, 2 if its arguments are wrong, and 128 and the number of the
/// signal that ended it: 129 after SIGHUP, 130 after SIGINT, 143 after SIGTERM. `run` ends with the component's code, and with
/// 124 if the component ran for longer than `--timeout`.
#[derive(Parser)]
#[command(name = "larder", version, verbatim_doc_comment, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a WASI command component with stores
    Run(Box<run::Run>),
    /// Run the conformance suite on a backend
    Conformance(conformance::Conformance),
    /// Print the value of a row
    Get(inspect::Get),
    /// Write a row
    Put(inspect::Put),
    /// Delete a row
    Delete(inspect::Delete),
    /// Print the rows of a namespace, as they are read
    Scan(inspect::Scan),
    /// Print the namespaces of a store
    Namespaces(inspect::Namespaces),
    /// Print the migrations of components that a store has applied
    Migrations(migrations::Migrations),
    /// See, move and delete what is kept of conversations
    Memory(memory::Memory),
    /// Remove the rows of a store whose time to live is over
    Sweep(sweep::Sweep),
    /// Look at larder's own tables, and bring them up to date
    Migrate(migrate::Migrate),
    /// See, send and restore the databases of tenants
    Tenants(tenants::Tenants),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => return print(&without_secrets(answer)),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")))
        .with_writer(std::io::stderr)
        // It would report a standard error that cannot be written there, and panic.
        .log_internal_errors(false)
        .init();
    let outcome = match arguments.command {
        Command::Run(run) => Box::pin(run.execute()).await,
        Command::Conformance(conformance) => conformance.execute().await,
        Command::Get(get) => get.execute().await,
        Command::Put(put) => put.execute().await,
        Command::Delete(delete) => delete.execute().await,
        Command::Scan(scan) => scan.execute().await,
        Command::Namespaces(namespaces) => namespaces.execute().await,
        Command::Migrations(migrations) => migrations.execute().await,
        Command::Memory(memory) => memory.execute().await,
        Command::Sweep(sweep) => sweep.execute().await,
        Command::Migrate(migrate) => migrate.execute().await,
        Command::Tenants(tenants) => tenants.execute().await,
    };
    signals::exit_if_ended(&outcome);
    outcome.unwrap_or_else(|error| failed(&error))
}

/// What is wrong about the arguments, without what may hold a password: a data-source name, and the value of a variable.
fn without_secrets(mut answer: clap::Error) -> clap::Error {
    let is_secret = |(kind, value): &(ContextKind, &ContextValue)| match kind {
        ContextKind::InvalidValue => names_secret(&answer),
        // An argument where none is expected may be a data-source name.
        ContextKind::InvalidArg => answer.kind() == ErrorKind::UnknownArgument && is_assignment(value),
        ContextKind::InvalidSubcommand => is_assignment(value),
        _ => false,
    };
    let secrets: Vec<_> = answer.context().filter(is_secret).map(|(kind, _)| kind).collect();
    for kind in secrets {
        answer.insert(kind, ContextValue::String("…".to_string()));
    }
    answer
}

/// Whether the argument that is wrong takes a data-source name, or a variable.
fn names_secret(answer: &clap::Error) -> bool {
    let argument = answer.get(ContextKind::InvalidArg).map(ContextValue::to_string).unwrap_or_default();
    argument.contains("DSN") || argument.contains("NAME=VALUE")
}

fn is_assignment(value: &ContextValue) -> bool {
    value.to_string().contains([':', '='])
}

/// Prints help, the version, or what is wrong about the arguments.
fn print(answer: &clap::Error) -> ExitCode {
    let printed = answer.print().and_then(|()| std::io::stdout().flush());
    match printed.map_err(OutputError) {
        // Standard error is not looked after: the exit code says that the arguments are wrong.
        _ if answer.use_stderr() => {
            u8::try_from(answer.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.into()),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    complain(format_args!("{error:#}"));
    ExitCode::FAILURE
}
