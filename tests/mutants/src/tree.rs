//! A copy of the workspace whose crates have the defects, and the test programs built of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::points::{Point, points_of};
use crate::switch::{Number, Switched, module, switched};

/// A defect, for a reader.
#[derive(Clone, Debug)]
pub(crate) struct Mutant {
    pub(crate) number: Number,
    pub(crate) file: String,
    pub(crate) line: usize,
    /// What names it while lines move: the function, the source and the defect.
    pub(crate) key: String,
}

/// A source file, and the numbers of its defects.
struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
    points: Vec<Point>,
    first: Number,
}

pub(crate) struct Tree {
    workspace: PathBuf,
    root: PathBuf,
    sources: Vec<Source>,
    end: Number,
    /// Defects that do not compile.
    without: BTreeSet<Number>,
}

impl Tree {
    /// Copies the workspace, and finds the defects of the files for which `is_wanted` holds.
    pub(crate) fn new(workspace: &Path, crates: &[String], is_wanted: &dyn Fn(&str) -> bool) -> Result<Self> {
        let root = workspace.join("target/mutants/tree");
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(workspace)
            .output()?;
        ensure!(listed.status.success(), "git ls-files failed");
        let listed = String::from_utf8(listed.stdout)?;
        let files = listed.split_terminator('\0').filter(|path| workspace.join(path).exists());
        let files: BTreeSet<&str> = files.collect();
        remove_others(&root, &root, &files)?;
        let (mut sources, mut end) = (Vec::new(), 0);
        for path in files {
            let from = workspace.join(path);
            if from.is_dir() {
                link_if_absent(&root.join(path), &fs::read_link(&from)?)?;
                continue;
            }
            let is_source = crates.iter().any(|name| path.starts_with(&format!("{name}/src/")));
            if !is_source || !path.ends_with(".rs") {
                write_if_changed(&root.join(path), &fs::read(&from)?)?;
                continue;
            }
            let text = fs::read_to_string(&from)?;
            let is_wanted = is_wanted(path) && !path.ends_with("/tests.rs");
            let points = if is_wanted { points_of(&text).context(path.to_string())? } else { Vec::new() };
            let count: usize = points.iter().map(|point| point.defects.len()).sum();
            sources.push(Source { path: path.to_string(), text, points, first: end });
            end += Number::try_from(count)?;
        }
        let workspace = workspace.to_owned();
        Ok(Self { workspace, root, sources, end, without: BTreeSet::new() })
    }

    /// The defects that compile.
    pub(crate) fn mutants(&self) -> Vec<Mutant> {
        let mut mutants: Vec<Mutant> = Vec::new();
        // Equal changes of one function are numbered from the second on.
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for source in &self.sources {
            let mut number = source.first;
            for point in &source.points {
                let original = one_line(source.text.get(point.range.clone()).unwrap_or_default());
                for defect in &point.defects {
                    let change = match (original.is_empty(), defect.is_empty()) {
                        (true, _) => format!("starts with `{defect}`"),
                        (_, true) => format!("lacks `{original}`"),
                        _ => format!("`{original}` becomes `{}`", one_line(defect)),
                    };
                    let mut key = format!("{} {}: {change}", source.path, point.function);
                    let equal = seen.entry(key.clone()).and_modify(|count| *count += 1).or_insert(1);
                    if *equal > 1 {
                        key.push_str(&format!(" #{equal}"));
                    }
                    let (file, line) = (source.path.clone(), point.line);
                    mutants.push(Mutant { number, file, line, key });
                    number += 1;
                }
            }
        }
        mutants.retain(|mutant| !self.without.contains(&mutant.number));
        mutants
    }

    /// Builds the tests of the packages, without the defects that do not compile, and returns their
    /// programs.
    pub(crate) fn build(&mut self, packages: &[String]) -> Result<Vec<Program>> {
        loop {
            let written = self.write()?;
            let messages = self.cargo(&["check"], packages)?;
            let mut found: BTreeSet<Number> = BTreeSet::new();
            let mut unknown = Vec::new();
            for error in messages.iter().filter_map(Error::parse) {
                let at = written.iter().find(|(path, _)| error.path.ends_with(path.as_str()));
                let defects = at.map_or(&[][..], |(_, switched)| switched.defects_at(&error.bytes));
                if defects.is_empty() {
                    unknown.push(error.rendered);
                }
                found.extend(defects);
            }
            if found.is_empty() && !unknown.is_empty() {
                bail!("the copy with defects does not compile:\n{}", unknown.join("\n"));
            }
            if found.is_empty() {
                break;
            }
            eprintln!("{} defects do not compile", found.len());
            self.without.extend(found);
        }
        let messages = self.cargo(&["test", "--no-run"], packages)?;
        let error = messages.iter().find_map(Error::parse);
        ensure!(error.is_none(), "{}", error.map(|error| error.rendered).unwrap_or_default());
        let programs: Vec<_> = messages.iter().filter_map(Program::parse).collect();
        ensure!(!programs.is_empty(), "the tests of {packages:?} were not built");
        Ok(programs)
    }

    fn write(&self) -> Result<Vec<(String, Switched)>> {
        let mut written = Vec::new();
        for source in &self.sources {
            let mut switched = switched(&source.text, &source.points, source.first, &self.without);
            if source.path.ends_with("/src/lib.rs") {
                switched.text.push_str(&module(self.end.max(1)));
            }
            write_if_changed(&self.root.join(&source.path), switched.text.as_bytes())?;
            written.push((source.path.clone(), switched));
        }
        Ok(written)
    }

    fn cargo(&self, command: &[&str], packages: &[String]) -> Result<Vec<Value>> {
        let packages = packages.iter().flat_map(|package| ["--package", package]);
        let output = Command::new("cargo")
            .args(command)
            .args(packages)
            .args(["--tests", "--message-format=json", "--quiet"])
            .env("CARGO_TARGET_DIR", self.workspace.join("target/mutants/build"))
            // The defects are full of what the compiler warns about.
            .env("RUSTFLAGS", "--cap-lints=allow")
            .current_dir(&self.root)
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let messages: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let has_errors = messages.iter().any(|message| Error::parse(message).is_some());
        let rendered = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() || has_errors, "cargo {} failed:\n{rendered}", command.join(" "));
        Ok(messages)
    }
}

/// An error of the compiler.
struct Error {
    path: String,
    bytes: Range<usize>,
    rendered: String,
}

impl Error {
    fn parse(message: &Value) -> Option<Self> {
        let message = message.get("message").filter(|message| message.is_object())?;
        if message.get("level")?.as_str()? != "error" {
            return None;
        }
        let spans = message.get("spans")?.as_array()?;
        let span = spans.iter().find(|span| span.get("is_primary").and_then(Value::as_bool) == Some(true))?;
        let number = |name: &str| usize::try_from(span.get(name)?.as_u64()?).ok();
        Some(Self {
            path: span.get("file_name")?.as_str()?.to_string(),
            bytes: number("byte_start")?..number("byte_end")?,
            rendered: message.get("rendered")?.as_str()?.to_string(),
        })
    }
}

/// A test program, and the folder in which it runs.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) folder: PathBuf,
}

impl Program {
    fn parse(message: &Value) -> Option<Self> {
        if !message.get("profile")?.get("test")?.as_bool()? {
            return None;
        }
        let path = PathBuf::from(message.get("executable")?.as_str()?);
        let manifest = PathBuf::from(message.get("manifest_path")?.as_str()?);
        let name = message.get("target")?.get("name")?.as_str()?.to_string();
        Some(Self { name, path, folder: manifest.parent()?.to_owned() })
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Removes what an earlier copy had and this one does not.
fn remove_others(root: &Path, folder: &Path, files: &BTreeSet<&str>) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
        match path.is_dir() && !path.is_symlink() {
            true => remove_others(root, &path, files)?,
            false if !files.contains(name.as_str()) && name != "Cargo.lock" => fs::remove_file(&path)?,
            false => {}
        }
    }
    Ok(())
}

/// Makes the symlink by which a crate reaches a folder at the top of the workspace.
fn link_if_absent(path: &Path, target: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    symlink(target, path).with_context(|| format!("cannot link {}", path.display()))
}

/// Keeps the time of a file that stays as it is, so that cargo does not build it again.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
