//! Several tenants on one host: limits of one device, and what one device's daemon can do to another's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::frontend::{DeviceConfig, Queue, Shape};
use tests::fuse::wire::{self, IN_HEADER, OUT_HEADER, ROOT, opcode};
use tests::fuse::{Client, Session};
use tests::peers::Implementation;
use tests::share::Share;
use zerocopy::IntoBytes;

const LIMIT: Duration = Duration::from_secs(60);

fn session(share: &Share, options: &[&str]) -> Session {
    let command = DaemonCommand::serving(&Implementation::Ours, share.path()).args(options);
    Session::start(command, DeviceConfig::default())
}

fn finish(session: Session) {
    let (status, stderr) = session.finish();
    assert!(status.success(), "{status}\n{stderr}");
}

/// Puts a GETATTR of the root into the ring, if there is a free slot.
fn submit_getattr(queue: &mut Queue) -> bool {
    let Some(slot) = queue.take() else { return false };
    let body = wire::GetAttrIn { getattr_flags: 0, dummy: 0, fh: 0 };
    let len = (IN_HEADER + size_of_val(&body)) as u32;
    let (uid, gid, pid) = (0, 0, 1);
    let opcode = opcode::GETATTR;
    let header =
        wire::InHeader { len, opcode, unique: 2, nodeid: ROOT, uid, gid, pid, total_extlen: 0, padding: 0 };
    let shape = Shape::new(len, 0, (OUT_HEADER + size_of::<wire::AttrOut>()) as u32, 0);
    let buffer = queue.request(slot);
    buffer.write(shape.start as usize, header.as_bytes());
    buffer.write(shape.start as usize + IN_HEADER, body.as_bytes());
    queue.submit(slot, shape);
    true
}

/// Keeps a queue full until told to stop; how many requests were served.
fn flood(queue: &mut Queue, stop: &AtomicBool) -> u64 {
    let mut served = 0;
    while !stop.load(Ordering::Relaxed) {
        while submit_getattr(queue) {}
        queue.flush();
        let done = queue.wait().expect("a reply");
        queue.put(done.slot);
        served += 1;
    }
    while queue.in_flight() > 0 {
        let done = queue.wait().expect("a reply");
        queue.put(done.slot);
    }
    served
}

#[test]
fn requests_and_bytes_are_served_at_their_rate() {
    bounded(LIMIT, || {
        let share = Share::new();
        fs::write(share.path().join("file"), vec![7; 1 << 20]).unwrap();
        let mut limited = session(&share, &["--limit-ops=200/5"]);
        let start = Instant::now();
        for _ in 0..65 {
            limited.client().getattr(ROOT, None).unwrap();
        }
        // INIT and the burst come at once; 60 come at 5 ms each.
        assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
        finish(limited);

        let mut limited = session(&share, &["--limit-bandwidth=1M/4K"]);
        let file = limited.client().lookup(ROOT, "file").unwrap();
        let open = limited.client().open(file.nodeid, libc::O_RDONLY).unwrap();
        let start = Instant::now();
        for _ in 0..4 {
            let read = limited.client().read(file.nodeid, open.fh, 0, 128 << 10).unwrap();
            assert_eq!(read.len(), 128 << 10);
        }
        // The first three are paid for before the fourth is served.
        assert!(start.elapsed() >= Duration::from_millis(350), "{:?}", start.elapsed());
        finish(limited);
    });
}

#[test]
fn a_queue_that_waits_holds_up_neither_control_messages_nor_the_high_priority_queue() {
    bounded(LIMIT, || {
        let share = Share::new();
        fs::write(share.path().join("file"), "x").unwrap();
        // INIT and LOOKUP are the burst; then there is one request a minute.
        let mut session = session(&share, &["--limit-ops=1/2"]);
        let file = session.client().lookup(ROOT, "file").unwrap();
        let queue = session.client().queue_mut();
        for _ in 0..8 {
            assert!(submit_getattr(queue));
        }
        queue.flush();
        let start = Instant::now();
        // FORGET is on the high-priority queue, which gives it back when it is served.
        session.client().forget(file.nodeid, 1);
        let bases = session.with_queues(|device, _| device.stop()).unwrap();
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        assert_eq!(bases[0], 1, "FORGET was served");
        assert!(bases[1] < 10, "{bases:?}: most of the requests were still waiting, and are not lost");
        // Started again, the device serves what is in the ring.
        session.with_queues(|device, queues| device.resume(queues, &bases)).unwrap();
        let queue = session.client().queue_mut();
        let done = queue.wait().unwrap();
        queue.put(done.slot);
    });
}

#[test]
fn handles_and_inodes_are_limited() {
    bounded(LIMIT, || {
        let share = Share::new();
        for name in ["a", "b", "c", "d"] {
            fs::write(share.path().join(name), "x").unwrap();
        }
        // The root counts.
        let mut session = session(&share, &["--max-inodes=3", "--max-handles=2"]);
        let client = session.client();
        let (a, b) = (client.lookup(ROOT, "a").unwrap(), client.lookup(ROOT, "b").unwrap());
        assert_eq!(client.lookup(ROOT, "c").unwrap_err(), Errno::ENFILE);
        assert_eq!(client.lookup(ROOT, "a").unwrap().nodeid, a.nodeid, "known ones can be looked up again");
        assert_eq!(client.mkdir(ROOT, "made", 0o755).unwrap_err(), Errno::ENFILE);
        assert!(!share.path().join("made").exists(), "refused before it was made");
        client.forget(b.nodeid, 1);
        wait_for(|| client.lookup(ROOT, "c").is_ok());

        let open: Vec<_> = (0..2).map(|_| client.open(a.nodeid, libc::O_RDONLY).unwrap()).collect();
        assert_eq!(client.open(a.nodeid, libc::O_RDONLY).unwrap_err(), Errno::ENFILE);
        assert_eq!(client.opendir(ROOT).unwrap_err(), Errno::ENFILE);
        client.release(a.nodeid, open[0].fh).unwrap();
        let directory = client.opendir(ROOT).unwrap();
        // A listing has what cannot be looked up, too, as names only.
        assert_eq!(client.list_names(ROOT, directory.fh), ["a", "b", "c", "d"]);
        finish(session);
    });
}

/// Asks again until it is so.
fn wait_for(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE);
    }
}

trait Names {
    fn list_names(&mut self, node: u64, fh: u64) -> Vec<String>;
}

impl Names for Client {
    fn list_names(&mut self, node: u64, fh: u64) -> Vec<String> {
        let entries = self.readdirplus(node, fh, 0, 65536).unwrap();
        let names = entries.into_iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }
}

/// Requests a second at one request at a time, for a while.
fn throughput(client: &mut Client, time: Duration) -> f64 {
    let start = Instant::now();
    let mut served = 0.0;
    while start.elapsed() < time {
        client.getattr(ROOT, None).unwrap();
        served += 1.0;
    }
    served / start.elapsed().as_secs_f64()
}

/// What a tenant keeps of its throughput beside one that floods its device, at least.
const KEPT: f64 = 0.4;
/// Rounds alone and beside the flood, half a second each.
const ROUNDS_MIN: usize = 5;
const ROUNDS_MAX: usize = 21;

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[test]
fn a_tenant_that_floods_its_device_leaves_others_their_share() {
    bounded(LIMIT, || {
        let (share_a, share_b) = (Share::new(), Share::new());
        let mut a = session(&share_a, &["--worker-ids=shifted:1000000:65536"]);
        let mut b = session(&share_b, &["--worker-ids=shifted:2000000:65536"]);
        let round = Duration::from_millis(250);
        let (mut alone, mut beside, mut flooded) = (Vec::new(), Vec::new(), 0);
        // Other work of the machine disturbs a round; medians of more rounds are asked when it was too many.
        let mut kept = 0.0;
        for rounds in 1..=ROUNDS_MAX {
            alone.push(throughput(b.client(), round));
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                let flooding = scope.spawn(|| flood(a.client().queue_mut(), &stop));
                beside.push(throughput(b.client(), round));
                stop.store(true, Ordering::Relaxed);
                flooded += flooding.join().unwrap();
            });
            kept = median(&mut beside) / median(&mut alone);
            if rounds >= ROUNDS_MIN && kept >= KEPT {
                break;
            }
        }
        let (alone, beside) = (median(&mut alone), median(&mut beside));
        let figures =
            format!("alone {alone:.0}/s, beside a flood of {flooded} requests {beside:.0}/s: {kept:.2}");
        println!("{figures}");
        assert!(flooded > 1000, "{flooded}: no flood");
        assert!(kept >= KEPT, "{figures}");
        finish(a);
        finish(b);
    });
}

/// Whether a command succeeds as this user of the host, without any privilege.
fn succeeds_as(id: u32, command: &[&str]) -> bool {
    let id = id.to_string();
    let status = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--bounding-set=-all", "--"])
        .args(command)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.expect("setpriv of util-linux starts").success()
}

#[test]
fn tenants_with_ranges_of_their_own_can_neither_see_nor_signal_each_other() {
    bounded(LIMIT, || {
        let (share_a, share_b) = (Share::new(), Share::new());
        let (base_a, base_b) = (1_000_000, 2_000_000);
        let a = session(&share_a, &["--worker-ids=shifted:1000000:65536"]);
        let b = session(&share_b, &["--worker-ids=shifted:2000000:65536"]);
        let worker = |session: &Session| session.daemon.worker();
        let (worker_a, worker_b) = (worker(&a), worker(&b));
        for (pid, base) in [(worker_a, base_a), (worker_b, base_b)] {
            assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), base);
            let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
            let map: Vec<u32> = map.split_whitespace().map(|number| number.parse().unwrap()).collect();
            assert_eq!(map, [0, base, 65_536]);
        }
        let pid_b = worker_b.to_string();
        let kill = ["sh", "-c", "kill -0 \"$0\"", pid_b.as_str()];
        // The command works where it is allowed to.
        assert!(Command::new(kill[0]).args(&kill[1..]).status().unwrap().success());
        assert!(!succeeds_as(base_a, &kill), "a signal from the other range");
        for file in ["mem", "environ", "fd", "root", "cwd", "ns/user"] {
            let path = format!("/proc/{worker_b}/{file}");
            let read = ["sh", "-c", "ls -l \"$0/\" || head -c1 \"$0\" || readlink \"$0\"", path.as_str()];
            assert!(!succeeds_as(base_a, &read), "{path}");
        }
        // In the other worker's own namespaces there is nobody to name.
        let inside = ["-t", &worker_a.to_string(), "-U", "-p", "--", "sh", "-c", "kill -0 \"$0\"", &pid_b]
            .map(str::to_owned);
        let inside = Command::new("nsenter").args(inside).stderr(Stdio::null()).status();
        assert!(!inside.expect("nsenter of util-linux starts").success());
        for name in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
            let of = |pid: i32| fs::read_link(Path::new("/proc").join(pid.to_string()).join("ns").join(name));
            assert_ne!(of(worker_a).unwrap(), of(worker_b).unwrap(), "{name}");
        }
        finish(a);
        finish(b);
    });
}
