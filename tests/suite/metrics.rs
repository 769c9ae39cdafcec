//! Counters, the process that shows them, and `virtiofsd stat`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::bench::tree::ProcessTree;
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::frontend::DeviceConfig;
use tests::fuse::wire::{self, ROOT, opcode};
use tests::fuse::{Client, Session};
use tests::peers::Implementation;
use tests::program::program;
use tests::share::{Share, TempDir};
use zerocopy::{FromBytes, IntoBytes};

const LIMIT: Duration = Duration::from_secs(60);

/// A daemon with a metrics socket, and a guest.
struct Watched {
    session: Session,
    socket: PathBuf,
    _directory: TempDir,
}

impl Watched {
    fn start(share: &Share, options: &[&str]) -> Watched {
        let directory = TempDir::short();
        let socket = directory.path().join("metrics");
        let command = DaemonCommand::serving(&Implementation::Ours, share.path())
            .args(options)
            .args([Path::new("--metrics-socket"), &socket]);
        let session = Session::start(command, DeviceConfig::default());
        Watched { session, socket, _directory: directory }
    }

    /// Status line and body.
    fn get(&self, request: &str) -> (String, String) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    fn metrics(&self) -> String {
        let (status, body) = self.get("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(status, "HTTP/1.0 200 OK");
        body
    }

    fn exporter(&self) -> i32 {
        let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let pids = self.session.daemon.descendants();
        pids.into_iter().find(|pid| name(pid).starts_with("virtiofsd-exporter")).expect("an exporter")
    }
}

/// Reads OpenMetrics text as strictly as its specification (1.0) has it, as far as our kinds of metrics go: samples
/// by name with labels.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    let (mut family, mut kind) = (String::new(), String::new());
    let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name, rest) =
                (words.next().unwrap(), words.next().unwrap(), words.next().expect("three words"));
            if name != family {
                assert!(families.insert(name.to_owned()), "{name} comes in two pieces");
                (family, kind) = (name.to_owned(), String::new());
            }
            match what {
                "HELP" => {}
                "TYPE" => kind = rest.to_owned(),
                "UNIT" => assert!(family.ends_with(&format!("_{rest}")), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a name and a value");
        let name = series.split('{').next().unwrap();
        let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} is not of {family}"));
        let allowed: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_sum", "_count", "_bucket"],
            other => panic!("{family} has the type {other:?}"),
        };
        assert!(allowed.contains(&suffix), "{line}: a {kind}");
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{line}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(value >= 0.0 && samples.insert(series.to_owned(), value).is_none(), "{line}");
    }
    samples
}

/// Each histogram's buckets grow and end at +Inf with the count.
fn check_histogram(samples: &BTreeMap<String, f64>, op: &str) {
    let labels = format!(",op=\"{op}\"}}");
    let prefix = "virtiofsd_duration_seconds_bucket{le=\"";
    let mut buckets: Vec<(f64, f64)> = samples
        .iter()
        .filter_map(|(name, value)| {
            let bound = name.strip_prefix(prefix)?.strip_suffix(&labels)?.trim_end_matches('"');
            Some((bound.replace("+Inf", "inf").parse().unwrap(), *value))
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert_eq!(buckets.len(), 25, "{op}");
    assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{op}: {buckets:?}");
    let (last, count) = *buckets.last().unwrap();
    assert!(last.is_infinite());
    assert_eq!(Some(&count), samples.get(&format!("virtiofsd_duration_seconds_count{{op=\"{op}\"}}")));
}

#[test]
fn what_the_guest_does_is_counted() {
    bounded(LIMIT, || {
        let share = Share::new();
        fs::write(share.path().join("file"), vec![7; 10_000]).unwrap();
        let mut watched = Watched::start(&share, &[]);
        let client = watched.session.client();
        for _ in 0..40 {
            client.getattr(ROOT, None).unwrap();
        }
        client.lookup(ROOT, "missing").unwrap_err();
        let file = client.lookup(ROOT, "file").unwrap();
        let open = client.open(file.nodeid, libc::O_RDONLY).unwrap();
        assert_eq!(client.read(file.nodeid, open.fh, 0, 6000).unwrap().len(), 6000);
        // The numbers of the device as a whole are written once the queue is empty, after the reply.
        let mut samples = parse(&watched.metrics());
        for _ in 0..1000 {
            if samples["virtiofsd_handles"] == 1.0 {
                break;
            }
            watched.session.client().statfs(ROOT).unwrap();
            samples = parse(&watched.metrics());
        }
        let sample = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("{name} in {samples:#?}"));
        assert_eq!(sample("virtiofsd_requests_total{op=\"GETATTR\"}"), 40.0);
        // The first and the 33rd.
        assert_eq!(sample("virtiofsd_duration_seconds_count{op=\"GETATTR\"}"), 2.0);
        assert_eq!(sample("virtiofsd_requests_total{op=\"LOOKUP\"}"), 2.0);
        assert_eq!(sample("virtiofsd_errors_total{op=\"LOOKUP\"}"), 1.0);
        assert_eq!(sample("virtiofsd_data_bytes_total{op=\"READ\"}"), 6000.0);
        assert_eq!(sample("virtiofsd_inodes"), 2.0);
        assert_eq!(sample("virtiofsd_handles"), 1.0);
        assert_eq!(sample("virtiofsd_broker_requests_total{kind=\"Attached\"}"), 1.0);
        check_histogram(&samples, "GETATTR");
        let broker = watched.session.daemon.pid().to_string();
        for target in [watched.socket.to_str().unwrap(), &broker] {
            let output = Command::new(Implementation::Ours.binary()).args(["stat", target]).output().unwrap();
            let table = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(table.contains("inodes 2 ("), "{table}");
            let row = table.lines().find(|line| line.starts_with("GETATTR")).expect("a row");
            assert_eq!(row.split_whitespace().nth(1), Some("40"));
        }
        let (status, stderr) = watched.session.finish();
        assert!(status.success(), "{status}\n{stderr}");
        assert!(!watched.socket.exists(), "the socket is removed at the end");
    });
}

/// Reads a file with the Prometheus project's own parser of OpenMetrics, which others use to scrape, and prints
/// the samples.
const OTHERS_PARSER: &str = "
import sys
from prometheus_client.openmetrics.parser import text_fd_to_metric_families
for family in text_fd_to_metric_families(open(sys.argv[1], encoding='utf-8')):
    for sample in family.samples:
        print(family.name, family.type, sample.name, sample.labels.get('op', '-'), float(sample.value))
";

#[test]
fn what_curl_gets_parses_as_openmetrics() {
    bounded(LIMIT, || {
        let share = Share::new();
        let mut watched = Watched::start(&share, &["--limit-ops=100000"]);
        for _ in 0..20 {
            watched.session.client().getattr(ROOT, None).unwrap();
        }
        let got = TempDir::short();
        let file = got.path().join("metrics");
        let kind = program("curl", "curl")
            .args(["--silent", "--show-error", "--fail", "-m10", "-w%{content_type}"])
            .args(["--unix-socket".as_ref(), watched.socket.as_os_str()])
            .args(["--output".as_ref(), file.as_os_str()])
            .args(["http://localhost/metrics"])
            .succeed();
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
        // Debian's own python, for which the package has it.
        let read = |path: &Path| {
            program("/usr/bin/python3", "python3-prometheus-client").args(["-c", OTHERS_PARSER]).arg(path)
        };
        let samples = read(&file).succeed();
        let own = parse(&fs::read_to_string(&file).unwrap());
        assert_eq!(samples.lines().count(), own.len(), "both parsers see the same samples");
        for line in [
            "virtiofsd_requests counter virtiofsd_requests_total GETATTR 20.0",
            "virtiofsd_duration_seconds histogram virtiofsd_duration_seconds_count GETATTR 1.0",
        ] {
            assert!(samples.lines().any(|sample| sample == line), "{line}\n{samples}");
        }
        // It refuses what is cut off.
        fs::write(&file, fs::read_to_string(&file).unwrap().trim_end_matches("# EOF\n")).unwrap();
        assert!(!read(&file).run().status.success());
    });
}

#[test]
fn a_bad_or_slow_client_holds_up_nobody() {
    bounded(LIMIT, || {
        let share = Share::new();
        let watched = Watched::start(&share, &[]);
        let mut slow: Vec<UnixStream> =
            (0..15).map(|_| UnixStream::connect(&watched.socket).unwrap()).collect();
        for stream in &mut slow {
            stream.write_all(b"GET /metr").unwrap();
        }
        parse(&watched.metrics());
        assert_eq!(watched.get("POST /metrics HTTP/1.0\r\n\r\n").0, "HTTP/1.0 405 Method Not Allowed");
        assert_eq!(watched.get("GET /../etc/passwd HTTP/1.0\r\n\r\n").0, "HTTP/1.0 404 Not Found");
        assert_eq!(watched.get("\u{0}\r\n\r\n").0, "HTTP/1.0 400 Bad Request");
        assert!(watched.get(&"x".repeat(4096)).0.starts_with("HTTP/1.0 431 "));
        slow.push(UnixStream::connect(&watched.socket).unwrap());
        // With all places taken, a client waits until the slow ones' time is over.
        parse(&watched.metrics());
    });
}

#[test]
fn the_exporter_has_no_privilege_and_may_die() {
    bounded(LIMIT, || {
        let share = Share::new();
        let mut watched = Watched::start(&share, &[]);
        parse(&watched.metrics());
        let pid = watched.exporter();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.trim_start_matches(':').split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!((field("NoNewPrivs")[0].as_str(), field("Seccomp")[0].as_str()), ("1", "2"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set)[0], "0000000000000000", "{set}");
        }
        assert!(!field("Uid").contains(&"0".to_owned()), "{:?}", field("Uid"));
        let fds: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
            .filter(|link| link != "/dev/null" && !link.starts_with("socket:"))
            .collect();
        assert!(fds.is_empty(), "{fds:?}");
        assert_eq!(fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(), 0, "an empty root");

        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        let start = Instant::now();
        while !watched.session.daemon.stderr().contains("the process that shows metrics") {
            assert!(start.elapsed() < PATIENCE, "{}", watched.session.daemon.stderr());
            watched.session.client().getattr(ROOT, None).unwrap();
        }
        let (status, stderr) = watched.session.finish();
        assert!(status.success(), "{status}\n{stderr}");
    });
}

/// Requests that the daemon finds in the queue at the same time.
const DEPTH: usize = 16;

/// GETATTR of these nodes, several at a time.
fn use_together(client: &mut Client, nodes: &[u64]) {
    for some in nodes.chunks(DEPTH) {
        let (body, room) = (wire::GetAttrIn::default(), size_of::<wire::AttrOut>());
        for node in some {
            client.enqueue(opcode::GETATTR, *node, body.as_bytes(), room);
        }
        client.queue_mut().flush();
        some.iter().for_each(|_| drop(client.collect_body().1.unwrap()));
    }
}

/// How often the broker was asked to open inodes.
fn reopened(watched: &Watched) -> usize {
    asked(watched, "Reopen")
}

/// How often the broker was asked for this.
fn asked(watched: &Watched, kind: &str) -> usize {
    // A queue's thread tells before it sleeps, which is after the last reply.
    ProcessTree::of(&watched.session.daemon).and_then(|tree| tree.settle()).unwrap();
    let samples = parse(&watched.metrics());
    let name = format!("virtiofsd_broker_requests_total{{kind=\"{kind}\"}}");
    samples.get(&name).copied().unwrap_or(0.0) as usize
}

/// A guest that has looked up so many files, named and filled with their numbers: more than there can be fds for.
fn with_many_known(files: usize, test: impl FnOnce(&mut Watched, &[u64]) + Send) {
    bounded(LIMIT, || {
        let share = Share::in_memory();
        for file in 0..files {
            share.write(file.to_string(), file.to_string());
        }
        let mut watched = Watched::start(&share, &["--rlimit-nofile=512"]);
        let nodes = look_up(&mut watched, files);
        test(&mut watched, &nodes);
        assert!(watched.session.finish().0.success());
    });
}

/// LOOKUP of each of these files.
fn look_up(watched: &mut Watched, files: usize) -> Vec<u64> {
    let client = watched.session.client();
    (0..files).map(|file| client.lookup(ROOT, file.to_string()).unwrap().nodeid).collect()
}

/// Inodes without an fd get theirs together: those of the requests that are in the queue, and those that come next where
/// somebody goes through them in order. Each costs the broker a request otherwise.
#[test]
fn cold_inodes_are_opened_together() {
    const FILES: usize = 2000;
    with_many_known(FILES, |watched, nodes| {
        let at_first = reopened(watched);
        // One after another, in order.
        let client = watched.session.client();
        for (file, node) in nodes.iter().enumerate() {
            assert_eq!(client.getattr(*node, None).unwrap().attr.size, file.to_string().len() as u64);
        }
        let in_order = reopened(watched);
        // Several at a time, all over.
        let order: Vec<u64> = (0..FILES).map(|n| nodes[n * 771 % FILES]).collect();
        use_together(watched.session.client(), &order);
        let all_over = reopened(watched);
        let (in_order, all_over) = (in_order - at_first, all_over - in_order);
        assert!((1..FILES / 16).contains(&in_order), "{in_order} requests for {FILES} inodes in order");
        assert!((1..FILES / 2).contains(&all_over), "{all_over} requests for {FILES} inodes all over");
    });
}

/// A guest that goes through everything once does not push out what it uses all the time.
#[test]
fn a_look_at_everything_leaves_what_is_used_often() {
    const FILES: usize = 2000;
    with_many_known(FILES, |watched, nodes| {
        let (often, once) = nodes.split_at(2 * DEPTH);
        let mut asked = |nodes: &[u64]| {
            let before = reopened(watched);
            use_together(watched.session.client(), nodes);
            reopened(watched) - before
        };
        assert!(asked(often) > 0, "they were looked up first, and pushed out by the others");
        assert!(asked(often) > 0, "they were used once, for which none is kept");
        assert_eq!(asked(often), 0, "they were used twice within a short time");
        let all_over: Vec<u64> = (0..once.len()).map(|n| once[n * 771 % once.len()]).collect();
        assert!(asked(&all_over) > once.len() / DEPTH / 2);
        assert_eq!(asked(often), 0, "none of the others was used twice");
    });
}

/// Whether a name still leads to a cold inode, the inode's handle tells: without the broker, and the inode stays cold.
#[test]
fn what_is_listed_again_stays_cold() {
    const FILES: usize = 1000;
    with_many_known(FILES, |watched, nodes| {
        let before = ["Seal", "Reopen"].map(|kind| asked(watched, kind));
        assert!(before[0] > 0, "they are more than can be hot");
        let client = watched.session.client();
        let fh = client.opendir(ROOT).unwrap().fh;
        let (mut offset, mut seen) = (0, 0);
        loop {
            let entries = client.readdirplus(ROOT, fh, offset, 4096).unwrap();
            let Some(last) = entries.last() else { break };
            offset = last.offset;
            for entry in entries.iter().filter(|entry| entry.name != b"." && entry.name != b"..") {
                let name = std::str::from_utf8(&entry.name).unwrap();
                let found = entry.entry.as_ref().unwrap();
                let node = nodes[name.parse::<usize>().unwrap()];
                assert_eq!((found.nodeid, found.attr.size), (node, name.len() as u64), "{name}");
                seen += 1;
            }
        }
        assert_eq!(seen, FILES);
        assert_eq!(["Seal", "Reopen"].map(|kind| asked(watched, kind)), before);
        // Both references count: one given up, the other holds.
        let client = watched.session.client();
        for node in nodes {
            client.forget(*node, 1);
        }
        assert_eq!(client.getattr(nodes[999], None).unwrap().attr.size, 3);
    });
}

/// Has a node an fd, after so many others were looked up (and were forgotten again)?
fn is_hot_after_others(watched: &mut Watched, node: u64, others: usize) -> bool {
    let others = look_up(watched, others);
    let before = reopened(watched);
    let client = watched.session.client();
    client.getattr(node, None).unwrap();
    others.into_iter().for_each(|other| client.forget(other, 1));
    reopened(watched) == before
}

/// A file without a name keeps its fd, for what has none can't be found again. From when it has one it is like others.
#[test]
fn a_file_that_gets_its_name_late_gives_up_its_fd_like_others() {
    const FILES: usize = 1000;
    bounded(LIMIT, || {
        let share = Share::in_memory();
        for file in 0..FILES {
            share.write(file.to_string(), "");
        }
        let mut watched = Watched::start(&share, &["--rlimit-nofile=512"]);
        let client = watched.session.client();
        let flags = (libc::O_TMPFILE | libc::O_RDWR).cast_unsigned();
        let request = wire::CreateIn { flags, mode: 0o600, umask: 0, open_flags: 0 };
        let reply = wire::OUT_HEADER + size_of::<wire::CreateOut>();
        let made = client.raw(opcode::TMPFILE, ROOT, &[request.as_bytes(), b"/\0"].concat(), reply).unwrap();
        let made = wire::CreateOut::read_from_bytes(&made).unwrap();
        let node = made.entry.nodeid;
        client.release(node, made.open.fh).unwrap();
        assert!(is_hot_after_others(&mut watched, node, FILES));
        assert!(is_hot_after_others(&mut watched, node, FILES));
        watched.session.client().link(node, ROOT, "named").unwrap();
        assert!(!is_hot_after_others(&mut watched, node, FILES));
        assert!(watched.session.finish().0.success());
    });
}

#[test]
fn what_cannot_be_asked_is_told() {
    let stat = |args: &[&str]| {
        let output = Command::new(Implementation::Ours.binary()).arg("stat").args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, complaint) = stat(&["/nowhere"]);
    assert!(status == Some(1) && complaint.contains("/nowhere") && complaint.contains("--metrics-socket"));
    let own = std::process::id().to_string();
    let (status, complaint) = stat(&[&own]);
    assert!(status == Some(1) && complaint.contains(&own), "{complaint}");
    assert_eq!(stat(&[]).0, Some(2));
    assert_eq!(stat(&["--bogus"]).0, Some(2));
}
