//! Reads from `/proc` what broker and worker have left while they serve a guest, with default options and with
//! each option that keeps more.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tests::bounded::bounded;
use tests::daemon::DaemonCommand;
use tests::frontend::DeviceConfig;
use tests::fuse::Session;
use tests::fuse::wire::ROOT;
use tests::peers::Implementation;
use tests::procfs::{NAMESPACES, OpenFd, Status, namespace, open_fds};
use tests::share::Share;

const LIMIT: Duration = Duration::from_secs(60);

const CAP_SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

// Numbers of capabilities (linux/capability.h).
const CHOWN: u64 = 1 << 0;
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const FOWNER: u64 = 1 << 3;
const FSETID: u64 = 1 << 4;
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;
const SYS_ADMIN: u64 = 1 << 21;
const MKNOD: u64 = 1 << 27;
const SETFCAP: u64 = 1 << 31;

/// What `chown`, `setfsuid` and the like take in the worker's own user namespace; none of it reaches outside.
const WORKER_CAPS: u64 = CHOWN | DAC_OVERRIDE | FOWNER | FSETID | SETGID | SETUID | SETFCAP;

/// Where shifted ids begin (docs/architecture.md).
const SHIFTED_BASE: u64 = 1 << 31;

/// Serves with these options, does some work as a guest, and shows `look` the pids of broker and worker.
fn while_serving(options: &[&str], look: impl FnOnce(&Share, &mut Session, i32, i32) + Send) {
    bounded(LIMIT, || {
        let share = Share::new();
        share.write("dir/file", "x");
        let command = DaemonCommand::serving(&Implementation::Ours, share.path()).args(options);
        let mut session = Session::start(command, DeviceConfig::default());
        let client = session.client();
        let made = client.create(ROOT, "made", libc::O_RDWR, 0o100_644).unwrap();
        client.write(made.entry.nodeid, made.open.fh, 0, b"data").unwrap();
        client.walk("dir/file").unwrap();
        let (broker, children) = (session.daemon.pid(), session.daemon.descendants());
        let worker = session.daemon.worker();
        let known = [vec![worker], session.daemon.started_as("virtiofsd-follower")].concat();
        assert_eq!(children, known, "a broker has one child, and where mounts are shared another one");
        // The broker confines itself at the same time as its worker, before it hears from it.
        session.daemon.wait_for_stderr("Client connected, servicing requests", 1);
        look(&share, &mut session, broker, worker);
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
    });
}

#[test]
fn the_worker_has_nothing_in_the_host() {
    while_serving(&[], |_, _, broker, worker| {
        for kind in NAMESPACES {
            assert_ne!(namespace(worker, kind), namespace(broker, kind), "the {kind} namespace is shared");
        }
        let threads = Status::of_threads(worker);
        // At least the control thread and one for each of two queues.
        assert!(threads.len() >= 3, "{}", threads.len());
        for status in threads {
            for ids in ["Uid", "Gid"] {
                let ids = status.numbers(ids);
                assert!(ids.iter().all(|id| *id >= SHIFTED_BASE), "an id of the host: {ids:?}");
            }
            let groups = status.numbers("Groups");
            assert!(groups.iter().all(|id| *id >= SHIFTED_BASE), "a group of the host: {groups:?}");
            assert_eq!(status.field("NoNewPrivs"), "1");
            assert_eq!(status.field("Seccomp"), "2");
            // These count in its own user namespace only: it is not in the host's, see above.
            for set in CAP_SETS {
                let more = status.capabilities(set) & !WORKER_CAPS;
                assert_eq!(more, 0, "{set} of the worker has more than it needs: {more:#x}");
            }
            assert_eq!(status.capabilities("CapInh") | status.capabilities("CapAmb"), 0);
        }
        assert_eq!(Status::of(worker).numbers("NSpid"), [u64::try_from(worker).unwrap(), 1]);
    });
}

#[test]
fn the_worker_s_ids_are_outside_the_host_s_range() {
    while_serving(&[], |_, _, _, worker| {
        for map in ["uid_map", "gid_map"] {
            let text = fs::read_to_string(format!("/proc/{worker}/{map}")).unwrap();
            let numbers: Vec<u64> = text.split_ascii_whitespace().map(|n| n.parse().unwrap()).collect();
            let [inside, outside, count] = numbers[..] else { panic!("one line in {map}: {text}") };
            assert_eq!(inside, 0);
            assert!(outside >= SHIFTED_BASE && outside + count <= u64::from(u32::MAX), "{map}: {text}");
        }
    });
}

#[test]
fn the_worker_s_root_is_empty() {
    while_serving(&[], |share, _, _, worker| {
        let root = format!("/proc/{worker}/root/");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "the worker's root directory has entries");
        assert!(fs::write(Path::new(&root).join("made"), "").is_err(), "even root can't write there");
        // It works in its own directory of fds, a mount that leads nowhere else.
        let cwd = format!("/proc/{worker}/cwd");
        assert_eq!(fs::read_link(&cwd).unwrap(), Path::new("/"), "not the root of a detached mount");
        let own = fs::metadata(format!("/proc/{worker}/fd")).unwrap();
        let cwd = fs::metadata(cwd).unwrap();
        assert_eq!((cwd.dev(), cwd.ino()), (own.dev(), own.ino()), "a working directory elsewhere");
        let mounts = fs::read_to_string(format!("/proc/{worker}/mountinfo")).unwrap();
        let options = |line: &str| line.split_ascii_whitespace().nth(5).unwrap().to_owned();
        let (root, on_top): (Vec<&str>, Vec<&str>) =
            mounts.lines().partition(|line| line.contains(" - tmpfs none"));
        let (&[root], &[on_top]) = (&root[..], &on_top[..]) else {
            panic!("not the root and, on top of it, the share:\n{mounts}");
        };
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(options(root).split(',').any(|o| o == option), "no {option} in {mounts}");
        }
        for option in ["rw", "nosuid", "nodev", "noexec"] {
            assert!(options(on_top).split(',').any(|o| o == option), "no {option} in {mounts}");
        }
        let place = share.path().to_str().unwrap();
        assert!(on_top.split_ascii_whitespace().nth(3).is_some_and(|root| place.ends_with(root)), "{mounts}");
    });
}

/// Everything in the share, by device and inode.
fn identities(dir: &Path) -> BTreeSet<(u64, u64)> {
    let own = fs::symlink_metadata(dir).unwrap();
    let mut found = BTreeSet::from([(own.dev(), own.ino())]);
    if own.is_dir() {
        let entries = fs::read_dir(dir).unwrap();
        found.extend(entries.flat_map(|entry| identities(&entry.unwrap().path())));
    }
    found
}

#[test]
fn the_worker_s_fds_are_those_it_needs() {
    while_serving(&[], |share, session, _, worker| {
        let in_share = identities(share.path());
        let fds = open_fds(worker);
        let unexpected: Vec<&OpenFd> = fds.iter().filter(|fd| !is_needed(fd, worker, &in_share)).collect();
        assert!(unexpected.is_empty(), "the worker holds fds that it doesn't need: {unexpected:#?}");
        let count =
            |test: &dyn Fn(&str) -> bool| fds.iter().filter(|fd| test(&fd.link.to_string_lossy())).count();
        // Log, channel and the front end's connection: there is exactly one of each (and the front end's
        // memory and the back end's own channel).
        assert_eq!(count(&|link| link.starts_with("pipe:")), 1, "only the log is a pipe: {fds:#?}");
        assert_eq!(count(&|link| link.starts_with("socket:")), 3, "{fds:#?}");
        // Nobody listens any more: one front end, once.
        let second = UnixStream::connect(session.daemon.socket());
        assert_eq!(second.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

/// `PROC_SUPER_MAGIC`
const PROC: i64 = 0x9fa0;

fn is_needed(fd: &OpenFd, worker: i32, in_share: &BTreeSet<(u64, u64)>) -> bool {
    let link = fd.link.to_string_lossy();
    match fd.number {
        0 | 1 => return link == "/dev/null",
        2 => return link.starts_with("pipe:"),
        _ => {}
    }
    if fd.file_system == PROC {
        // Only its own fd directory, as the root of a mount, so that nothing is above it.
        let own = fs::metadata(format!("/proc/{worker}/fd")).unwrap();
        return fd.link == Path::new("/") && (own.dev(), own.ino()) == fd.identity;
    }
    in_share.contains(&fd.identity)
        || ["socket:", "anon_inode:[eventfd]", "anon_inode:[eventpoll]", "/memfd:guest-memory"]
            .iter()
            .any(|kind| link.starts_with(kind))
}

/// The broker has no capability but `permitted`, of which only `effective` stands.
fn broker_keeps(options: &[&str], permitted: u64, effective: u64) {
    while_serving(options, |_, _, broker, worker| {
        let status = Status::of(broker);
        assert_eq!(status.field("Threads"), "1");
        assert_eq!(status.field("NoNewPrivs"), "1", "{options:?}");
        assert_eq!(status.field("Seccomp"), "2", "{options:?}");
        for (set, expected) in CAP_SETS.into_iter().zip([0, permitted, effective, permitted, 0]) {
            assert_eq!(status.capabilities(set), expected, "{set} of the broker with {options:?}");
        }
        // Whatever the broker keeps, the worker gets none of it.
        for set in CAP_SETS {
            assert_eq!(
                Status::of(worker).capabilities(set) & !WORKER_CAPS,
                0,
                "{set} of the worker, {options:?}"
            );
        }
        assert_ne!(namespace(worker, "user"), namespace(broker, "user"), "{options:?}");
    });
}

#[test]
fn the_broker_keeps_what_enabled_requests_need() {
    broker_keeps(&[], DAC_READ_SEARCH, DAC_READ_SEARCH);
    broker_keeps(&["--inode-file-handles=never"], 0, 0);
    let device = DAC_READ_SEARCH | MKNOD | DAC_OVERRIDE | SETUID | SETGID;
    broker_keeps(&["--modcaps=+mknod"], device, DAC_READ_SEARCH);
    let trusted = DAC_READ_SEARCH | SYS_ADMIN;
    broker_keeps(&["--xattr", "--modcaps=+sys_admin"], trusted, DAC_READ_SEARCH);
}

#[test]
fn the_broker_s_fds_are_those_it_needs() {
    while_serving(&[], |share, _, broker, _| {
        let root = fs::metadata(share.path()).unwrap();
        for fd in open_fds(broker).iter().filter(|fd| fd.number > 2) {
            let link = fd.link.to_string_lossy();
            assert!(!link.contains("guest-memory"), "the broker holds guest memory: {fd:?}");
            if fd.identity.0 == root.dev()
                && fs::metadata(format!("/proc/{broker}/fd/{}", fd.number)).unwrap().is_dir()
            {
                assert_eq!(fd.identity.1, root.ino(), "a directory of the host: {fd:?}");
            }
        }
        let maps = fs::read_to_string(format!("/proc/{broker}/maps")).unwrap();
        assert!(!maps.contains("guest-memory"), "the broker maps guest memory:\n{maps}");
    });
}

/// What the log says of the confinement with these options; for Landlock only what the options did, since what the
/// kernel's lacks depends on the kernel.
fn layers_reported(options: &[&str]) -> Vec<String> {
    let mut reported = Vec::new();
    bounded(LIMIT, || {
        let share = Share::new();
        let command = DaemonCommand::serving(&Implementation::Ours, share.path()).args(options);
        let (status, stderr) = Session::start(command, DeviceConfig::default()).finish();
        assert!(status.success(), "{status}\n{stderr}");
        let lines = stderr.lines().filter_map(|line| line.split_once("confinement: "));
        for (level, report) in lines {
            assert!(level.contains("WARN"), "{report}");
            match report.strip_prefix("Landlock: weakened: ") {
                // Whole, however much is missing.
                Some(reason) => assert!(reason.ends_with("not enabled") || reason.ends_with(')'), "{reason}"),
                None => reported.push(report.to_owned()),
            }
        }
    });
    reported
}

#[test]
fn each_missing_layer_is_named_once_with_its_reason() {
    let namespaces = ["user", "mount", "pid", "network", "IPC", "UTS", "cgroup"];
    let without = |option: &str| {
        let namespaces = namespaces.iter().map(|name| format!("{name} namespace: missing: {option}"));
        namespaces.chain([format!("shifted ids: missing: {option}")]).collect::<Vec<String>>()
    };
    assert_eq!(layers_reported(&[]), [""; 0]);
    assert_eq!(layers_reported(&["--seccomp=trap", "--landlock=full", "--xattr"]), [""; 0]);
    assert_eq!(layers_reported(&["--sandbox=chroot"]), without("--sandbox=chroot"));
    let mut none = without("--sandbox=none");
    none.push("empty root directory: missing: --sandbox=none".to_owned());
    assert_eq!(layers_reported(&["--sandbox=none"]), none);
    for (option, report) in [
        ("--seccomp=none", "seccomp filter: missing: --seccomp=none"),
        ("--seccomp=log", "seccomp filter: weakened: --seccomp=log only logs"),
        ("--landlock=off", "Landlock: missing: --landlock=off"),
        (
            "--worker-ids=identity",
            "shifted ids: missing: the worker's ids are the host's own, in a user namespace",
        ),
    ] {
        assert_eq!(layers_reported(&[option]), [report], "{option}");
    }
    let both = ["--landlock=off", "--seccomp=none"].map(|option| (option, layers_reported(&[option])));
    let expected: Vec<String> = both.iter().flat_map(|(_, reports)| reports.clone()).collect();
    assert_eq!(layers_reported(&["--landlock=off", "--seccomp=none"]), expected);
}
