//! Conformance to a native file system, by the test programs that file systems are judged by, through the host
//! kernel's FUSE client.
//!
//! pjdfstest runs natively and through the daemon and is compared test by test. fsx, fio and stress-ng check
//! what they read themselves. In the place of fsstress, many processes run random operations at once.
//!
//! Needs `fetch-peers`, and Debian's stress-ng and fio.

mod fsstress;
mod pjdfstest;

use std::path::Path;
use std::time::Duration;

use tests::bounded::bounded;
use tests::bridge::{Bridge, BridgeOptions};
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::peers::Implementation;
use tests::program::program;
use tests::share::{Share, TempDir};
use tests::tools::FSX;

const LIMIT: Duration = Duration::from_secs(400);

/// Runs `test` in a mount of a new share that the daemon serves with these options.
fn mounted<T: Send>(options: &[&str], test: impl FnOnce(&Share, &Path) -> T + Send) -> T {
    bounded(LIMIT, || {
        let (share, mountpoint) = (Share::new(), TempDir::short());
        let daemon = Implementation::under_test();
        let queues = daemon.request_queues(2);
        let command = DaemonCommand::serving(&daemon, share.path()).args(options);
        let mut daemon = command.args(daemon.queue_arguments(queues)).start();
        let bridge = Bridge::mount_with(&daemon, mountpoint.path(), BridgeOptions::with_queues(queues));
        let result = test(&share, bridge.path());
        bridge.unmount().unwrap_or_else(|e| panic!("{e}"));
        let status = daemon.wait(PATIENCE);
        assert!(status.success(), "{status}\n{}", daemon.stderr());
        result
    })
}

/// Everything that fsx can do, also through mappings and with the file opened again; no write is as large as the
/// file, so that what lies around it is checked.
const FSX_CONFIG: &str = "flen = 262144\n[opsize]\nmax = 65536\nmin = 0\nalign = 1\n[weights]\nclose_open = 2\n\
                          read = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ntruncate = 10\ninvalidate = 1\n\
                          fsync = 1\nfdatasync = 1\nposix_fallocate = 1\npunch_hole = 1\n\
                          sendfile = 1\ncopy_file_range = 5\n";

fn fsx(options: &[&str], seed: &str) {
    mounted(options, |_, mount| {
        let own = TempDir::on_disk();
        let config = own.path().join("fsx.toml");
        std::fs::write(&config, FSX_CONFIG).unwrap();
        program(FSX.binary(), "(fetch-peers)")
            .args(["-N", "4000", "-S", seed, "-P"])
            .arg(own.path())
            .args(["-f".as_ref(), config.as_os_str(), mount.join("file").as_os_str()])
            .limit(Duration::from_secs(300))
            .succeed();
    });
}

#[test]
fn fsx_with_each_cache_policy() {
    fsx(&["--cache=auto"], "1");
    fsx(&["--cache=always"], "2");
    fsx(&["--cache=never", "--allow-mmap"], "3");
    fsx(&["--cache=metadata", "--allow-mmap"], "4");
}

#[test]
fn fsx_with_writeback() {
    fsx(&["--cache=auto", "--writeback"], "5");
    fsx(&["--cache=always", "--writeback", "--allow-direct-io"], "6");
}

#[test]
fn fio_verifies_with_each_cache_policy() {
    for options in [
        &["--cache=always", "--writeback"][..],
        &["--cache=never", "--allow-direct-io"],
        &["--cache=auto", "--allow-direct-io"],
    ] {
        mounted(options, |_, mount| {
            // fio leaves its own notes where it runs.
            let own = TempDir::on_disk();
            for (name, kind) in [
                ("buffered", ["--rw=randrw", "--bsrange=512-128k", "--ioengine=psync", "--fsync=32"]),
                ("direct", ["--rw=randrw", "--bs=4k", "--ioengine=libaio", "--direct=1"]),
                ("deep", ["--rw=write", "--bs=64k", "--ioengine=libaio", "--iodepth=16"]),
            ] {
                program("fio", "fio")
                    .args([
                        "--verify=crc32c",
                        "--verify_fatal=1",
                        "--do_verify=1",
                        "--size=8m",
                        "--numjobs=2",
                    ])
                    .args(["--randrepeat=1", "--output-format=terse", &format!("--name={name}")])
                    .arg("--directory")
                    .arg(mount)
                    .args(kind)
                    .dir(own.path())
                    .succeed();
            }
        });
    }
}

/// Stressors of files and directories, with a bounded number of operations each. Left out are those of other
/// things than a share (binderfs, dnotify, fanotify, procfs …) and of what no option turns on here (chattr).
const STRESSORS: &[(&str, u32)] = &[
    ("access", 200),
    ("chdir", 200),
    ("chmod", 200),
    ("chown", 200),
    ("copy-file", 30),
    ("dentry", 500),
    ("dir", 300),
    ("dirdeep", 200),
    ("dirmany", 200),
    ("fallocate", 20),
    ("fpunch", 20),
    ("fstat", 200),
    ("getdent", 300),
    ("hdd", 200),
    ("iomix", 300),
    ("link", 100),
    ("mknod", 100),
    ("open", 300),
    ("rename", 500),
    ("seek", 300),
    ("symlink", 100),
    ("touch", 300),
    ("utime", 300),
    ("xattr", 30),
];

#[test]
fn stress_ng_finds_nothing_wrong() {
    mounted(&["--xattr", "--modcaps=+mknod"], |_, mount| {
        for (stressor, operations) in STRESSORS {
            program("stress-ng", "stress-ng")
                .args(["--verify", "--timeout", "20", "--metrics-brief", "--temp-path"])
                .arg(mount)
                .args([format!("--{stressor}"), "2".into()])
                .args([format!("--{stressor}-ops"), operations.to_string()])
                .succeed();
        }
    });
}
