//! One script, three file systems: the host's own, the same through upstream's daemon, and through ours. Every
//! result, every errno and the trees that are left must be the same.
//!
//! `VIRTIOFSD_TEST_SEEDS=1,2,3` chooses other scripts than the usual ones.

mod script;
mod world;

use std::time::Duration;

use script::{Op, Step};
use tests::bounded::bounded;
use tests::bridge::Bridge;
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::peers::{Implementation, UpstreamVersion};
use tests::share::{Share, TempDir};

const LIMIT: Duration = Duration::from_secs(400);
/// Steps of a script.
const STEPS: usize = 4000;

/// What the steps said, and the tree that they left, as the host sees it.
struct Run {
    lines: Vec<String>,
    tree: Vec<String>,
}

fn natively(script: &[Step]) -> Run {
    let share = Share::new();
    let lines = world::run(share.path(), script);
    Run { lines, tree: world::tree(share.path()) }
}

fn through(daemon: &Implementation, options: &[&str], script: &[Step]) -> Run {
    let (share, mountpoint) = (Share::new(), TempDir::short());
    let command = DaemonCommand::serving(daemon, share.path()).args(["--xattr"]).args(options);
    let mut daemon = command.start();
    let bridge = Bridge::mount(&daemon, mountpoint.path());
    let lines = world::run(bridge.path(), script);
    bridge.unmount().unwrap_or_else(|e| panic!("{e}"));
    assert!(daemon.wait(PATIENCE).success(), "{}", daemon.stderr());
    Run { lines, tree: world::tree(share.path()) }
}

/// Panics at the first step with another outcome, showing what came before.
fn same(what: &str, expected: &Run, got: &Run) {
    for (n, (a, b)) in expected.lines.iter().zip(&got.lines).enumerate() {
        let before = &expected.lines[n.saturating_sub(6)..n];
        assert!(a == b, "{what}:\n{before:#?}\nexpected {a}\ngot      {b}");
    }
    for (a, b) in expected.tree.iter().zip(&got.tree) {
        assert_eq!(a, b, "{what}: the trees that are left");
    }
    assert_eq!(expected.tree.len(), got.tree.len(), "{what}: the trees that are left");
}

/// Where upstream is another than the file system underneath. A step of this kind changes what later ones find, so
/// scripts for the comparison with upstream don't have it.
fn upstream_differs(step: &Step) -> Option<&'static str> {
    match step.op {
        Op::Tmpfile { .. } => Some("upstream has no TMPFILE: a file without a name is EOPNOTSUPP"),
        Op::Rename { flags: libc::RENAME_WHITEOUT, .. } if step.user.uid != 0 => {
            Some("upstream's whiteouts belong to root, whoever renamed")
        }
        _ => None,
    }
}

/// Where the guest's kernel is another than a native file system, with these options, whatever a daemon does.
fn client_differs(options: &[&str], step: &Step) -> Option<&'static str> {
    match step.op {
        Op::Fallocate { .. } | Op::CopyRange { .. } if options.contains(&"--killpriv-v2") => {
            Some("clearing set-id bits is left to the daemon, but not who may keep them: ours clears them")
        }
        Op::Seek { .. } if options.contains(&"--writeback") => {
            Some("the client asks for holes before it has written back what it holds")
        }
        _ => None,
    }
}

fn for_upstream(script: &[Step]) -> Vec<Step> {
    script.iter().filter(|step| upstream_differs(step).is_none()).cloned().collect()
}

fn seeds(usual: &[u64]) -> Vec<u64> {
    match std::env::var("VIRTIOFSD_TEST_SEEDS") {
        Ok(text) => text.split(',').map(|seed| seed.trim().parse().expect("a number")).collect(),
        Err(_) => usual.to_vec(),
    }
}

fn is_used(script: &[Step], run: &Run) {
    // A script whose steps mostly fail would show little.
    let good = run.lines.iter().filter(|line| line.contains("-> Ok")).count();
    assert!(good * 4 > script.len(), "only {good} of {} steps did anything", script.len());
}

#[test]
fn the_same_as_natively_and_as_upstream() {
    bounded(LIMIT, || {
        for seed in seeds(&[1, 2]) {
            let script = script::generate(seed, STEPS);
            let native = natively(&script);
            is_used(&script, &native);
            let ours = through(&Implementation::Ours, &[], &script);
            same(&format!("seed {seed}: natively, and through ours"), &native, &ours);
            let script = for_upstream(&script);
            let upstream = Implementation::Upstream(UpstreamVersion::V1_13_3);
            let upstream = through(&upstream, &[], &script);
            let ours = through(&Implementation::Ours, &[], &script);
            same(&format!("seed {seed}: through upstream, and ours"), &upstream, &ours);
        }
        // Past the page cache, only killpriv-v2 tells whether a write clears set-id bits.
        for (seed, options) in [
            (3, &["--cache=never", "--killpriv-v2"][..]),
            (4, &["--cache=always", "--writeback"]),
            (5, &["--cache=metadata", "--allow-mmap", "--killpriv-v2"]),
            (6, &["--inode-file-handles=never", "--no-readdirplus"]),
            (7, &["--rlimit-nofile=400", "--killpriv-v2"]),
        ] {
            let mut script = script::generate(seed, STEPS);
            script.retain(|step| client_differs(options, step).is_none());
            let native = natively(&script);
            let ours = through(&Implementation::Ours, options, &script);
            same(&format!("seed {seed}: natively, and through ours with {options:?}"), &native, &ours);
        }
    });
}

/// The same script gives the same lines on the same file system: else no difference would mean anything.
#[test]
fn scripts_are_deterministic() {
    let script = script::generate(8, 1000);
    bounded(LIMIT, || {
        let (a, b) = (natively(&script), natively(&script));
        same("twice natively", &a, &b);
    });
}
