//! A catalog of packages: reads Debian control stanzas, keeps one typed row a package, and answers what a package is
//! and who needs it.

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
  catalog list PREFIX  prints the packages whose name begins so; all without PREFIX
  catalog needs NAME   prints the packages that depend on NAME
  catalog of ARCH      prints the packages of an architecture
  catalog --help       prints this
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
            // WASI 0.2 tells its host success or failure and no number: there this comes out as 1.
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

/// What is wrong with the arguments, and what would be right.
fn misuse(command: &str) -> String {
    match command {
        "show" | "needs" => format!("`{command}` takes one NAME"),
        "of" => "`of` takes one ARCH".to_string(),
        "list" => "`list` takes one PREFIX or none".to_string(),
        "--help" | "-h" => format!("`{command}` takes no arguments"),
        _ => format!("there is no command {command:?}; `--help` lists them"),
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
        return Err(format!("there is no package {name:?}").into());
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

/// The names of the packages that an index has under a value.
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
