use super::*;
use crate::protocol::message::MAX_REPORTS;

const KINDS: [Kind; 7] = [
    Kind::Confined,
    Kind::Attached,
    Kind::Seal,
    Kind::Reopen,
    Kind::Admit,
    Kind::MakeDevice,
    Kind::TrustedXattr,
];
const PHASES: [Phase; 3] = [Phase::Starting, Phase::Listening, Phase::Serving];
const ALL: Services = Services { handles: true, admit: true, make_device: true, trusted_xattr: true };

fn without(service: Service) -> Services {
    match service {
        Service::Mounts => Services::default(),
        Service::Handles => Services { handles: false, ..ALL },
        Service::Admit => Services { admit: false, ..ALL },
        Service::MakeDevice => Services { make_device: false, ..ALL },
        Service::TrustedXattr => Services { trusted_xattr: false, ..ALL },
    }
}

#[test]
fn every_request_has_exactly_one_phase() {
    for kind in KINDS {
        let allowed: Vec<_> = RULES.iter().filter(|rule| rule.kind == kind).collect();
        assert_eq!(allowed.len(), 1, "{kind:?}");
        for phase in PHASES {
            let want = phase == allowed[0].phase;
            assert_eq!(gate(kind, phase, ALL, allowed[0].min_fds).is_ok(), want, "{kind:?} in {phase:?}");
        }
    }
}

#[test]
fn counts_of_fds_are_limited_on_both_sides() {
    for rule in RULES {
        for fds in 0..=MAX_FDS + 2 {
            let want = (rule.min_fds..=rule.max_fds).contains(&fds);
            let result = gate(rule.kind, rule.phase, ALL, fds);
            assert_eq!(result.is_ok(), want, "{:?} with {fds}", rule.kind);
            if !want {
                assert_eq!(result, Err(Violation::FdCount { kind: rule.kind, fds }));
            }
        }
    }
}

#[test]
fn what_is_not_enabled_is_a_violation() {
    for rule in RULES {
        assert_eq!(gate(rule.kind, rule.phase, ALL, rule.min_fds), Ok(rule.next));
        if let Some(service) = rule.service {
            let result = gate(rule.kind, rule.phase, without(service), rule.min_fds);
            assert_eq!(result, Err(Violation::NotEnabled(rule.kind)));
        }
    }
}

/// A worker can't go back to a phase in which it was trusted.
#[test]
fn phases_only_advance() {
    assert!(RULES.iter().all(|rule| rule.next >= rule.phase));
}

/// A row of the document for each request, from the code.
fn document_row(kind: Kind) -> String {
    let rule = RULES.iter().find(|rule| rule.kind == kind).unwrap();
    let cell = |phase: Phase| match phase == rule.phase {
        false => "–".to_owned(),
        true if rule.next == phase => "yes".to_owned(),
        true => format!("yes, then {:?}", rule.next),
    };
    let fds = match (rule.min_fds, rule.max_fds) {
        (min, max) if min == max => min.to_string(),
        (min, max) => format!("{min}–{max}"),
    };
    let service = match rule.service {
        None => "–",
        Some(Service::Mounts) => "any of these",
        Some(Service::Handles) => "handles",
        Some(Service::Admit) => "handles, proof",
        Some(Service::MakeDevice) => "`--modcaps=+mknod`",
        Some(Service::TrustedXattr) => "`--modcaps=+sys_admin`",
    };
    let reply = match kind {
        Kind::Confined | Kind::Attached => "–",
        Kind::Seal => "`Sealed`",
        Kind::Reopen => "`Reopened`",
        Kind::Admit => "`Admitted`",
        Kind::MakeDevice => "`DeviceMade`",
        Kind::TrustedXattr => "`TrustedXattr`",
    };
    let [starting, listening, serving] = PHASES.map(cell);
    format!("| `{kind:?}` | {starting} | {listening} | {serving} | {fds} | {service} | {reply} |")
}

/// The document's table of requests and phases is this one, and its limits are these.
#[test]
fn the_document_says_the_same() {
    let text = include_str!("../../../docs/broker-protocol.md");
    let rows: Vec<&str> =
        text.lines().filter(|line| KINDS.iter().any(|k| line.starts_with(&format!("| `{k:?}` |")))).collect();
    assert_eq!(rows, KINDS.map(document_row), "docs/broker-protocol.md: the table of requests and phases");
    for (what, value) in [
        ("message, bytes", crate::protocol::codec::MAX_MESSAGE),
        ("fds a message", MAX_FDS),
        ("handles a message", MAX_FDS),
        ("file handle, bytes", crate::protocol::handle::MAX_HANDLE_BYTES),
        ("authentication code, bytes", crate::protocol::handle::MAC_BYTES),
        ("name of an entry, bytes", crate::protocol::name::NAME_MAX),
        ("name of an attribute, bytes", crate::protocol::name::XATTR_NAME_MAX),
        ("value of an attribute, bytes", crate::protocol::message::XATTR_SIZE_MAX),
        ("list of attributes, bytes", crate::protocol::message::XATTR_LIST_MAX),
        ("layers in a report", MAX_REPORTS),
        ("reason of a layer, bytes", crate::protocol::message::MAX_REASON),
        ("line of the log, bytes", crate::protocol::log_line::MAX_LINE),
    ] {
        let row = format!("| {what} | {value} |");
        assert!(text.contains(&row), "docs/broker-protocol.md lacks the row: {row}");
    }
}
