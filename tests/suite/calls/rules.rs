//! Which line of a trace a rule is for.

use std::path::PathBuf;

#[path = "../../../sandbox/build/policy.rs"]
#[allow(dead_code, reason = "shared with the build script, which needs more of it")]
mod policy;

use policy::{Action, Policy, Rule};

/// Rules for calls that no test can have made at will, with the reason.
const NOT_AT_WILL: &[(&str, &str)] = &[
    ("io/fcntl:F_GETFD", "only debug builds make it"),
    ("supervision/openat=EACCES", "a backtrace's reading of /proc/self/maps, after a panic"),
    (
        "supervision/ioctl:SIOCOUTQ",
        "only where stderr is the journal's, as in the suite packaging's container",
    ),
    ("memory/brk", "which of its calls malloc takes depends on the heap's state"),
    ("memory/mremap=ENOSYS", "malloc asks for it when the tables of some hundred thousand inodes grow"),
    ("process/restart_syscall", "made by the kernel, after a stop in a timed wait"),
    ("process/getpid", "abort: only in a state that must not be"),
    ("process/gettid", "abort"),
    ("process/tgkill:SIGABRT", "abort"),
    ("process/clock_gettime", "the vDSO does it, where the host's clock source lets it"),
    ("process/getrandom", "the first hash map of a thread, which may come before the filter"),
];

/// The broker has these fragments too, for what a process of ours does at any time. In its one thread, which has no
/// guest's memory, these stay away.
const NOT_IN_THE_BROKER: &[(&str, &str)] = &[
    ("process/rt_sigprocmask", "abort"),
    ("memory/mmap:only PROT_READ and PROT_WRITE", "as brk"),
    ("memory/mprotect:only PROT_READ and PROT_WRITE", "as brk"),
    ("memory/munmap", "as brk"),
    ("memory/madvise", "as brk"),
];

/// What the follower does not need of the same fragments.
const NOT_IN_THE_FOLLOWER: &[(&str, &str)] = &[
    ("follower/fcntl:F_GETFD", "only debug builds make it"),
    ("process/rt_sigprocmask", "abort"),
    ("process/exit_group", "it is killed, unless something fails that must not"),
    ("memory/mmap:only PROT_READ and PROT_WRITE", "as brk: a long list of mounts"),
    ("memory/mprotect:only PROT_READ and PROT_WRITE", "as brk"),
    ("memory/munmap", "as brk"),
    ("memory/madvise", "as brk"),
];

fn load(policy: &str) -> Policy {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../seccomp-policies");
    policy::load(&root, std::env::consts::ARCH, policy).expect("the policies that the daemon was built with")
}

/// The names of a policy's widenings.
pub fn widenings(policy: &str) -> Vec<String> {
    load(policy).widenings.into_iter().map(|widening| widening.name).collect()
}

/// The rules of a policy, or of a widening of it, that none of these calls needs; those excused are left out.
pub fn unmet(policy: &str, widening: Option<&str>, calls: &[String]) -> Vec<String> {
    let policy_file = load(policy);
    let rules = match widening {
        None => policy_file.rules,
        Some(name) => {
            let mut all = policy_file.widenings.into_iter();
            all.find(|widening| widening.name == name).expect("a widening of this name").rules
        }
    };
    let excused = |key: &str| {
        let by = |list: &[(&str, &str)]| list.iter().any(|(rule, _)| *rule == key);
        by(NOT_AT_WILL)
            || policy == "broker" && by(NOT_IN_THE_BROKER)
            || policy == "follower" && by(NOT_IN_THE_FOLLOWER)
    };
    let is_met = |rule: &Rule| calls.iter().any(|call| needs(call, rule));
    let unmet = rules.iter().filter(|rule| !is_met(rule) && !excused(&rule.key));
    unmet.map(|rule| rule.key.clone()).collect()
}

/// Whether this line of strace is a call that the rule decides.
fn needs(line: &str, rule: &Rule) -> bool {
    let Some(args) = line.strip_prefix(&rule.syscall).and_then(|rest| rest.strip_prefix('(')) else {
        return false;
    };
    match (rule.syscall.as_str(), rule.action) {
        ("openat", action) => args.starts_with("AT_FDCWD") == (action != Action::Allow),
        ("clone", _) => args.contains("CLONE_THREAD"),
        // Constants stand in the trace by the names that the policies give them.
        _ => constants(&rule.key).all(|constant| args.contains(&constant)),
    }
}

/// The names of constants in a rule's key: what is written large.
fn constants(key: &str) -> impl Iterator<Item = String> {
    let tests = key.split_once(':').map_or("", |(_, tests)| tests).split(", ");
    tests.filter(|test| test.starts_with(|c: char| c.is_ascii_uppercase())).map(|test| test.replace(' ', ""))
}

#[test]
fn every_excuse_is_for_a_rule_that_exists() {
    let loaded = ["worker", "broker", "follower"].map(load);
    let keys: Vec<&str> =
        loaded.iter().flat_map(|policy| policy.rules.iter().map(|rule| rule.key.as_str())).collect();
    for (rule, why) in NOT_AT_WILL.iter().chain(NOT_IN_THE_BROKER).chain(NOT_IN_THE_FOLLOWER) {
        assert!(keys.contains(rule), "{rule} ({why}) is no rule");
    }
}
