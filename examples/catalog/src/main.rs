//! A catalog of packages: reads Debian control stanzas, keeps one typed row per package, and prints
//! packages and the packages that depend on them.

mod layout;
mod load;
mod package;
mod stanza;

use std::io::{self, Write};
use std::process::ExitCode;

use larder_guest::Error;
use layout::packages;
use package::Package;

const USAGE: &str = "\
Keeps a catalog of packages in the store `default`.

  catalog              reads control stanzas from standard input and stores them
  catalog show NAME    prints a package
  catalog list PREFIX  prints the packages whose names begin with PREFIX; all by default
  catalog needs NAME   prints the packages that depend on NAME
  catalog of ARCH      prints the packages of an architecture
  catalog --help       prints this help
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        [] => load(),
        ["show", name] => show(name),
        ["list"] => list(""),
        ["list", prefix] => list(prefix),
        ["needs", name] => print_names(Package::NEEDS, name),
        ["of", architecture] => print_names(Package::ARCHITECTURE, architecture),
        ["--help" | "-h"] => print(USAGE),
        [command, ..] => {
            eprintln!("catalog: {}", misuse(command));
            // A WASI 0.2 guest reports only success or failure, so its host exits with 1 instead of
            // 2.
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("catalog: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Describes the usage error.
fn misuse(command: &str) -> String {
    match command {
        "show" | "needs" => format!("`{command}` takes one NAME"),
        "of" => "`of` takes one ARCH".to_string(),
        "list" => "`list` takes at most one PREFIX".to_string(),
        "--help" | "-h" => format!("`{command}` takes no arguments"),
        _ => format!("unknown command {command:?}; see --help"),
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn load() -> Outcome {
    let loaded = load::load(&layout::open()?, &packages(), io::stdin().lock())?;
    print(&format!("{loaded}\n"))
}

fn show(name: &str) -> Outcome {
    let found = layout::open()?.view(|tx| {
        let table = packages();
        let found = table.iterate(tx, &Package::key_prefix(name));
        found.collect::<Result<Vec<_>, Error>>()
    })?;
    if found.is_empty() {
        return Err(format!("package {name:?} not found").into());
    }
    for package in found {
        print(&package.to_string())?;
    }
    Ok(())
}

fn list(prefix: &str) -> Outcome {
    let lines = layout::open()?.view(|tx| {
        let table = packages();
        let lines = table.iterate(tx, prefix).map(|package| {
            let Package { name, version, summary, .. } = package?;
            Ok(format!("{name} {version} - {summary}\n"))
        });
        lines.collect::<Result<String, Error>>()
    })?;
    print(&lines)
}

/// Prints the names of the packages that an index has under a value.
fn print_names(index: &str, value: &str) -> Outcome {
    let found = layout::open()?.view(|tx| packages().find(tx, index, value))?;
    for package in &found {
        print(&format!("{}\n", package.name))?;
    }
    Ok(())
}

fn print(text: &str) -> Outcome {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
