//! Parser for the password file of libpq, `.pgpass`.

use std::fs::{self, Metadata};
use std::path::Path;

/// A login that needs a password.
pub(crate) struct Login<'a> {
    /// The host, the address if no host is given, or the directory of a Unix-domain socket.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) database: &'a str,
    pub(crate) user: &'a str,
}

/// The result of reading a password file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PasswordFile {
    Missing,
    /// The file is not used, for this reason.
    Ignored(&'static str),
    Read(String),
}

/// Socket directories that match `localhost` in the file.
const SOCKET_FOLDERS: [&str; 3] = ["/var/run/postgresql", "/run/postgresql", "/tmp"];

impl PasswordFile {
    /// Reads the file, and ignores it if its group or others can access it.
    pub(crate) fn read(path: &Path) -> Self {
        let Ok(metadata) = fs::metadata(path) else { return Self::Missing };
        if let Some(reason) = reason_to_ignore(&metadata) {
            tracing::warn!(path = %path.display(), reason, "ignored the password file");
            return Self::Ignored(reason);
        }
        fs::read_to_string(path).map_or(Self::Ignored("it cannot be read as UTF-8"), Self::Read)
    }

    /// Returns the password of the first line that matches.
    pub(crate) fn password(&self, login: &Login<'_>) -> Option<String> {
        let Self::Read(text) = self else { return None };
        text.lines().find_map(|line| password_of(line, login))
    }
}

fn reason_to_ignore(metadata: &Metadata) -> Option<&'static str> {
    if !metadata.is_file() {
        return Some("it is not a regular file");
    }
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0 {
        return Some("its group or others can access it; set its permissions to 0600");
    }
    None
}

fn password_of(line: &str, login: &Login<'_>) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let is_local = SOCKET_FOLDERS.contains(&login.host);
    let (host, rest) = take_field(line)?;
    let (port, rest) = take_field(rest)?;
    let (database, rest) = take_field(rest)?;
    let (user, rest) = take_field(rest)?;
    let is_meant = (host.is(login.host) || is_local && host.is("localhost"))
        && port.is(&login.port.to_string())
        && database.is(login.database)
        && user.is(login.user);
    is_meant.then(|| unescaped(rest))
}

enum Field {
    /// A lone `*`.
    Any,
    Text(String),
}

impl Field {
    fn is(&self, wanted: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Text(text) => text == wanted,
        }
    }
}

/// Splits off a field at the first unescaped colon. A backslash escapes the next character.
fn take_field(line: &str) -> Option<(Field, &str)> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some((Field::Any, rest));
    }
    let mut text = String::new();
    let mut characters = line.chars();
    loop {
        match characters.next()? {
            ':' => return Some((Field::Text(text), characters.as_str())),
            '\\' => text.push(characters.next()?),
            next => text.push(next),
        }
    }
}

fn unescaped(text: &str) -> String {
    let mut password = String::new();
    let mut characters = text.chars();
    while let Some(next) = characters.next() {
        match next {
            // A backslash at the end of the line stands for itself.
            '\\' => password.push(characters.next().unwrap_or('\\')),
            next => password.push(next),
        }
    }
    password
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str, (host, port, database, user): (&str, u16, &str, &str)) -> Option<String> {
        PasswordFile::Read(text.to_string()).password(&Login { host, port, database, user })
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let text = "#db:5432:d:ann:comment\nother:5432:d:ann:1\ndb:5433:d:ann:2\ndb:*:e:ann:3\ndb:5432:d:ann:right\n*:*:*:*:late";
        assert_eq!(password(text, ("db", 5432, "d", "ann")).as_deref(), Some("right"));
        assert_eq!(password(text, ("db", 5432, "d", "eve")).as_deref(), Some("late"));
        assert_eq!(password(text, ("db", 1, "e", "ann")).as_deref(), Some("3"));
        assert_eq!(password("db:5432:d:ann", ("db", 5432, "d", "ann")), None);
        assert_eq!(password("db:5432:d:ann:\r\n", ("db", 5432, "d", "ann")).as_deref(), Some(""));
    }

    #[test]
    fn backslashes_take_the_meaning_from_colons_stars_and_backslashes() {
        let text = "\\:\\:1:*:a\\\\b:\\*:x\\:y\\\\z:w\\";
        assert_eq!(password(text, ("::1", 7, "a\\b", "*")).as_deref(), Some("x:y\\z:w\\"));
        assert_eq!(password(text, ("::1", 7, "a\\b", "ann")), None);
        assert_eq!(password("*x:1:d:u:p", ("ax", 1, "d", "u")), None);
    }

    #[test]
    fn sockets_in_the_usual_folders_are_localhost() {
        let text = "localhost:5432:d:u:local\n/srv/pg:5432:d:u:elsewhere";
        assert_eq!(password(text, ("/var/run/postgresql", 5432, "d", "u")).as_deref(), Some("local"));
        assert_eq!(password(text, ("/srv/pg", 5432, "d", "u")).as_deref(), Some("elsewhere"));
        assert_eq!(password("/tmp:5432:d:u:p", ("/tmp", 5432, "d", "u")).as_deref(), Some("p"));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_read_is_ignored() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        assert_eq!(PasswordFile::read(&path), PasswordFile::Missing);
        fs::write(&path, "*:*:*:*:p").unwrap();
        for (mode, is_read) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(matches!(PasswordFile::read(&path), PasswordFile::Read(_)), is_read, "{mode:o}");
        }
        assert!(matches!(PasswordFile::read(folder.path()), PasswordFile::Ignored(_)));
    }
}
