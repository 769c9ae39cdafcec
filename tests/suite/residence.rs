//! Many more inodes than file descriptors: cold inodes are sealed handles, and nobody may notice.
//!
//! `VIRTIOFSD_TEST_INODES=1000000 cargo test --release -p tests --test residence -- --nocapture looked_up` does the full
//! number in some minutes; the suite alone does 100,000.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::frontend::DeviceConfig;
use tests::fuse::wire::{self, opcode};
use tests::fuse::{Client, Session};
use tests::peers::Implementation;
use tests::share::{Share, TempDir};
use zerocopy::{FromBytes, IntoBytes};

const LIMIT: Duration = Duration::from_secs(180);
const ROOT: u64 = 1;

fn command(dir: &Path, options: &[&str]) -> DaemonCommand {
    DaemonCommand::serving(&Implementation::Ours, dir).args(options)
}

/// A session on a share, with one request queue, ended in the orderly way after the test.
fn with_session(options: &[&str], test: impl FnOnce(&Share, &mut Session) + Send) {
    bounded(LIMIT, || {
        let share = Share::new();
        let mut session = Session::start(command(share.path(), options), DeviceConfig::default());
        test(&share, &mut session);
        finish(session);
    });
}

fn finish(session: Session) {
    let (status, stderr) = session.finish();
    assert!(status.success(), "{status}\n{stderr}");
    assert!(!stderr.contains("ERROR"), "{stderr}");
}

/// The process that holds the inodes: the last of the broker's descendants.
fn worker(session: &Session) -> i32 {
    session.daemon.worker()
}

fn open_fds(session: &Session) -> usize {
    fs::read_dir(format!("/proc/{}/fd", worker(session))).unwrap().count()
}

/// Anonymous memory of the worker, in bytes.
fn memory(session: &Session) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", worker(session))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line RssAnon");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Makes files `0`, `1`, … with their number as contents, 10,000 a directory; returns their paths.
fn make_files(share: &Share, count: usize) -> Vec<String> {
    let paths: Vec<String> = (0..count).map(|n| format!("{}/{n}", n / 10_000)).collect();
    for dir in 0..count.div_ceil(10_000) {
        fs::create_dir_all(share.join(dir.to_string())).unwrap();
    }
    for (n, path) in paths.iter().enumerate() {
        fs::write(share.join(path), n.to_string()).unwrap();
    }
    paths
}

fn read_all(client: &mut Client, node: u64) -> Result<Vec<u8>, Errno> {
    let fh = client.open(node, libc::O_RDONLY)?.fh;
    let data = client.read(node, fh, 0, 4096);
    client.release(node, fh)?;
    data
}

/// Looks up so many other files that everything that is idle gets cold, and forgets them again.
fn push_out(share: &Share, client: &mut Client, count: usize) {
    let dir = share.join("others");
    fs::create_dir_all(&dir).unwrap();
    let parent = client.lookup(ROOT, "others").unwrap().nodeid;
    let mut nodes = Vec::new();
    for n in 0..count {
        fs::write(dir.join(n.to_string()), "").unwrap();
        nodes.push(client.lookup(parent, n.to_string()).unwrap().nodeid);
    }
    for node in nodes {
        client.forget(node, 1);
    }
    client.forget(parent, 1);
    fs::remove_dir_all(&dir).unwrap();
}

/// A permutation of `0..count` that jumps about.
fn shuffled(count: usize) -> impl Iterator<Item = usize> {
    let step = (count / 3..).find(|step| gcd(*step, count) == 1).expect("there are primes");
    (0..count).map(move |n| n * step % count)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Most bytes of memory for an inode that the guest knows.
const BYTES_AN_INODE: u64 = 200;
/// Requests in flight.
const DEPTH: usize = 16;

/// Looks up all files, which lie in directories of 10,000; node ids and inode numbers.
fn look_up(client: &mut Client, files: &[String]) -> Vec<(u64, u64)> {
    let (mut dir, mut parent_node) = ("", 0);
    let mut nodes = Vec::with_capacity(files.len());
    for path in files {
        let (parent, name) = path.split_once('/').unwrap();
        if dir != parent {
            (dir, parent_node) = (parent, client.lookup(ROOT, parent).unwrap().nodeid);
        }
        let entry = client.lookup(parent_node, name).unwrap_or_else(|e| panic!("{path}: {e}"));
        nodes.push((entry.nodeid, entry.attr.ino));
    }
    nodes
}

/// GETATTR of all nodes, several at a time, in an order that no cache foresees: each is the file that it was.
fn use_all(session: &mut Session, nodes: &[(u64, u64)]) {
    let client = session.client();
    let body = wire::GetAttrIn::default();
    let order: Vec<usize> = shuffled(nodes.len()).collect();
    for some in order.chunks(DEPTH) {
        let room = size_of::<wire::AttrOut>();
        let mut send = |n: &usize| (client.enqueue(opcode::GETATTR, nodes[*n].0, body.as_bytes(), room), *n);
        let sent: HashMap<u64, usize> = some.iter().map(&mut send).collect();
        client.queue_mut().flush();
        for _ in some {
            let (unique, reply) = client.collect_body();
            let n = sent[&unique];
            let reply = reply.unwrap_or_else(|e| panic!("{n}: {e}"));
            let attr = wire::AttrOut::read_from_bytes(&reply).unwrap().attr;
            assert_eq!((attr.ino, attr.size), (nodes[n].1, n.to_string().len() as u64), "{n}");
        }
    }
}

#[test]
fn more_files_are_looked_up_than_fds_exist() {
    let count = std::env::var("VIRTIOFSD_TEST_INODES").map_or(100_000, |text| text.parse().unwrap());
    bounded(Duration::from_secs(120 + count as u64 / 200), || {
        let share = Share::on_own_file_system(count);
        let files = make_files(&share, count);
        let daemon = command(share.path(), &["--rlimit-nofile=1024"]);
        let mut session = Session::start(daemon, DeviceConfig::default());
        let before = memory(&session);
        let begin = Instant::now();
        let nodes = look_up(session.client(), &files);
        let looked_up = begin.elapsed();
        let ids: BTreeSet<u64> = nodes.iter().map(|(node, _)| *node).collect();
        assert_eq!(ids.len(), count, "node ids differ");
        let each = memory(&session).saturating_sub(before) / count as u64;
        assert!(each <= BYTES_AN_INODE, "{each} bytes for each inode");
        assert!(open_fds(&session) < 1024);
        let begin = Instant::now();
        use_all(&mut session, &nodes);
        eprintln!(
            "{count} inodes: looked up in {looked_up:?}, {each} bytes each, {} fds; each used in {:?}",
            open_fds(&session),
            begin.elapsed()
        );
        for n in shuffled(count).step_by(1 + count / 2000) {
            assert_eq!(read_all(session.client(), nodes[n].0).unwrap(), n.to_string().as_bytes(), "{n}");
        }
        // Looked up again, each is the same node; and a listing finds what is known.
        for n in shuffled(count).step_by(1 + count / 2000) {
            assert_eq!(session.client().walk(&files[n]).unwrap().nodeid, nodes[n].0, "{n}");
        }
        for (node, _) in nodes {
            session.client().forget(node, u64::MAX);
        }
        finish(session);
    });
}

#[test]
fn a_number_that_is_used_again_is_another_file() {
    with_session(&["--rlimit-nofile=400"], |share, session| {
        let mut found = 0;
        for round in 0..20 {
            let name = format!("old-{round}");
            let old = share.write(&name, "old");
            let number = fs::metadata(&old).unwrap().ino();
            let client = session.client();
            let node = client.lookup(ROOT, &name).unwrap().nodeid;
            push_out(share, client, 800);
            fs::remove_file(&old).unwrap();
            // The host's file system gives the number to a new file sooner or later.
            let new = (0..200)
                .map(|n| share.write(format!("new-{round}-{n}"), format!("new {n}")))
                .find(|path| fs::metadata(path).unwrap().ino() == number);
            assert_eq!(client.getattr(node, None).unwrap_err(), Errno::ESTALE, "the old file is gone");
            let Some(new) = new else { continue };
            found += 1;
            let name = new.file_name().unwrap();
            let entry = client.lookup(ROOT, name).unwrap();
            assert_ne!(entry.nodeid, node, "an old node id must not lead to a new file");
            assert_eq!(read_all(client, entry.nodeid).unwrap(), fs::read(&new).unwrap());
            assert_eq!(client.getattr(node, None).unwrap_err(), Errno::ESTALE);
            assert_eq!(client.lookup(ROOT, name).unwrap().nodeid, entry.nodeid);
            client.forget(node, 1);
            client.forget(entry.nodeid, 1);
            assert!(client.getattr(entry.nodeid, None).is_ok(), "one reference is left");
            client.forget(entry.nodeid, 1);
            assert_eq!(client.getattr(entry.nodeid, None).unwrap_err(), Errno::EBADF);
        }
        assert!(found > 0, "no inode number was used again: the test shows nothing");
    });
}

#[test]
fn cold_inodes_follow_renames_and_links() {
    with_session(&["--rlimit-nofile=400"], |share, session| {
        share.write("dir/file", "text");
        let client = session.client();
        let (dir, file) = (client.walk("dir").unwrap().nodeid, client.walk("dir/file").unwrap().nodeid);
        push_out(share, client, 800);
        fs::rename(share.join("dir/file"), share.join("moved")).unwrap();
        fs::rename(share.join("dir"), share.join("other")).unwrap();
        fs::hard_link(share.join("moved"), share.join("other/linked")).unwrap();
        assert_eq!(read_all(client, file).unwrap(), b"text");
        push_out(share, client, 800);
        // By another name it is still the same node, cold or not.
        assert_eq!(client.lookup(dir, "linked").unwrap().nodeid, file);
        assert_eq!(client.lookup(ROOT, "moved").unwrap().nodeid, file);
        push_out(share, client, 800);
        client.rename((ROOT, "moved"), (dir, "back"), 0).unwrap();
        client.link(file, dir, "again").unwrap();
        assert_eq!(share.read("other/again"), b"text");
    });
}

#[test]
fn what_is_unlinked_lives_as_long_as_it_is_known() {
    with_session(&["--rlimit-nofile=400"], |share, session| {
        share.write("open", "open");
        share.write("known", "known");
        fs::create_dir(share.join("dir")).unwrap();
        let client = session.client();
        let [open, known, dir] =
            ["open", "known", "dir"].map(|name| client.lookup(ROOT, name).unwrap().nodeid);
        let fh = client.open(open, libc::O_RDWR).unwrap().fh;
        client.unlink(ROOT, "open").unwrap();
        client.unlink(ROOT, "known").unwrap();
        client.rmdir(ROOT, "dir").unwrap();
        push_out(share, client, 2000);
        assert_eq!(client.read(open, fh, 0, 100).unwrap(), b"open");
        for node in [open, known, dir] {
            assert_eq!(client.getattr(node, None).unwrap().attr.nlink, 0);
        }
        assert_eq!(read_all(client, known).unwrap(), b"known");
        client.release(open, fh).unwrap();
        for node in [open, known, dir] {
            client.forget(node, 1);
            assert_eq!(client.getattr(node, None).unwrap_err(), Errno::EBADF);
        }
    });
}

#[test]
fn open_files_take_the_place_of_idle_inodes() {
    with_session(&["--rlimit-nofile=400"], |share, session| {
        let files = make_files(share, 2000);
        let client = session.client();
        let nodes: Vec<u64> = files.iter().map(|path| client.walk(path).unwrap().nodeid).collect();
        let mut open = Vec::new();
        let error = loop {
            let n = open.len();
            match client.open(nodes[n], libc::O_RDONLY) {
                Ok(opened) => open.push(opened.fh),
                Err(e) => break e,
            }
        };
        assert_eq!(error, Errno::EMFILE);
        assert!(open.len() > 100, "{} files open", open.len());
        for (n, fh) in open.iter().enumerate() {
            assert_eq!(client.read(nodes[n], *fh, 0, 100).unwrap(), n.to_string().as_bytes());
            client.flush(nodes[n], *fh).unwrap();
        }
        // Nothing is made that could not be opened then.
        let mut made = Vec::new();
        let error = loop {
            match client.create(ROOT, format!("new-{}", made.len()), libc::O_RDWR, 0o644) {
                Ok(new) => made.push((new.entry.nodeid, new.open.fh)),
                Err(e) => break e,
            }
        };
        assert_eq!(error, Errno::EMFILE);
        assert!(!share.join(format!("new-{}", made.len())).exists());
        for (node, fh) in made {
            client.release(node, fh).unwrap();
        }
        // The front end still gets its fds in: rings stop and start, memory comes.
        session.with_queues(|device, queues| {
            let bases = device.stop().unwrap();
            device.resume(queues, &bases).unwrap();
        });
        let client = session.client();
        let idle = nodes.len() - 1;
        client.release(nodes[0], open[0]).unwrap();
        assert_eq!(read_all(client, nodes[idle]).unwrap(), idle.to_string().as_bytes());
        for (n, fh) in open.iter().enumerate().skip(1) {
            client.release(nodes[n], *fh).unwrap();
        }
        for (n, node) in nodes.iter().enumerate() {
            assert_eq!(client.getattr(*node, None).unwrap().attr.size, n.to_string().len() as u64);
        }
    });
}

#[test]
fn without_handles_the_fds_are_the_limit() {
    with_session(&["--rlimit-nofile=400", "--inode-file-handles=never"], |share, session| {
        let files = make_files(share, 600);
        let client = session.client();
        let mut nodes = Vec::new();
        let error = loop {
            match client.walk(&files[nodes.len()]) {
                Ok(entry) => nodes.push(entry.nodeid),
                Err(e) => break e,
            }
        };
        assert_eq!(error, Errno::EMFILE);
        assert!(nodes.len() > 100, "{} files known", nodes.len());
        for node in &nodes {
            client.getattr(*node, None).unwrap();
        }
        for node in nodes.drain(..100) {
            client.forget(node, 1);
        }
        client.walk(&files[0]).unwrap();
        session.with_queues(|device, queues| {
            let bases = device.stop().unwrap();
            device.resume(queues, &bases).unwrap();
        });
        session.client().getattr(nodes[0], None).unwrap();
    });
}

#[test]
fn a_new_session_starts_with_nothing() {
    with_session(&["--rlimit-nofile=400"], |share, session| {
        let files = make_files(share, 1000);
        for _ in 0..3 {
            let client = session.client();
            let nodes: Vec<u64> = files.iter().map(|path| client.walk(path).unwrap().nodeid).collect();
            client.destroy().unwrap();
            assert!(open_fds(session) < 100, "{} fds are left", open_fds(session));
            let client = session.client();
            client.init(wire::init::GUEST).unwrap();
            assert_eq!(client.getattr(nodes[999], None).unwrap_err(), Errno::EBADF);
        }
    });
}

/// All queues use the same few hundred files, of which only a part can be hot.
#[test]
fn many_queues_share_few_fds() {
    const FILES: usize = 900;
    const QUEUES: u16 = 4;
    bounded(LIMIT, || {
        let share = Share::new();
        let files = make_files(&share, FILES);
        let options = ["--rlimit-nofile=300", "--num-request-queues=4"];
        let config = DeviceConfig { request_queues: QUEUES, ..DeviceConfig::default() };
        let mut session = Session::start(command(share.path(), &options), config);
        let dir = session.client().lookup(ROOT, "0").unwrap().nodeid;
        std::thread::scope(|scope| {
            for (number, client) in session.clients.iter_mut().enumerate() {
                let files = &files;
                scope.spawn(move || use_at_random(client, dir, files, number as u64));
            }
        });
        let left = session.client().list(dir).unwrap().len();
        assert_eq!(left, FILES + 2);
        finish(session);
    });
}

/// Looks up, reads, renames to the same place and forgets, keeping up to a hundred nodes.
fn use_at_random(client: &mut Client, dir: u64, files: &[String], seed: u64) {
    let mut state = seed;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut known: Vec<(usize, u64)> = Vec::new();
    for _ in 0..6000 {
        if known.len() < 100 || random(2) == 0 {
            let n = random(files.len());
            let entry = client.lookup(dir, n.to_string()).unwrap_or_else(|e| panic!("look up {n}: {e}"));
            assert_eq!(entry.attr.size, n.to_string().len() as u64);
            known.push((n, entry.nodeid));
        }
        let (n, node) = known[random(known.len())];
        match random(4) {
            0 => assert_eq!(read_all(client, node), Ok(n.to_string().into_bytes()), "read {n}"),
            1 => {
                let attr =
                    client.getattr(node, None).unwrap_or_else(|e| panic!("attributes of {n}: {e}")).attr;
                assert_eq!(attr.size, n.to_string().len() as u64);
            }
            2 => {
                let set = wire::SetAttrIn { valid: wire::fattr::MODE, mode: 0o600, ..Default::default() };
                client.setattr(node, set).unwrap_or_else(|e| panic!("chmod {n}: {e}"));
            }
            _ => {
                let (_, node) = known.swap_remove(random(known.len()));
                client.forget(node, 1);
            }
        }
    }
    for (_, node) in known {
        client.forget(node, 1);
    }
}

/// Two file systems that number their files alike.
#[test]
fn handles_open_on_the_mount_they_are_of() {
    bounded(LIMIT, || {
        let share = Share::new();
        for name in ["a", "b"] {
            fs::create_dir(share.join(name)).unwrap();
            mount(Some("none"), &share.join(name), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            for n in 0..600 {
                share.write(format!("{name}/{n}"), format!("{name}{n}"));
            }
        }
        let daemon = command(share.path(), &["--rlimit-nofile=400"]);
        let mut session = Session::start(daemon, DeviceConfig::default());
        let client = session.client();
        let mut nodes = Vec::new();
        for n in 0..600 {
            for name in ["a", "b"] {
                let node = client.walk(&format!("{name}/{n}")).unwrap().nodeid;
                nodes.push((format!("{name}{n}"), node));
            }
        }
        for (text, node) in &nodes {
            assert_eq!(read_all(client, *node).unwrap(), text.as_bytes());
        }
        finish(session);
        for name in ["a", "b"] {
            umount2(&share.join(name), MntFlags::MNT_DETACH).unwrap();
        }
    });
}

/// overlayfs gives no handles unless it is mounted with `nfs_export`.
fn on_a_file_system_without_handles(test: impl FnOnce(&Path) + Send) {
    bounded(LIMIT, || {
        let (dir, mountpoint) = (TempDir::short(), TempDir::short());
        mount(Some("none"), dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        for name in ["lower", "upper", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let at = |name: &str| dir.path().join(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},nfs_export=off",
            at("lower"),
            at("upper"),
            at("work")
        );
        mount(Some("none"), mountpoint.path(), Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .unwrap();
        test(mountpoint.path());
        umount2(mountpoint.path(), MntFlags::MNT_DETACH).unwrap();
        umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn a_file_system_without_handles_keeps_its_fds() {
    on_a_file_system_without_handles(|dir| {
        let mut session =
            Session::start(command(dir, &["--inode-file-handles=prefer"]), DeviceConfig::default());
        for n in 0..300 {
            fs::write(dir.join(n.to_string()), n.to_string()).unwrap();
            let node = session.client().lookup(ROOT, n.to_string()).unwrap().nodeid;
            assert_eq!(read_all(session.client(), node).unwrap(), n.to_string().as_bytes());
        }
        finish(session);
    });
}

#[test]
fn mandatory_handles_are_mandatory() {
    on_a_file_system_without_handles(|dir| {
        let mut daemon = command(dir, &["--inode-file-handles=mandatory"]).start();
        let status = daemon.wait(PATIENCE);
        assert_eq!(status.code(), Some(1), "{}", daemon.stderr());
        assert!(daemon.stderr().contains("handle"), "{}", daemon.stderr());
    });
    with_session(&["--inode-file-handles=mandatory", "--rlimit-nofile=400"], |share, session| {
        let files = make_files(share, 600);
        for path in &files {
            session.client().walk(path).unwrap();
        }
    });
}
