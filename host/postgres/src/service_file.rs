//! Parser for the connection service file of libpq, `pg_service.conf`.

use std::fs;
use std::path::{Path, PathBuf};

use larder_core::{Error, Result};

use crate::environment::Environment;

/// Returns the options of a service. The user's file takes precedence over the system-wide file.
///
/// # Errors
/// - [`Error::InvalidArgument`] if no file defines the service, or its section is malformed.
/// - [`Error::Other`] if a file cannot be read.
pub(crate) fn options_of(service: &str, environment: &Environment) -> Result<Vec<(String, String)>> {
    let own = match environment.get("PGSERVICEFILE") {
        Some(path) => Some(PathBuf::from(path)),
        None => environment.at_home(".pg_service.conf").filter(|path| path.exists()),
    };
    let systems = environment.get("PGSYSCONFDIR").map(|folder| Path::new(folder).join("pg_service.conf"));
    for path in own.into_iter().chain(systems.filter(|path| path.exists())) {
        let text = fs::read_to_string(&path).map_err(|error| {
            Error::caused("cannot read the service file of Postgres; check PGSERVICEFILE", error)
        })?;
        if let Some(options) = section(&text, service).map_err(Error::invalid_argument)? {
            return Ok(options);
        }
    }
    Err(Error::invalid_argument(
        "no service file defines the service in \"service\" or PGSERVICE; define it in the file PGSERVICEFILE, \
         ~/.pg_service.conf or PGSYSCONFDIR/pg_service.conf",
    ))
}

/// Returns the options in the section `[service]`, or `None` if there is no such section.
fn section(text: &str, service: &str) -> Result<Option<Vec<(String, String)>>, String> {
    let mut found: Option<Vec<(String, String)>> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(heading) = line.strip_prefix('[') {
            // The first section with this name wins.
            if found.is_some() {
                break;
            }
            found = (heading.strip_suffix(']') == Some(service)).then(Vec::new);
            continue;
        }
        let Some(options) = &mut found else { continue };
        let wrong = |what: &str| format!("line {number} of the service file of Postgres {what}");
        match line.split_once('=') {
            Some(("service" | "servicefile", _)) => {
                return Err(wrong("refers to another service; remove the line"));
            }
            Some((name, value)) => options.push((name.to_string(), value.to_string())),
            None => return Err(wrong("is not of the form `option=value`")),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# comment\n[first]\nhost=a\n\n[plugins]\r\n  host=db \n#user=eve\nuser=ann\npassword=x=y z\n[plugins]\nhost=c\n";

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_first_section_of_a_service_counts() {
        let plugins = pairs(&[("host", "db"), ("user", "ann"), ("password", "x=y z")]);
        assert_eq!(section(TEXT, "plugins"), Ok(Some(plugins)));
        assert_eq!(section(TEXT, "first"), Ok(Some(pairs(&[("host", "a")]))));
        assert_eq!(section(TEXT, "second"), Ok(None));
    }

    #[test]
    fn a_line_that_is_no_option_is_refused_by_its_number_and_not_repeated() {
        let wrong = section("[a]\nhost=b\nhunter2\n", "a").unwrap_err();
        assert!(wrong.contains("line 3") && !wrong.contains("hunter2"), "{wrong}");
        assert!(section("[a]\nservice=b\n", "a").unwrap_err().contains("line 2"));
        assert_eq!(section("[b]\nhunter2\n", "a"), Ok(None));
    }

    #[test]
    fn the_own_file_comes_before_that_of_the_system() {
        let folder = tempfile::tempdir().unwrap();
        let (home, system) = (folder.path().join("home"), folder.path().join("system"));
        fs::create_dir_all(&home).unwrap();
        fs::create_dir_all(&system).unwrap();
        fs::write(home.join(".pg_service.conf"), "[both]\nhost=own\n").unwrap();
        fs::write(system.join("pg_service.conf"), "[both]\nhost=system\n[systems]\nhost=system\n").unwrap();
        let environment =
            Environment::empty().home(&home).variable("PGSYSCONFDIR", system.display().to_string());
        assert_eq!(options_of("both", &environment).unwrap(), pairs(&[("host", "own")]));
        assert_eq!(options_of("systems", &environment).unwrap(), pairs(&[("host", "system")]));
        let missing = options_of("neither", &environment).unwrap_err();
        assert!(matches!(missing, Error::InvalidArgument(_)), "{missing:?}");
        let named =
            environment.variable("PGSERVICEFILE", system.join("pg_service.conf").display().to_string());
        assert_eq!(options_of("both", &named).unwrap(), pairs(&[("host", "system")]));
    }
}
