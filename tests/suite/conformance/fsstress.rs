//! What fsstress does: several processes at once, each with thousands of random operations on the same names.
//!
//! fsstress itself can't be had: it is built from the sources of LTP or xfstests, which no Debian release packages
//! (as of Debian 13), and no package registry has it. It judges nothing that it sees, either: the file system has
//! survived, and a checker of its on-disk format finds nothing. So this is as good, and looks closer: the operations
//! are those of the differential scripts (as many kinds as fsstress has for a file system without ioctls of its own),
//! and in the end the tree as the guest's kernel has it in its caches, the same mounted anew, and the tree on the
//! host must be equal, file by file. That single operations do what they should is the differential suite's matter.

use std::path::Path;
use std::thread;
use std::time::Duration;

use tests::bridge::{Bridge, BridgeOptions};
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::peers::Implementation;
use tests::program::program;
use tests::script::{must_leave_the_same, world};
use tests::share::{Share, TempDir};

use super::LIMIT;

const PROCESSES: u64 = 6;
const STEPS: &str = "3000";

/// All processes at once, in the same directory.
fn stress(dir: &Path, seed: u64) {
    thread::scope(|scope| {
        for process in 0..PROCESSES {
            scope.spawn(move || {
                let seed = (seed * 1000 + process).to_string();
                let work = program(env!("CARGO_BIN_EXE_guest-work"), "(this crate)");
                let said =
                    work.args(["steps", &seed, STEPS]).arg(dir).limit(Duration::from_secs(200)).succeed();
                // Names are few, so that processes meet: many steps find nothing, or what another one made.
                let done = said.lines().filter(|line| line.contains("-> Ok")).count();
                assert!(done > 300, "only {done} steps did anything");
            });
        }
    });
}

fn through_the_bridge(seed: u64, options: &[&str]) {
    tests::bounded::bounded(LIMIT, || {
        let (share, mountpoint) = (Share::new(), TempDir::short());
        for round in 0..2 {
            let daemon = Implementation::under_test();
            let queues = daemon.request_queues(3);
            let command = DaemonCommand::serving(&daemon, share.path()).args(["--xattr"]).args(options);
            let mut daemon = command.args(daemon.queue_arguments(queues)).start();
            let bridge = Bridge::mount_with(&daemon, mountpoint.path(), BridgeOptions::with_queues(queues));
            if round == 0 {
                stress(bridge.path(), seed);
            }
            let what = format!("round {round} with {options:?}: on the host, and through the daemon");
            let seen = world::tree(bridge.path());
            assert!(seen.len() > 10, "{what}: {} files left", seen.len());
            must_leave_the_same(&what, &world::tree(share.path()), &seen);
            bridge.unmount().unwrap_or_else(|e| panic!("{e}"));
            assert!(daemon.wait(PATIENCE).success(), "{}", daemon.stderr());
        }
    });
}

#[test]
fn many_processes_leave_what_the_host_sees() {
    through_the_bridge(1, &["--cache=auto"]);
    through_the_bridge(2, &["--cache=always"]);
    through_the_bridge(3, &["--cache=always", "--writeback"]);
    through_the_bridge(4, &["--cache=never", "--rlimit-nofile=400"]);
}
