//! Isolation of identities: access is denied unless the host granted it.

use super::*;

pub(crate) const CASES: &[Case] = with_each_strategy!("identity":
    what_is_missing_is_refused_and_the_host_told_once,
    a_bound_guest_can_not_open_what_is_another_s,
    a_guest_that_is_bound_to_a_session_opens_that_one_only,
    a_missing_part_comes_before_a_forged_one,
    what_differs_in_one_part_is_another_memory,
    parts_with_delimiters_and_other_scripts_are_kept_apart,
    a_part_that_is_too_long_is_refused,
    an_instance_without_memory_opens_none,
);

fn what_is_missing_is_refused_and_the_host_told_once(strategy: Strategy) -> Outcome {
    declare(&options(strategy))?;
    let missing = "<missing>";
    for (parts, reason, [tenant_shown, user_shown, session_shown]) in [
        (["", "", ""], "tenant, user and session empty", [missing, missing, missing]),
        (["", "u", "s"], "tenant empty", [missing, "u", "s"]),
        (["t", "", "s"], "user empty", ["t", missing, "s"]),
        (["t", "u", ""], "session empty", ["t", "u", missing]),
        (["", "", "s"], "tenant and user empty", [missing, missing, "s"]),
        (["", "u", ""], "tenant and session empty", [missing, "u", missing]),
        (["t", "", ""], "user and session empty", ["t", missing, missing]),
    ] {
        probe::events();
        let [tenant, user, session] = parts;
        let refused = Memory::open(&identity_of(tenant, user, session, "r"));
        expect_error(
            refused,
            "identity-required",
            |error| matches!(error, Error::IdentityRequired(text) if text == reason),
        )?;
        let expected = [
            ("operation", "open"),
            ("reason", reason),
            ("tenant", tenant_shown),
            ("user", user_shown),
            ("session", session_shown),
            ("run", "r"),
        ]
        .map(|(name, value)| (name.to_string(), value.to_string()));
        let events = probe::events();
        expect_eq(events.len(), 1)?;
        for event in events {
            expect_eq(event.name.as_str(), "memory.identity_rejected")?;
            expect_eq(event.fields, expected.to_vec())?;
        }
    }
    // White space does not count as empty.
    open(&identity_of(" ", "\t", "\0", "")).map(drop)
}

#[track_caller]
fn expect_denied_once(identity: &Identity) -> Outcome {
    probe::events();
    expect_access_denied(Memory::open(identity))?;
    let events = events_of("memory.identity_rejected");
    expect_eq(events.len(), 1)?;
    let tenant = ("tenant".to_string(), identity.tenant.clone());
    expect(events.iter().flatten().any(|field| *field == tenant), format!("{events:?} contain the tenant"))
}

fn a_bound_guest_can_not_open_what_is_another_s(strategy: Strategy) -> Outcome {
    let others = memory(strategy)?;
    say(&others, &["mine"])?;
    probe::bind_identity("acme", "bob", None)?;
    for forged in [
        identity(),
        identity_of("acme", "ann", "monday", "run"),
        identity_of("other", "bob", "monday", ""),
        identity_of("acme", "BOB", "monday", ""),
        identity_of("acme", "bob\0", "monday", ""),
    ] {
        expect_denied_once(&forged)?;
    }
    for own in [identity_of("acme", "bob", "monday", ""), identity_of("acme", "bob", "tuesday", "run")] {
        expect_context(&open(&own)?, &[], &[])?;
    }
    Ok(())
}

fn a_guest_that_is_bound_to_a_session_opens_that_one_only(strategy: Strategy) -> Outcome {
    declare(&options(strategy))?;
    probe::bind_identity("acme", "ann", Some("monday"))?;
    open(&identity())?;
    open(&identity_of("acme", "ann", "monday", "a run"))?;
    expect_denied_once(&session("tuesday"))?;
    // The host refuses to bind an empty identity.
    expect(probe::bind_identity("", "ann", None).is_err(), "an empty tenant is refused")
}

fn a_missing_part_comes_before_a_forged_one(strategy: Strategy) -> Outcome {
    declare(&options(strategy))?;
    probe::bind_identity("acme", "ann", None)?;
    let refused = Memory::open(&identity_of("other", "", "monday", ""));
    expect_error(refused, "identity-required", |error| matches!(error, Error::IdentityRequired(_)))
}

fn what_differs_in_one_part_is_another_memory(strategy: Strategy) -> Outcome {
    declare(&options(strategy))?;
    let identities = [
        identity_of("t", "u", "s", ""),
        identity_of("t2", "u", "s", ""),
        identity_of("t", "u2", "s", ""),
        identity_of("t", "u", "s2", ""),
        identity_of("t", "u", "s", "r"),
        identity_of("u", "t", "s", ""),
    ];
    for identity in &identities {
        let memory = open(identity)?;
        for number in 0..4 {
            memory.add_turn(&turn(&format!("{number}:{identity:?}")))?;
        }
    }
    for identity in &identities {
        let memory = open(identity)?;
        let said: Vec<_> = (0..4).map(|number| format!("{number}:{identity:?}")).collect();
        let said: Vec<_> = said.iter().map(String::as_str).collect();
        let (summarised, recent): (&[&str], &[&str]) = match strategy {
            Strategy::None => (&[], &[]),
            Strategy::Truncation => (&[], &said),
            Strategy::RollingSummary => said.split_at(2),
        };
        expect_context(&memory, summarised, recent)?;
    }
    // A flush of one session leaves the others.
    let [first, others @ ..] = &identities;
    open(first)?.flush()?;
    expect_context(&open(first)?, &[], &[])?;
    let left = others.iter().filter(|identity| probe::stored_record(identity) != Ok(None)).count();
    expect_eq(left, if strategy == Strategy::None { 0 } else { 5 })
}

fn parts_with_delimiters_and_other_scripts_are_kept_apart(strategy: Strategy) -> Outcome {
    declare(&options(strategy))?;
    let identities = [
        identity_of("a", "b", "c", ""),
        identity_of("a/b", "c", "d", ""),
        identity_of("a", "b/c", "d", ""),
        identity_of("a\0b", "c", "d", ""),
        identity_of("a", "b\0c", "d", ""),
        identity_of("a", "b", "c\0", ""),
        identity_of("a%", "b_", "c\\", "'; --"),
        identity_of("тенант", "用户", "\u{1F980}", "é"),
        identity_of("тенант", "用户", "\u{1F980}", "e\u{301}"),
        identity_of(" a", "b", "c", ""),
    ];
    for (number, identity) in identities.iter().enumerate() {
        say(&open(identity)?, &[&number.to_string()])?;
    }
    for (number, identity) in identities.iter().enumerate() {
        let number = number.to_string();
        let recent: &[&str] = if strategy == Strategy::None { &[] } else { &[&number] };
        expect_context(&open(identity)?, &[], recent)?;
    }
    Ok(())
}

fn a_part_that_is_too_long_is_refused(strategy: Strategy) -> Outcome {
    declare(&options(strategy))?;
    let max = limits().identity_bytes;
    let longest = "é".repeat(max as usize / 2);
    let memory = open(&identity_of(&longest, &longest, &longest, &longest))?;
    say(&memory, &["a"])?;
    for length in [max + 1, 10_000] {
        let long = "x".repeat(length as usize);
        for refused in [
            identity_of(&long, "u", "s", ""),
            identity_of("t", &long, "s", ""),
            identity_of("t", "u", &long, ""),
            identity_of("t", "u", "s", &long),
        ] {
            expect_limit(Memory::open(&refused), LimitKind::IdentityBytes, max, length)?;
        }
    }
    Ok(())
}

fn an_instance_without_memory_opens_none(_: Strategy) -> Outcome {
    expect_access_denied(Memory::open(&identity()))
}
