//! pjdfstest, test by test: through the daemon as on the file system underneath.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::program::program;
use tests::share::{Share, TempDir};
use tests::tools::PJDFSTEST;

use super::mounted;

/// Where the outcomes may differ: `test | natively | through the daemon | reason`, one a line. An outcome
/// that depends on timing is `any`.
const DIFFERENCES: &str = include_str!("pjdfstest.differences");

/// What Linux can do of what the suite has behind switches. Users that every system has.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Fewer than this many tests that passed natively mean that the suite didn't run as it should.
const LEAST_PASSED: usize = 380;

type Outcomes = BTreeMap<String, String>;

/// Runs the suite in a directory.
fn run(dir: &Path) -> Outcomes {
    let own = TempDir::on_disk();
    let config = own.path().join("config.toml");
    fs::write(&config, CONFIG).unwrap();
    let finished = program(PJDFSTEST.binary(), "(fetch-peers)")
        .args(["-c".as_ref(), config.as_os_str(), "-p".as_ref(), dir.as_os_str()])
        .limit(Duration::from_secs(300))
        .run();
    let outcomes = parse(&finished.stdout);
    assert!(!outcomes.is_empty(), "{}\n{}", finished.stdout, finished.stderr);
    outcomes
}

/// `name   outcome` lines; others explain.
fn parse(text: &str) -> Outcomes {
    text.lines()
        .filter_map(|line| {
            let (name, outcome) = line.split_once(char::is_whitespace)?;
            let outcome = outcome.trim();
            let known = ["ok", "FAILED", "skipped"].iter().find(|known| outcome.starts_with(**known))?;
            name.contains("::").then(|| (name.to_owned(), (*known).to_owned()))
        })
        .collect()
}

/// The listed differences; each must have a reason.
fn listed() -> BTreeMap<String, (String, String)> {
    let lines = DIFFERENCES.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split('|').map(str::trim).collect();
            let [test, native, ours, reason] = fields[..] else { panic!("not four fields: {line}") };
            assert!(!reason.is_empty(), "no reason: {line}");
            (test.to_owned(), (native.to_owned(), ours.to_owned()))
        })
        .collect()
}

#[test]
fn pjdfstest_has_the_native_outcome() {
    let listed = listed();
    let native_dir = Share::new();
    let native = run(native_dir.path());
    let ours = mounted(&["--modcaps=+mknod"], |_, mount| run(mount));
    let passed = native.values().filter(|outcome| *outcome == "ok").count();
    assert!(passed >= LEAST_PASSED, "{passed} passed natively");
    assert!(native.keys().eq(ours.keys()), "the same tests ran");
    let differences: BTreeMap<_, _> = native
        .iter()
        .map(|(test, outcome)| {
            let timing = listed.get(test).is_some_and(|(_, outcome)| outcome == "any");
            let through = if timing { "any" } else { ours.get(test).map_or("", String::as_str) };
            (test.clone(), (outcome.clone(), through.to_owned()))
        })
        .filter(|(_, (native, through))| native != through)
        .collect();
    assert_eq!(differences, listed, "differences found, and those that are listed with a reason");
}
