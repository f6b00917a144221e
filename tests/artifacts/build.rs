//! Builds the guests once for all crates that test with them.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "wasm32-wasip2";
const PROFILE: &str = "guest";
const PACKAGES: [&str; 8] = [
    "larder-conformance",
    "larder-test-guests",
    "larder-hostile-summarizer",
    "larder-bench-guest",
    "larder-bench-keyvalue-guest",
    "assistant",
    "catalog",
    "keyword-summarizer",
];

/// The sources of the guests, relative to the root of the workspace.
const SOURCES: [&str; 14] = [
    "Cargo.lock",
    "Cargo.toml",
    "wit",
    "guest-sdk",
    "tests/bench/guest",
    "tests/bench/keyvalue-guest",
    "tests/bench/wit",
    "tests/bench/workload",
    "tests/conformance",
    "tests/guests",
    "tests/hostile-summarizer",
    "examples/assistant",
    "examples/catalog",
    "examples/summarizer",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = fs::canonicalize("../..")?;
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    ensure_target()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // All profiles and tools share one folder, next to that of the profile: target/guests.
    let guests = out.ancestors().nth(4).ok_or("OUT_DIR is not within a target folder")?.join("guests");
    build(&root, &guests)?;
    let built = guests.join(TARGET).join(PROFILE);
    let libraries = [
        "larder_conformance",
        "larder_hostile_summarizer",
        "larder_bench_guest",
        "larder_bench_keyvalue_guest",
        "assistant",
        "catalog",
        "keyword_summarizer",
    ];
    let mut names = libraries.map(String::from).to_vec();
    names.extend(programs(&root.join("tests/guests/src/bin"))?);
    fs::write(out.join("artifacts.rs"), constants(&built, &names)?)?;
    let conformance = built.join("larder_conformance.wasm");
    println!("cargo::rustc-env=LARDER_CONFORMANCE_COMPONENT={}", conformance.display());
    Ok(())
}

/// Installs the target's standard library, which a plain Rust installation lacks.
fn ensure_target() -> Result<(), Box<dyn Error>> {
    if has_target()? {
        return Ok(());
    }
    let added = Command::new("rustup").args(["target", "add", TARGET]).status();
    if added.is_ok_and(|status| status.success()) && has_target()? {
        return Ok(());
    }
    Err(format!(
        "the Rust target {TARGET} is not installed, and `rustup target add {TARGET}` failed. Guests are built \
         for it. With network access, run that command again; with a Rust that is not rustup's, install your \
         distribution's standard library for {TARGET} (Debian and its kin: the package \
         libstd-rust-dev-wasm32 of the same version as your rustc), or point RUSTC at a compiler that has it."
    )
    .into())
}

fn has_target() -> Result<bool, Box<dyn Error>> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output()?;
    let folder = String::from_utf8(output.stdout)?;
    let Ok(mut files) = fs::read_dir(folder.trim()) else {
        return Ok(false);
    };
    Ok(files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libstd-"))))
}

fn build(root: &Path, target_folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env::var_os("CARGO").ok_or("CARGO is not set")?);
    cargo.current_dir(root).args(["build", "--target", TARGET, "--profile", PROFILE]);
    cargo.arg("--target-dir").arg(target_folder);
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    // Flags and wrappers of the host's build, such as clippy's, must not apply to the guests.
    for (name, _) in env::vars_os() {
        if is_of_the_outer_build(&name) {
            cargo.env_remove(name);
        }
    }
    if cargo.status()?.success() { Ok(()) } else { Err("cannot build the guests".into()) }
}

fn is_of_the_outer_build(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC"]
        .contains(&name.as_ref())
        || ["CARGO_FEATURE_", "CARGO_CFG_", "CARGO_PROFILE_"].iter().any(|prefix| name.starts_with(prefix))
}

fn programs(folder: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if let Some(name) = path.file_stem().filter(|_| path.extension() == Some(OsStr::new("rs"))) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn constants(folder: &Path, names: &[String]) -> Result<String, Box<dyn Error>> {
    let mut code = String::new();
    for name in names {
        let path = folder.join(format!("{name}.wasm"));
        if !path.is_file() {
            return Err(format!("{} was not built", path.display()).into());
        }
        writeln!(code, "/// The component `{name}`.\npub const {}: &str = {path:?};", name.to_uppercase())?;
    }
    Ok(code)
}
