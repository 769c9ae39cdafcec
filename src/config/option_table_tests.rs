//! The table of options, the manual page, and the list of upstream's options say the same.

use std::any::TypeId;
use std::collections::BTreeSet;

use clap::{Arg, ArgAction};

use super::cli::command;
use super::file::NOT_KEYS;

const MANUAL: &str = include_str!("../../packaging/man/virtiofsd.1");
const FILE_MANUAL: &str = include_str!("../../packaging/man/virtiofsd.toml.5");

/// Upstream's options, of 1.13.3 and 1.14.0.
const UPSTREAM: &[&str] = &[
    "--allow-direct-io",
    "--allow-mmap",
    "--announce-submounts",
    "--cache",
    "--fd",
    "--gid-map",
    "--help",
    "--inode-file-handles",
    "--killpriv-v2",
    "--log-level",
    "--migration-confirm-paths",
    "--migration-mode",
    "--migration-on-error",
    "--migration-verify-handles",
    "--modcaps",
    "--no-announce-submounts",
    "--no-killpriv-v2",
    "--no-readdirplus",
    "--posix-acl",
    "--preserve-noatime",
    "--print-capabilities",
    "--readonly",
    "--rlimit-nofile",
    "--sandbox",
    "--seccomp",
    "--security-label",
    "--shared-dir",
    "--socket",
    "--socket-group",
    "--socket-path",
    "--syslog",
    "--tag",
    "--thread-pool-size",
    "--translate-gid",
    "--translate-uid",
    "--uid-map",
    "--version",
    "--writeback",
    "--xattr",
    "--xattrmap",
    "-d",
    "-f",
    "-h",
    "-V",
    "-o",
];

/// Ours besides.
const OURS: &[&str] = &[
    "--check-config",
    "--config",
    "--follow-mounts",
    "--ioctl",
    "--landlock",
    "--limit-bandwidth",
    "--limit-ops",
    "--locks",
    "--max-handles",
    "--max-inodes",
    "--metrics-socket",
    "--num-request-queues",
    "--poll-us",
    "--worker-ids",
];

fn of_the_table() -> BTreeSet<String> {
    let mut command = command();
    command.build();
    let mut options = BTreeSet::new();
    for argument in command.get_arguments() {
        options.extend(
            argument.get_long_and_visible_aliases().into_iter().flatten().map(|long| format!("--{long}")),
        );
        options.extend(argument.get_short().map(|short| format!("-{short}")));
    }
    options
}

/// Those that the manual has an entry for: lines such as `.It Fl \-cache Ns = Ns Ar POLICY`.
fn of_the_manual() -> BTreeSet<String> {
    let items = MANUAL.lines().filter_map(|line| line.strip_prefix(".It "));
    let mut options = BTreeSet::new();
    for item in items {
        let mut words = item.split_whitespace();
        while let Some(word) = words.next() {
            if word == "Fl" {
                let name = words.next().expect("Fl has a name").trim_end_matches(',');
                options.insert(format!("-{}", name.replace("\\-", "-")));
            }
        }
    }
    options
}

fn of_the_lists() -> BTreeSet<String> {
    UPSTREAM.iter().chain(OURS).map(|option| (*option).to_owned()).collect()
}

#[test]
fn every_option_of_upstream_is_there_and_every_other_one_is_listed_as_ours() {
    assert_eq!(of_the_table(), of_the_lists());
}

#[test]
fn the_manual_has_every_option_and_no_other() {
    assert_eq!(of_the_manual(), of_the_table());
}

/// What the manual says of an option: from its item to the next one, without markup.
fn entry(option: &str) -> String {
    let escaped = option.trim_start_matches('-').replace('-', "\\-");
    let flag = if option.starts_with("--") { format!("Fl \\-{escaped}") } else { format!("Fl {escaped}") };
    let is_item = |line: &str| {
        line.starts_with(".It ")
            && line.split_once(&flag).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with(' '))
    };
    let mut lines = MANUAL.lines().skip_while(|line| !is_item(line));
    let first = lines.next().unwrap_or_else(|| panic!("{option} has no entry"));
    let mut text = first.to_owned();
    let mut depth = 0;
    for line in lines {
        match line.split_whitespace().next() {
            Some(".Bl") => depth += 1,
            Some(".El") if depth == 0 => break,
            Some(".El") => depth -= 1,
            Some(".It") if depth == 0 => break,
            _ => {}
        }
        text.push(' ');
        text.push_str(line);
    }
    text.replace("\\-", "-")
}

#[test]
fn the_manual_has_every_value_and_every_default() {
    let mut command = command();
    command.build();
    for argument in command.get_arguments().filter(|argument| argument.get_action().takes_values()) {
        let Some(long) = argument.get_long() else { continue };
        let entry = entry(&format!("--{long}"));
        for value in argument.get_possible_values() {
            assert!(entry.contains(value.get_name()), "--{long}: {} is not in: {entry}", value.get_name());
        }
        for default in argument.get_default_values() {
            let default = default.to_str().unwrap();
            let sentence = format!("The default is .Cm {default} .");
            assert!(entry.contains(&sentence), "--{long}: no \"{sentence}\" in: {entry}");
        }
        let names = argument.get_value_names().unwrap_or_default();
        for name in names {
            assert!(entry.contains(&format!("Ar {name}")), "--{long}: {name} is not in: {entry}");
        }
    }
}

/// What a key's value is, as the manual of the file has it.
fn kind(option: &Arg) -> &'static str {
    let parsed = option.get_value_parser().type_id();
    let numbers = [TypeId::of::<i32>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()];
    let bare = option.get_num_args().is_some_and(|number| number.min_values() == 0);
    match option.get_action() {
        ArgAction::SetTrue => "true or false",
        ArgAction::Append => "list of strings",
        _ if bare => "string, or true or false",
        _ if numbers.iter().any(|number| parsed == *number) => "number",
        _ => "string",
    }
}

#[test]
fn the_manual_of_the_file_has_every_key_with_its_kind_and_default_and_no_other() {
    let mut expected = BTreeSet::new();
    for option in command().get_arguments() {
        let Some(long) = option.get_long().filter(|long| !NOT_KEYS.contains(long)) else { continue };
        let takes_values = option.get_action().takes_values();
        let default = option.get_default_values().first().filter(|_| takes_values);
        let default = default.map(|value| format!(", default {}", value.to_str().unwrap()));
        expected.insert((long.to_owned(), format!("({}{})", kind(option), default.unwrap_or_default())));
    }
    let plain = FILE_MANUAL.replace("\\-", "-");
    let lines: Vec<_> = plain.lines().collect();
    let entries = lines.windows(2).filter_map(|pair| Some((pair[0].strip_prefix(".It Ic ")?, pair[1])));
    let found: BTreeSet<_> = entries.map(|(key, kind)| (key.to_owned(), kind.to_owned())).collect();
    assert_eq!(found, expected);
}

#[test]
fn clap_finds_no_fault_in_the_table() {
    command().debug_assert();
}

#[test]
fn every_option_has_a_help_text() {
    for argument in command().get_arguments() {
        assert!(argument.get_help().is_some(), "{}", argument.get_id());
        assert!(argument.get_help_heading().is_some(), "{}", argument.get_id());
    }
}
