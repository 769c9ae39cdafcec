//! Many inodes, most of them cold: how long a migration takes, and that the guest is served meanwhile.
//!
//! `VIRTIOFSD_TEST_INODES=1000000 cargo test --release -p tests --test migration -- --nocapture many_inodes` does the
//! million of which docs/migration.md has the figures, in some minutes; the suite alone does 30,000. What it prints is
//! what it measured.

use std::fs;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use tests::bounded::bounded;
use tests::daemon::Daemon;
use tests::frontend::DeviceConfig;
use tests::fuse::wire::ROOT;
use tests::fuse::{Client, Session};
use tests::share::Share;

use super::{LIMIT, Mode, OURS, command, migrate};

/// Files in a directory.
const IN_A_DIRECTORY: usize = 10_000;
/// Requests that must be served while a migration is being prepared.
const LEAST_SERVED: usize = 20;

/// Makes `count` files and looks all of them up; node ids and inode numbers.
fn look_up(share: &Share, client: &mut Client, count: usize) -> Vec<(u64, u64)> {
    let mut nodes = Vec::with_capacity(count);
    for directory in 0..count.div_ceil(IN_A_DIRECTORY) {
        let name = format!("directory {directory}");
        let parent = client.lookup(ROOT, &name).unwrap().nodeid;
        for file in 0..IN_A_DIRECTORY.min(count - nodes.len()) {
            let entry = client.lookup(parent, format!("file {file}")).unwrap();
            nodes.push((entry.nodeid, entry.attr.ino));
        }
    }
    share.write("to and fro", "");
    nodes
}

fn furnish(share: &Share, count: usize) {
    for directory in 0..count.div_ceil(IN_A_DIRECTORY) {
        let path = share.join(format!("directory {directory}"));
        fs::create_dir(&path).unwrap();
        for file in 0..IN_A_DIRECTORY.min(count - directory * IN_A_DIRECTORY) {
            fs::File::create(path.join(format!("file {file}"))).unwrap();
        }
    }
}

/// How long requests of one kind took.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn measure(&mut self, request: impl FnOnce()) {
        let begin = Instant::now();
        request();
        self.0.push(begin.elapsed());
    }

    fn told(mut self) -> String {
        self.0.sort_unstable();
        let at = |part: f64| self.0[((self.0.len() - 1) as f64 * part) as usize];
        format!("{} served, median {:?}, p99 {:?}, longest {:?}", self.0.len(), at(0.5), at(0.99), at(1.0))
    }
}

/// A number of the worker's `/proc/PID/status`, in KiB.
fn memory(daemon: &Daemon, field: &str) -> u64 {
    let worker = daemon.worker();
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// From here on `VmHWM` begins anew.
fn forget_peak(daemon: &Daemon) {
    let worker = daemon.worker();
    fs::write(format!("/proc/{worker}/clear_refs"), "5").unwrap();
}

/// Uses the device while a migration is being prepared; what the requests took.
fn use_meanwhile(session: &mut Session, nodes: &[(u64, u64)]) -> (Times, Times) {
    let (mut reads, mut renames) = (Times::default(), Times::default());
    let mut step = 0;
    while !session.daemon.stderr().contains("migration: prepared") {
        let client = session.client();
        for _ in 0..8 {
            let (node, ino) = nodes[step * 7919 % nodes.len()];
            reads.measure(|| assert_eq!(client.getattr(node, None).unwrap().attr.ino, ino));
            step += 1;
        }
        renames.measure(|| client.rename((ROOT, "to and fro"), (ROOT, "fro and to"), 0).unwrap());
        renames.measure(|| client.rename((ROOT, "fro and to"), (ROOT, "to and fro"), 0).unwrap());
    }
    (reads, renames)
}

fn many(count: usize, mode: Mode, share: &Share) {
    let mut session = Session::start(command(&OURS, share, mode), DeviceConfig::default());
    let nodes = look_up(share, session.client(), count);
    let before = memory(&session.daemon, "VmRSS");
    forget_peak(&session.daemon);
    session.with_queues(|device, queues| device.start_log(queues)).unwrap();
    let begin = Instant::now();
    if mode == Mode::FindPaths {
        let (reads, renames) = use_meanwhile(&mut session, &nodes);
        let prepared = begin.elapsed();
        assert!(reads.0.len() >= LEAST_SERVED, "{} requests were served meanwhile", reads.0.len());
        eprintln!(
            "{mode:?}: prepared in {prepared:?}\n  GETATTR: {}\n  RENAME: {}",
            reads.told(),
            renames.told()
        );
    }
    let prepared = memory(&session.daemon, "VmHWM");
    forget_peak(&session.daemon);
    let begin = Instant::now();
    let (state, bases) = session.save().unwrap();
    let saved = begin.elapsed();
    let peak = memory(&session.daemon, "VmHWM");
    let destination = command(&OURS, share, mode).start();
    let begin = Instant::now();
    let loaded = session.load(destination, DeviceConfig::default(), &state, &bases);
    let (mut session, source) = loaded.unwrap_or_else(|no| panic!("{}", no.destination.stderr()));
    eprintln!(
        "{mode:?}, {count} inodes: saved in {saved:?}, {} bytes, loaded in {:?}; the worker at the source had {before} kB, \
         while preparing at most {prepared} kB, while saving {peak} kB; at the destination it has {} kB, had at most {} kB",
        state.len(),
        begin.elapsed(),
        memory(&session.daemon, "VmRSS"),
        memory(&session.daemon, "VmHWM"),
    );
    drop(source);
    for (node, ino) in nodes {
        let attr = session.client().getattr(node, None).unwrap_or_else(|e| panic!("node {node}: {e}")).attr;
        assert_eq!(attr.ino, ino);
    }
    assert!(session.finish().0.success());
}

#[test]
fn many_inodes_while_the_guest_goes_on() {
    let count = std::env::var("VIRTIOFSD_TEST_INODES").map_or(30_000, |text| text.parse().unwrap());
    bounded(LIMIT + Duration::from_millis(2 * count as u64), || {
        let share = Share::on_own_file_system(count);
        furnish(&share, count);
        many(count, Mode::FindPaths, &share);
        many(count, Mode::FileHandles, &share);
    });
}

/// The front end may change its mind at any time, and is not kept waiting.
#[test]
fn a_preparation_is_cancelled_at_once() {
    const FILES: usize = 30_000;
    bounded(LIMIT, || {
        let share = Share::on_own_file_system(FILES);
        furnish(&share, FILES);
        let daemon = command(&OURS, &share, Mode::FindPaths).args(["--rlimit-nofile=512"]);
        let mut session = Session::start(daemon, DeviceConfig::default());
        let nodes = look_up(&share, session.client(), FILES);
        for round in 0..20 {
            session.with_queues(|device, queues| device.start_log(queues)).unwrap();
            // Each time at another moment of the preparation.
            for (node, ino) in nodes.iter().take(round * 20) {
                assert_eq!(session.client().getattr(*node, None).unwrap().attr.ino, *ino);
            }
            session.with_queues(|device, queues| device.stop_log(queues)).unwrap();
        }
        // What is left of a preparation that did not come far is looked for in the end.
        session.with_queues(|device, queues| device.start_log(queues)).unwrap();
        let (mut session, _source) = migrate(session, command(&OURS, &share, Mode::FindPaths));
        for (node, ino) in nodes.iter().step_by(100) {
            assert_eq!(session.client().getattr(*node, None).unwrap().attr.ino, *ino);
        }
    });
}

/// More cold inodes than are opened for their paths, in directories that the guest does not know any more.
#[test]
fn cold_inodes_of_forgotten_directories_are_found() {
    const FILES: usize = 6_000;
    bounded(LIMIT, || {
        let share = Share::new();
        for file in 0..FILES {
            share.write(format!("a/b {}/c/{file}", file % 3), file.to_string());
        }
        let small = || command(&OURS, &share, Mode::FindPaths).args(["--rlimit-nofile=512"]);
        let mut session = Session::start(small(), DeviceConfig::default());
        let client = session.client();
        let a = client.lookup(ROOT, "a").unwrap().nodeid;
        let mut nodes = Vec::new();
        for number in 0..3 {
            let b = client.lookup(a, format!("b {number}")).unwrap().nodeid;
            let c = client.lookup(b, "c").unwrap().nodeid;
            for file in (number..FILES).step_by(3) {
                let entry = client.lookup(c, file.to_string()).unwrap();
                nodes.push((file, entry.nodeid, entry.attr.ino));
            }
            client.forget(c, 1);
            client.forget(b, 1);
        }
        client.forget(a, 1);
        session.with_queues(|device, queues| device.start_log(queues)).unwrap();
        let (mut session, source) = migrate(session, small());
        drop(source);
        let client = session.client();
        for (file, node, ino) in nodes {
            assert_eq!(client.getattr(node, None).unwrap_or_else(|e| panic!("{file}: {e}")).attr.ino, ino);
        }
        assert!(session.finish().0.success());
    });
}

#[test]
fn cold_inodes_and_submounts_come_along() {
    for mode in [Mode::FindPaths, Mode::FileHandles] {
        bounded(LIMIT, || {
            const FILES: usize = 3000;
            let share = Share::new();
            fs::create_dir(share.join("mount")).unwrap();
            let tmpfs: Option<&str> = Some("tmpfs");
            mount(tmpfs, &share.join("mount"), tmpfs, MsFlags::empty(), None::<&str>).unwrap();
            for file in 0..FILES {
                share.write(format!("files/{file}"), file.to_string());
            }
            share.write("mount/inner", "inner");
            let small = |daemon| command(daemon, &share, mode).args(["--rlimit-nofile=512"]);
            let mut session = Session::start(small(&OURS), DeviceConfig::default());
            let client = session.client();
            let inner = client.walk("mount/inner").unwrap();
            let files = client.lookup(ROOT, "files").unwrap().nodeid;
            let nodes: Vec<(u64, u64)> = (0..FILES)
                .map(|file| client.lookup(files, file.to_string()).unwrap())
                .map(|entry| (entry.nodeid, entry.attr.ino))
                .collect();
            let (mut session, _source) = migrate(session, small(&OURS));
            let client = session.client();
            for (file, (node, ino)) in nodes.iter().enumerate() {
                assert_eq!(client.getattr(*node, None).unwrap().attr.ino, *ino);
                if file % 100 == 0 {
                    let fh = client.open(*node, libc::O_RDONLY).unwrap().fh;
                    assert_eq!(client.read(*node, fh, 0, 10).unwrap(), file.to_string().as_bytes());
                    client.release(*node, fh).unwrap();
                }
            }
            let attr = client.getattr(inner.nodeid, None).unwrap().attr;
            assert_eq!((attr.ino, attr.size), (inner.attr.ino, 5));
            assert!(session.finish().0.success());
            nix::mount::umount(&share.join("mount")).unwrap();
        });
    }
}
