//! The POSIX file system test suite, run in some directory and compared test by test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::program::program;
use crate::share::TempDir;
use crate::tools::PJDFSTEST;

/// Where the outcomes may differ: `test | natively | through the daemon | reason`, one a line. An outcome
/// that depends on timing is `any`.
const DIFFERENCES: &str = include_str!("pjdfstest.differences");

/// The suite's configuration: what Linux can do of what it has behind switches, and users that every system has.
pub const CONFIG: &str = r#"
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

/// By test: `ok`, `FAILED` or `skipped`.
pub type Outcomes = BTreeMap<String, String>;

/// Runs the suite in a directory.
pub fn run(dir: &Path) -> Outcomes {
    let own = TempDir::on_disk();
    let config = own.path().join("config.toml");
    fs::write(&config, CONFIG).expect("write in an own directory");
    let finished = program(PJDFSTEST.binary(), "(fetch-peers)")
        .args(["-c".as_ref(), config.as_os_str(), "-p".as_ref(), dir.as_os_str()])
        .limit(Duration::from_secs(300))
        .run();
    let outcomes = parse(&finished.stdout);
    assert!(!outcomes.is_empty(), "{}\n{}", finished.stdout, finished.stderr);
    outcomes
}

/// What the suite printed: `name   outcome` lines; others explain.
pub fn parse(text: &str) -> Outcomes {
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

/// Panics unless the same tests ran with the same outcomes, but for those that are listed; `where_` they ran.
pub fn must_differ_as_listed(where_: &str, native: &Outcomes, ours: &Outcomes) {
    let listed = listed();
    let passed = native.values().filter(|outcome| *outcome == "ok").count();
    assert!(passed >= LEAST_PASSED, "{passed} passed natively");
    assert!(native.keys().eq(ours.keys()), "{where_}: the same tests ran");
    let differences: BTreeMap<_, _> = native
        .iter()
        .map(|(test, outcome)| {
            let timing = listed.get(test).is_some_and(|(_, outcome)| outcome == "any");
            let through = if timing { "any" } else { ours.get(test).map_or("", String::as_str) };
            (test.clone(), (outcome.clone(), through.to_owned()))
        })
        .filter(|(_, (native, through))| native != through)
        .collect();
    assert_eq!(differences, listed, "{where_}: differences found, and those that are listed with a reason");
}
