//! The steps of a schema migration, from files named `NNNN_name.sql`.
//!
//! The text of a step does not depend on how its file was checked out: it has no byte order mark,
//! `\n` at the end of each line, and one `\n` at its end. This text is what runs and what the
//! checksum covers. Equal checksums therefore mean equal effects, even for a literal of several
//! lines. Earlier releases hashed the bytes of the file, which gives the same checksum for most
//! files. [`Step::is_checksum`] recognises the other ones: that of the file as it is, and those of
//! its usual checkouts.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// One step, from a file named `NNNN_name.sql`.
///
/// Two steps are equal if their numbers, names and [`Step::sql`] are.
#[derive(Clone, Debug)]
pub struct Step {
    number: u32,
    name: Cow<'static, str>,
    sql: Cow<'static, str>,
    /// SHA-256 of the file's bytes; `None` if they are those of `sql`.
    file_checksum: Option<[u8; 32]>,
    is_larders: bool,
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        (self.number, &self.name, &self.sql) == (other.number, &other.name, &other.sql)
    }
}

impl Eq for Step {}

impl Step {
    /// The number of the step: 1, 2, 3, …
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The name of the step: what it does, in a word or two.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The statements as they are run.
    ///
    /// The text has no byte order mark, and `\n` at the end of each line and of the text. A literal
    /// that needs `\r\n` has to use an escape or a function.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// SHA-256 of [`Step::sql`].
    pub fn checksum(&self) -> [u8; 32] {
        Sha256::digest(self.sql.as_bytes()).into()
    }

    /// Whether a checksum in a ledger is of this step.
    ///
    /// It matches if it is that of [`Step::sql`], or one that an earlier release recorded. These
    /// are the checksum of the file's bytes, and of the same text with a byte order mark, with
    /// `\r\n` at the end of every line, or with another number of line ends after it.
    pub fn is_checksum(&self, checksum: &[u8]) -> bool {
        checksum == self.checksum()
            || self.file_checksum.is_some_and(|of_file| checksum == of_file)
            || self.is_earlier_checksum(checksum)
    }

    fn is_earlier_checksum(&self, checksum: &[u8]) -> bool {
        let body = self.sql.trim_end_matches('\n');
        let with_returns = body.replace('\n', "\r\n");
        [(body, "\n"), (&with_returns, "\r\n")].into_iter().any(|(body, line_end)| {
            ["", BYTE_ORDER_MARK].into_iter().any(|mark| {
                let mut hash = Sha256::new_with_prefix(mark).chain_update(body);
                (0..=EARLIER_LINE_ENDS).any(|_| {
                    let found = hash.clone().finalize();
                    hash.update(line_end);
                    found.as_slice() == checksum
                })
            })
        })
    }

    /// The name of the step's file.
    pub fn file(&self) -> String {
        file(self.number, &self.name)
    }

    /// Whether it is a step of larder's own tables, which the user cannot edit.
    pub(crate) fn is_larders(&self) -> bool {
        self.is_larders
    }
}

/// The name of a step's file.
pub(crate) fn file(number: u32, name: &str) -> String {
    format!("{number:04}_{name}.sql")
}

/// The byte order mark that some editors write before the text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The number of line ends after a text that checksums of earlier releases are tried with.
const EARLIER_LINE_ENDS: u32 = 8;

/// Normalises a text. A text that is normal already is not copied.
fn one_form(sql: Cow<'static, str>) -> Cow<'static, str> {
    let has_one_form = !sql.starts_with(BYTE_ORDER_MARK)
        && !sql.contains("\r\n")
        && sql.ends_with('\n')
        && !sql.ends_with("\n\n");
    if has_one_form {
        return sql;
    }
    let mut text = sql.trim_start_matches(BYTE_ORDER_MARK).replace("\r\n", "\n");
    text.truncate(text.trim_end_matches('\n').len());
    text.push('\n');
    Cow::Owned(text)
}

/// The reason why files are not a valid set of steps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepFileError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The folder or the file.
        path: PathBuf,
        /// The error of the file system.
        #[source]
        cause: io::Error,
    },
    /// There are no steps.
    #[error("there is no schema step; the first is a file named `0001_name.sql`")]
    NoSteps,
    /// A file name is not of the form `NNNN_name.sql`.
    #[error(
        "the schema step {0:?} is not named `NNNN_name.sql`: four digits, `_`, a name of ASCII letters, digits, `_` \
         and `-`, and `.sql`"
    )]
    Name(String),
    /// A number is missing.
    #[error(
        "schema step {expected:04} is missing: found {file:?} instead; number the steps 0001, 0002 and so on"
    )]
    Gap {
        /// The first file after the gap.
        file: String,
        /// The missing number.
        expected: u32,
    },
    /// Two files have the same number.
    #[error("the schema steps {first:?} and {second:?} have the same number")]
    Duplicate {
        /// The name of one file.
        first: String,
        /// The name of the other file.
        second: String,
    },
    /// A file is not UTF-8.
    #[error("the schema step {0:?} is not UTF-8")]
    NotUtf8(String),
    /// A file is empty.
    #[error("the schema step {0:?} is empty")]
    Empty(String),
    /// A file holds a NUL, where a database would stop reading.
    #[error("the schema step {0:?} holds a NUL character")]
    Nul(String),
}

/// The steps of one schema, numbered 1, 2, 3, … without a gap.
///
/// ```
/// use larder_schema::StepSet;
///
/// // As a rule the texts are `include_str!("../migrations/0001_accounts.sql")` and so on.
/// let steps = StepSet::embedded(&[
///     ("0001_accounts.sql", "CREATE TABLE accounts (id INTEGER PRIMARY KEY)"),
///     ("0002_balances.sql", "ALTER TABLE accounts ADD COLUMN balance INTEGER"),
/// ])?;
/// assert_eq!(steps.newest(), 2);
///
/// let gap = StepSet::embedded(&[("0002_balances.sql", "SELECT 1")]).unwrap_err();
/// assert!(gap.to_string().starts_with("schema step 0001 is missing"));
/// # Ok::<(), larder_schema::StepFileError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepSet {
    steps: Vec<Step>,
}

impl StepSet {
    /// Creates a set from steps that are embedded in the program.
    ///
    /// `files` has the file names and their texts, in any order.
    ///
    /// # Errors
    ///
    /// - [`StepFileError::NoSteps`] if there are none.
    /// - [`StepFileError::Name`] if a file name is not of the form `NNNN_name.sql`.
    /// - [`StepFileError::Gap`] or [`StepFileError::Duplicate`] if the numbers are not 1, 2, 3, …
    /// - [`StepFileError::Empty`] or [`StepFileError::Nul`] if a text cannot be run.
    pub fn embedded(files: &[(&'static str, &'static str)]) -> Result<Self, StepFileError> {
        let steps = files.iter().map(|(file, sql)| step(file, Cow::Borrowed(sql)));
        Self::new(steps.collect::<Result<_, _>>()?)
    }

    /// Creates the set of larder's own steps.
    ///
    /// If one of them fails, the error does not tell the user to correct it.
    ///
    /// # Errors
    ///
    /// - [`StepFileError::NoSteps`] if there are none.
    /// - [`StepFileError::Name`] if a file name is not of the form `NNNN_name.sql`.
    /// - [`StepFileError::Gap`] or [`StepFileError::Duplicate`] if the numbers are not 1, 2, 3, …
    /// - [`StepFileError::Empty`] or [`StepFileError::Nul`] if a text cannot be run.
    pub fn larders(files: &[(&'static str, &'static str)]) -> Result<Self, StepFileError> {
        let mut set = Self::embedded(files)?;
        set.steps.iter_mut().for_each(|step| step.is_larders = true);
        Ok(set)
    }

    /// Reads a set from a folder.
    ///
    /// Hidden files are ignored, and so are files that neither begin with a digit nor end in
    /// `.sql`. A `README.md` may thus be in the folder, and a mistyped step is still found.
    ///
    /// # Errors
    ///
    /// - [`StepFileError::Unreadable`] if the folder or a file cannot be read.
    /// - [`StepFileError::NoSteps`] if there are none.
    /// - [`StepFileError::Name`] if a file name is not of the form `NNNN_name.sql`.
    /// - [`StepFileError::Gap`] or [`StepFileError::Duplicate`] if the numbers are not 1, 2, 3, …
    /// - [`StepFileError::NotUtf8`], [`StepFileError::Empty`] or [`StepFileError::Nul`] if a text
    ///   cannot be run.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self, StepFileError> {
        let folder = folder.as_ref();
        let unreadable = |cause| StepFileError::Unreadable { path: folder.to_path_buf(), cause };
        let mut steps = Vec::new();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            if is_step(&entry.file_name()) {
                steps.push(read(&entry.path(), &entry.file_name())?);
            }
        }
        Self::new(steps)
    }

    /// The steps, in the order of their numbers.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The number of the last step.
    pub fn newest(&self) -> u32 {
        self.steps.last().map_or(0, Step::number)
    }

    fn new(mut steps: Vec<Step>) -> Result<Self, StepFileError> {
        steps.sort_by(|one, other| (one.number, &one.name).cmp(&(other.number, &other.name)));
        if steps.is_empty() {
            return Err(StepFileError::NoSteps);
        }
        let mut previous: Option<&Step> = None;
        for (expected, step) in (1..).zip(&steps) {
            if let Some(previous) = previous.filter(|previous| previous.number == step.number) {
                return Err(StepFileError::Duplicate { first: previous.file(), second: step.file() });
            }
            if step.number != expected {
                return Err(StepFileError::Gap { file: step.file(), expected });
            }
            previous = Some(step);
        }
        Ok(Self { steps })
    }
}

/// Whether a file in a folder is meant as a step.
fn is_step(file: &OsStr) -> bool {
    let file = file.to_string_lossy();
    let begins_with_digit = file.starts_with(|first: char| first.is_ascii_digit());
    !file.starts_with('.') && (begins_with_digit || file.to_ascii_lowercase().ends_with(".sql"))
}

fn read(path: &Path, file: &OsStr) -> Result<Step, StepFileError> {
    let file = file.to_str().ok_or_else(|| StepFileError::Name(file.to_string_lossy().into_owned()))?;
    // Report an invalid name before reading the file.
    parse_name(file)?;
    let bytes =
        fs::read(path).map_err(|cause| StepFileError::Unreadable { path: path.to_path_buf(), cause })?;
    let sql = String::from_utf8(bytes).map_err(|_| StepFileError::NotUtf8(file.to_string()))?;
    step(file, Cow::Owned(sql))
}

fn step(file: &str, text: Cow<'static, str>) -> Result<Step, StepFileError> {
    let (number, name) = parse_name(file)?;
    let of_file = Sha256::digest(text.as_bytes());
    let sql = checked(file, text)?;
    let file_checksum = (Sha256::digest(sql.as_bytes()) != of_file).then(|| of_file.into());
    Ok(Step { number, name: Cow::Owned(name.to_string()), sql, file_checksum, is_larders: false })
}

fn parse_name(file: &str) -> Result<(u32, &str), StepFileError> {
    let parse = || {
        let (number, name) = file.strip_suffix(".sql")?.split_once('_')?;
        let is_number = number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit());
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if is_number && is_name { Some((number.parse().ok()?, name)) } else { None }
    };
    parse().ok_or_else(|| StepFileError::Name(file.to_string()))
}

fn checked(file: &str, sql: Cow<'static, str>) -> Result<Cow<'static, str>, StepFileError> {
    let sql = one_form(sql);
    if sql.trim().is_empty() {
        return Err(StepFileError::Empty(file.to_string()));
    }
    if sql.contains('\0') {
        return Err(StepFileError::Nul(file.to_string()));
    }
    Ok(sql)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(files: &[(&'static str, &'static str)]) -> String {
        StepSet::embedded(files).unwrap_err().to_string()
    }

    /// A temporary folder, removed on drop.
    struct Folder(PathBuf);

    impl Folder {
        fn with(files: &[(&str, &[u8])]) -> Self {
            let folder = std::env::temp_dir().join(format!("larder-steps-{:016x}", fastrand::u64(..)));
            fs::create_dir(&folder).unwrap();
            for (file, bytes) in files {
                fs::write(folder.join(file), bytes).unwrap();
            }
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn files_become_steps_in_the_order_of_their_numbers() {
        let steps = StepSet::embedded(&[("0002_two-b.sql", "2"), ("0001_one.sql", "1")]).unwrap();
        let found: Vec<_> =
            steps.steps().iter().map(|step| (step.number(), step.name(), step.sql())).collect();
        assert_eq!(found, [(1, "one", "1\n"), (2, "two-b", "2\n")]);
        assert_eq!(steps.newest(), 2);
    }

    #[test]
    fn a_folder_gives_the_same_steps_as_the_program_and_other_files_are_left_alone() {
        let folder = Folder::with(&[
            ("0002_two.sql", b"2\n"),
            ("0001_one.sql", b"1"),
            ("README.md", b"\xff"),
            (".0003_three.sql.swp", b"\xff"),
        ]);
        let embedded = StepSet::embedded(&[("0001_one.sql", "1"), ("0002_two.sql", "2\n")]).unwrap();
        assert_eq!(StepSet::from_folder(&folder.0).unwrap(), embedded);
    }

    fn one(sql: &str) -> Step {
        let file = "0001_one.sql";
        step(file, Cow::Owned(sql.to_string())).unwrap()
    }

    /// The forms that checkouts and editors give to one text.
    const FORMS: [&str; 8] = [
        "SELECT 'a\nb';\n-- é\n",
        "SELECT 'a\nb';\n-- é",
        "SELECT 'a\nb';\n-- é\n\n\n",
        "\u{feff}SELECT 'a\nb';\n-- é\n",
        "SELECT 'a\r\nb';\r\n-- é\r\n",
        "SELECT 'a\r\nb';\r\n-- é",
        "SELECT 'a\r\nb';\n-- é\r\n\n",
        "\u{feff}SELECT 'a\r\nb';\r\n-- é\r\n",
    ];

    #[test]
    fn line_ends_a_byte_order_mark_and_a_lost_last_newline_make_no_other_step() {
        for form in FORMS {
            assert_eq!(one(form), one(FORMS[0]), "{form:?}");
        }
        assert_eq!(one(FORMS[4]).sql(), FORMS[0]);
        assert_eq!(one(FORMS[0]).checksum(), <[u8; 32]>::from(Sha256::digest(FORMS[0])));
    }

    #[test]
    fn what_an_earlier_release_recorded_of_a_usual_checkout_is_recognised_in_every_other() {
        let consistent = FORMS.iter().filter(|form| !form.contains("\r\n") || !form.contains(";\n"));
        for recorded in consistent.map(Sha256::digest) {
            for form in FORMS {
                assert!(one(form).is_checksum(&recorded), "{form:?}");
            }
        }
    }

    #[test]
    fn what_an_earlier_release_recorded_of_any_file_is_recognised_in_the_same_file() {
        let pieces = ["SELECT 'a\nb';", "-- é", "\n", "\r\n", "\r", "\u{feff}", " "];
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let random_text = |_| {
            let count = random.usize(1..24);
            let piece = |_| pieces.get(random.usize(..pieces.len())).copied().unwrap_or_default();
            format!("{}SELECT 1;{}", if count > 12 { "\u{feff}\u{feff}" } else { "" }, {
                (0..count).map(piece).collect::<String>()
            })
        };
        let mut texts: Vec<String> = (0..500).map(random_text).collect();
        texts.extend(FORMS.map(str::to_string));
        texts.extend(
            [
                "SELECT 1;\r\nSELECT 2;\n",
                "SELECT 1;\nSELECT 2;\r\n",
                "SELECT 1;\r\n\n",
                "SELECT 1;\n\r\n",
                "SELECT 1;\n\n\n\n\n\n\n\n\n",
                "\u{feff}\u{feff}SELECT 1;\n",
                "\nSELECT 1;\r\n",
            ]
            .map(str::to_string),
        );
        for text in texts {
            let step = one(&text);
            assert!(step.is_checksum(&Sha256::digest(&text)), "{seed}: {text:?}");
            let folder = Folder::with(&[("0001_one.sql", text.as_bytes())]);
            let read = StepSet::from_folder(&folder.0).unwrap();
            assert_eq!(read.steps().first(), Some(&step), "{seed}: {text:?}");
            assert!(read.steps()[0].is_checksum(&Sha256::digest(&text)), "{seed}: {text:?}");
            assert!(!step.is_checksum(&Sha256::digest(format!("{text}SELECT 3"))), "{seed}: {text:?}");
        }
    }

    #[test]
    fn what_a_database_would_read_otherwise_is_another_step() {
        for sql in [
            "SELECT 'a\rb';\n-- é\n",
            "SELECT 'a\n\nb';\n-- é\n",
            "SELECT 'a\nb';\n-- é \n",
            " SELECT 'a\nb';\n-- é\n",
            "SELECT 'a\nb';\n\u{feff}-- é\n",
        ] {
            assert!(!one(FORMS[0]).is_checksum(&one(sql).checksum()), "{sql:?}");
            assert!(!one(FORMS[0]).is_checksum(&Sha256::digest(sql)), "{sql:?}");
        }
        assert!(!one(FORMS[0]).is_checksum(&[]));
    }

    #[test]
    fn a_name_that_is_not_of_the_form_is_named() {
        let names = [
            "init.sql",
            "1_one.sql",
            "00001_one.sql",
            "0001.sql",
            "0001_.sql",
            "0001-one.sql",
            "0001_one",
            "0001_one.SQL",
            "0001_one.down.sql",
            "0001_a b.sql",
            "+001_one.sql",
            "",
        ];
        for name in names {
            let StepFileError::Name(named) = StepSet::embedded(&[(name, "1")]).unwrap_err() else {
                panic!("{name}");
            };
            assert_eq!(named, name);
        }
    }

    #[test]
    fn a_gap_and_a_duplicate_are_named() {
        assert_eq!(
            refusal(&[("0001_a.sql", "1"), ("0003_c.sql", "3")]),
            "schema step 0002 is missing: found \"0003_c.sql\" instead; number the steps 0001, 0002 and so on"
        );
        assert_eq!(
            refusal(&[("0000_zero.sql", "1")]),
            "schema step 0001 is missing: found \"0000_zero.sql\" instead; number the steps 0001, 0002 and so on"
        );
        assert_eq!(
            refusal(&[("0001_b.sql", "1"), ("0001_a.sql", "1")]),
            "the schema steps \"0001_a.sql\" and \"0001_b.sql\" have the same number"
        );
    }

    #[test]
    fn what_holds_nothing_or_can_not_be_run_whole_is_named() {
        assert_eq!(refusal(&[("0001_a.sql", " \n\t")]), "the schema step \"0001_a.sql\" is empty");
        assert_eq!(
            refusal(&[("0001_a.sql", "SELECT 1; \0 SELECT 2")]),
            "the schema step \"0001_a.sql\" holds a NUL character"
        );
        assert!(matches!(StepSet::embedded(&[]), Err(StepFileError::NoSteps)));
    }

    #[test]
    fn what_is_wrong_in_a_folder_is_said_with_the_file() {
        let refusal = |files: &[(&str, &[u8])]| {
            let folder = Folder::with(files);
            StepSet::from_folder(&folder.0).unwrap_err().to_string()
        };
        assert_eq!(refusal(&[("0001_a.sql", b"\xff")]), "the schema step \"0001_a.sql\" is not UTF-8");
        for empty in [&b""[..], b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"] {
            assert_eq!(refusal(&[("0001_a.sql", empty)]), "the schema step \"0001_a.sql\" is empty");
        }
        let mistyped = refusal(&[("0001_a.sql", b"1"), ("0002_b.sq", b"2")]);
        assert!(mistyped.starts_with("the schema step \"0002_b.sq\" is not named"), "{mistyped}");
        let none = refusal(&[("README.md", b"1")]);
        assert!(none.starts_with("there is no schema step"), "{none}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_unreadable() {
        let missing = std::env::temp_dir().join(format!("larder-missing-{:016x}", fastrand::u64(..)));
        let error = StepSet::from_folder(&missing).unwrap_err();
        assert!(matches!(&error, StepFileError::Unreadable { path, .. } if *path == missing), "{error:?}");
    }
}
