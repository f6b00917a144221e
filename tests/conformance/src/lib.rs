//! The conformance suite of `larder:storage`, as a component that exports its cases.
//!
//! Each case runs in its own host with an empty store, and reports what it expected and what it
//! got. Each case checks a sentence of the specification. No case depends on behaviour that the
//! specification leaves open.

mod cases;
mod check;

/// The imports and exports of the world `larder:conformance/suite`.
mod bindings {
    #![allow(missing_docs, unreachable_pub)]

    wit_bindgen::generate!({
        path: ["../../wit", "wit"],
        world: "larder:conformance/suite",
        generate_all,
        additional_derives: [PartialEq],
    });
}

use cases::{Case, Worker};

struct Suite;

impl bindings::Guest for Suite {
    fn cases() -> Vec<String> {
        cases::GROUPS.iter().copied().flatten().copied().flatten().map(|(name, _)| name.to_string()).collect()
    }

    fn planted() -> Vec<String> {
        cases::PLANTED.iter().map(|(name, _)| name.to_string()).collect()
    }

    fn run(name: String) -> Result<(), String> {
        let mut known = cases::GROUPS.iter().copied().flatten().copied().flatten().chain(cases::PLANTED);
        let found: Option<&Case> = known.find(|(known, _)| *known == name);
        let (_, case) = found.ok_or_else(|| format!("unknown case {name:?}"))?;
        case().map_err(|failure| failure.to_string())
    }

    fn work(worker: String, index: u32) -> Result<(), String> {
        let mut known = cases::WORKERS.iter().copied().flatten().copied().flatten();
        let found: Option<&Worker> = known.find(|(known, _)| *known == worker);
        let (_, work) = found.ok_or_else(|| format!("unknown worker {worker:?}"))?;
        work(index).map_err(|failure| failure.to_string())
    }
}

bindings::export!(Suite with_types_in bindings);
