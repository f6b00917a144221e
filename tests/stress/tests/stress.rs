//! Runs the stress test.

fn main() {
    larder_stress::main(env!("CARGO_TARGET_TMPDIR"));
}
