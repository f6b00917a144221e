//! Runs tests, without a defect and with one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::switch::Number;
use crate::tree::Program;

/// One test of a program.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    /// The index of its program.
    program: usize,
    name: String,
    takes: Duration,
}

/// The tests, and what each comes by.
pub(crate) struct Tests {
    programs: Vec<Program>,
    /// The tests that come by a defect, the quickest first.
    reaching: BTreeMap<Number, Vec<Test>>,
}

/// What the tests made of a defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Killed,
    /// A test ran for far longer than without the defect.
    TimedOut,
    Survived,
    /// No test executes the code.
    Unreached,
}

/// Tests of one run of a program: enough that processes are few, so few that a failure ends the
/// search soon.
const AT_ONCE: usize = 12;

impl Tests {
    /// Runs each test by itself, without a defect, and notes which defects it comes by.
    ///
    /// # Errors
    /// If a test fails.
    pub(crate) fn look(programs: Vec<Program>, folder: &Path) -> Result<Self> {
        let mut reaching: BTreeMap<Number, Vec<Test>> = BTreeMap::new();
        let noted = folder.join("reached");
        for (index, program) in programs.iter().enumerate() {
            for name in names(program)? {
                let _ = fs::remove_file(&noted);
                let start = Instant::now();
                let mut command = command(program, &[&name]);
                let status = command.env("LARDER_MUTANTS_REACHED", &noted).status()?;
                ensure!(status.success(), "{} {name} fails without a defect", program.name);
                let test = Test { program: index, name, takes: start.elapsed() };
                let reached = fs::read_to_string(&noted).unwrap_or_default();
                // A test may start processes, each of which notes a defect once.
                for number in reached.lines().map(str::parse).collect::<Result<BTreeSet<_>, _>>()? {
                    reaching.entry(number).or_default().push(test.clone());
                }
            }
        }
        for tests in reaching.values_mut() {
            tests.sort_by_key(|test| test.takes);
        }
        Ok(Self { programs, reaching })
    }

    /// Runs the tests that come by a defect, until one fails.
    pub(crate) fn try_to_kill(&self, number: Number) -> Result<Verdict> {
        let Some(tests) = self.reaching.get(&number) else { return Ok(Verdict::Unreached) };
        for some in tests.chunks(AT_ONCE) {
            for (index, program) in self.programs.iter().enumerate() {
                let of_program: Vec<_> = some.iter().filter(|test| test.program == index).collect();
                if of_program.is_empty() {
                    continue;
                }
                let names: Vec<_> = of_program.iter().map(|test| test.name.as_str()).collect();
                let usual: Duration = of_program.iter().map(|test| test.takes).sum();
                let mut command = command(program, &names);
                let child = command.env("LARDER_MUTANT", number.to_string()).spawn()?;
                match wait(child, usual * 5 + Duration::from_secs(10))? {
                    Some(true) => {}
                    Some(false) => return Ok(Verdict::Killed),
                    None => return Ok(Verdict::TimedOut),
                }
            }
        }
        Ok(Verdict::Survived)
    }
}

fn names(program: &Program) -> Result<Vec<String>> {
    let mut command = Command::new(&program.path);
    let output = command.args(["--list", "--format", "terse"]).current_dir(&program.folder).output()?;
    let text = String::from_utf8(output.stdout).context(program.name.clone())?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_string).collect())
}

fn command(program: &Program, names: &[&str]) -> Command {
    let mut command = Command::new(&program.path);
    command
        .arg("--exact")
        .args(names)
        .current_dir(&program.folder)
        .env_remove("LARDER_MUTANT")
        .env_remove("LARDER_MUTANTS_REACHED")
        // So that processes which a test started end with it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Whether it succeeds; `None` if it takes longer, and is ended.
fn wait(mut child: Child, most: Duration) -> Result<Option<bool>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if start.elapsed() > most {
            let group = Pid::from_raw(i32::try_from(child.id())?);
            killpg(group, Signal::SIGKILL)?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
