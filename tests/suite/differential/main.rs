//! One script, three file systems: the host's own, the same through upstream's daemon, and through ours. Every
//! result, every errno and the trees that are left, as the host sees them, must be the same.
//!
//! `VIRTIOFSD_TEST_SEEDS=1,2,3` chooses other scripts than the usual ones.

use std::path::Path;
use std::time::Duration;

use tests::bounded::bounded;
use tests::bridge::Bridge;
use tests::chores;
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::peers::{Implementation, UpstreamVersion};
use tests::script::{self, Op, Run, Step, world};
use tests::share::{Share, TempDir};

const LIMIT: Duration = Duration::from_secs(400);
/// Steps of a script.
const STEPS: usize = 4000;

fn natively(script: &[Step]) -> Run {
    Run::here(Share::new().path(), script)
}

fn through(daemon: &Implementation, options: &[&str], script: &[Step]) -> Run {
    through_mount(daemon, options, |root| world::run(root, script))
}

/// Works in a mount of a new share; the tree is what the host finds then.
fn through_mount(daemon: &Implementation, options: &[&str], work: impl FnOnce(&Path) -> Vec<String>) -> Run {
    let (share, mountpoint) = (Share::new(), TempDir::short());
    let command = DaemonCommand::serving(daemon, share.path()).args(["--xattr"]).args(options);
    let mut daemon = command.start();
    let bridge = Bridge::mount(&daemon, mountpoint.path());
    let lines = work(bridge.path());
    bridge.unmount().unwrap_or_else(|e| panic!("{e}"));
    assert!(daemon.wait(PATIENCE).success(), "{}", daemon.stderr());
    Run { lines, tree: world::tree(share.path()) }
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
            native.must_equal(&format!("seed {seed}: natively, and through ours"), &ours);
            let script = for_upstream(&script);
            let upstream = Implementation::Upstream(UpstreamVersion::V1_13_3);
            let upstream = through(&upstream, &[], &script);
            let ours = through(&Implementation::Ours, &[], &script);
            upstream.must_equal(&format!("seed {seed}: through upstream, and ours"), &ours);
        }
        // Past the page cache, only killpriv-v2 tells whether a write clears set-id bits.
        for (seed, options) in [
            (3, &["--cache=never", "--killpriv-v2"][..]),
            (4, &["--cache=always", "--writeback"]),
            (5, &["--cache=metadata", "--allow-mmap", "--killpriv-v2"]),
            (6, &["--inode-file-handles=never", "--no-readdirplus"]),
            (7, &["--rlimit-nofile=400", "--killpriv-v2"]),
        ] {
            let script = script::for_client(seed, STEPS, options);
            let native = natively(&script);
            let ours = through(&Implementation::Ours, options, &script);
            native.must_equal(&format!("seed {seed}: natively, and through ours with {options:?}"), &ours);
        }
    });
}

/// Also what takes more than single calls, or more than one thread.
#[test]
fn chores_are_done_as_natively() {
    bounded(LIMIT, || {
        let native = {
            let share = Share::new();
            let lines = chores::run(share.path());
            Run { lines, tree: world::tree(share.path()) }
        };
        for options in [
            &["--cache=auto"][..],
            &["--cache=always"],
            &["--cache=always", "--writeback", "--allow-direct-io"],
            &["--cache=never", "--allow-mmap"],
            &["--cache=metadata", "--allow-mmap", "--no-readdirplus"],
        ] {
            let ours = through_mount(&Implementation::Ours, options, chores::run);
            native.must_equal(&format!("natively, and through ours with {options:?}"), &ours);
        }
    });
}

/// The same script gives the same lines on the same file system: else no difference would mean anything.
#[test]
fn scripts_are_deterministic() {
    let script = script::generate(8, 1000);
    bounded(LIMIT, || {
        let (a, b) = (natively(&script), natively(&script));
        a.must_equal("twice natively", &b);
    });
}
