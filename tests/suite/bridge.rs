//! Ordinary programs against the daemon under test, through the host kernel's FUSE client.
//!
//! `VIRTIOFSD_TEST_DAEMON` chooses another daemon than ours: `1.13.3`, `1.14.0`, `c`, or a path. Needs git, tar,
//! diffutils, sqlite3, fio and cargo.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::bounded::bounded;
use tests::bridge::{Bridge, BridgeOptions};
use tests::daemon::{Daemon, DaemonCommand, PATIENCE};
use tests::peers::Implementation;
use tests::program::program;
use tests::share::{Share, TempDir};

const LIMIT: Duration = Duration::from_secs(240);

fn start(share: &Share, queues: u16) -> Daemon {
    let daemon = Implementation::under_test();
    let command = DaemonCommand::serving(&daemon, share.path()).args(daemon.queue_arguments(queues));
    command.args(daemon.xattr_arguments()).start()
}

/// Runs `test` in a mount of a new share, with as many of `queues` request queues as the daemon has, and then
/// unmounts and ends all in the orderly way.
fn mounted(queues: u16, test: impl FnOnce(&Share, &Path) + Send) {
    bounded(LIMIT, || {
        let (share, mountpoint) = (Share::new(), TempDir::short());
        let queues = Implementation::under_test().request_queues(queues);
        let mut daemon = start(&share, queues);
        let bridge = Bridge::mount_with(&daemon, mountpoint.path(), BridgeOptions::with_queues(queues));
        test(&share, bridge.path());
        bridge.unmount().unwrap_or_else(|e| panic!("{e}"));
        let status = daemon.wait(PATIENCE);
        assert!(status.success(), "{status}\n{}", daemon.stderr());
    });
}

/// A tree with many small files, some large ones, links, long names, all kinds of modes. The same each time.
fn make_tree(root: &Path, dirs: usize, files: usize) {
    let mut state = 1u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for d in 0..dirs {
        let dir = root.join(format!("dir{}/sub{d}", d % 7));
        fs::create_dir_all(&dir).unwrap();
        for f in 0..files {
            let name = format!("{f}-{}", "n".repeat(random(180) as usize));
            let size = if random(50) == 0 { random(300_000) } else { random(5000) };
            let data: Vec<u8> = (0..size).map(|_| random(256) as u8).collect();
            fs::write(dir.join(&name), data).unwrap();
            let mode = [0o644, 0o600, 0o755, 0o444][random(4) as usize];
            fs::set_permissions(dir.join(&name), fs::Permissions::from_mode(mode)).unwrap();
            match random(20) {
                0 => symlink(format!("../{name}"), dir.join(format!("{f}-soft"))).unwrap(),
                1 => fs::hard_link(dir.join(&name), dir.join(format!("{f}-hard"))).unwrap(),
                _ => {}
            }
        }
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("our paths are text")
}

#[test]
fn both_sides_see_the_same() {
    mounted(1, |share, mount| {
        share.write("from-host", "host");
        assert_eq!(fs::read(mount.join("from-host")).unwrap(), b"host");
        fs::write(mount.join("from-guest"), "guest").unwrap();
        assert_eq!(share.read("from-guest"), b"guest");
        fs::create_dir(mount.join("dir")).unwrap();
        std::os::unix::fs::chown(mount.join("dir"), Some(1000), Some(1001)).unwrap();
        let on_host = fs::metadata(share.join("dir")).unwrap();
        assert_eq!((on_host.uid(), on_host.gid()), (1000, 1001));
        assert_ne!(fs::metadata(mount).unwrap().dev(), fs::metadata(share.path()).unwrap().dev());
    });
}

#[test]
fn a_tree_is_unpacked_and_compared() {
    mounted(2, |_, mount| {
        let native = TempDir::on_disk();
        make_tree(&native.path().join("tree"), 60, 50);
        let tar = native.path().join("tree.tar");
        program("tar", "tar")
            .args(["-cf", path_text(&tar), "-C", path_text(native.path()), "tree"])
            .succeed();
        program("tar", "tar").args(["-xpf", path_text(&tar), "-C", path_text(mount)]).succeed();
        let trees = [native.path().join("tree"), mount.join("tree")];
        program("diff", "diffutils").args(["-r", "--no-dereference"]).args(&trees).succeed();
        // Again with what tar itself sees: modes, owners, times, links.
        program("tar", "tar").args(["-df", path_text(&tar), "-C", path_text(mount)]).succeed();
        program("rm", "coreutils").args(["-r", path_text(&trees[1])]).succeed();
        assert_eq!(fs::read_dir(mount).unwrap().count(), 0);
    });
}

#[test]
fn git_clones_and_checks() {
    mounted(2, |_, mount| {
        let native = TempDir::on_disk();
        let origin = native.path().join("origin");
        make_tree(&origin, 30, 20);
        let git = |dir: &Path| {
            let git =
                program("git", "git").dir(dir).env("HOME", native.path()).env("GIT_CONFIG_NOSYSTEM", "1");
            git.args(["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "gc.auto=0"])
        };
        git(&origin).args(["init", "--quiet"]).succeed();
        git(&origin).args(["add", "--all"]).succeed();
        git(&origin).args(["commit", "--quiet", "--message=all"]).succeed();
        let clone = mount.join("clone");
        // Over its own protocol, not by linking files.
        let source = format!("file://{}", path_text(&origin));
        git(mount).args(["clone", "--quiet", &source, path_text(&clone)]).succeed();
        git(&clone).args(["fsck", "--strict"]).succeed();
        assert_eq!(git(&clone).args(["status", "--porcelain"]).succeed(), "");
        fs::write(clone.join("new"), "new").unwrap();
        git(&clone).args(["add", "new"]).succeed();
        git(&clone).args(["commit", "--quiet", "--message=new"]).succeed();
        git(&clone).args(["gc", "--quiet"]).succeed();
        git(&clone).args(["fsck", "--strict"]).succeed();
        program("diff", "diffutils")
            .args(["-r", "--no-dereference", "--exclude=.git", "--exclude=new"])
            .args([&origin, &clone])
            .succeed();
    });
}

#[test]
fn cargo_builds_a_crate() {
    mounted(2, |_, mount| {
        let krate = mount.join("krate");
        fs::create_dir_all(krate.join("src")).unwrap();
        fs::create_dir_all(krate.join("helper/src")).unwrap();
        let manifest = "[package]\nname = \"krate\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
                        [dependencies]\nhelper = { path = \"helper\" }\n[workspace]\n";
        fs::write(krate.join("Cargo.toml"), manifest).unwrap();
        let manifest = "[package]\nname = \"helper\"\nversion = \"0.1.0\"\nedition = \"2021\"\n";
        fs::write(krate.join("helper/Cargo.toml"), manifest).unwrap();
        fs::write(krate.join("helper/src/lib.rs"), "pub fn answer() -> u32 { 42 }\n").unwrap();
        fs::write(krate.join("src/main.rs"), "fn main() { println!(\"{}\", helper::answer()); }\n").unwrap();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let run = |text: &str| {
            let cargo = program(&cargo, "cargo").dir(&krate).env("CARGO_TARGET_DIR", krate.join("target"));
            assert_eq!(cargo.args(["run", "--quiet", "--offline"]).succeed().trim(), text);
        };
        run("42");
        fs::write(krate.join("helper/src/lib.rs"), "pub fn answer() -> u32 { 43 }\n").unwrap();
        run("43");
    });
}

#[test]
fn sqlite_in_wal_mode_with_concurrent_writers() {
    const WRITERS: usize = 4;
    const ROWS: usize = 100;
    mounted(2, |_, mount| {
        let database = mount.join("database");
        let sqlite = |sql: &str| {
            program("sqlite3", "sqlite3").args(["-bail", "-cmd", ".timeout 60000", path_text(&database), sql])
        };
        let mode = sqlite("PRAGMA journal_mode=WAL; CREATE TABLE t(writer, row, blob);").succeed();
        assert_eq!(mode.trim(), "wal");
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                scope.spawn(move || {
                    let rows = (0..ROWS)
                        .map(|row| format!("INSERT INTO t VALUES({writer}, {row}, randomblob(2000));"))
                        .collect::<String>();
                    sqlite(&rows).succeed();
                });
            }
        });
        let count = sqlite("SELECT count(*), count(DISTINCT writer), sum(length(blob)) FROM t;").succeed();
        let expected = format!("{}|{WRITERS}|{}", WRITERS * ROWS, WRITERS * ROWS * 2000);
        assert_eq!(count.trim(), expected);
        let check = sqlite("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA integrity_check;").succeed();
        assert_eq!(check.trim(), "0|0|0\nok");
    });
}

#[test]
fn fio_verifies_what_it_wrote() {
    mounted(2, |_, mount| {
        for (name, extra) in [
            ("random", ["--rw=randrw", "--bsrange=512-256k", "--fallocate=none"]),
            ("large", ["--rw=write", "--bs=1m", "--end_fsync=1"]),
            ("mapped", ["--rw=randwrite", "--bs=4k", "--ioengine=mmap"]),
        ] {
            program("fio", "fio")
                .args([
                    "--verify=crc32c",
                    "--verify_fatal=1",
                    "--do_verify=1",
                    "--verify_state_save=0",
                    "--size=16m",
                    "--numjobs=2",
                ])
                .args(["--allow_file_create=1", "--randrepeat=1", "--output-format=terse"])
                .args([&format!("--name={name}"), &format!("--directory={}", path_text(mount))])
                .args(extra)
                .succeed();
        }
        // Many requests in flight, past the page cache of the client.
        program("fio", "fio")
            .args([
                "--name=deep",
                "--rw=randrw",
                "--bs=16k",
                "--size=16m",
                "--ioengine=libaio",
                "--iodepth=32",
            ])
            .args(["--direct=1", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"])
            .args([format!("--directory={}", path_text(mount))])
            .succeed();
    });
}

#[test]
fn a_daemon_that_dies_leaves_errors_and_no_mount() {
    bounded(LIMIT, || {
        let (share, mountpoint) = (Share::new(), TempDir::short());
        share.write("file", "x");
        let mut daemon = start(&share, 1);
        let bridge = Bridge::mount(&daemon, mountpoint.path());
        assert_eq!(fs::read(mountpoint.path().join("file")).unwrap(), b"x");
        daemon.stop(Signal::SIGKILL);
        fs::read_dir(mountpoint.path()).unwrap_err();
        bridge.unmount().unwrap_err();
        assert_eq!(fs::read_dir(mountpoint.path()).unwrap().count(), 0, "the empty mount point is back");
    });
}

#[test]
fn a_stopped_daemon_does_not_block_the_unmount() {
    bounded(LIMIT, || {
        let (share, mountpoint) = (Share::new(), TempDir::short());
        let daemon = start(&share, 1);
        let bridge = Bridge::mount(&daemon, mountpoint.path());
        for pid in std::iter::once(daemon.pid()).chain(daemon.descendants()) {
            kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        }
        let path = mountpoint.path().join("anything");
        let before = bridge.forwarded();
        let waiting = thread::spawn(move || fs::metadata(path));
        while bridge.forwarded() == before {
            thread::yield_now();
        }
        // The bridge is dropped as in a test that panics.
        let panicked = thread::spawn(move || {
            let _bridge = bridge;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        panicked.join().unwrap_err();
        waiting.join().unwrap().unwrap_err();
        assert_eq!(fs::read_dir(mountpoint.path()).unwrap().count(), 0, "the empty mount point is back");
        drop(daemon);
    });
}

#[test]
fn the_command_mounts_and_unmounts() {
    bounded(LIMIT, || {
        let (share, mountpoint) = (Share::new(), TempDir::short());
        share.write("file", "x");
        let mut daemon = start(&share, 1);
        let mut command = Command::new(env!("CARGO_BIN_EXE_fuse-bridge"))
            .arg("--socket")
            .arg(daemon.socket())
            .arg("--mountpoint")
            .arg(mountpoint.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(command.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, format!("mounted {}\n", path_text(mountpoint.path())));
        assert_eq!(fs::read(mountpoint.path().join("file")).unwrap(), b"x");
        kill(Pid::from_raw(command.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(command.wait().unwrap().success());
        assert!(daemon.wait(PATIENCE).success());
        assert_eq!(fs::read_dir(mountpoint.path()).unwrap().count(), 0);
    });
}
