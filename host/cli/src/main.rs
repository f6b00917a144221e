//! The command line of larder.
#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic if standard output is closed; see `output`"
)]

mod conformance;
mod inspect;
mod memory;
mod migrations;
mod output;
mod progress;
mod run;
mod run_bounds;
mod run_identity;
mod run_memory;
mod run_tenants;
mod schema;
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

/// Run WebAssembly components with transactional storage, and manage their stores.
///
/// A data-source name (DSN) identifies a store:
///   in-memory:                         in RAM; the data is lost when the process ends
///   sqlite:PATH[?durability=full]      a SQLite file
///   sqlite::memory:                    a private SQLite database, deleted when the process ends
///   postgres://USER@HOST/DATABASE      a Postgres database; also written `host=… dbname=…`
///   tenants+file:///DIR?tenant=KEY     the database of a tenant in a directory
///   tenants+s3://BUCKET/PREFIX?…       the database of a tenant in S3; options: tenant, scope,
///                                      endpoint, region, durability and others
///
/// On a signal, `run`, `conformance` and every command on tenants close their stores and then exit.
/// A second signal ends the process at once.
///
/// Exit codes:
///   0            the command succeeded
///   1            the command failed
///   2            the arguments are invalid
///   124          the component exceeded the `--timeout` of `run`
///   129 130 143  SIGHUP, SIGINT or SIGTERM ended the command
/// `run` exits with the component's own exit code.
#[derive(Parser)]
#[command(
    name = "larder",
    version,
    verbatim_doc_comment,
    arg_required_else_help = true,
    max_term_width = 100
)]
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
    /// Print the rows of a namespace
    Scan(inspect::Scan),
    /// Print the namespaces of a store
    Namespaces(inspect::Namespaces),
    /// Print or repair the record of applied guest migrations
    Migrations(migrations::Migrations),
    /// List, export, import and delete stored conversations
    Memory(memory::Memory),
    /// Remove the expired rows of a store
    Sweep(sweep::Sweep),
    /// Print or apply the schema migrations of a store
    Schema(schema::Schema),
    /// List, upload, restore and delete the databases of tenants
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
        // If standard error cannot be written, the subscriber would report that there, and panic.
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
        Command::Schema(schema) => schema.execute().await,
        Command::Tenants(tenants) => tenants.execute().await,
    };
    signals::exit_if_ended(&outcome);
    outcome.unwrap_or_else(|error| failed(&error))
}

/// Removes from an error about the arguments the values that may contain a password: data-source
/// names, and the values of environment variables.
fn without_secrets(mut answer: clap::Error) -> clap::Error {
    let is_secret = |(kind, value): &(ContextKind, &ContextValue)| match kind {
        ContextKind::InvalidValue => names_secret(&answer),
        // An unexpected argument may be a data-source name.
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

/// Whether the invalid argument takes a data-source name or an environment variable.
fn names_secret(answer: &clap::Error) -> bool {
    let argument = answer.get(ContextKind::InvalidArg).map(ContextValue::to_string).unwrap_or_default();
    argument.contains("DSN") || argument.contains("NAME=VALUE")
}

fn is_assignment(value: &ContextValue) -> bool {
    value.to_string().contains([':', '='])
}

/// Prints the help, the version, or the error about the arguments.
fn print(answer: &clap::Error) -> ExitCode {
    let printed = answer.print().and_then(|()| std::io::stdout().flush());
    match printed.map_err(OutputError) {
        // A failure to write standard error is ignored: the exit code reports the invalid
        // arguments.
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
