//! Runs the example as a user would.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

#[test]
fn each_plugin_gets_what_the_platform_granted_to_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_embed")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8(printed).unwrap();
    for sentence in [
        "inventory: stored 2 packages",
        "audit: libcore is needed by shell",
        "audit: catalog: access denied: the store \"default\" is granted read-only",
        "stranger: catalog: the host granted no store named \"default\"",
    ] {
        assert!(printed.contains(sentence), "{sentence:?} is not in {printed}");
    }
}
